"""Data that are not there: every benchmark names the page and the script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from fss_d2.config import load_config
from fss_d2.data.catalog import get_records, register_datasets_from_cfg

ROOT = Path(__file__).parents[3]
PAGE = "datasets/README.md says what goes where"
IMAGES = "download the COCO images and extract them there, then "
LISTS = " --lists FOLDER"
HSNET = "fss_d2/coco20i/lists/hsnet"


@pytest.mark.parametrize(
    ("name", "missing", "fix"),
    [
        ("pascal5i_fold0_train", "fss_d2/pascal5i/lists/train_pfenet.txt", "prepare_pascal5i.py`"),
        ("pascal5i_fold3_val", "fss_d2/pascal5i/lists/val.txt", "prepare_pascal5i.py`"),
        ("pascal5i_trainaug_fold0_train", "fss_d2/pascal5i/lists/trainaug.txt", "prepare_pascal5i.py`"),
        ("pascal5i_hsnet_fold0_train", "fss_d2/pascal5i/index.jsonl", "prepare_pascal5i.py`"),
        ("coco20i_fold0_train", "coco/train2014", f"{IMAGES}prepare_coco20i.py`"),
        ("coco20i_flat_fold1_val", "coco/val2014", f"{IMAGES}prepare_coco20i.py`"),
        ("coco20i_contiguous_fold0_val", "coco/val2014", f"{IMAGES}prepare_coco20i.py`"),
        ("coco20i_2017_fold0_val", "coco/val2017", f"{IMAGES}prepare_coco20i.py --year 2017`"),
        ("coco20i_mmformer_fold0_val", "coco/val2017", f"{IMAGES}prepare_coco20i.py --year 2017`"),
        (
            "coco20i_hsnet_fold0_val",
            "fss_d2/coco20i/lists/hsnet/val_fold0.json",
            f"prepare_coco20i.py{LISTS}`",
        ),
        ("coco2pascal_fold0_train", "coco/train2017", f"{IMAGES}prepare_coco20i.py --year 2017`"),
        ("coco2pascal_fold0_val", "fss_d2/pascal5i/lists/val.txt", "prepare_pascal5i.py`"),
        ("coco15_fold0_train", "coco/train2017", f"{IMAGES}prepare_coco20i.py --year 2017`"),
        ("coco75sub_fold0_val", "fss_d2/pascal5i/lists/val.txt", "prepare_pascal5i.py`"),
        ("fss1000_train", "fss_d2/fss1000/lists/train.txt", f"prepare_fss1000.py{LISTS}`"),
        ("glyphs_fold0_val", "glyphs/index.json", "prepare_glyphs.py`"),
    ],
)
def test_every_benchmark(
    name: str, missing: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        get_records(name)
    line, fix = str(caught.value), fix.replace("prepare_", "run `python datasets/prepare_")
    assert line.startswith(f"{tmp_path / missing} not found: {fix}")
    assert line.endswith(f"; {PAGE}") and "\n" not in line
    (script,) = re.findall(r"datasets/prepare_\w+\.py", line)
    assert (ROOT / script).is_file()


def test_the_index_is_missing_where_the_images_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "coco/train2017").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"train2017\.jsonl not found: run .*20i\.py --year 2017`; "):
        get_records("coco20i_2017_fold0_train")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("coco_mini", "dense_correlation/photos_efficientnet_lite2"),
        ("pascal_part", "dcama/pascal_part_efficientnet_lite0"),
    ],
)
def test_slices_of_larger_sets(
    name: str, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = set(DatasetCatalog.list())
    cfg = load_config(str(ROOT / f"configs/{config}.yaml"))
    with pytest.raises(FileNotFoundError) as caught:
        register_datasets_from_cfg(cfg)
    assert str(caught.value).endswith(f", or run `python datasets/prepare_{name}.py`; {PAGE}")
    assert set(DatasetCatalog.list()) == before


def test_training_on_a_bare_machine_ends_with_one_line(tmp_path: Path) -> None:
    config = ROOT / "configs/mmformer/stage1_coco.yaml"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "data"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), "--num-gpus", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: {tmp_path}/data/coco/train2017 not found: {IMAGES}run `python datasets/prepare_coco20i.py "
        f"--year 2017`; {PAGE}"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"\xff\xfe\x00a", b"2007_\xe4\n"])
def test_lists_that_are_not_text(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fss_d2/pascal5i/lists/val.txt"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ValueError, match=f"{path} is not UTF-8 text: get or write the list again"):
        get_records("pascal5i_fold0_val")


@pytest.mark.parametrize("line", [b"[" * 10_000, b'{"a": "\xff"}', b"[]"])
def test_an_index_that_is_broken(tmp_path: Path, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fss_d2/fss1000/index.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"index": 1}\n' + line + b"\n")
    (path.parent / "lists").mkdir()
    for split in ("train", "val", "test"):
        (path.parent / f"lists/{split}.txt").write_text("a\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(ValueError, match=rf"{path}:2: not a JSON row; delete the file, then run "):
        get_records("fss1000_train")


def test_lists_of_coco_that_are_nested_too_deeply() -> None:
    from fss_d2.data.datasets.coco20i import parse_class_lists

    with pytest.raises(ValueError, match=r"a\.json: not JSON of the form .* \(its brackets are nested too"):
        parse_class_lists("[" * 100_000, "a.json")
