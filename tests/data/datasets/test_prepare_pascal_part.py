"""Cutting the small part out of PASCAL-5i."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.data.datasets import pascal5i

SCRIPT = Path(__file__).parents[3] / "datasets" / "prepare_pascal_part.py"


def _run(root: Path, monkeypatch: pytest.MonkeyPatch, ids: list[str]) -> int:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    module = runpy.run_path(str(SCRIPT))
    (root / "ids.txt").write_text("\n".join(ids))
    module["main"].__globals__.update(IDS=root / "ids.txt", SIDE=40)
    return int(module["main"](["--root", str(root)]))


def test_the_part_has_its_photographs_maps_and_lists(voc_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (voc_root / "lists").mkdir()
    for fold in range(4):
        for split in ("trn", "val"):
            (voc_root / f"lists/{split}_fold{fold}.txt").write_text("")
    (voc_root / "lists/trn_fold1.txt").write_text("2008_000005__06\n2007_000002__06\n")
    (voc_root / "lists/val_fold0.txt").write_text("2007_000003__01\n")
    pascal5i.prepare(voc_root, workers=0, lists=voc_root / "lists")
    assert _run(voc_root, monkeypatch, ["2007_000003", "2008_000005"]) == 0
    part = voc_root / "pascal_part"
    assert (part / "lists/trn_fold1.txt").read_text() == "2008_000005__06\n"
    assert (part / "lists/val_fold0.txt").read_text() == "2007_000003__01\n"
    assert sorted(path.name for path in (part / "JPEGImages").iterdir()) == [
        "2007_000003.jpg",
        "2008_000005.jpg",
    ]
    with Image.open(part / "JPEGImages/2007_000003.jpg") as image:
        assert image.format == "JPEG" and image.size == (40, 30)
    with Image.open(part / "SegmentationClassAug/2007_000003.png") as image:
        assert set(np.unique(image)) == {0, 1, 6, 255} and image.size == (40, 30)


def test_what_is_missing_is_named(
    voc_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(voc_root, monkeypatch, ["2007_000003"]) == 1
    assert (
        "hsnet/trn_fold0.txt not found: run `python datasets/prepare_pascal5i.py`" in capsys.readouterr().err
    )
    assert not (voc_root / "pascal_part").exists()


def test_the_lists_of_ids() -> None:
    ids = (SCRIPT.parent / "pascal_part_ids.txt").read_text().split()
    tested = (SCRIPT.parent / "voc_coseg_ids.txt").read_text().split()
    assert len(ids) == len(set(ids)) == 1849 and len(tested) == len(set(tested)) == 190
    assert set(tested) < set(ids)
