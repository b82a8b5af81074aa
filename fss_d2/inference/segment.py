"""Encoded images and encoded supports give predictions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling import FewShotSegmentor, QueryFeatures, SupportSet
from fss_d2.modeling.enlarged import Enlarged
from fss_d2.modeling.evidence import DEEP
from fss_d2.modeling.fusion import mean_log_probability
from fss_d2.modeling.layers import resize
from fss_d2.modeling.meta_arch.contract import Output

from .competition import share_out
from .mask_signals import MaskScores, signals
from .prediction import Prediction, least_parts
from .quality import QualityModel
from .support_file import ClassSupport

__all__ = ["EncodedImage", "segment"]

_SIMILARITY = 10.0  # weight of a cosine against a lead, in the competition of classes
_NEAREST = 5  # cells of the object that are compared
_ABOVE_HALF = np.nextafter(np.float32(0.5), np.float32(1))

Size = tuple[int, int]
Frame = tuple[Size, Sequence[Size]]  # (height, width) of an image, and `EncodedImage.valid_sizes`
Enlarge = Callable[[Enlarged, Output], Output]  # `match_enlarged` of an image


@dataclass(frozen=True)
class EncodedImage:
    """An image encoded by `FewShotPredictor.encode_image`, for any number of support sets.

    Attributes:
        pixels: the image (H, W, 3) uint8, from which tiles are cut for small objects.
        queries: one per size at which the model runs.
        valid_sizes: (height, width) of the part of each query that is not padding.
    """

    pixels: np.ndarray
    queries: tuple[QueryFeatures, ...]
    valid_sizes: tuple[Size, ...]

    @property
    def size(self) -> Size:
        """(height, width) of the image."""
        return self.pixels.shape[:2]


def segment(
    model: FewShotSegmentor,
    queries: Sequence[QueryFeatures],
    frames: Sequence[Frame],
    supports: Mapping[str, ClassSupport],
    quality: QualityModel,
    present_above: float,
    enlarge: Enlarge | None = None,
) -> list[Prediction]:
    """Segment images that were encoded as one batch, with the frame of each; FloatingPointError for NaN.

    ``present_above`` is that of `Prediction`. ``enlarge`` is for classes of small objects, in one image at a
    time.
    """
    names = tuple(supports)
    probability = [np.empty((len(names), *size), np.float32) for size, _ in frames]
    evidence = [np.empty((len(names), *valid_sizes[0]), np.float32) for _, valid_sizes in frames]
    scores, similar, presence = [], [], []
    for i, support in enumerate(supports.values()):
        if support.enlarged is None:
            outputs = [model.match(q, s) for q, s in zip(queries, support.sets, strict=True)]
            of_class, network = frames, outputs[0]
        else:
            outputs, of_class, network = _enlarged(model, queries[0], support, frames[0], enlarge)
        scores.append(_network_leads(network, frames))
        alone = network.logits.new_zeros(())
        similar.append(_similarity(queries[0], support.sets[0]) if len(names) > 1 else alone)
        presence.append(torch.stack([output.presence for output in outputs]).mean(dim=0).sigmoid())
        for row, frame in enumerate(of_class):
            if len(names) > 1:
                own = [output.own_logits[row].clone() for output in outputs]
                height, width = frames[row][1][0]
                evidence[row][i] = _lead(model, own, ((height, width), frame[1])).numpy()
                evidence[row][i] += similar[i][row, :height, :width].cpu().numpy()
            lead = _lead(model, [output.logits[row] for output in outputs], frame)
            if lead.isnan().any():
                fix = "check the model's weights, or encode the supports anew"
                raise FloatingPointError(f"the scores of class {names[i]} are NaN: {fix}")
            probability[row][i] = _probability(lead)
    given = torch.stack(presence)  # (N, B)
    sets = [support.sets[0] for support in supports.values()]
    expected = _expected(queries[0], sets, scores, similar, given >= present_above, quality)
    areas = {name: s.enlarged.zoom.area for name, s in supports.items() if s.enlarged is not None}
    predictions = []
    for row, (known, of_class) in enumerate(zip(expected, given.T.tolist(), strict=True)):
        rivals = evidence[row] if len(names) > 1 else None
        shown = [value >= present_above for value in of_class]
        least = least_parts(names, areas, probability[row][0].size)
        labels = share_out(probability[row], shown, rivals, least=least)
        values = dict(zip(names, known, strict=True)), dict(zip(names, of_class, strict=True))
        predictions.append(Prediction(names, probability[row], labels, *values, present_above, rivals, areas))
    return predictions


def _similarity(query: QueryFeatures, support: SupportSet) -> Tensor:
    """How much the cells of queries resemble the object of a class, in units of a lead: (B, H, W).

    The mean of the largest cosines of the deep features with cells of the object, by which classes compare
    better than by their leads alone (docs/BENCHMARKS.md).
    """
    maps = support.evidence.maps[DEEP][0]  # (K, C, h, w)
    shares = support.evidence.objects[DEEP][0]  # (K, h, w)
    cells = maps.movedim(1, -1)[shares >= min(0.5, float(shares.max()))]  # (n, C)
    cosines = torch.einsum("bchw,nc->bnhw", query.evidence.maps[DEEP], cells)
    nearest = _SIMILARITY * cosines.topk(min(_NEAREST, len(cells)), dim=1).values.mean(dim=1, keepdim=True)
    return resize(nearest, query.size, align_corners=False)[:, 0]


def _enlarged(
    model: FewShotSegmentor, query: QueryFeatures, support: ClassSupport, frame: Frame, enlarge: Enlarge
) -> tuple[list[Output], list[Frame], Output]:
    """Segment an image with a class of small objects.

    Returns the output for the enlarged image, its frame, and the same at the size of the network's input.
    """
    size, ((height, width), *_) = frame
    whole = model.match(query, support.sets[0], refined=False)
    output = enlarge(support.enlarged, replace(whole, logits=whole.logits[:, :, :height, :width]))
    padding = (0, query.size[1] - width, 0, query.size[0] - height)
    at_network = (
        F.pad(resize(logits, (height, width), align_corners=False), padding)
        for logits in (output.logits, output.own_logits)
    )
    logits, own = at_network
    frames = [(size, [tuple(output.logits.shape[2:])])]
    return [output], frames, replace(output, logits=logits, unrefined=own)


def _network_leads(output: Output, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """The leads (B, H, W) of the object after and before the refinement; padding shows nothing."""
    leads = _lead_map(output.logits), _lead_map(output.own_logits)
    for row, (_, ((height, width), *_)) in enumerate(frames):
        for maps in leads:
            maps[row, height:] = maps[row, :, width:] = -torch.inf
    return leads


def _probability(lead: Tensor) -> np.ndarray:
    """Of a lead (H, W) of the object, which is overwritten; above 0.5 exactly where that is above 0."""
    positive, probability = (lead > 0).numpy(), lead.float().sigmoid_().numpy()
    return np.maximum(probability, _ABOVE_HALF, out=probability, where=positive)


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
    similar: Sequence[Tensor],
    present: Tensor,
    quality: QualityModel,
) -> list[list[float]]:
    """The expected IoU of each class in each image; everything leaves the device at once.

    ``scores`` are, of each class, the leads (B, H, W) at the size of the network's input, after and before
    the refinement, to which ``similar`` (B, H, W) adds where classes compete. Those that are ``present``
    (N, B) compete; each other class has all that it claims.
    """
    leads, own = (torch.stack(maps) for maps in zip(*scores, strict=True))  # (N, B, H, W)
    claimed = leads > 0
    present = present[:, :, None, None]
    rivals = own + torch.stack(list(similar))
    winner = rivals.masked_fill(~(claimed & present), -torch.inf).argmax(dim=0)
    rows = []
    for i, support in enumerate(supports):
        masks = MaskScores(claimed[i] & ((winner == i) | ~present[i]), leads[i].sigmoid(), own[i].sigmoid())
        rows.append(signals(query.evidence, support.evidence, masks))
    by_image = torch.stack(rows, dim=1).cpu().numpy()  # (B, N, signals)
    return quality.expected(by_image).tolist()
