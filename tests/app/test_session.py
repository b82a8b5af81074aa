"""A session without the page: supports, pictures, thresholds, attention."""

import copy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.app import session as session_module
from fss_d2.app.hints import Checked
from fss_d2.app.methods import MethodPool
from fss_d2.app.session import Session
from fss_d2.app.uploads import SupportList
from fss_d2.data.mask_values import UnclearMask
from fss_d2.inference.annotations import Box
from tests.app.pages import LIMITS, disc, disc_mask, make_pool, save
from tests.inference.predictors import overlap


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(make_pool("Prototype", "DCAMA"), LIMITS, tmp_path / "served")


def show(session: Session, folder: Path, *, x: int = 40, y: int = 40, name: str = "object") -> None:
    """Add a support with its exact mask."""
    session.supports.add([save(folder / f"{name}{x}.png", disc(x, y))])
    session.supports.name_class(name)
    session.supports.paint([layer(disc_mask(x, y))])


def layer(mask: np.ndarray) -> np.ndarray:
    return np.where(mask[:, :, None], np.uint8([9, 9, 9, 255]), np.uint8(0))


def ask(session: Session, folder: Path, *names: str) -> None:
    session.add_queries([save(folder / name, disc(75, 50)) for name in names])


def encodings(pool: MethodPool, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of supports in each call in which the Prototype encodes some."""
    calls: list[int] = []
    model = pool.predictor("Prototype").model
    encode = model.encode_support
    monkeypatch.setattr(model, "encode_support", lambda *a: (calls.append(len(a[0][0])), encode(*a))[1])
    return calls


def test_finds_the_disc(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    ask(session, tmp_path, "q.png")
    assert session.findings("Prototype", 0.5)[0].areas is None
    done: list[tuple[int, int, str]] = []
    session.find("Prototype", lambda *count: done.append(count))
    (finding,) = session.findings("Prototype", 0.5)
    assert done == [(0, 2, "Checking your examples"), (1, 2, "Searching q.png")]
    assert finding.name == "q.png" and finding.pixels == 90 * 120
    predictor = session.pool.predictor("Prototype")
    predictor.set_support(disc(40, 40), disc_mask(40, 40))
    expected = predictor.predict(disc(75, 50))
    assert finding.areas == {"object": expected.masks["object"].sum()}
    assert finding.expected == expected.expected_iou
    assert overlap(expected.masks["object"], disc_mask(75, 50)) > 0.85
    changed = (finding.picture != disc(75, 50)).any(axis=2)
    assert overlap(changed, disc_mask(75, 50)) > 0.7  # the mask with its contour


def test_supports_are_encoded_once(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = encodings(session.pool, monkeypatch)
    monkeypatch.setattr(session_module, "check_marks", lambda *a: Checked())  # encodes in its own way
    show(session, tmp_path)
    ask(session, tmp_path, "a.png")
    session.find("Prototype")
    ask(session, tmp_path, "b.png")
    session.find("Prototype")
    session.find("DCAMA")
    session.find("Prototype")
    assert calls == [1]
    show(session, tmp_path, x=60)
    assert session.findings("Prototype", 0.5)[0].areas is None  # of other supports
    session.find("Prototype")
    assert calls == [1, 1, 1]  # both, one by one


def test_a_threshold_needs_no_network(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    show(session, tmp_path)
    ask(session, tmp_path, "q.png")
    session.find("Prototype")
    monkeypatch.setattr(session.pool.predictor("Prototype").model, "segment", None)
    areas = [session.findings("Prototype", t)[0].areas["object"] for t in (0.3, 0.5, 0.8)]  # type: ignore[index]
    assert areas[0] > areas[1] > areas[2] > 0
    with pytest.raises(ValueError, match=r"threshold 1\.0: give a number from 0 to below 1"):
        session.findings("Prototype", 1.0)


def test_classes_compete(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path, name="sun")
    session.supports.add([save(tmp_path / "moon.png", disc(40, 40, color=(40, 60, 250)))])
    session.supports.name_class("moon")
    session.supports.paint([layer(disc_mask(40, 40))])
    ask(session, tmp_path, "q.png")
    session.find("Prototype")
    areas = session.findings("Prototype", 0.5)[0].areas or {}
    assert list(areas) == ["sun", "moon"] and areas["sun"] > 5 * areas["moon"]


def test_attention(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    show(session, tmp_path, x=60)
    ask(session, tmp_path, "q.png")
    drawn = session.attention("DCAMA", 0, (75, 50))
    assert drawn.shape == (240 + 18, 3 * 320 + 2 * 4, 3)  # a query and two supports, 240 high
    assert not session.pool.has_attention("Prototype") and session.pool.has_attention("DCAMA")
    with pytest.raises(ValueError, match="no attention maps: take a config of DCAMA"):
        session.attention("Prototype", 0, (75, 50))
    with pytest.raises(ValueError, match="there is no picture number 2"):
        session.attention("DCAMA", 1, (75, 50))


def test_errors_name_what_is_missing(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no picture to search yet: add some \(step 2\)"):
        session.find("Prototype")
    ask(session, tmp_path, "q.png")
    with pytest.raises(ValueError, match=r"no object is marked yet: .* \(step 1\)"):
        session.find("Prototype")
    with pytest.raises(ValueError, match=r"no masks yet: press Find the object first \(step 2\)"):
        session.zip_file("Prototype", 0.5)
    show(session, tmp_path)
    with pytest.raises(ValueError, match="no method 'other': choose from Prototype, DCAMA"):
        session.find("other")


def test_pictures_are_limited(session: Session, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 3 pictures at a time"):
        ask(session, tmp_path, *(f"{i}.png" for i in range(4)))
    large = save(tmp_path / "large.png", np.zeros((600, 800, 3), np.uint8))  # 0.48 million pixels
    with pytest.raises(ValueError, match="more than 1 million pixels together"):
        session.add_queries([large] * 3)
    assert session.queries == []
    session.add_queries([large] * 2)
    assert [query.name for query in session.queries] == ["large.png", "large (2).png"]
    session.clear_queries()
    assert session.findings("Prototype", 0.5) == []


def odd_pictures() -> dict[str, Image.Image]:
    """Files of phones, scanners and other programs, by name."""
    plain = Image.fromarray(disc(40, 40))
    clear = plain.convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(disc_mask(40, 40), np.uint8(255), np.uint8(0))))
    deep = np.asarray(plain.convert("L")).astype(np.uint16) * 257
    return {
        "grey16.png": Image.fromarray(deep),
        "grey16.tif": Image.fromarray(deep),
        "palette.gif": plain.convert("P"),
        "alpha.png": clear,
        "alpha.webp": clear,
        "one.png": Image.new("RGB", (1, 1)),
        "line.png": Image.new("L", (500, 1)),
        "ink.jpg": plain.convert("CMYK"),
        "bits.bmp": plain.convert("1"),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_odd_pictures(session: Session, tmp_path: Path, name: str) -> None:
    image = odd_pictures()[name]
    image.save(tmp_path / name)
    show(session, tmp_path)
    session.add_queries([tmp_path / name])
    session.find("Prototype")
    (finding,) = session.findings("Prototype", 0.5)
    assert finding.picture.shape == (image.height, image.width, 3) and finding.areas is not None
    assert session.zip_file("Prototype", 0.4)
    assert session.attention("DCAMA", 0, (0, 0)).ndim == 3
    session.supports.add([tmp_path / name])
    session.supports.add_box(Box(0, 0, 1, 1))
    assert session.supports.open.mask is not None and session.supports.open.mask.sum() == 1


def test_an_animation_is_its_first_picture(session: Session, tmp_path: Path) -> None:
    frames = [Image.fromarray(disc(x, 40)) for x in (40, 80)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    session.add_queries([tmp_path / "a.gif"])
    assert np.abs(session.query(0).pixels.astype(int) - disc(40, 40)).mean() < 4


def test_a_phone_that_was_turned(session: Session, tmp_path: Path) -> None:
    stored, exif = Image.fromarray(np.rot90(disc(40, 40)).copy()), Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    stored.save(tmp_path / "a.png", exif=exif)
    session.supports.add([tmp_path / "a.png"])
    np.testing.assert_array_equal(session.supports.open.upload.pixels, disc(40, 40))
    for mask in (disc_mask(40, 40), np.rot90(disc_mask(40, 40)).copy()):  # of the picture seen, or stored
        Image.fromarray(mask).save(tmp_path / "mask.png")
        session.supports.read_mask(tmp_path / "mask.png")
        np.testing.assert_array_equal(session.supports.open.mask, disc_mask(40, 40))


def test_a_copy_is_another_visitors(session: Session, tmp_path: Path) -> None:
    show(session, tmp_path)
    other = copy.deepcopy(session)
    assert other.pool is session.pool and other.supports.pictures == [] and other.lock is not session.lock
    assert other.files.parent == session.files.parent and other.files.folder != session.files.folder
    show(other, tmp_path, x=60)
    assert len(session.supports.pictures) == 1
    ask(session, tmp_path, "q.png")
    session.find("Prototype")
    assert other.queries == []


class TestSupportList:
    """Pictures that show objects."""

    @pytest.fixture
    def supports(self, tmp_path: Path) -> SupportList:
        supports = SupportList(LIMITS)
        supports.add([save(tmp_path / f"{name}.png", disc(40, 40)) for name in "ab"], "disc")
        return supports

    def test_one_after_the_other(self, supports: SupportList) -> None:
        assert supports.current == 0 and supports.open.class_name == "disc"
        supports.paint([layer(disc_mask(40, 40))])
        supports.select_next()
        assert supports.current == 1
        supports.paint([np.zeros((9, 9, 4), np.uint8), layer(disc_mask(40, 40))])
        supports.select_next()
        assert supports.current == 1  # none is left
        images, masks = supports.classes()["disc"]
        assert len(images) == 2
        np.testing.assert_array_equal(masks[1], disc_mask(40, 40))

    def test_paint_of_another_size(self, supports: SupportList) -> None:
        small = np.zeros((45, 60, 4), np.uint8)
        small[10:20, 30:40, 3] = 128  # as the brush paints
        small[10:20, 40:50, 3] = 60  # less than half of the paint
        supports.paint([small])
        expected = np.zeros((90, 120), np.uint8)
        expected[20:40, 60:80] = 1
        np.testing.assert_array_equal(supports.open.mask, expected)
        with pytest.raises(ValueError, match="nothing is painted yet"):
            supports.paint([])

    def test_boxes(self, supports: SupportList) -> None:
        supports.click((60, 50))
        assert supports.corner == (60, 50) and supports.open.mask is None
        supports.click((20, 10))
        supports.click((100, 80))
        supports.click((110, 85))
        expected = np.zeros((90, 120), np.uint8)
        expected[10:50, 20:60] = expected[80:85, 100:110] = 1
        np.testing.assert_array_equal(supports.open.mask, expected)
        supports.unmark()
        assert supports.open.mask is None
        supports.click((5, 5))
        with pytest.raises(ValueError, match="x0 below x1"):
            supports.click((5, 9))
        assert supports.corner is None

    def test_marks_add_up(self, supports: SupportList, tmp_path: Path) -> None:
        supports.read_mask(save(tmp_path / "trimap.png", np.uint8([[1] * 120] * 9 + [[255] * 120] * 81)))
        supports.paint([layer(disc_mask(40, 40))])
        supports.add_box(Box(100, 80, 110, 300))
        expected = np.full((90, 120), 255, np.uint8)
        expected[:9] = expected[disc_mask(40, 40)] = expected[80:, 100:110] = 1
        np.testing.assert_array_equal(supports.open.mask, expected)
        with pytest.raises(ValueError, match=r"box in a\.png: no pixel of the image shows the object"):
            supports.add_box(Box(200, 200, 210, 210))

    def test_a_mask_file(self, supports: SupportList, tmp_path: Path) -> None:
        supports.read_mask(save(tmp_path / "m.png", disc_mask(40, 40)))
        np.testing.assert_array_equal(supports.open.mask, disc_mask(40, 40))
        with pytest.raises(ValueError, match="10x10"):
            supports.read_mask(save(tmp_path / "n.png", np.ones((10, 10), bool)))
        np.testing.assert_array_equal(supports.open.mask, disc_mask(40, 40))

    def test_an_unclear_mask_file(self, supports: SupportList, tmp_path: Path) -> None:
        numbers = disc_mask(40, 40) * np.uint8(1)
        numbers[:5] = 2
        path = save(tmp_path / "m.png", numbers)
        with pytest.raises(UnclearMask) as unclear:
            supports.read_mask(path)
        assert supports.unclear == path and supports.open.mask is None
        assert unclear.value.found.endswith("m.png holds the values 0, 1, 2")
        with pytest.raises(ValueError, match="mask_values names the class 'cup', but the classes are disc"):
            supports.read_mask(path, "cup=1")
        supports.read_mask(path, "disc=1 ignore=2")
        expected = np.where(numbers == 2, 255, numbers)
        np.testing.assert_array_equal(supports.open.mask, expected)
        assert supports.unclear is None

    def test_an_unclear_mask_is_of_the_picture_that_was_open(
        self, supports: SupportList, tmp_path: Path
    ) -> None:
        with pytest.raises(UnclearMask):
            supports.read_mask(save(tmp_path / "m.png", np.uint8([[0, 1, 2] * 40] * 90)))
        supports.select(1)
        assert supports.unclear is None

    def test_removing_one_of_two_with_the_same_name(self, supports: SupportList, tmp_path: Path) -> None:
        supports.add([save(tmp_path / "other/a.png", disc(60, 40))])
        supports.remove()
        assert [p.upload.name for p in supports.pictures] == ["a.png", "b.png"] and supports.current == 1
        np.testing.assert_array_equal(supports.pictures[0].upload.pixels, disc(40, 40))

    def test_removing(self, supports: SupportList) -> None:
        supports.remove()
        assert [p.upload.name for p in supports.pictures] == ["b.png"] and supports.current == 0
        supports.remove()
        assert supports.current is None
        with pytest.raises(ValueError, match="no picture of the object yet"):
            supports.remove()
        with pytest.raises(ValueError, match="no picture number 1"):
            supports.select(0)

    def test_limits(self, supports: SupportList, tmp_path: Path) -> None:
        picture = save(tmp_path / "c.png", disc(1, 1))
        with pytest.raises(ValueError, match="at most 3 pictures can show objects"):
            supports.add([picture] * 2)
        supports.add([picture])
        for number, name in enumerate(("one", "two")):
            supports.select(number)
            supports.name_class(name)
            supports.paint([layer(disc_mask(40, 40))])
        supports.select(2)
        with pytest.raises(ValueError, match=r"at most 2 kinds of object: take one of \['one', 'two'\]"):
            supports.name_class("three")
        with pytest.raises(ValueError, match="has 61 letters: give at most 60"):
            supports.name_class("x" * 61)
        for name in ("  ", "a\nb"):
            with pytest.raises(ValueError, match="the object has no name"):
                supports.name_class(name)

    def test_revisions(self, supports: SupportList) -> None:
        before = supports.revision
        supports.name_class("new")
        supports.select(1)
        assert supports.revision == before  # nothing is marked
        supports.paint([layer(disc_mask(40, 40))])
        supports.name_class("newer")
        assert supports.revision == before + 2
