"""Every program says in one line what is wrong with its input, fails, and leaves no half-written file."""

import json
import logging
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import logger as detectron2_logger
from PIL import Image

from fss_d2.engine.errors import TRACEBACK_VARIABLE

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
# What each program is given before the words of a case; later flags and keys win.
_PROGRAMS = {
    "train": "train_net.py --config-file tiny.yaml --num-gpus 0",
    "eval": "train_net.py --config-file tiny.yaml --num-gpus 0 --eval-only",
    "convert": "tools/convert_checkpoint.py",
    "folds": "tools/cross_validate.py --config-file tiny.yaml --num-gpus 0 --folds 0 --output out",
    "draw": "tools/visualize_episodes.py --dataset toy_fold0_val --output out --config-file tiny.yaml",
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
_STARTED = {"log.txt", "config.yaml", "metrics.json"}  # logs of a run that began, and TensorBoard's
_ONE_ERROR = re.compile(r"(?:\w+\.py: )?error: (.+)")  # argparse puts the program's name before it

Break = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        command: a name of `_PROGRAMS`, and the words that follow.
        culprit: must be named by the error.
        spoil: makes the input bad, run in the folder of the case; None where the command alone is bad.
    """

    command: str
    culprit: str
    spoil: Break | None = None

    def __str__(self) -> str:
        return f"{self.command} {self.culprit}"[:80]


class _Code:
    """Pickles into a call that leaves a file behind."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return open, ("code_was_run", "w")


def _write(name: str, content: str | bytes) -> Break:
    return lambda: Path(name).write_bytes(content.encode() if isinstance(content, str) else content)


def _cut(name: str, size: int) -> Break:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:size])


def _replace(name: str, old: str, new: str) -> Break:
    return lambda: Path(name).write_text(Path(name).read_text().replace(old, new))


def _mask(name: str, side: int, value: int) -> Break:
    return lambda: Image.new("L", (side, side), value).save(name)


def _save(name: str, content: object) -> Break:
    return lambda: torch.save(content, name)


def _remove(name: str) -> Break:
    return lambda: Path(name).unlink()


def _all_images(spoil: Callable[[str], Break]) -> Break:
    """Whatever is drawn, it is spoilt."""
    return lambda: [spoil(str(path))() for path in Path("toy").glob("*/images/*")]


def _all_masks(spoil: Callable[[str], Break]) -> Break:
    return lambda: [spoil(str(path))() for path in Path("toy").glob("*/masks/*")]


CASES = [
    # Images and masks.
    Case("train", "toy/dog/images", _all_images(lambda p: _cut(p, 1200))),
    Case("eval MODEL.META_ARCHITECTURE Prototype", "toy/cat/images", _all_images(lambda p: _cut(p, 1200))),
    Case("draw", "toy/cat/images", _all_images(lambda p: _cut(p, 1200))),
    Case("train", "toy/dog/images/1.png", _write("toy/dog/images/1.png", "a text")),
    Case("train", "toy/dog/masks", _all_masks(lambda p: _mask(p, 20, 255))),
    Case("eval", "toy/cat/masks", _all_masks(lambda p: _mask(p, 32, 0))),
    Case("draw", "toy/cat/masks", _all_masks(lambda p: _write(p, "a text"))),
    Case("train", "toy/dog/images/2.png has no mask", _remove("toy/dog/masks/2.png")),
    Case("train", "toy/dog/masks/2.png has no image", _remove("toy/dog/images/2.png")),
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three images, a COCO file of one, a manifest and configs: all in order."""
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
    (root / "tiny.yaml").write_text(_CONFIG)
    (root / "coco.json").write_text(json.dumps(_COCO))
    (root / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in _MANIFEST))
    return root


@pytest.fixture
def place(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `pristine` as working folder and $DETECTRON2_DATASETS; catalogs and logs as before after it."""
    root = shutil.copytree(pristine, tmp_path / "work")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    monkeypatch.syspath_prepend(str(_ROOT / "datasets"))
    yield root
    for name in ("toy_fold0_train", "toy_fold0_val", "toy_coco"):
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)
    for name in ("detectron2", "fvcore", "fss_d2"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
    detectron2_logger.setup_logger.cache_clear()
    detectron2_logger._cached_log_stream.cache_clear()


def _run(command: str, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    """Run a program as `python PROGRAM WORDS` does, in this process; return its exit code."""
    name, *words = shlex.split(command)
    program, *first = shlex.split(_PROGRAMS[name])
    monkeypatch.setattr(sys, "argv", [program, *first, *words])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(_ROOT / program), run_name="__main__")
    return done.value.code


def _snapshot(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _is_whole(path: Path, content: bytes) -> bool:
    """Whether a file that a failed run has left is complete: a log, or something it had finished."""
    if path.name in _STARTED or path.name.startswith("events.out"):
        return True
    if path.suffix == ".pth":
        return bool(torch.load(path, weights_only=True))
    if path.suffix == ".png":
        return content.endswith(b"IEND\xaeB`\x82")
    return path.suffix == ".jsonl" and all(json.loads(line) for line in content.splitlines())


@pytest.mark.parametrize("case", CASES, ids=str)
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
    assert {path: after.get(path) for path in before} == before  # nothing that was there has changed
    left = [path for path in after.keys() - before.keys() if not _is_whole(path, after[path])]
    assert not left


@pytest.mark.parametrize("command", ["train", "eval MODEL.META_ARCHITECTURE Prototype", "draw"])
def test_the_input_is_good_before_it_is_spoilt(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(command, monkeypatch) in (0, None)
