from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.datasets.archives import SBD_TRAIN, SBD_VAL, VOC_TRAIN, VOC_VAL, snapshot
from tests.data.datasets.conftest import Script

OUT = "fss_d2/pascal5i"


def read_map(root: Path, image_id: str) -> np.ndarray:
    with Image.open(root / OUT / "SegmentationClassAug" / f"{image_id}.png") as image:
        assert image.mode == "L"
        return np.asarray(image)


def test_class_maps_pixel_by_pixel(voc_root: Path, script: Script) -> None:
    assert script("pascal5i", "--root", voc_root, "--workers", 0) == 0
    expected = {**SBD_TRAIN, **SBD_VAL, **VOC_TRAIN, **VOC_VAL}  # VOC wins
    for image_id, label in expected.items():
        assert np.array_equal(read_map(voc_root, image_id), label), image_id
    assert len(list((voc_root / OUT / "SegmentationClassAug").iterdir())) == len(expected)


def test_second_run_writes_nothing(voc_root: Path, script: Script) -> None:
    script("pascal5i", "--root", voc_root, "--workers", 0)
    before = snapshot(voc_root / OUT)
    assert script("pascal5i", "--root", voc_root, "--workers", 0) == 0
    assert snapshot(voc_root / OUT) == before


def test_broken_half_files_are_redone(voc_root: Path, script: Script) -> None:
    script("pascal5i", "--root", voc_root, "--workers", 0)
    whole = {name: content for name, (_, content) in snapshot(voc_root / OUT).items()}
    png = voc_root / OUT / "SegmentationClassAug/2007_000003.png"
    png.write_bytes(png.read_bytes()[:40])
    index = voc_root / OUT / "index.jsonl"
    rows = index.read_bytes()
    index.unlink()
    (voc_root / OUT / "index.jsonl.partial").write_bytes(rows[: len(rows) // 2])  # cut within a row
    assert script("pascal5i", "--root", voc_root, "--workers", 0) == 0
    assert {name: content for name, (_, content) in snapshot(voc_root / OUT).items()} == whole


def test_workers_do_not_change_the_result(voc_root: Path, script: Script) -> None:
    script("pascal5i", "--root", voc_root, "--workers", 0)
    alone = {name: content for name, (_, content) in snapshot(voc_root / OUT).items()}
    for name in alone:
        (voc_root / OUT / name).unlink()
    assert script("pascal5i", "--root", voc_root, "--workers", 2) == 0
    assert {name: content for name, (_, content) in snapshot(voc_root / OUT).items()} == alone


def test_lists_as_text(voc_root: Path, script: Script) -> None:
    script("pascal5i", "--root", voc_root, "--workers", 0)
    lists = voc_root / OUT / "lists"
    assert (lists / "train_pfenet.txt").read_text().split() == ["2007_000001", "2007_000002", "2008_000005"]
    assert (lists / "trainaug.txt").read_text().split()[-1] == "2008_000006"
    assert (lists / "pascal5i/fold0_train.txt").read_text() == "2007_000002__06\n2008_000005__06\n"


def test_train_noval_file_wins(voc_root: Path, script: Script) -> None:
    (voc_root / "SBD/benchmark_RELEASE/dataset/train_noval.txt").write_text("2008_000006\n")
    script("pascal5i", "--root", voc_root, "--workers", 0)
    pool = (voc_root / OUT / "lists/train_pfenet.txt").read_text().split()
    assert pool == ["2007_000001", "2007_000002", "2008_000006"]


def test_check_prints_counts_and_finds_faults(
    voc_root: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    script("pascal5i", "--root", voc_root, "--workers", 0)
    before = snapshot(voc_root / OUT)
    capsys.readouterr()
    assert script("pascal5i", "--root", voc_root, "--check") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["trainaug", "images", "4", "10582", "DIFFERS"] in lines
    assert ["pascal5i", "fold", "0", "val", "images", "1", "364", "DIFFERS"] in lines
    assert ["pascal5i_trainaug", "fold", "1", "train", "pairs", "2", "-"] in lines
    assert snapshot(voc_root / OUT) == before
    (voc_root / OUT / "SegmentationClassAug/2007_000003.png").unlink()
    (voc_root / "VOCdevkit/VOC2012/JPEGImages/2007_000002.jpg").unlink()
    assert script("pascal5i", "--root", voc_root, "--check") == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "2007_000002.jpg not found: download" in errors[0]
    assert "2007_000003.png is missing or broken: run" in errors[1]


@pytest.mark.parametrize(
    ("remove", "says"),
    [
        ("VOCdevkit/VOC2012", "VOCdevkit/VOC2012 not found: download VOC 2012"),
        ("SBD", "SBD/benchmark_RELEASE/dataset/cls"),
        ("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", "val.txt not found"),
        ("SBD/benchmark_RELEASE/dataset/cls/2008_000005.mat", "2008_000005.mat not found: download SBD"),
        ("VOCdevkit/VOC2012/JPEGImages/2008_000005.jpg", "2008_000005.jpg not found: download VOC"),
    ],
)
def test_missing_inputs_give_one_line(
    voc_root: Path, script: Script, capsys: pytest.CaptureFixture[str], remove: str, says: str
) -> None:
    (voc_root / remove).rename(voc_root / "elsewhere")
    assert script("pascal5i", "--root", voc_root, "--workers", 0) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert says in error
    assert not (voc_root / OUT / "index.jsonl").exists()


def test_broken_inputs_give_one_line(
    voc_root: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    mat = voc_root / "SBD/benchmark_RELEASE/dataset/cls/2008_000005.mat"
    good = mat.read_bytes()
    mat.write_bytes(b"no matlab file")
    assert script("pascal5i", "--root", voc_root, "--workers", 0) == 1
    assert "2008_000005.mat cannot be read as a class map" in capsys.readouterr().err
    mat.write_bytes(good)
    Image.new("RGB", (80, 61)).save(voc_root / "VOCdevkit/VOC2012/JPEGImages/2008_000005.jpg")
    assert script("pascal5i", "--root", voc_root, "--workers", 2) == 1
    assert "2008_000005.jpg is 80x61: extract both again" in capsys.readouterr().err
    assert script("pascal5i", "--root", voc_root, "--workers", "-1") == 1
    assert "--workers -1 is negative" in capsys.readouterr().err


def test_foreign_list_is_refused(
    voc_root: Path, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lists"
    for split in ("trn", "val"):
        (folder / split).mkdir(parents=True)
        for fold in range(4):
            (folder / split / f"fold{fold}.txt").write_text("")
    (folder / "val/fold1.txt").write_text("2007_000003__01\n")  # aeroplane is of fold 0
    assert script("pascal5i", "--root", voc_root, "--workers", 0, "--lists", folder) == 1
    assert "2007_000003__01 is no image or class of fold 1" in capsys.readouterr().err
    assert not (voc_root / OUT / "lists/hsnet").exists()
    assert script("pascal5i", "--root", voc_root, "--workers", 0, "--lists", tmp_path) == 1
    assert "holds no trn_fold0.txt[.gz] or trn/fold0.txt[.gz]" in capsys.readouterr().err
