#!/usr/bin/env python3
"""Fit the numbers behind `Prediction.expected_iou` on photographs whose true masks are known.

    python tools/fit_quality.py --data train_folders --classes cat cow horse \\
        --output fss_d2/model_zoo/dcama_efficientnet_lite0.quality.json

`--data` contains <class>/images/* and <class>/masks/<same name>.png. Of each class 3, 4 or 5 images are drawn
as supports, in turn; each of them is segmented with the others, and further images of the class, and some
that do not show it, with all. Signals and IoUs of all these masks are fitted together, those without the
object at half the weight. With one config the numbers are bound to its weights and settings; with several
they are a prior for any method. DEFAULT is the model of the package.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fss_d2.engine.command_line import documented_parser, parse_command_line, run_command, start_log
from fss_d2.io.files import write_json
from fss_d2.model_zoo import DEFAULT_CONFIG

if TYPE_CHECKING:  # imported late, so that --help is quick
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.label.supports import Support

logger = logging.getLogger("fss_d2.tools.fit_quality")

_SHOTS = (3, 4, 5)
_SPREAD = 2.0  # of classes, as logits: 1 is best for photographs like those of the fit, 2 for another domain
_WEIGHT_WITHOUT = 0.5  # of a mask in an image without the object


class Mask(NamedTuple):
    """A predicted mask that was compared with the true one."""

    job: tuple[str, str, int]  # config, class, draw
    signals: np.ndarray
    iou: float
    weight: float


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--classes", nargs="+", metavar="NAME", help="default: all")
    add("--config-file", nargs="+", default=["DEFAULT"], metavar="FILE")
    add("--draws", type=int, default=3, metavar="N", help="of supports, per class; default: %(default)s")
    add("--images", type=int, default=24, metavar="N", help="per draw, with the object; default: %(default)s")
    add("--without", type=int, default=6, metavar="N", help="per draw, without it; default: %(default)s")
    add("--origin", default="", metavar="TEXT", help="what the masks were, for reports")
    add("--device", default="", help="cpu, cuda; default: a GPU, if there is one")
    add("--output", type=Path, required=True, metavar="JSON")
    return parse_command_line(parser, arguments)


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """IoU of a mask with a true one {0, 1, 255}; pixels of 255 do not count."""
    counts = truth != 255
    union = np.count_nonzero((found | (truth == 1)) & counts)
    return np.count_nonzero(found & (truth == 1)) / max(union, 1)


def recording(predictor: FewShotPredictor) -> list[np.ndarray]:
    """Make a predictor keep the signals of each class that it segments; return the list of them."""
    from fss_d2.inference.quality import QualityModel

    seen: list[np.ndarray] = []

    class Recorder(QualityModel):
        def expected(self, signals: np.ndarray) -> np.ndarray:
            seen.append(signals.reshape(-1, signals.shape[-1])[0])
            return super().expected(signals)

    predictor.quality = Recorder(**vars(predictor.quality))
    return seen


def masks_of_job(
    predictor: FewShotPredictor,
    data: dict[str, list[Support]],
    job: tuple[str, str, int],
    args: argparse.Namespace,
) -> Iterator[Mask]:
    """All masks of one draw of supports."""
    seen, (_, name, draw) = recording(predictor), job
    rng = np.random.default_rng((draw, sorted(data).index(name)))
    order = rng.permutation(len(data[name]))
    shots = min(_SHOTS[draw % len(_SHOTS)], len(order) // 2)
    supports = [data[name][i] for i in order[:shots]]
    images, masks = [s.image for s in supports], [s.mask for s in supports]
    left_out = predictor.leave_out(images, masks, [(i,) for i in range(shots)] if shots > 1 else [])
    for support, (prediction,) in zip(supports, left_out, strict=False):
        yield Mask(job, seen[-1], iou(prediction.labels == 1, support.mask), 1.0)
    predictor.set_support(images, masks)
    own = {s.files[0].name for s in data[name]}
    others = [s for key in sorted(data) for s in data[key] if s.files[0].name not in own]
    drawn = rng.choice(len(others), min(args.without, len(others)), replace=False)
    with_object = [(data[name][i], 1.0) for i in order[shots:][: args.images]]
    for support, weight in [*with_object, *((others[i], _WEIGHT_WITHOUT) for i in drawn)]:
        prediction = predictor.predict(support.image)
        if prediction.labels.any():
            truth = support.mask if weight == 1 else np.zeros_like(support.mask)
            yield Mask(job, seen[-1], iou(prediction.labels == 1, truth), weight)


def collect(args: argparse.Namespace, data: dict[str, list[Support]]) -> tuple[list[Mask], dict[str, Any]]:
    """The masks of all configs; of a single one also what the numbers are bound to."""
    from fss_d2.config import load_config
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.inference.support_file import encoding_settings, weights_digest

    masks, bound = [], {}
    for config in args.config_file:
        file = str(DEFAULT_CONFIG if config == "DEFAULT" else config)
        device = ["MODEL.DEVICE", args.device] if args.device else []
        cfg = load_config(file, [*args.opts, *device])
        predictor = FewShotPredictor.from_cfg(cfg, present_above=0)
        for name in args.classes or data:
            for draw in range(args.draws):
                masks += masks_of_job(predictor, data, (config, name, draw), args)
                logger.info("%s, %s, draw %d: %d masks so far", config, name, draw + 1, len(masks))
        settings = {**encoding_settings(cfg), "TEST.REFINEMENT": cfg.TEST.REFINEMENT}
        bound = {"method": type(predictor.model).__name__, "weights": weights_digest(predictor.model)}
        bound["settings"] = dict(sorted(settings.items()))
    return masks, bound if len(args.config_file) == 1 else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect, fit and write."""
    args = parse(arguments)
    from fss_d2.inference.quality import QualityModel
    from fss_d2.label.supports import read_supports
    from fss_d2.modeling.logistic import Logistic

    start_log()
    masks, bound = collect(args, read_supports(args.data))
    signals, ious, weights = (np.array([m[i] for m in masks]) for i in (1, 2, 3))
    classes = ", ".join(dict.fromkeys(m.job[1] for m in masks))
    origin = args.origin or f"a fit on {len(masks)} masks of {args.data.name} ({classes})"
    model = QualityModel(origin, Logistic.fit(signals, ious, weights), _SPREAD)
    write_json(args.output, {**model.to_json(), **bound})
    error = np.average(np.abs(model.expected(signals) - ious), weights=weights)
    logger.info("%d masks, mean IoU %.3f, mean error %.3f: %s", len(masks), ious.mean(), error, args.output)


if __name__ == "__main__":
    sys.exit(run_command(main))
