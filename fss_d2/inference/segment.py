"""Encoded images and encoded supports give predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from fss_d2.modeling import FewShotSegmentor, QueryFeatures, SupportSet
from fss_d2.modeling.fusion import mean_log_probability

from .competition import Contest
from .mask_signals import MaskScores, signals
from .prediction import Prediction
from .quality import QualityModel
from .support_file import ClassSupport

__all__ = ["EncodedImage", "segment"]

Size = tuple[int, int]
Frame = tuple[Size, Sequence[Size]]  # (height, width) of an image, and `EncodedImage.valid_sizes`


@dataclass(frozen=True)
class EncodedImage:
    """An image encoded by `FewShotPredictor.encode_image`, for any number of support sets.

    Attributes:
        size: (height, width) of the image.
        queries: one per size at which the model runs.
        valid_sizes: (height, width) of the part of each query that is not padding.
    """

    size: Size
    queries: tuple[QueryFeatures, ...]
    valid_sizes: tuple[Size, ...]


def segment(
    model: FewShotSegmentor,
    queries: Sequence[QueryFeatures],
    frames: Sequence[Frame],
    supports: Mapping[str, ClassSupport],
    quality: QualityModel,
) -> list[Prediction]:
    """Segment images that were encoded as one batch, with the frame of each; FloatingPointError for NaN."""
    names = tuple(supports)
    contests = [Contest(size, len(names)) for size, _ in frames]
    scores = []
    for i, support in enumerate(supports.values()):
        outputs = [model.match(q, s) for q, s in zip(queries, support.sets, strict=True)]
        scores.append((_lead_map(outputs[0].logits), _lead_map(outputs[0].own_logits)))
        several = len(names) > 1 and any(output.unrefined is not None for output in outputs)
        for row, frame in enumerate(frames):
            lead = _lead(model, [output.logits[row] for output in outputs], frame)
            if lead.isnan().any():
                fix = "check the model's weights, or encode the supports anew"
                raise FloatingPointError(f"the scores of class {names[i]} are NaN: {fix}")
            own = _lead(model, [output.own_logits[row] for output in outputs], frame) if several else None
            contests[row].enter(i, lead, own)
    for row, (_, valid_sizes) in enumerate(frames):
        height, width = valid_sizes[0]
        for maps in chain.from_iterable(scores):
            maps[row, height:] = maps[row, :, width:] = -torch.inf  # padding shows nothing
    sets = [support.sets[0] for support in supports.values()]
    expected = _expected(queries[0], sets, scores, quality)
    return [
        _prediction(names, contest, dict(zip(names, row, strict=True)))
        for contest, row in zip(contests, expected, strict=True)
    ]


def _prediction(names: tuple[str, ...], contest: Contest, expected: dict[str, float]) -> Prediction:
    labels = contest.labels()
    found = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:] > 0
    for name, there, probability in zip(names, found, contest.probability, strict=True):
        if not there:
            expected[name] = 1 - float(probability.max())
    return Prediction(names, contest.probability, labels, expected)


def _lead_map(logits: Tensor) -> Tensor:
    """(B, 2, H, W) to (B, H, W): object score minus background score."""
    return (logits[:, 1] - logits[:, 0]).float()


def _lead(model: FewShotSegmentor, logits: Sequence[Tensor], frame: Frame) -> Tensor:
    """Object score minus background score, (height, width) on the CPU, from the logits at each size."""
    ((height, width), valid_sizes), scores = frame, []
    for at_size, valid_size in zip(logits, valid_sizes, strict=True):
        episode = {"height": height, "width": width, "valid_size": valid_size}
        scores.append(model.to_frame(at_size, episode).cpu())
    if len(scores) > 1:
        scores = [mean_log_probability([score.double() for score in scores])]
    background, foreground = scores[0]
    return foreground.sub_(background)  # in place: the image may be large


def _expected(
    query: QueryFeatures,
    supports: Sequence[SupportSet],
    scores: Sequence[tuple[Tensor, Tensor]],
    quality: QualityModel,
) -> list[list[float]]:
    """The expected IoU of each class in each image; everything leaves the device at once.

    ``scores`` are, of each class, the leads (B, H, W) at the size of the network's input, after and before
    the refinement.
    """
    leads, own = (torch.stack(maps) for maps in zip(*scores, strict=True))  # (N, B, H, W)
    claimed = leads > 0
    winner = own.masked_fill(~claimed, -torch.inf).argmax(dim=0)
    rows = []
    for i, support in enumerate(supports):
        masks = MaskScores(claimed[i] & (winner == i), leads[i].sigmoid(), own[i].sigmoid())
        rows.append(signals(query.evidence, support.evidence, masks))
    by_image = torch.stack(rows, dim=1).cpu().numpy()  # (B, N, signals)
    return quality.expected(by_image).tolist()
