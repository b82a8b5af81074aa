"""Accept, fix and redo, hints, colours: without the page."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.app.drawing import CANVAS, VisitorFiles, draw_support, edited, on_canvas, paint_layer
from fss_d2.app.hints import size_hint
from fss_d2.app.session import Session
from fss_d2.app.uploads import Limits
from fss_d2.inference.annotations import Box
from fss_d2.inference.prediction import Prediction
from fss_d2.inference.quality import shifted
from fss_d2.label.check import check_supports
from fss_d2.label.output import record_of
from fss_d2.label.report import thumbnail
from fss_d2.label.supports import Support
from fss_d2.visualization import class_color, class_css
from tests.app.pages import LIMITS, disc, disc_mask, make_pool, save
from tests.app.test_session import ask, layer, show
from tests.inference.predictors import overlap

METHOD = "Prototype"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(make_pool(METHOD), LIMITS, tmp_path / "served")


@pytest.fixture
def searched(session: Session, tmp_path: Path) -> Session:
    show(session, tmp_path)
    ask(session, tmp_path, "a.png", "b.png", "c.png")
    session.find(METHOD)
    return session


def painted(mask: np.ndarray, *, number: int = 0) -> list[np.ndarray]:
    """What the painter gives for a mask."""
    return [paint_layer(mask, number)]


class TestAccept:
    """Accepted masks count as done."""

    def test_they_stay_as_they_are(self, searched: Session, tmp_path: Path) -> None:
        searched.accept(METHOD, 0.8, 0)
        kept = searched.finding(METHOD, 0.8, 0)
        assert kept.accepted and not kept.corrected and not kept.needs_review
        assert searched.finding(METHOD, 0.3, 0).areas == kept.areas  # another threshold
        assert searched.finding(METHOD, 0.3, 1).areas != searched.finding(METHOD, 0.8, 1).areas
        show(searched, tmp_path, x=60)  # other supports
        assert searched.finding(METHOD, 0.5, 0).areas == kept.areas
        assert searched.finding(METHOD, 0.5, 1).areas is None
        searched.find(METHOD)
        assert searched.finding(METHOD, 0.5, 0).areas == kept.areas
        assert not searched.finding(METHOD, 0.5, 1).accepted

    def test_the_next_open_picture_follows(self, searched: Session) -> None:
        for expected in (1, 2):
            searched.accept(METHOD, 0.5, searched.chosen)
            searched.choose_open()
            assert searched.chosen == expected
        searched.choose(0)
        searched.choose_open()
        assert searched.chosen == 2
        searched.accept(METHOD, 0.5, 2)
        searched.choose_open()
        assert searched.chosen == 2  # all are done

    def test_before_the_search(self, session: Session, tmp_path: Path) -> None:
        ask(session, tmp_path, "a.png")
        for act in (session.accept, session.classes_to_fix):
            with pytest.raises(ValueError, match=r"no masks of a\.png yet: press Find the object first"):
                act(METHOD, 0.5, 0)

    def test_a_picture_that_was_removed(self, searched: Session, tmp_path: Path) -> None:
        searched.accept(METHOD, 0.5, 0)
        searched.clear_queries()
        ask(searched, tmp_path, "a.png")
        assert not searched.finding(METHOD, 0.5, 0).accepted


class TestRedo:
    """A picture is searched again."""

    def test_with_the_present_supports(self, searched: Session, tmp_path: Path) -> None:
        searched.accept(METHOD, 0.5, 0)
        before = searched.finding(METHOD, 0.5, 0).areas
        searched.supports.add_box(Box(0, 0, 120, 90))
        searched.redo(METHOD, 0)
        finding = searched.finding(METHOD, 0.5, 0)
        assert not finding.accepted and finding.areas != before
        assert searched.finding(METHOD, 0.5, 1).areas is None  # the others were not searched

    def test_after_a_correction(self, searched: Session) -> None:
        before = searched.finding(METHOD, 0.5, 0).areas
        searched.fix(METHOD, 0.5, 0, "object", [])
        assert searched.finding(METHOD, 0.5, 0).areas == {"object": 0}
        searched.redo(METHOD, 0)
        assert searched.finding(METHOD, 0.5, 0).areas == before


class TestFix:
    """A mask is corrected in a painter."""

    def test_paint_that_was_not_touched_changes_nothing(self, searched: Session) -> None:
        before = searched.mask_to_fix(METHOD, 0.5, 0, "object")
        searched.fix(METHOD, 0.5, 0, "object", painted(before))
        np.testing.assert_array_equal(searched.mask_to_fix(METHOD, 0.5, 0, "object"), before)
        finding = searched.finding(METHOD, 0.5, 0)
        assert finding.accepted and finding.corrected

    def test_as_an_example(self, searched: Session) -> None:
        right = disc_mask(75, 50)
        searched.fix(METHOD, 0.5, 1, "object", painted(right), as_support=True)
        added = searched.supports.pictures[-1]
        assert added.upload.name == "b.png" and added.class_name == "object"
        np.testing.assert_array_equal(added.mask == 1, searched.mask_to_fix(METHOD, 0.5, 1, "object"))
        assert overlap(added.mask == 1, right) > 0.99  # through a canvas of whole pixels
        assert searched.finding(METHOD, 0.5, 1).corrected
        assert searched.finding(METHOD, 0.5, 0).areas is None  # was found with other supports
        searched.find(METHOD)
        assert searched.finding(METHOD, 0.5, 1).corrected and searched.finding(METHOD, 0.5, 0).areas

    def test_an_example_must_show_the_object(self, searched: Session) -> None:
        with pytest.raises(
            ValueError, match=r"nothing is painted in a\.png: an example must show the object"
        ):
            searched.fix(METHOD, 0.5, 0, "object", [], as_support=True)
        assert len(searched.supports.pictures) == 1 and not searched.finding(METHOD, 0.5, 0).accepted

    def test_examples_are_limited(self, searched: Session, tmp_path: Path) -> None:
        searched.supports.add([save(tmp_path / f"{i}.png", disc(40, 40)) for i in range(2)])
        with pytest.raises(ValueError, match="at most 3 pictures can show objects"):
            searched.fix(METHOD, 0.5, 0, "object", painted(disc_mask(75, 50)), as_support=True)

    def test_other_classes_lose_what_one_gains(self, session: Session, tmp_path: Path) -> None:
        for name, color in (("sun", (240, 220, 40)), ("moon", (40, 60, 250))):
            session.supports.add([save(tmp_path / f"{name}.png", disc(40, 40, color=color))])
            session.supports.name_class(name)
            session.supports.paint([layer(disc_mask(40, 40))])
        ask(session, tmp_path, "a.png")
        session.find(METHOD)
        assert session.classes_to_fix(METHOD, 0.5, 0)[0] == "sun"
        sun = session.mask_to_fix(METHOD, 0.5, 0, "sun")
        half = disc_mask(75, 50)
        half[:, :75] = False
        session.fix(METHOD, 0.5, 0, "moon", painted(half))
        np.testing.assert_array_equal(session.mask_to_fix(METHOD, 0.5, 0, "sun"), sun & ~half)
        with pytest.raises(ValueError, match="no object 'star' in this picture: choose from sun, moon"):
            session.fix(METHOD, 0.5, 0, "star", [])


class TestCanvas:
    """Masks go to a square canvas and back."""

    @pytest.mark.parametrize("size", [(90, 120), (1500, 1000), (720, 720), (1, 500), (333, 700)])
    def test_forth_and_back(self, size: tuple[int, int]) -> None:
        mask = np.random.default_rng(0).random(size) < 0.3
        assert paint_layer(mask, 0).shape == (CANVAS, CANVAS, 4)
        np.testing.assert_array_equal(edited(mask, [paint_layer(mask, 0)]), mask)

    def test_only_what_changed_changes(self) -> None:
        mask = np.zeros((1440, 1080), bool)  # twice the canvas
        mask[101:200, 101:200] = True  # whose corner the canvas does not show to the pixel
        paint = paint_layer(mask, 0)
        top, left = 0, (CANVAS - 540) // 2
        paint[top + 300 : top + 310, left + 100 : left + 120] = (1, 2, 3, 128)
        expected = mask.copy()
        expected[600:620, 200:240] = True
        np.testing.assert_array_equal(edited(mask, [paint]), expected)
        np.testing.assert_array_equal(edited(mask, [np.zeros_like(paint)]).any(), False)

    def test_paint_beyond_the_picture(self) -> None:
        paint = np.zeros((CANVAS, CANVAS, 4), np.uint8)
        paint[:, :10] = paint[:90] = 255
        mask = np.zeros((90, 120), bool)  # from row 90 to 630
        np.testing.assert_array_equal(np.flatnonzero(edited(mask, [paint]).any(axis=0)), [0, 1])
        picture = on_canvas(disc(40, 40))
        assert picture.shape == (CANVAS, CANVAS, 3) and picture[0].min() == 235 and picture[90].max() < 60


def check(session: Session) -> dict[int, str]:
    session.find(METHOD)
    return session.hints(METHOD)


class TestHints:
    """Marks that seem wrong."""

    @pytest.mark.parametrize(
        ("rows", "hint"), [(85, "94 % of the picture is marked"), (81, None), (10, None)]
    )
    def test_nearly_everything(self, rows: int, hint: str | None) -> None:
        mask = np.zeros((90, 120), np.uint8)
        mask[:rows] = 1
        found = size_hint(mask)
        assert found is None if hint is None else found is not None and found.startswith(hint)

    def test_nearly_nothing(self) -> None:
        mask = np.zeros((100, 100), np.uint8)
        mask[0, :9] = 1
        assert (size_hint(mask) or "").startswith("hardly anything is marked")
        mask[0, :10] = 1
        assert size_hint(mask) is None
        mask[1:] = 255  # is not counted
        mask[0] = 1
        assert (size_hint(mask) or "").startswith("100 % of the picture is marked")

    def test_good_supports(self, session: Session, tmp_path: Path) -> None:
        for x in (40, 60, 80):
            show(session, tmp_path, x=x)
        ask(session, tmp_path, "a.png")
        assert check(session) == {}

    def test_a_mask_of_another_picture(self, session: Session, tmp_path: Path) -> None:
        for x in (30, 60):
            show(session, tmp_path, x=x)
        session.supports.add([save(tmp_path / "wrong.png", disc(90, 60))])
        session.supports.paint([layer(disc_mask(30, 40))])
        ask(session, tmp_path, "a.png")
        hints = check(session)
        assert set(hints) == {2} and hints[2].startswith(
            "the other examples do not find what you marked (0 %"
        )

    def test_a_box_full_of_background(self, session: Session, tmp_path: Path) -> None:
        session.supports.add([save(tmp_path / "one.png", disc(90, 60, radius=14))])
        session.supports.add_box(Box(5, 5, 60, 85))
        ask(session, tmp_path, "a.png")
        hints = session.hints(METHOD)
        assert hints == {}  # the network has not run
        session.supports.add([save(tmp_path / "two.png", disc(40, 40))])
        session.supports.paint([layer(disc_mask(40, 40))])
        assert 0 in check(session)

    def test_they_go_with_the_mark(self, session: Session, tmp_path: Path) -> None:
        show(session, tmp_path)
        session.supports.add([save(tmp_path / "wrong.png", disc(90, 60))])
        session.supports.paint([layer(disc_mask(30, 40))])
        ask(session, tmp_path, "a.png")
        assert 1 in check(session)
        session.supports.unmark()
        assert session.hints(METHOD) == {}

    def test_a_small_mark_is_said_at_once(self, session: Session, tmp_path: Path) -> None:
        session.supports.add([save(tmp_path / "a.png", disc(40, 40))])
        session.supports.add_box(Box(0, 0, 3, 3))
        assert session.hints(METHOD)[0].startswith("hardly anything")


class TestExpectedIoU:
    """The number that is shown, by which pictures are chosen for review."""

    def test_the_check_corrects_it(self, session: Session, tmp_path: Path) -> None:
        for x in (30, 60, 90):
            show(session, tmp_path, x=x, name="cup")
        ask(session, tmp_path, "a.png")
        session.find(METHOD)
        predictor = session.pool.predictor(METHOD)
        predictor.set_support_classes(session.supports.classes())
        pictures = session.supports.pictures
        supports = [Support(str(i), (), p.upload.pixels, p.mask) for i, p in enumerate(pictures)]
        (done,) = check_supports(predictor, {"cup": supports})
        plain = predictor.predict(session.queries[0].pixels)
        assert done.shift != 0
        expected = plain.presence["cup"] * shifted(plain.mask_iou["cup"], done.shift)
        assert session.finding(METHOD, 0.5, 0).expected == {"cup": expected}
        archive = zipfile.ZipFile(io.BytesIO(session.zip_file(METHOD, 0.5)))
        (image,) = json.loads(archive.read("coco/annotations.json"))["images"]
        assert image["expected_iou"] == pytest.approx(expected, abs=2e-6)

    def test_a_corrected_mask_is_right(self, session: Session, tmp_path: Path) -> None:
        show(session, tmp_path)
        ask(session, tmp_path, "a.png")
        session.find(METHOD)
        session.fix(METHOD, 0.5, 0, "object", [paint_layer(disc_mask(20, 20), 0)])
        assert session.finding(METHOD, 0.5, 0).expected == {"object": 1.0}


class TestColours:
    """A class has one colour."""

    def test_the_palette(self) -> None:
        colors = np.array([class_color(i) for i in range(8)])
        distances = np.linalg.norm(colors[:, None] - colors, axis=2)
        assert distances[~np.eye(8, dtype=bool)].min() > 0.3 and len(set(map(class_color, range(70)))) == 70
        assert class_css(0) == "rgb(242, 64, 26)"

    def test_supports_results_and_report(self, session: Session, tmp_path: Path) -> None:
        """Half of the colour over a dark ground, everywhere."""
        mask = disc_mask(75, 50)
        prediction = Prediction(
            ("cat", "dog"), np.ones((2, 90, 120), np.float32), (mask * 2).astype(np.uint8)
        )
        plain = np.zeros((90, 120, 3), np.uint8)
        report = thumbnail(plain, record_of("a.png", prediction, 1), prediction.names)
        (tmp_path / "report.jpg").write_bytes(report)
        drawn = {
            "support": draw_support(plain, mask.astype(np.uint8), 1),
            "report": np.asarray(Image.open(tmp_path / "report.jpg")),
            "paint": paint_layer(mask, 1)[CANVAS * 50 // 120 + 90, CANVAS * 75 // 120, :3][None, None] // 2,
        }
        for name, picture in drawn.items():
            pixel = picture[50, 75] if picture.shape[0] > 1 else picture[0, 0]
            np.testing.assert_allclose(pixel, 127.5 * np.array(class_color(1)), atol=4, err_msg=name)

    def test_a_class_keeps_its_number(self, session: Session, tmp_path: Path) -> None:
        supports = session.supports
        supports.add([save(tmp_path / f"{i}.png", disc(40, 40)) for i in range(3)], "first")
        assert supports.number_of("first") == 0
        for i, name in ((2, "last"), (0, "first")):
            supports.select(i)
            supports.name_class(name)
            supports.paint([layer(disc_mask(40, 40))])
        assert supports.class_names == ["last", "first"] and supports.number_of("new") == 2
        assert list(supports.classes()) == ["last", "first"]
        supports.select(2)
        supports.remove()
        assert supports.class_names == ["first"]

    def test_accepted_masks_keep_their_class(self, session: Session, tmp_path: Path) -> None:
        show(session, tmp_path, name="cup")
        ask(session, tmp_path, "a.png")
        session.find(METHOD)
        session.accept(METHOD, 0.5, 0)
        session.supports.name_class("mug")
        finding = session.finding(METHOD, 0.5, 0)
        assert list(finding.areas or {}) == ["cup"] and finding.numbers == {"mug": 0, "cup": 1}


class TestLimits:
    """All pictures of a visitor together."""

    def test_pixels_of_both_kinds(self, tmp_path: Path) -> None:
        session = Session(make_pool(METHOD), Limits(total_megapixels=1), tmp_path / "served")
        large = save(tmp_path / "large.png", np.zeros((600, 800, 3), np.uint8))  # 0.48 million pixels
        session.add_supports([large])
        session.add_queries([large])
        message = "your pictures have more than 1 million pixels together \\(--max-megapixels\\): remove"
        with pytest.raises(ValueError, match=message):
            session.add_queries([large])
        with pytest.raises(ValueError, match=message):
            session.add_supports([large])
        assert len(session.queries) == len(session.supports.pictures) == 1
        session.clear_queries()
        session.add_supports([large])

    def test_drawn_files(self, tmp_path: Path) -> None:
        files = VisitorFiles(tmp_path, most=1000)
        first, second = Path(files.file(bytes(400), ".a")), Path(files.file(bytes(500), ".b"))
        assert first.exists() and second.exists()
        files.file(bytes(400), ".a")  # is used again
        third = Path(files.file(bytes(300), ".c"))
        assert first.exists() and third.exists() and not second.exists()
        with pytest.raises(ValueError, match=r"the file has more than 0 MB \(--max-disk-mb\): give fewer"):
            files.file(bytes(1001), ".d")


def test_a_picture_is_as_good_as_its_worst_class() -> None:
    labels = np.uint8([[1, 2, 0, 0]])
    probability = np.float32([[[0.9, 0.1, 0, 0.45]], [[0.1, 0.7, 0, 0]], [[0, 0, 0, 0]]])
    expected, presence = {"a": 0.9, "b": 0.75, "c": 0.1}, {"a": 1.0, "b": 0.8, "c": 0.25}
    prediction = Prediction(("a", "b", "c"), probability, labels, expected, presence)
    assert prediction.expected_iou == pytest.approx({"a": 0.9, "b": 0.6, "c": 0.75})
    assert prediction.lowest_iou == pytest.approx(0.6)
    nothing = replace(prediction, labels=np.zeros_like(labels))
    assert nothing.lowest_iou == 0.0  # the first is there for sure
    assert prediction.at(present_above=0.9).expected_iou == pytest.approx({"a": 0.9, "b": 0.2, "c": 0.75})
