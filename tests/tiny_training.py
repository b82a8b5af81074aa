"""What tests of whole trainings share: a tiny `glyphs`, a config for it, and the call of train_net.py."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fss_d2.data.datasets.glyphs import write_glyphs
from fss_d2.engine.command_line import (
    TRACEBACK_VARIABLE,
    argument_parser,
    closing_log_handlers,
    parse_command_line,
)

ROOT = Path(__file__).parents[1]
_BASE = """
_BASE_: "{base}"
MODEL:
  BACKBONE:
    NAME: build_timm_backbone
  TIMM:
    NAME: tf_efficientnet_lite0
DATASETS:
  TRAIN: ("glyphs_fold0_train",)
  TEST: ("glyphs_fold0_val",)
INPUT:
  FEW_SHOT_SIZE: (64, 64)
SOLVER:
  IMS_PER_BATCH: 2
DATALOADER:
  NUM_WORKERS: 0
TEST:
  BOOTSTRAP: 10
"""


@contextmanager
def tiny_glyphs(root: Path, config: str, *, images_per_class: int) -> Iterator[Path]:
    """Glyphs of 64 pixels as $DETECTRON2_DATASETS, and a config `tiny.yaml` that fits them; yields its path.

    Args:
        root: folder for all of it.
        config: YAML, what is to be added.
        images_per_class: of the glyphs.
    """
    write_glyphs(root, seed=0, size=64, images_per_class=images_per_class)
    (root / "glyphs.yaml").write_text(_BASE.format(base=ROOT / "configs" / "Base-FewShot.yaml"))
    (root / "tiny.yaml").write_text(f"_BASE_: glyphs.yaml\n{config}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.delenv(TRACEBACK_VARIABLE, raising=False)
        yield root / "tiny.yaml"


def command_line(config: Path, folder: Path, *more: str) -> list[str]:
    """The command line of a run on the CPU."""
    return ["--config-file", str(config), "--num-gpus", "0", "OUTPUT_DIR", str(folder), *more]


def train(config: Path, folder: Path, *more: str) -> None:
    """Run train_net.py in this process, also from fixtures of a module."""
    import train_net

    with closing_log_handlers():
        train_net.main(parse_command_line(argument_parser("test"), command_line(config, folder, *more)))


def episodes(folder: Path) -> str:
    """What an evaluation at one shot wrote about its episodes."""
    return (folder / "inference" / "glyphs_fold0_val_1shot" / "episodes.jsonl").read_text()
