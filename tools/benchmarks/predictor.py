"""The predictor of any config: supports encoded once, against supports encoded anew for every query."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from fss_d2.config import load_config
from fss_d2.data.augmentation_registry import build_resize
from fss_d2.engine.trainer import Trainer
from fss_d2.inference.predictor import FewShotPredictor

from .measure import Report, Setting, alternate, in_fresh_process, start
from .whole_model import NO_WEIGHTS

ENCODE, FIRST, LATER, ANEW = "set_support", "first query", "later query", "encoded anew"


@dataclass(frozen=True)
class Result:
    """Median seconds with ``shots`` supports.

    Attributes:
        shots: supports, one class.
        encode_seconds: of `FewShotPredictor.set_support`.
        first_seconds: of `predict` right after it.
        later_seconds: of `predict` after another query.
        anew_seconds: of `set_support` and `predict`, as without a state each query would need both.
    """

    shots: int
    encode_seconds: float
    first_seconds: float
    later_seconds: float
    anew_seconds: float


def measure(setting: Setting, config_file: str, shots: Sequence[int]) -> Report:
    """Measure each number of supports in a process of its own; `Setting.backbone` is the config's own."""
    results = [in_fresh_process(_measure, setting, config_file, k) for k in shots]
    return Report(table(results), {"results": [asdict(result) for result in results]})


def make_predictor(setting: Setting, config_file: str) -> FewShotPredictor:
    """With random weights, for images of the setting's size, without what comes after the network.

    Raises:
        ValueError: a method that takes no supports.
    """
    size = ("INPUT.FEW_SHOT_SIZE", (setting.size, setting.size))
    network_alone = (*NO_WEIGHTS, "TEST.REFINEMENT", "")
    cfg = load_config(config_file, [*network_alone, "MODEL.DEVICE", setting.device, *size])
    model = Trainer.build_model(cfg)
    if (knowledge := getattr(model, "knowledge", None)) is not None:
        knowledge.fill(torch.rand_like(knowledge.prototypes))
    return FewShotPredictor(model, [build_resize(cfg)], support_views=cfg.FEW_SHOT.TEST.SUPPORT_VIEWS)


def _measure(setting: Setting, config_file: str, shots: int) -> Result:
    start(setting)
    predictor = make_predictor(setting, config_file)
    noise = np.random.default_rng(0)
    *images, query = noise.integers(0, 256, (shots + 1, setting.size, setting.size, 3), np.uint8)
    masks = [np.pad(np.ones((setting.size // 2,) * 2, bool), setting.size // 4)] * shots

    def anew() -> None:
        predictor.set_support(images, masks)
        predictor.predict(query)

    runs = {
        ENCODE: lambda: predictor.set_support(images, masks),
        FIRST: lambda: predictor.predict(query),  # right after it, as runs take turns in this order
        LATER: lambda: predictor.predict(query),
        ANEW: anew,
    }
    return Result(shots, *alternate(runs, repeats=setting.repeats, device=setting.device).values())


def table(results: Sequence[Result]) -> str:
    """Markdown: a row for each number of shots; ratios to what a query takes with supports encoded anew."""
    lines = [
        "| shots | encoded anew for each query, s | set_support, s | first query, s | later query, s "
        "| set_support ratio | first ratio | later ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in results:
        parts = (r.encode_seconds, r.first_seconds, r.later_seconds)
        seconds = " | ".join(f"{part:.3f}" for part in parts)
        ratios = " | ".join(f"{part / r.anew_seconds:.2f}" for part in parts)
        lines.append(f"| {r.shots} | {r.anew_seconds:.3f} | {seconds} | {ratios} |")
    return "\n".join(lines)
