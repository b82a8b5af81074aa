"""The page in a real browser, without a screen: from a painted object to the zip file."""

import io
import json
import os
import shutil
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra app")
pytest.importorskip("selenium", reason="needs selenium")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not BROWSER or not DRIVER, reason="needs chromium and chromedriver on the path"
)

from selenium import webdriver  # noqa: E402
from selenium.webdriver import Keys  # noqa: E402

from fss_d2.app.uploads import Limits  # noqa: E402
from fss_d2.visualization import class_color  # noqa: E402
from tests.app.browser import Screen  # noqa: E402
from tests.app.pages import disc, disc_mask, page, save  # noqa: E402
from tests.inference.predictors import overlap  # noqa: E402


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    flags = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,2000")
    for flag in (*flags, "--enable-unsafe-swiftshader"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with page("Prototype", "DCAMA", limits=Limits()) as address:
        yield address


@pytest.fixture
def screen(browser: webdriver.Chrome, url: str) -> Screen:
    screen = Screen(browser)
    screen.open(url)
    return screen


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    places = {"left": (40, 40), "top": (60, 30), "query": (75, 50), "other": (30, 60)}
    return {name: save(tmp_path / f"{name}.png", disc(*place)) for name, place in places.items()}


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("FSS_D2_ARTIFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def marked(screen: Screen, number: int, plain: np.ndarray) -> np.ndarray:
    """Where the mask of a support, shown without it in ``plain``, is drawn: (90, 120) bool."""
    shown = screen.picture(f"#supports button:nth-of-type({number}) img")
    return np.abs(shown.astype(int) - plain).max(axis=2) > 50


def download(address: str) -> zipfile.ZipFile:
    with urllib.request.urlopen(address, timeout=30) as answer:
        return zipfile.ZipFile(io.BytesIO(answer.read()))


def test_from_a_painted_object_to_the_zip_file(
    screen: Screen, pictures: dict[str, str], artifacts: Path
) -> None:
    screen.give("support-upload", pictures["left"], pictures["top"])
    screen.wait_for_text("#status", "Picture 1 of 2, left.png, is not marked yet; 0 marked in all.")
    screen.paint((40, 40), (120, 90))  # the brush is about as large as the disc
    screen.click("#use-paint")
    screen.wait_for_text("#status", "Picture 2 of 2, top.png, is not marked yet; 1 marked in all.")
    found = marked(screen, 1, disc(40, 40))
    assert overlap(found, disc_mask(40, 40)) > 0.85
    half = (disc(40, 40)[40, 40] + 255 * np.array(class_color(0))) / 2  # paint lets the picture through
    np.testing.assert_allclose(screen.picture("#supports img")[40, 40], half, atol=8)

    screen.give("query-upload", pictures["query"], pictures["other"])
    screen.wait_for("#queries img")
    assert screen.areas() == []
    screen.click("#find")
    screen.wait_until(lambda: len(screen.areas()) == 2)
    areas = screen.areas()
    for area in areas:
        assert abs(area - disc_mask(75, 50).sum()) < 0.25 * area
    screen.set_number("threshold", "0.8")
    screen.wait_until(lambda: screen.areas() != areas)
    fewer = screen.areas()
    assert 0 < fewer[0] < areas[0]

    screen.click("#chosen img")
    assert "Prototype cannot show where a pixel looks" in screen.wait_for("#said").text
    screen.click("#pack")
    archive = download(screen.wait_for("#zip a[href*='masks.zip']").get_attribute("href"))
    labels = np.asarray(Image.open(io.BytesIO(archive.read("mask/query.png"))))
    assert labels.shape == (90, 120) and (labels == 1).sum() == fewer[0]
    assert overlap(labels == 1, disc_mask(75, 50)) > 0.75
    assert (
        overlap(np.asarray(Image.open(io.BytesIO(archive.read("mask/other.png")))) == 1, disc_mask(30, 60))
        > 0.75
    )
    assert {"overlay/query.jpg", "overlay/other.jpg", "needs_review.txt"} <= set(archive.namelist())
    content = json.loads(archive.read("coco/annotations.json"))
    assert [image["file_name"] for image in content["images"]] == ["query.png", "other.png"]
    parts = [a["segmentation"] for a in content["annotations"] if a["image_id"] == 1]
    np.testing.assert_array_equal(coco_mask.decode(parts).any(axis=2), labels == 1)
    screen.save(artifacts / "app.png")


def test_a_picture_without_the_object(
    browser: webdriver.Chrome, pictures: dict[str, str], tmp_path: Path, artifacts: Path
) -> None:
    with page("Prototype", limits=Limits(), less_sure=9) as address:
        screen = Screen(browser)
        screen.open(address)
        give_negatives(screen, pictures, tmp_path, artifacts)


def give_negatives(screen: Screen, pictures: dict[str, str], folder: Path, artifacts: Path) -> None:
    screen.give("support-upload", pictures["left"])
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is not marked yet; 0 marked in all.")
    screen.paint((40, 40), (120, 90))
    screen.click("#use-paint")
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is marked; 1 marked in all.")
    screen.give("support-upload", save(folder / "dark.png", np.full((90, 120, 3), 20, np.uint8)))
    screen.wait_for_text("#status", "Picture 2 of 2, dark.png, is not marked yet; 1 marked in all.")
    screen.click("#absent")
    without = "is marked where it does not show object; 2 marked in all."
    screen.wait_for_text("#status", f"Picture 2 of 2, dark.png, {without}")
    assert screen.text("#supports .gallery-item:nth-child(2)") == "✗ not object"
    screen.give("query-upload", pictures["query"])
    screen.wait_for("#queries img")
    screen.click("#find")
    screen.wait_until(lambda: len(screen.areas()) == 1 and screen.areas()[0] > 0)
    screen.set_number("present-above", "0.99")
    screen.wait_until(lambda: screen.areas() == [0])
    assert "nothing found; probability that it is there: object 0." in screen.text("#state")
    screen.save(artifacts / "app_absent.png")
    screen.set_number("present-above", "0")
    screen.wait_until(lambda: screen.areas()[0] > 0)

    # A picture in which a part is marked; then the part shows the object instead.
    screen.give("support-upload", pictures["top"])
    screen.wait_for_text("#status", "Picture 3 of 3, top.png, is not marked yet; 2 marked in all.")
    screen.click("#meaning label:nth-of-type(2)")
    screen.paint((60, 30), (120, 90))
    screen.click("#use-paint")
    screen.wait_until(lambda: screen.text("#supports .gallery-item:nth-child(3)") == "✗ not object")
    screen.click("#meaning label:nth-of-type(1)")
    screen.wait_until(lambda: screen.text("#supports .gallery-item:nth-child(3)") == "✓ object")


def test_box_of_two_clicks_and_attention(screen: Screen, pictures: dict[str, str], artifacts: Path) -> None:
    screen.give("support-upload", pictures["left"])
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is not marked yet; 0 marked in all.")
    screen.tab("Box")
    screen.click_pixel("#boxed img", (16, 16))
    screen.wait_for_text("#status", "Now click the opposite corner of the box.")
    screen.click_pixel("#boxed img", (64, 64))
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is marked; 1 marked in all.")
    box = np.zeros((90, 120), bool)
    box[16:65, 16:65] = True
    left = disc(40, 40)
    assert overlap(marked(screen, 1, left), box) > 0.9

    screen.tab("Paint")  # adds to the box, also after it was out of sight
    screen.paint((90, 60), (120, 90))
    screen.click("#use-paint")
    screen.wait_until(lambda: marked(screen, 1, left).sum() > 1.2 * box.sum())
    assert overlap(marked(screen, 1, left), box | disc_mask(90, 60)) > 0.85

    screen.choose("method", "DCAMA")
    screen.give("query-upload", pictures["query"])
    screen.wait_for("#queries img")
    screen.click("#find")
    screen.wait_until(lambda: len(screen.areas()) == 1)
    screen.click_pixel("#chosen img", (75, 50))
    attention = screen.picture("#attention img")
    assert attention.shape == (258, 644, 3)  # the query and one support
    ring = attention[18:, :320][(np.abs(attention[18:, :320].astype(int) - (255, 40, 40)) < 60).all(axis=2)]
    assert len(ring) > 10  # the point is marked
    screen.save(artifacts / "app_attention.png")

    screen.paint((20, 75), (120, 90))  # masks that were found without this go
    screen.click("#use-paint")
    screen.wait_until(lambda: screen.areas() == [])
    screen.wait_until(lambda: not screen.sees("#attention img"))


def test_masks_are_reviewed_with_keys(screen: Screen, pictures: dict[str, str], artifacts: Path) -> None:
    screen.give("support-upload", pictures["left"])
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is not marked yet; 0 marked in all.")
    screen.paint((40, 40), (120, 90))
    screen.click("#use-paint")
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is marked; 1 marked in all.")
    screen.give("query-upload", pictures["query"], pictures["other"], pictures["top"])
    screen.wait_for("#queries img")
    screen.press("a")
    assert "no masks of query.png yet" in screen.text("[data-testid=toast-body]")
    screen.click("#find")
    screen.wait_until(lambda: len(screen.areas()) == 3)
    areas = screen.areas()

    screen.press("f")  # the mask comes as paint
    screen.wait_for("#fixer canvas")
    orange = (disc(75, 50)[50, 75] + 255 * np.array(class_color(0))) / 2
    screen.wait_until(lambda: np.abs(screen.shot("#fixer canvas") - orange).max(axis=2).min() < 12)
    screen.paint((15, 45), (120, 90), "fixer", scale=6)  # another dot
    screen.press("s")
    screen.wait_until(lambda: "1 of 3 accepted" in screen.text("#state"))
    assert areas[0] + 20 < screen.areas()[0] < areas[0] + 300 and screen.areas()[1:] == areas[1:]
    assert "other.png" in screen.text("#state")
    screen.wait_until(lambda: not screen.sees("#fixer"))

    screen.press("f")
    screen.wait_for("#fixer canvas")
    screen.press(Keys.ESCAPE)
    screen.wait_until(lambda: not screen.sees("#fixer"))
    screen.press("a")
    screen.wait_until(lambda: "2 of 3 accepted" in screen.text("#state"))
    screen.press(Keys.ARROW_LEFT)
    screen.wait_until(lambda: screen.text("#state").startswith("other.png: accepted"))
    screen.press("r")
    screen.wait_until(lambda: "1 of 3 accepted" in screen.text("#state"))

    screen.tab("Compare with the picture")
    assert screen.wait_for("#compared img") is not None
    before = screen.text("#state")
    screen.click("#class-name textarea, #class-name input")
    screen.press("a")  # is a letter of a name here
    screen.click("#find")
    screen.wait_until(lambda: "1 of 3 accepted" in screen.text("#state"))
    assert screen.text("#state").replace("objecta", "object") == before  # the letter is in the name
    screen.save(artifacts / "app_compare.png")


def test_an_error_is_one_line(screen: Screen, pictures: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    screen.give("support-upload", str(tmp_path / "no.png"))
    toast = screen.wait_for("[data-testid=toast-body]").text
    assert "image file no.png cannot be read (cannot identify image file 'no.png'); replace it" in toast
    assert "Traceback" not in toast
    screen.give("support-upload", pictures["left"])  # the page goes on
    screen.wait_for_text("#status", "Picture 1 of 1, left.png, is not marked yet; 0 marked in all.")


def test_no_other_server_is_asked(screen: Screen, url: str) -> None:
    asked = {urlsplit(address).netloc for address in screen.requests() if address.startswith("http")}
    assert asked == {urlsplit(url).netloc}
    assert not [message for message in screen.errors() if "Content Security Policy" in message]
