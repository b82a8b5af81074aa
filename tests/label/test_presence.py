"""Labels of images that do not show an object, and negatives, in every format."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fss_d2.label.check import check_supports, describe
from fss_d2.label.job import Job, run_job
from fss_d2.label.negatives import as_pairs, read_negatives
from fss_d2.label.supports import Support, read_supports
from tests.label.fakes import ColourPredictor, annotated_folder, disc, image_folder, picture, save

NAMES = [f"photo {i:03}.png" for i in range(6)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two supports of each class; six images: nothing, red twice, red and blue three times."""
    annotated_folder(tmp_path / "supports", ("red", "blue"))
    image_folder(tmp_path / "images", 6)
    save(tmp_path / "without/plain.png", picture({"red": disc((40, 50), (20, 20), 9)}))
    return tmp_path


def run(place: Path, predictor: ColourPredictor, negatives: list[str], **options: Any) -> dict[str, Any]:
    supports = read_supports(place / "supports")
    todo = Job(place / "images", options.pop("output", place / "out"), **options)
    return run_job(todo, predictor, supports, {"weights": "w"}, read_negatives(negatives, supports))


def test_a_class_that_is_absent_gets_no_label_in_any_format(place: Path) -> None:
    """A negative halves the presence of red, which is then below the limit in every image."""
    predictor = ColourPredictor(present_above=0.6)
    summary = run(place, predictor, [f"red={place / 'without'}"], min_area=4)
    assert summary["with_class"] == {"blue": 3, "red": 0}
    assert summary["without_class"] == {"blue": 3, "red": 6}
    assert summary["nothing_found"] == 3 and summary["nothing_found_in"] == NAMES[:3]
    # Red: 1 - 0.5 where a red disc is, 1 - 0 in the first image.
    assert summary["doubtful"] == {"blue": 0, "red": 5} and summary["needs_review"] == 5
    out = place / "out"
    coco = json.loads((out / "coco/annotations.json").read_bytes())
    assert [image["file_name"] for image in coco["images"]] == NAMES
    assert sorted({a["image_id"] for a in coco["annotations"]}) == [4, 5, 6]
    assert {a["category_id"] for a in coco["annotations"]} == {1}
    assert coco["images"][3]["presence"] == {
        "blue": pytest.approx(1, abs=0.1),
        "red": pytest.approx(0.5, abs=0.1),
    }
    listed = (out / "yolo/images.txt").read_text().splitlines()
    assert listed == [f"./images/{name}" for name in NAMES]
    assert yaml.safe_load((out / "yolo/data.yaml").read_text())["names"] == {0: "blue", 1: "red"}
    for number, name in enumerate(NAMES):
        stem = name.removesuffix(".png")
        blue = disc((40, 50), (20, 36), 5) if number >= 3 else np.zeros((40, 50), bool)
        class_map = np.asarray(Image.open(out / f"png/{stem}.png"))
        np.testing.assert_array_equal(class_map, blue.astype(np.uint8))
        lines = (out / f"yolo/labels/{stem}.txt").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["0"] * (number >= 3)  # an empty file otherwise
        shapes = json.loads((out / f"labelme/{stem}.json").read_bytes())["shapes"]
        assert [shape["label"] for shape in shapes] == ["blue"] * (number >= 3)


def test_the_report_says_what_shows_nothing_and_what_is_doubtful(place: Path) -> None:
    run(place, ColourPredictor(present_above=0.6), [f"red={place / 'without'}"], min_area=4)
    page = (place / "out/report.html").read_text()
    assert "<p>blue: found in 3 images, not in 3; 0 doubtful</p>" in page
    assert "<p>red: found in 0 images, not in 6; 5 doubtful</p>" in page
    shown = r"<br>0\.5\d: nothing found<br>present: blue 0\.00, red 0\.4\d</figcaption>"
    assert len(re.findall(shown, page)) == 2
    assert page.count('class="nothing"') == 1 and page.count('class="review"') == 5
    assert "by the others, 0 and 1 more does not show it" in re.sub(r"red/", "", page)
    rows = json.loads((place / "out/needs_review.json").read_bytes())
    assert rows[0]["presence"].keys() == {"blue", "red"} and rows[0]["expected_iou"] == pytest.approx(
        0.5, abs=0.05
    )


def test_the_limit_zero_labels_every_image(place: Path) -> None:
    summary = run(place, ColourPredictor(), [f"red={place / 'without'}"], min_area=4)
    assert summary["with_class"] == {"blue": 3, "red": 5}
    # A mask of an object that is there with a probability of 0.5 is doubtful, however good it would be.
    assert summary["doubtful"]["red"] == 5


@pytest.mark.parametrize("what", ["negatives", "present_above"])
def test_a_job_with_another_decision_is_another_job(place: Path, what: str) -> None:
    run(place, ColourPredictor(present_above=0.6), [])
    given = [str(place / "without")] if what == "negatives" else []
    limit = 0.6 if what == "negatives" else 0.3
    with pytest.raises(ValueError, match=rf"other settings \({what}\): give the same again"):
        run(place, ColourPredictor(present_above=limit), given)
    predictor = ColourPredictor(present_above=0.6)
    run(place, predictor, [])
    assert predictor.predicted == 0


def test_supports_that_are_judged_absent_do_not_shift_the_estimates() -> None:
    mask = disc((40, 50), (18, 20), 8)
    supports = [Support(f"s{i}", (), picture({"red": mask}, seed=i), mask.astype(np.uint8)) for i in range(3)]
    against = {"red": [(supports[0].image, supports[0].mask)]}
    predictor = ColourPredictor(present_above=0.6)
    (check,) = check_supports(predictor, {"red": supports}, negatives=against)
    assert [s.absent for s in check.supports] == [True] * 3 and check.shift == 0.0
    assert [s.iou for s in check.supports] == [0.0] * 3
    said = "red: by the others, s0 and 2 more does not show it; look, or lower the limit (--present-above)"
    assert said in describe([check])
    (trusting,) = check_supports(ColourPredictor(), {"red": supports}, negatives=against)
    assert not any(s.absent for s in trusting.supports) and trusting.expected_iou == 1.0


def test_negatives_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, region = picture({}, seed=1), disc((40, 50), (10, 10), 5)
    for name in ("a.png", "sub/b.png", "x=y.png"):
        save(tmp_path / "without" / name, image)
    save(tmp_path / "without/a_mask.png", region.astype(np.uint8) * 255)
    (tmp_path / "without/c.heic").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    found = read_negatives(["without", "red=without/sub", "without/x=y.png"], ["red", "blue"])
    assert {key: [one.name for one in many] for key, many in found.items()} == {
        "": ["a.png", "b.png", "x=y.png", "x=y.png"],
        "red": ["b.png"],
    }
    np.testing.assert_array_equal(found[""][0].mask, region)
    assert found["red"][0].mask.all() and found["red"][0].mask.shape == (40, 50)
    np.testing.assert_array_equal(found["red"][0].image, image)
    assert as_pairs(found)["red"] == [(found["red"][0].image, found["red"][0].mask)]


def test_negatives_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="--negative empty holds no picture: give some that do not show"):
        read_negatives(["red=empty"], ["red"])
    with pytest.raises(FileNotFoundError, match="--negative gone does not exist; give a picture or folder"):
        read_negatives(["red=gone"], ["red"])
    with pytest.raises(FileNotFoundError, match=r"does not exist; there is no class rad either \(red\)"):
        read_negatives(["rad=empty"], ["red"])
    with pytest.raises(ValueError, match=r"image file text\.png cannot be read"):
        read_negatives(["text.png"], ["red"])
