"""A training step and an inference of the model of any config, with random weights."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch import nn

from fss_d2.config import load_config
from fss_d2.engine.solver import build_gradient_clipper
from fss_d2.engine.train_loop import AutocastTrainer
from fss_d2.engine.trainer import Trainer
from fss_d2.modeling import DPCN, DANet

from .measure import Report, Setting, added_peak_mib, alternate, in_fresh_process, start

TRAINING, INFERENCE = "training step", "inference"
NO_WEIGHTS = ("MODEL.BACKBONE.WEIGHTS", "", "MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS", "")


@dataclass(frozen=True)
class Load:
    """What is run: the model of a config, ``batch`` episodes of ``shots`` supports at once."""

    config_file: str
    batch: int
    shots: int


@dataclass(frozen=True)
class Result:
    """What came out: median seconds of a run that is not the first, and the MiB that the first one adds."""

    run: str
    seconds: float
    peak_mib: float


def measure(setting: Setting, load: Load, *, training: bool = True) -> Report:
    """Measure a training step (unless not asked for) and an inference, each in a process of its own.

    The step is the trainer's, with the config's optimizer, as in the last iteration, when also what starts
    late learns. A model without anything to train has none. `Setting.backbone` is the config's own.
    """
    model = Trainer.build_model(_config(load, "cpu"))
    trains = training and getattr(model, "trainable", True)
    runs = [TRAINING, INFERENCE] if trains else [INFERENCE]
    results = [in_fresh_process(_measure, setting, load, run) for run in runs]
    note = written_out(model, setting.size, load)
    numbers = {"results": [asdict(result) for result in results], "note": note}
    return Report("\n".join([*table(results), *(["", note] if note else [])]), numbers)


def written_out(model: nn.Module, size: int, load: Load) -> str:
    """How large the maps are that a model computes in chunks or by a fused kernel; empty where unknown."""
    if isinstance(model, DPCN):
        feature, maps, name = model.sam_feature, len(model.windows), "cosines"
    elif isinstance(model, DANet) and model.dense is not None:
        feature, maps, name = model.in_features[0], 1, "dense attention"
    else:
        return ""
    positions = (-(-size // model.backbone.available[feature].stride)) ** 2
    pairs = load.batch * load.shots
    mib = positions**2 * 4 / 2**20
    return (
        f"Written out, a map of {name} of {positions} x {positions} positions would take {mib:.1f} MiB "
        f"(float32): {pairs * maps * mib:.1f} MiB for {pairs} pairs of a query and a support, {maps} each."
    )


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: a row for each run."""
    rows = [f"| {r.run} | {r.seconds:.2f} | {r.peak_mib:.0f} |" for r in results]
    return ["| run | seconds | peak MiB |", "| --- | --- | --- |", *rows]


def make_episode(size: int, shots: int) -> dict[str, Any]:
    """An episode of noise, with a square for the object, which is also the only segment."""
    mask = torch.zeros(size, size, dtype=torch.uint8)
    mask[size // 4 : -(size // 4), size // 4 : -(size // 4)] = 1
    images = torch.randint(0, 256, (shots + 1, 3, size, size), dtype=torch.uint8)
    return {
        "image": images[0],
        "sem_seg": mask,
        "segments": mask[None] == 1,
        "segment_labels": torch.zeros(1, dtype=torch.int64),
        "support": [{"image": image, "mask": mask} for image in images[1:]],
    }


def _config(load: Load, device: str) -> CfgNode:
    return load_config(load.config_file, [*NO_WEIGHTS, "MODEL.DEVICE", device])


def _measure(setting: Setting, load: Load, run: str) -> Result:
    start(setting)
    cfg = _config(load, setting.device)
    model = Trainer.build_model(cfg).eval()
    if (knowledge := getattr(model, "knowledge", None)) is not None:
        knowledge.fill(torch.rand_like(knowledge.prototypes))
    batch = [make_episode(setting.size, load.shots) for _ in range(load.batch)]
    with torch.no_grad():  # loads libraries, which are not the run's memory
        model.extract(torch.rand(1, 3, 64, 64, device=setting.device))
    with EventStorage(), nullcontext() if run == TRAINING else torch.inference_mode():
        once = _training_step(cfg, model, batch) if run == TRAINING else lambda: model(batch)
        peak_mib = added_peak_mib(once, setting.device)
        times = alternate({run: once}, repeats=setting.repeats, device=setting.device, warm_up=False)
    return Result(run, times[run], peak_mib)


def _training_step(cfg: CfgNode, model: nn.Module, batch: list[dict[str, Any]]) -> Callable[[], None]:
    model.train()
    model.iteration = cfg.SOLVER.MAX_ITER - 1
    amp_dtype = cfg.SOLVER.AMP.DTYPE if cfg.SOLVER.AMP.ENABLED else None
    optimizer, clip = Trainer.build_optimizer(cfg, model), build_gradient_clipper(cfg)
    return AutocastTrainer(model, repeat(batch), optimizer, clip=clip, amp_dtype=amp_dtype).run_step
