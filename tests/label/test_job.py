"""A job over a folder: what it labels, what it keeps, and how it goes on after it was killed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fss_d2.engine.command_line import one_line
from fss_d2.inference.prediction import Prediction
from fss_d2.label import job
from fss_d2.label.job import Job, run_job
from fss_d2.label.supports import read_supports
from tests.label.fakes import ColourPredictor, Ranks, annotated_folder, disc, image_folder, picture, save

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import sys
from pathlib import Path
import fss_d2
from fss_d2.engine.command_line import one_line
from fss_d2.label import job
from fss_d2.inference.prediction import Prediction
from fss_d2.label.job import Job, run_job
from fss_d2.label.supports import read_supports
from tests.label.fakes import ColourPredictor
root, output = map(Path, sys.argv[1:3])
run_job(Job(root / "images", output), ColourPredictor(stop_after=4), read_supports(root / "supports"))
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two supports of each class, and six images."""
    annotated_folder(tmp_path / "supports", ("red", "blue"))
    image_folder(tmp_path / "images", 6)
    return tmp_path


def run(place: Path, predictor: ColourPredictor | None = None, **options: Any) -> dict[str, Any]:
    model = options.pop("model", {"weights": "w", "MODEL.X": "1"})
    negatives = options.pop("negatives", {})
    todo = Job(place / "images", options.pop("output", place / "out"), **options)
    return run_job(todo, predictor or ColourPredictor(), read_supports(place / "supports"), model, negatives)


def contents(folder: Path) -> dict[str, bytes]:
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in sorted(files.items())}


def test_every_image_gets_its_labels(place: Path) -> None:
    summary = run(place, min_area=4)
    assert summary["labelled"] == 6 and summary["nothing_found"] == 1
    assert summary["with_class"] == {"blue": 3, "red": 5}
    assert summary["unreadable"] == [] and summary["skipped_supports"] == []
    class_map = np.asarray(Image.open(place / "out/png/photo 004.png"))
    np.testing.assert_array_equal(class_map == 1, disc((40, 50), (20, 36), 5))  # classes by name: blue, red
    np.testing.assert_array_equal(class_map == 2, disc((40, 50), (20, 14), 6))
    names = {f"photo {i:03}.png" for i in range(6)}
    assert {p.name.removesuffix(".jpg") for p in (place / "out/thumbnails").iterdir()} == names
    page = (place / "out/report.html").read_text(encoding="utf-8")
    assert all(f"thumbnails/{name}.jpg".replace(" ", "%20") in page for name in names)
    assert json.loads((place / "out/summary.json").read_bytes()) == summary
    checks = json.loads((place / "out/leave_one_out.json").read_bytes())
    assert [[s["iou"] for s in c["supports"]] for c in checks] == [[1.0, 1.0], [1.0, 1.0]]


def test_images_of_low_expected_iou_are_listed_the_lowest_first(place: Path) -> None:
    """A disc of a greyish colour has a low expected IoU; the page shows it first, in red."""
    faint = picture({"red": disc((40, 50), (20, 20), 6)}).astype(float)
    for name, share in (("faint", 0.85), ("fainter", 0.81)):
        save(place / f"images/sub/{name} & <b>.png", (share * faint + (1 - share) * 120).astype(np.uint8))
    threshold = 0.8
    run(place, review_below=threshold)
    listed = (place / "out/needs_review.txt").read_text().splitlines()
    assert listed == ["sub/fainter & <b>.png", "sub/faint & <b>.png"]
    rows = json.loads((place / "out/needs_review.json").read_bytes())
    assert [row["image"] for row in rows] == listed
    assert rows[0]["expected_iou"] < rows[1]["expected_iou"] < threshold
    page = (place / "out/report.html").read_text()
    assert "<b>" not in page and page.count('class="review"') == 2
    assert (
        page.index("fainter &amp; &lt;b&gt;") < page.index("faint &amp; &lt;b&gt;") < page.index("photo 00")
    )


class Deceived(ColourPredictor):
    """Takes everything bright blue for red with full probability, and expects an IoU of 0.2 of that."""

    def predict(self, image: np.ndarray) -> Prediction:
        found = super().predict(image)
        blue = (image[..., 2] > 200) & (image[..., 0] < 100)
        if not blue.any():
            return replace(found, mask_iou={"red": 0.9})
        probability = np.where(blue, 1, found.probability).astype(np.float32)
        labels = np.where(blue, 1, found.labels).astype(np.uint8)
        return replace(found, probability=probability, labels=labels, mask_iou={"red": 0.2}, presence={})


def test_bad_masks_are_listed_however_probable(place: Path) -> None:
    """The mean probability of the planted ones is the highest of the run."""
    shutil.rmtree(place / "supports/blue")
    run(place, Deceived(), min_area=4, check=0)
    listed = (place / "out/needs_review.txt").read_text().splitlines()
    assert listed == [f"photo {i:03}.png" for i in (3, 4, 5)]  # those with a blue disc
    rows = json.loads((place / "out/needs_review.json").read_bytes())
    assert rows[0] == {
        "image": "photo 003.png",
        "expected_iou": 0.2,
        "of_classes": {"red": 0.2},
        "classes": ["red"],
        "presence": {"red": 1.0},
    }
    page = (place / "out/report.html").read_text()
    assert "confidence" not in page and "confidence" not in json.dumps(rows)
    assert "3 images below 0.65 have a red frame" in page and "Its numbers come from a fit" in page
    assert page.index("photo 003.png") < page.index("photo 001.png")


def test_the_check_shifts_the_estimates_of_the_job(place: Path) -> None:
    """The masks of the supports are wrong, which their estimates of nearly 1 did not know."""
    shutil.rmtree(place / "supports/blue")
    assert run(place, output=place / "trusting")["needs_review"] == 0
    corner = np.zeros((40, 50), np.uint8)
    corner[:6, :6] = 255  # of the grey ground, all of which is found then
    for file in (place / "supports/red/masks").iterdir():
        save(file, corner)
    run(place)
    (check,) = json.loads((place / "out/leave_one_out.json").read_bytes())
    assert check["shift"] < -0.5
    summary = run(place, output=place / "unchecked", check=0)
    checked = json.loads((place / "out/summary.json").read_bytes())
    assert checked["mean_expected_iou"] < summary["mean_expected_iou"] - 0.1
    assert not (place / "unchecked/leave_one_out.json").exists()


def test_the_check_says_how_long_it_takes(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Encoding four supports took 12 seconds; checking them is four encodings and four masks."""
    clock = iter([100.0, 112.0])
    monkeypatch.setattr("fss_d2.label.job.time.monotonic", lambda: next(clock, 112.0))
    with caplog.at_level("INFO", logger="fss_d2.label"):
        run(place)
    text = "Checking 4 supports, each with the others of its class: about 24 s"
    assert caplog.text.count(text) == 1
    assert caplog.text.index(text) < caplog.text.index("Labelling 6 images")


def test_another_number_of_supports_is_checked_anew(place: Path) -> None:
    annotated_folder(place / "supports", ("red", "blue"), count=4)
    sizes = []
    for most in (24, 2, 2, 0, 24):
        predictor = ColourPredictor()
        run(place, predictor, check=most)
        sizes.append(sum(len(out) == 1 for out in predictor.left_out))
    assert sizes == [8, 4, 0, 0, 8]
    with pytest.raises(ValueError, match="check is -1; it must be 0 supports or more"):
        run(place, check=-1)


def test_supports_among_the_images_are_skipped(place: Path) -> None:
    """Also a copy with another name, and masks; images in the output folder do not count."""
    original = place / "supports/red/images/0.png"
    (place / "images/copy.png").write_bytes(original.read_bytes())
    (place / "supports").rename(place / "images/annotated")
    (place / "supports").symlink_to(place / "images/annotated")
    for _ in range(2):
        summary = run(place, output=place / "images/out")
        assert summary["labelled"] == 6
        parts = ("images", "masks")
        inside = {f"annotated/{c}/{p}/{i}.png" for c in ("red", "blue") for p in parts for i in range(2)}
        assert set(summary["skipped_supports"]) == {"copy.png", *inside}


def test_unreadable_images_do_not_stop_the_run(place: Path) -> None:
    (place / "images/broken.jpg").write_bytes(b"no image")
    summary = run(place)
    assert summary["labelled"] == 6
    (row,) = summary["unreadable"]
    assert row["image"] == "broken.jpg" and "cannot be read" in row["error"]
    assert "broken.jpg could not be labelled" in (place / "out/report.html").read_text()
    save(place / "images/broken.jpg", picture({}))  # repaired: the next run labels it
    predictor = ColourPredictor()
    summary = run(place, predictor)
    assert summary["labelled"] == 7 and summary["unreadable"] == [] and predictor.predicted == 1


def test_names_survive_every_format(place: Path) -> None:
    """Non-ASCII names, bytes that are not UTF-8, equal names in subfolders, one stem twice."""
    region = {"red": disc((40, 50), (20, 20), 6)}
    names = ["日本 é.png", "a/x.png", "b/x.png", "b/x.bmp", os.fsdecode(b"bad\xff.png"), "a'\"#?%.png"]
    for i, name in enumerate(names):
        save(place / "images" / name, picture(region, seed=i))
    assert run(place)["labelled"] == 6 + len(names)
    coco = json.loads((place / "out/coco/annotations.json").read_bytes())
    assert {i["file_name"] for i in coco["images"]} >= set(names)
    for stem in ("日本 é", "a/x", "b/x.png", "b/x.bmp", os.fsdecode(b"bad\xff"), "a'\"#?%"):
        assert (place / f"out/png/{stem}.png").is_file()
        path = place / f"out/labelme/{stem}.json"
        assert (path.parent / json.loads(path.read_bytes())["imagePath"]).is_file()
    assert b"thumbnails/bad%FF.png.jpg" in (place / "out/report.html").read_bytes()


def test_two_images_of_one_name_are_refused_by_yolo(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By default the format is left out, which log, summary and report say; asked for, it is an error."""
    save(place / "images/photo 000.bmp", picture({"red": disc((40, 50), (20, 20), 6)}))
    reason = "photo 000.bmp and photo 000.png would share the label file photo 000.txt: rename one of them"
    predictor = ColourPredictor()
    with pytest.raises(ValueError) as error:
        run(place, predictor, formats=("coco", "yolo"))
    assert str(error.value) == f"--formats yolo: {reason}, or leave yolo out of --formats"
    assert predictor.predicted == 0 and not (place / "out").exists()
    summary = run(place)
    assert summary["formats_left_out"] == [{"format": "yolo", "reason": reason}]
    assert f"The format yolo is left out: {reason}" in caplog.messages
    assert (
        "photo 000.bmp and photo 000.png differ only in their ending: label files keep it (photo 000.bmp.png)"
    ) in caplog.messages
    assert f"<p>The format yolo is left out: {reason}</p>" in (place / "out/report.html").read_text()
    assert {path.name for path in (place / "out").iterdir() if path.is_dir()} >= {"coco", "png", "labelme"}
    assert not (place / "out/yolo").exists()
    (place / "images/photo 000.bmp").unlink()
    assert run(place)["formats_left_out"] == []
    assert (place / "out/yolo/labels/photo 000.txt").read_bytes() == b""


def test_names_that_differ_in_case_only(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(place / "images/PHOTO 001.png", picture({"red": disc((40, 50), (20, 20), 6)}))
    monkeypatch.setattr(job, "ignores_case", lambda folder: True)
    with pytest.raises(
        ValueError, match=r"PHOTO 001\.png and photo 001\.png differ in case only, and the file "
    ):
        run(place)
    monkeypatch.undo()
    run(place)
    assert (
        "PHOTO 001.png and photo 001.png differ in case only: on Windows and macOS the labels of one replace "
        "the other's"
    ) in caplog.messages
    assert (place / "out/png/PHOTO 001.png.png").is_file() and (place / "out/png/photo 002.png").is_file()


def test_a_name_that_is_too_long_for_labels_is_left_out(place: Path) -> None:
    """255 bytes are the limit of file systems, and the labels add an ending."""
    fits, too_long = "f" * 246 + ".png", "ü" * 124 + "x.png"
    for name in (fits, too_long):
        save(place / "images" / name, picture({"red": disc((40, 50), (20, 20), 6)}, seed=len(name)))
    summary = run(place)
    reason = "its name has more than 250 bytes, too many for its labels; shorten it"
    assert summary["unreadable"] == [{"image": too_long, "error": reason}] and summary["labelled"] == 7
    assert (place / f"out/records/{fits}.json").is_file()


@pytest.mark.parametrize("wanted", ["records", "coco", "report.html", "written.json"])
def test_a_full_disk_is_one_line_and_the_same_job_goes_on(
    place: Path, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the third record, or the first file of that name, is written."""
    run(place, output=place / "whole")
    left, write = [2 if wanted == "records" else 0], Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if wanted in path.parts or f".{wanted}." in path.name:
            if not left[0]:
                write(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left[0] -= 1
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError) as error:
            run(place)
    line = one_line(error.value)
    assert line.startswith(f"{place}/out/") and f"/{wanted}" in line and ".tmp" not in line
    assert line.endswith(
        ": No space left on device; finished images are kept: the same command goes on when that is solved"
    )
    predictor = ColourPredictor()
    run(place, predictor)
    assert predictor.predicted == (4 if wanted == "records" else 0)
    assert contents(place / "out") == contents(place / "whole")


def test_a_finished_run_does_nothing_again(place: Path) -> None:
    run(place, formats=("coco",))
    before = contents(place / "out")
    predictor = ColourPredictor()
    run(place, predictor, formats=("coco",))
    assert contents(place / "out") == before and predictor.predicted == 0
    run(place, predictor, formats=("coco", "yolo"))  # one more format, from the records
    assert predictor.predicted == 0 and (place / "out/yolo/data.yaml").is_file()


def test_changed_and_new_images_are_labelled(place: Path) -> None:
    run(place)
    save(place / "images/photo 001.png", picture({}, seed=5))
    save(place / "images/new.png", picture({}, seed=6))
    (place / "out/records/photo 002.png.json").write_bytes(b'{"state')  # damaged
    predictor = ColourPredictor()
    summary = run(place, predictor)
    assert predictor.predicted == 3
    assert summary["labelled"] == 7 and summary["with_class"]["red"] == 4
    assert not np.asarray(Image.open(place / "out/png/photo 001.png")).any()


def test_labels_of_images_that_are_gone_go_too(place: Path) -> None:
    """A second image with the same stem renames files, too; no file with the old name stays.

    YOLO does not allow that, so nothing stays of it.
    """
    run(place)
    (place / "images/photo 001.png").unlink()
    save(place / "images/photo 002.bmp", picture({}, seed=8))
    run(place)
    stems = [*(f"photo {i:03}" for i in (0, 3, 4, 5)), "photo 002.bmp", "photo 002.png"]
    for folder, ending in (("png", "png"), ("labelme", "json")):
        found = {path.name for path in (place / "out" / folder).glob(f"*.{ending}")}
        assert found == {f"{stem}.{ending}" for stem in stems}
    assert not [path for path in (place / "out/yolo").rglob("*") if path.is_file()]


def test_edited_files_are_left_alone(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(place)
    edited = place / "out/labelme/photo 001.json"
    edited.write_text("{}")
    save(place / "images/photo 001.png", picture({}, seed=5))
    run(place)
    assert edited.read_text() == "{}"
    assert "was edited after it was written; it stays as it is" in caplog.text
    assert (place / "out/yolo/labels/photo 001.txt").read_bytes() == b""  # not edited: renewed


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"min_area": 9}, "min_area"),
        ({"model": {"weights": "v"}}, "weights"),
        ({"model": {"weights": "w", "MODEL.X": "2"}}, "MODEL.X"),
        ({}, "supports"),
    ],
)
def test_other_settings_need_another_folder(place: Path, change: dict[str, Any], what: str) -> None:
    run(place)
    before = contents(place / "out")
    if what == "supports":
        save(place / "supports/red/images/0.png", picture({"red": disc((40, 50), (15, 20), 8)}, seed=99))
    with pytest.raises(ValueError, match=rf"other settings \({what}\): give the same again"):
        run(place, **change)
    assert contents(place / "out") == before


def test_another_version_of_the_package_goes_on(place: Path) -> None:
    """A config key that only one of the two versions has leaves the labels as they are."""
    run(place)
    for model in ({"weights": "w", "MODEL.NEW": "1"}, {"weights": "w"}):
        predictor = ColourPredictor()
        run(place, predictor, model=model)
        assert predictor.predicted == 0


def test_another_threshold_of_review_goes_on(place: Path) -> None:
    """No image is labelled again; the list, the page and the summary are those of the new threshold."""
    run(place, review_below=0.0)
    assert (place / "out/needs_review.txt").read_text() == ""
    predictor = ColourPredictor()
    summary = run(place, predictor, review_below=1.0)
    assert predictor.predicted == 0
    run(place, review_below=1.0, output=place / "fresh")
    assert summary["needs_review"] == 6 == (place / "out/report.html").read_text().count('class="review"')
    assert contents(place / "out") == contents(place / "fresh")


def test_the_folders_may_be_moved(place: Path) -> None:
    run(place)
    before = contents(place / "out")
    moved = place / "elsewhere"
    moved.mkdir()
    for name in ("supports", "images", "out"):
        (place / name).rename(moved / name)
    predictor = ColourPredictor()
    run(moved, predictor)
    assert predictor.predicted == 0 and contents(moved / "out") == before


def test_other_images_need_another_folder(place: Path) -> None:
    """Not one image is known: the labels would all be replaced."""
    run(place)
    before = contents(place / "out")
    for path in list((place / "images").iterdir()):
        path.rename(place / "images" / f"other {path.name}")
    with pytest.raises(
        ValueError, match=r"out holds the labels of other images than .*: give the folder of those"
    ):
        run(place)
    assert contents(place / "out") == before


def test_a_folder_of_another_version(place: Path) -> None:
    run(place)
    (place / "out/job.json").write_text('{"version": 1, "settings": {"weights": "w"}}')
    with pytest.raises(ValueError, match="another version of this program: give another output folder"):
        run(place)


def test_a_folder_of_something_else_is_not_touched(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out/thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="in use for something else"):
        run(place)
    assert contents(place / "out") == {"thesis.txt": b"mine"}


def test_what_cannot_be_run(place: Path) -> None:
    with pytest.raises(ValueError, match="there is no 'voc'; choose from coco, png, yolo, labelme"):
        run(place, formats=("voc",))
    with pytest.raises(ValueError, match="an IoU is from 0 to 1"):
        run(place, review_below=60)
    for path in (place / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of 6 images could be labelled; image file"):
        run(place)
    for path in (place / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="holds no image"):
        run(place)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        run_job(Job(place / "gone", place / "o"), ColourPredictor(), read_supports(place / "supports"))


def test_processes_share_the_job(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks: each checks a share of the supports and labels three of six images."""
    predictors = [ColourPredictor(), ColourPredictor()]
    first, second = Ranks(2).run(monkeypatch, lambda rank: run(place, predictors[rank]))
    assert first["labelled"] == 6 and second == {}
    assert [p.predicted for p in predictors] == [3, 3]
    assert [len(p.left_out) for p in predictors] == [2, 2]  # of two classes with two supports each
    run(place, output=place / "alone")
    assert contents(place / "out") == contents(place / "alone")
    again = [ColourPredictor(), ColourPredictor()]
    Ranks(2).run(monkeypatch, lambda rank: run(place, again[rank]))
    assert [(p.predicted, p.left_out) for p in again] == [(0, []), (0, [])]


def start(place: Path, output: str) -> subprocess.Popen[bytes]:
    """Label four images in another process, which then waits to be killed."""
    command = [sys.executable, "-c", _PROGRAM, str(place), str(place / output)]
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(command, cwd=_ROOT, env={**os.environ, "PYTHONPATH": path})


def test_killed_and_run_again_it_ends_with_the_same_files(tmp_path: Path) -> None:
    annotated_folder(tmp_path / "supports", ("red", "blue"))
    image_folder(tmp_path / "images", 12)
    (tmp_path / "images/broken.jpg").write_bytes(b"no image")
    supports = read_supports(tmp_path / "supports")
    killed = start(tmp_path, "killed")
    records = tmp_path / "killed/records"
    deadline = time.monotonic() + 300
    while len(list(records.glob("*.json"))) < 4:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    finished = contents(records)
    assert len(finished) == 4 and not (tmp_path / "killed/report.html").exists()
    (records / f".x.json.{killed.pid}.tmp").write_bytes(b"half")  # killed while it wrote
    predictor = ColourPredictor()
    run_job(Job(tmp_path / "images", tmp_path / "killed"), predictor, supports)
    assert predictor.predicted == 12 - 4
    run_job(Job(tmp_path / "images", tmp_path / "whole"), ColourPredictor(), supports)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_killed_at_any_write_it_ends_with_the_same_files(place: Path) -> None:
    """An image is added in between, so that files of the killed run change."""
    for path in sorted((place / "images").iterdir())[2:-1]:
        path.unlink()
    save(place / "late.png", picture({"red": disc((40, 50), (20, 20), 6)}, seed=7))
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.label.kill_everywhere", str(place)]
    done = subprocess.run(command, cwd=_ROOT, env={**os.environ, "PYTHONPATH": path}, timeout=300)
    assert done.returncode == 0
    expected = contents(place / "whole")
    killed = list(place.glob("killed *"))
    assert len(killed) > 20 and "coco/annotations.json" in expected
    for folder in killed:
        assert contents(folder) == expected, folder.name


def test_refused_supports_leave_no_folder(place: Path) -> None:
    class Refusing(ColourPredictor):
        def set_support_classes(self, classes: Any, **options: Any) -> None:
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        run(place, Refusing())
    assert not (place / "out").exists()


def test_a_damaged_check_is_made_again(place: Path) -> None:
    run(place)
    before = contents(place / "out")
    for damage in ("[", "[{}]", "3"):
        (place / "out/leave_one_out.json").write_text(damage)
        run(place)
        assert contents(place / "out") == before


def test_a_folder_of_supports_only_is_no_error(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", "fss_d2.label.job"):
        summary = run_job(
            Job(place / "supports", place / "out"), ColourPredictor(), read_supports(place / "supports")
        )
    assert summary == {} and not (place / "out").exists()
    assert "supports holds no image but the supports, so nothing was labelled: give other" in caplog.text
