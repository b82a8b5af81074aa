"""Encoded images and encoded supports give predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling import FewShotSegmentor, QueryFeatures
from fss_d2.modeling.enlarged import Enlarged
from fss_d2.modeling.fusion import mean_log_probability
from fss_d2.modeling.layers import resize
from fss_d2.modeling.meta_arch.contract import Output

from .competition import Contest
from .evidence import MaskScores, Tokens, signals
from .prediction import Prediction, least_parts
from .quality import QualityModel
from .support_file import ClassSupport

__all__ = ["EncodedImage", "segment"]

Size = tuple[int, int]
Frame = tuple[Size, Sequence[Size]]  # (height, width) of an image, and `EncodedImage.valid_sizes`
Enlarge = Callable[[Enlarged, Tensor | None], Output]  # `match_enlarged` of an image


@dataclass(frozen=True)
class EncodedImage:
    """An image encoded by `FewShotPredictor.encode_image`, for any number of support sets.

    Attributes:
        pixels: the image (H, W, 3) uint8, from which tiles are cut for small objects.
        queries: one per size at which the model runs.
        valid_sizes: (height, width) of the part of each query that is not padding.
        tokens: of the first query, for `Prediction.expected_iou`.
    """

    pixels: np.ndarray
    queries: tuple[QueryFeatures, ...]
    valid_sizes: tuple[Size, ...]
    tokens: Tokens

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.pixels.shape[:2]


def segment(
    model: FewShotSegmentor,
    queries: Sequence[QueryFeatures],
    tokens: Tokens,
    frames: Sequence[Frame],
    supports: Mapping[str, ClassSupport],
    quality: QualityModel,
    enlarge: Enlarge | None = None,
) -> list[Prediction]:
    """Segment images that were encoded as one batch, with the frame of each; FloatingPointError for NaN.

    ``enlarge`` is for classes of small objects, which are segmented in one image at a time.
    """
    names = tuple(supports)
    areas = {name: s.enlarged.zoom.area for name, s in supports.items() if s.enlarged is not None}
    contests = [Contest(size, len(names)) for size, _ in frames]
    scores = []
    for i, support in enumerate(supports.values()):
        if support.enlarged is None:
            outputs, of_class = (
                [model.match(q, s) for q, s in zip(queries, support.sets, strict=True)],
                frames,
            )
            logits = outputs[0].logits, outputs[0].own_logits
        else:
            (size, (valid_size, *_)), *_ = frames
            outputs = [_enlarged(model, queries[0], support, valid_size, enlarge)]
            of_class = [(size, [tuple(outputs[0].logits.shape[2:])])]
            both = outputs[0].logits, outputs[0].own_logits
            logits = tuple(_as_network(x, valid_size, queries[0].size) for x in both)
        scores.append(tuple(map(_lead_map, logits)))
        several = len(names) > 1 and any(output.unrefined is not None for output in outputs)
        for row, frame in enumerate(of_class):
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
    expected = _expected(tokens, [s.tokens for s in supports.values()], scores, quality)
    return [
        _prediction(names, contest, dict(zip(names, row, strict=True)), areas)
        for contest, row in zip(contests, expected, strict=True)
    ]


def _prediction(
    names: tuple[str, ...], contest: Contest, expected: dict[str, float], areas: Mapping[str, float]
) -> Prediction:
    labels = contest.labels(least_parts(names, areas, contest.probability[0].size))
    found = np.bincount(labels.ravel(), minlength=len(names) + 1)[1:] > 0
    for name, there, probability in zip(names, found, contest.probability, strict=True):
        if not there:
            expected[name] = 1 - float(probability.max())
    return Prediction(names, contest.probability, labels, expected, areas)


def _enlarged(
    model: FewShotSegmentor,
    query: QueryFeatures,
    support: ClassSupport,
    valid_size: Size,
    enlarge: Enlarge,
) -> Output:
    """Segment an image with a class of small objects; the query shows it as a whole."""
    height, width = valid_size
    if support.enlarged.zoom.many:
        return enlarge(support.enlarged, None)
    output = model.match(query, support.sets[0], refined=False)
    return enlarge(support.enlarged, output.logits[:, :, :height, :width])


def _as_network(logits: Tensor, valid_size: Size, size: Size) -> Tensor:
    """Bring logits (1, 2, h, w) of a whole image to the size of the network's input, with its padding."""
    (height, width), fitted = valid_size, resize(logits, valid_size, align_corners=False)
    return F.pad(fitted, (0, size[1] - width, 0, size[0] - height))


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
    query: Tokens,
    supports: Sequence[Tokens],
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
    for i, tokens in enumerate(supports):
        masks = MaskScores(claimed[i] & (winner == i), leads[i].sigmoid(), own[i].sigmoid())
        rows.append(signals(query, tokens, masks))
    by_image = torch.stack(rows, dim=1).cpu().numpy()  # (B, N, signals)
    return quality.expected(by_image).tolist()
