"""On bad input every program fails with one line that says what is wrong, and leaves no half-written file."""

import json
import os
import pickle
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from fss_d2.engine.command_line import TRACEBACK_VARIABLE
from tests import bad_input_cases, own_picture_cases
from tests.spoiling import Case, Code

_ROOT = Path(__file__).parents[1]
_CONFIG = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: DCAMA
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: test_efficientnet}
DATASETS:
  FOLDERS:
  - {name: toy_fold0_train, root: toy, fold: 0, num_folds: 2, split: train}
  - {name: toy_fold0_val, root: toy, fold: 0, num_folds: 2, split: val}
  - {name: toy_both, root: toy}
  COCO_JSON:
  - {name: toy_coco, json_file: coco.json, image_root: toy/cat/images}
  TRAIN: [toy_fold0_train]
  TEST: [toy_fold0_val]
INPUT: {FEW_SHOT_SIZE: [32, 32]}
FEW_SHOT: {TEST: {EPISODES: 2}}
SOLVER: {IMS_PER_BATCH: 1, MAX_ITER: 1}
DATALOADER: {NUM_WORKERS: 0}
TEST: {EVAL_PERIOD: 0, PICTURES: 0, BOOTSTRAP: 0}
OUTPUT_DIR: out
SEED: 0
"""
# The command line of each program; the words of a case follow, and later flags and keys win.
PROGRAMS = {
    "train": "train_net.py --config-file tiny.yaml --num-gpus 0",
    "eval": "train_net.py --config-file tiny.yaml --num-gpus 0 --eval-only",
    "convert": "tools/convert_checkpoint.py",
    "head": "tools/extract_head.py",
    "score": "tools/score_autolabel.py --config-file tiny.yaml --device cpu",
    "folds": "tools/cross_validate.py --config-file tiny.yaml --num-gpus 0 --folds 0 --output out",
    "draw": "tools/visualize.py --dataset toy_fold0_val --output out --config-file tiny.yaml",
    "proposals": "tools/visualize.py --figure proposals --dataset toy_fold0_val --num 1 --output out "
    "--config-file tiny.yaml MODEL.META_ARCHITECTURE MMFormer MODEL.PROPOSALS.NUM_QUERIES 5 "
    "MODEL.PROPOSALS.DIM 32 MODEL.MM_FORMER.DIM 32 INPUT.FEW_SHOT_SIZE (64,64) MODEL.DEVICE cpu",
    "supports": "tools/check_support_use.py --config-file tiny.yaml --episodes 4 MODEL.DEVICE cpu",
    "label": "fss_d2/cli.py label --config-file tiny.yaml --support toy --images photos --output out "
    "--num-gpus 0",
    "demo": "demo/demo.py --config-file tiny.yaml --support-dir toy --input photos --output out --num-gpus 0",
    "flat": "demo/demo.py --config-file tiny.yaml --support-dir flat --input photos --output out "
    "--num-gpus 0",
    "one": "demo/demo.py --config-file tiny.yaml --support photos/a.png --input photos --output out "
    "--num-gpus 0",
    "export": "tools/export_model.py --config-file tiny.yaml --output out/m.pt2 --support photos/a.png "
    "--support-mask toy/cat/masks/0.png",
    "encoded": "tools/export_model.py --config-file tiny.yaml --output out/m.pt2 --support-file w.pth",
    "figures": "tools/visualize.py --config-file tiny.yaml --dataset toy_fold0_val --num 1 "
    "--output out --figure attention MODEL.DEVICE cpu",
    "benchmark": "tools/benchmark.py --shots 1 --size 32 --repeats 1 --threads 1",
    "glyphs": "datasets/prepare_glyphs.py --root . --workers 0",
    "pascal5i": "datasets/prepare_pascal5i.py --root . --workers 0",
    "coco20i": "datasets/prepare_coco20i.py --root . --workers 0",
    "fss1000": "datasets/prepare_fss1000.py --root . --workers 0",
}
_COCO = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(3)],
    "categories": [{"id": 7, "name": "cat"}],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 7, "segmentation": [[4, 4, 20, 4, 20, 20]]} for i in range(3)
    ],
}
_MANIFEST = [
    {
        "manifest_version": 1,
        "dataset": "toy_fold0_val",
        "shots": 1,
        "seed": 0,
        "query_rule": "class",
        "episodes": 1,
    },
    {"class_id": 0, "class_name": "cat", "query": "cat/0", "supports": ["cat/1"]},
]
_STARTED = {"log.txt", "config.yaml", "metrics.json"}  # of a run that started
_ONE_ERROR = re.compile(r"(?:\w+\.py: |fss-d2 \w+: )?error: (.+)")  # argparse adds the program's name


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three images, a COCO file of one class, a manifest, photographs and a config."""
    root = tmp_path_factory.mktemp("pristine")
    generator = np.random.default_rng(0)
    for class_name in ("cat", "dog"):
        for part in ("images", "masks"):
            (root / "toy" / class_name / part).mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            mask[4:20, 8:24] = 255
            Image.fromarray(pixels).save(root / "toy" / class_name / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / "toy" / class_name / "masks" / f"{number}.png")
    for folder, names in (("photos", ("a.png", "b.png")), ("flat", ("c.jpg",))):
        (root / folder).mkdir()
        for name in names:
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                root / folder / name
            )
    Image.fromarray(mask).save(root / "flat/c.png")
    (root / "tiny.yaml").write_text(_CONFIG)
    (root / "coco.json").write_text(json.dumps(_COCO))
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _MANIFEST))
    return root


@pytest.fixture
def place(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `pristine` to work in; catalogs are cleared after it."""
    root = shutil.copytree(pristine, tmp_path / "work")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(_ROOT / "datasets"))
    yield root
    for name in ("toy_fold0_train", "toy_fold0_val", "toy_both", "toy_coco"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


def _run(command: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run a program as `python PROGRAM WORDS` does, in this process; return its exit code."""
    name, *words = command.split()
    program, *first = PROGRAMS[name].split()
    monkeypatch.setattr(sys, "argv", [program, *first, *words])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(_ROOT / program), run_name="__main__")
    return done.value.code


def _snapshot(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _is_whole(path: Path, content: bytes) -> bool:
    """Whether a file that a failed run left is complete: a log, or a result that was finished before."""
    if path.name in _STARTED or path.name.startswith("events.out"):
        return True
    if path.suffix == ".pth":
        return bool(torch.load(path, weights_only=True))
    if path.suffix == ".json":
        return bool(json.loads(content))
    if path.suffix == ".png":
        return content.endswith(b"IEND\xaeB`\x82")
    if path.suffix == ".txt":
        return content.endswith(b"\n")
    # ".partial": an index in whole lines, which the next run completes.
    return (
        path.suffix in (".jsonl", ".partial")
        and content.endswith(b"\n")
        and all(json.loads(line) for line in content.splitlines())
    )


@pytest.mark.parametrize("case", [*bad_input_cases.CASES, *own_picture_cases.CASES], ids=str)
def test_bad_input(
    case: Case, place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.spoil is not None:
        case.spoil()
    before = _snapshot(place)
    capfd.readouterr()
    code = _run(case.command, monkeypatch)
    output, errors = capfd.readouterr()
    assert code not in (0, None)
    found = [match[1] for line in errors.splitlines() if (match := _ONE_ERROR.fullmatch(line))]
    assert len(found) == 1, errors
    assert case.culprit in found[0]
    assert "Traceback" not in output + errors
    after = _snapshot(place)
    assert {path: after.get(path) for path in before} == before  # no earlier file has changed
    left = [path for path in after.keys() - before.keys() if not _is_whole(path, after[path])]
    assert not left


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "eval MODEL.META_ARCHITECTURE Prototype",
        "draw",
        "proposals",
        "supports --dataset toy_both",
        "label",
        "demo",
        "flat --save mask,overlay,coco,attention",
        "one --support-box 4 4 20 20",
        "export MODEL.META_ARCHITECTURE Prototype",
        "figures",
    ],
)
def test_the_input_is_good_before_it_is_spoiled(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(command, monkeypatch) in (0, None)


def test_the_pickled_code_would_leave_a_file(place: Path) -> None:
    """`test_bad_input` finds no such file: it never runs pickled code."""
    pickle.loads(pickle.dumps(Code())).close()
    assert (place / "code_was_run").is_file()


def test_a_batch_that_the_processes_cannot_share(place: Path) -> None:
    """In its own processes: the error of a spawned process is one line, too."""
    command = [sys.executable, str(_ROOT / "train_net.py"), "--config-file", "tiny.yaml", "--num-gpus", "0"]
    command += ["--num-processes", "2", "SOLVER.IMS_PER_BATCH", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "SOLVER.IMS_PER_BATCH 3" in line
    assert "Traceback" not in done.stderr + done.stdout
    assert not list(place.rglob("*.pth"))


def test_the_environment_check_fails_where_a_module_does(tmp_path: Path) -> None:
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    command = [sys.executable, "-m", "fss_d2.check_env"]
    path = os.pathsep.join([str(tmp_path), str(_ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "import cv2" in line]
    assert line.startswith("WRONG") and "libGL.so.1" in line and "opencv-python-headless" in line
    assert "Traceback" not in done.stderr + done.stdout
