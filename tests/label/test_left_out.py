"""Files that look like pictures and are left out, and mask files whose meaning the user gives: as a job."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2 import cli
from fss_d2.label.job import Job, run_job
from fss_d2.label.pictures import find_pictures
from fss_d2.label.supports import read_supports
from tests.label.fakes import ColourPredictor, annotated_folder, disc, image_folder, picture, save

HEIC = "HEIC files cannot be decoded here, save it as JPEG or PNG"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two images, one without ending, a link to a folder with one more, and files that cannot be read."""
    annotated_folder(tmp_path / "supports")
    image_folder(tmp_path / "images", 2)
    image_folder(tmp_path / "elsewhere", 1)
    save(tmp_path / "images/noending.png", picture({})).rename(tmp_path / "images/noending")
    (tmp_path / "images/day2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/loop").symlink_to(tmp_path / "images")
    (tmp_path / "images/IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "images/sub <b>").mkdir()
    (tmp_path / "images/sub <b>/raw.DNG").write_bytes(b"II*\0")
    (tmp_path / "images/notes.txt").write_text("no picture")
    return tmp_path


def test_log_summary_and_report_name_what_is_left_out(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        job = Job(place / "images", place / "out", check=False)
        summary = run_job(job, ColourPredictor(), read_supports(place / "supports"))
    assert summary["labelled"] == 4 and summary["unreadable"] == []
    reasons = {row["image"]: row["reason"] for row in summary["left_out"]}
    assert reasons == {
        "IMG_1.HEIC": HEIC,
        "loop": "a link to a folder that is searched already",
        "sub <b>/raw.DNG": HEIC.replace("HEIC", "DNG"),
    }
    assert json.loads((place / "out/summary.json").read_bytes()) == summary
    page = (place / "out/report.html").read_text()
    assert f"IMG_1.HEIC was left out: {HEIC}" in page and "sub &lt;b&gt;/raw.DNG was left out" in page
    assert f"Left out in {place / 'images'}: IMG_1.HEIC ({HEIC}), loop (a link" in caplog.text
    for name in ("noending", "day2/photo 000"):
        assert (place / f"out/png/{name}.png").is_file()


def test_a_folder_of_nothing_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    for find in (
        lambda: Job(tmp_path, tmp_path / "out"),
        lambda: find_pictures([str(tmp_path)], tmp_path / "o"),
    ):
        with pytest.raises(
            ValueError, match=rf"holds no image that can be read, IMG_1\.HEIC \({HEIC}\); give"
        ):
            found = find()
            if isinstance(found, Job):
                run_job(found, ColourPredictor(), read_supports(annotated_folder(tmp_path / ".s")))


def numbered(root: Path, layout: str) -> Path:
    """Two classes with masks of numbers: objects 1 and 2 of cup, class 15 with a void border of key."""
    masks = {
        "cup": disc((40, 50), (12, 12), 6) * 1 + disc((40, 50), (25, 35), 6) * 2,
        "key": np.where(disc((40, 50), (20, 20), 12), 255, 0),
    }
    masks["key"][disc((40, 50), (20, 20), 8)] = 15
    for name, mask in masks.items():
        image, of_image = ("images/a.jpg", "masks/a.png") if layout == "parts" else ("a.jpg", "a_mask.png")
        save(root / name / image, picture({}))
        save(root / name / of_image, mask.astype(np.uint8))
    return root


@pytest.mark.parametrize("layout", ["parts", "next"])
def test_mask_values_by_folder(tmp_path: Path, layout: str, caplog: pytest.LogCaptureFixture) -> None:
    root = numbered(tmp_path / "s", layout)
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match=r"holds the values 0, 1, 2: say .*--mask-values\), such as 1,2$"):
        read_supports(root)
    with pytest.raises(ValueError, match=r"holds the values 0, 15, 255: say .* such as 15 ignore=255$"):
        read_supports(root, mask_values={"cup": "1,2"})
    for given in (["cup=1,2", "key=15 ignore=255"], {"cup": [1, 2], "key": "15 ignore=255"}):
        found = read_supports(root, mask_values=given)
        both = disc((40, 50), (12, 12), 6) | disc((40, 50), (25, 35), 6)
        np.testing.assert_array_equal(found["cup"][0].mask, both)
        key, void = disc((40, 50), (20, 20), 8), disc((40, 50), (20, 20), 12)
        np.testing.assert_array_equal(found["key"][0].mask, np.where(key, 1, void * 255))
    assert "mask_values 1,2" in caplog.text and "mask_values 15 ignore=255" in caplog.text
    with pytest.raises(ValueError, match="names the class 'cups', but the classes are cup, key"):
        read_supports(root, mask_values="cups=1")


def test_mask_values_without_mask_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(ValueError, match=r"mask_values says how mask files are read, and .*a\.json has none"):
        read_supports(tmp_path / "a.json", mask_values="1")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["key/b.jpg", "key/b_mask.png"], r"key has pictures \(b\.jpg\) but no folder images: arrange all"),
        (["cup/c.jpg", "cup/c_mask.png"], r"cup has pictures \(c\.jpg\) next to its folder images"),
        (["d.jpg"], r"s has pictures \(d\.jpg\) next to class folders"),
    ],
)
def test_a_class_in_another_layout_is_not_dropped(tmp_path: Path, extra: list[str], message: str) -> None:
    save(tmp_path / "s/cup/images/a.jpg", picture({}))
    save(tmp_path / "s/cup/masks/a.png", disc((40, 50), (12, 12), 6).astype(np.uint8))
    assert len(read_supports(tmp_path / "s")["cup"]) == 1
    for name in extra:
        save(tmp_path / "s" / name, picture({}))
    for folder in (tmp_path / "s", tmp_path / "s/cup"):
        if folder.name == "s" or extra[0].startswith("cup"):
            with pytest.raises(ValueError, match=message):
                read_supports(folder)


def test_masks_next_to_labelme_files_are_not_dropped(tmp_path: Path) -> None:
    save(tmp_path / "a.png", picture({}))
    save(tmp_path / "b.jpg", picture({}))
    shape = {"label": "cup", "points": [[2, 2], [9, 2], [9, 9]], "shape_type": "polygon"}
    content = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 40, "imageWidth": 50}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert list(read_supports(tmp_path)) == ["cup"]
    save(tmp_path / "man_mask.jpg", picture({}))  # a picture of a mask
    assert list(read_supports(tmp_path)) == ["cup"]
    save(tmp_path / "b_mask.png", disc((40, 50), (12, 12), 6).astype(np.uint8))
    with pytest.raises(ValueError, match=r"has LabelMe files and a mask \(b_mask\.png\): keep one kind"):
        read_supports(tmp_path)


def test_other_json_files_and_folders_of_macos_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "cup").mkdir()
    (tmp_path / "meta.json").write_text('{"author": "me"}')
    save(tmp_path / "cup" / "a.jpg", picture({}))
    save(tmp_path / "cup" / "a_mask.png", disc((40, 50), (12, 12), 6).astype(np.uint8) * 3)
    (support,) = read_supports(tmp_path, mask_values="3")["cup"]
    np.testing.assert_array_equal(support.mask, disc((40, 50), (12, 12), 6))


def test_the_command_takes_mask_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbered(tmp_path / "s", "next")
    image_folder(tmp_path / "images", 2)
    (tmp_path / "images/x.heic").write_bytes(b"")
    config = "VERSION: 2\nMODEL: {META_ARCHITECTURE: Prototype, BACKBONE: {NAME: build_timm_backbone}, "
    config += "TIMM: {NAME: test_efficientnet}}\nINPUT: {FEW_SHOT_SIZE: [32, 32]}\nSEED: 0\n"
    (tmp_path / "tiny.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    words = ["label", "--config-file", "tiny.yaml", "--support", "s", "--images", "images", "--output", "out"]
    words += ["--num-gpus", "0", "--no-check", "--formats", "png"]
    assert cli.main(words) == 1
    assert "holds the values 0, 1, 2: say which are the object with mask_values" in capsys.readouterr().err
    assert cli.main([*words, "--mask-values", "cup=1,2", "--mask-values", "key=15 ignore=255"]) == 0
    log = capsys.readouterr().out
    assert "Masks in s/cup: mask_values 1,2" in log and "0 unreadable, 1 left out)" in log
    assert Image.open(tmp_path / "out/png/photo 000.png").size == (50, 40)
