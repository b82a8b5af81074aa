"""Pictures of many small objects, enlarged: supports are windows round objects, queries overlapping tiles."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor, nn

from fss_d2.data.samples import Sample, transform_sample
from fss_d2.data.transforms import SquashTransform
from fss_d2.data.views import Window
from fss_d2.data.zoom import Zoom, choose_zoom, object_windows, tile_weights, tile_windows
from fss_d2.modeling.layers import resize as resize_maps
from fss_d2.modeling.meta_arch.contract import Output, SupportSet, resize_support, stack_supports
from fss_d2.modeling.meta_arch.few_shot import FewShotSegmentor

__all__ = ["Enlarged", "EnlargingSegmentor", "encode_enlarged", "match_enlarged", "merge_enlarged"]

_CANVAS = 2.0  # side of the blended scores over that of the network's input, at most
_AT_ONCE = 8  # tiles in a batch on a GPU; on a CPU, one by one takes no more time
_LEAST = 1e-6  # from 0 and 1, so that blended logits are finite


@dataclass(frozen=True)
class Enlarged:
    """Encoded windows of one or more supports, for the tiles of queries."""

    zoom: Zoom
    support: SupportSet  # each window is a shot

    def state(self) -> dict[str, Any]:
        """Return plain numbers and CPU tensors, for `from_state`."""
        return {"zoom": list(astuple(self.zoom)), "support": self.support.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], model: FewShotSegmentor) -> "Enlarged":
        """Rebuild it on the model's device; errors as `FewShotSegmentor.restore_support`."""
        share, area, many = state["zoom"]
        return cls(Zoom(float(share), float(area), bool(many)), model.restore_support(state["support"]))


def encode_enlarged(
    model: FewShotSegmentor,
    resize: T.Augmentation,
    image: np.ndarray,
    mask: np.ndarray,
    most_tiles: int,
    size: Sequence[int] | None = None,
) -> Enlarged | None:
    """Encode the windows of a support, image (H, W, 3) uint8 and mask (H, W) in {0, 1, 255}.

    Args:
        resize: brings a window to the size of the network's input.
        most_tiles: of a square query; see `choose_zoom`.
        size: (height, width) of windows of earlier supports; None takes that of the first window.

    Returns:
        None where the picture is to be seen as it is, not enlarged.
    """
    zoom = choose_zoom(mask, most_tiles)
    windows = object_windows(mask, zoom.share) if zoom else []
    shown = [transform_sample(resize, window.of(image), window.of(mask)) for window in windows]
    shown = [sample for sample in shown if sample.shows(1)]
    if zoom is None or not shown:
        return None
    size = size or shown[0].image.shape[1:]
    images, masks = zip(*(resize_support(s.image.float(), s.mask, size) for s in shown), strict=True)
    return Enlarged(zoom, model.encode_support(torch.stack(images)[None], torch.stack(masks)[None]))


def merge_enlarged(model: FewShotSegmentor, parts: Sequence[Enlarged | None]) -> Enlarged | None:
    """Join those of the supports of one class; None unless half of the supports or more have small objects.

    The windows of queries get the median share of the supports' pictures. They are many if they are so in
    half of these supports or more.
    """
    known = [part for part in parts if part is not None]
    if not known or 2 * len(known) < len(parts):
        return None
    share, area, many = np.median([astuple(part.zoom) for part in known], axis=0).tolist()
    return Enlarged(Zoom(share, area, many >= 0.5), model.merge_supports([part.support for part in known]))


def match_enlarged(
    model: FewShotSegmentor,
    resize: T.Augmentation,
    image: np.ndarray,
    enlarged: Enlarged,
    whole: Output,
) -> Output:
    """Segment an image tile by tile; the probabilities of tiles are blended, then refined once.

    Args:
        resize: brings a tile to the size of the network's input.
        image: (H, W, 3) uint8.
        whole: of the image as it is, without padding and unrefined. If the objects are few, probabilities are
            averaged with its own. The presence is the largest of the tiles' and of this one.

    Returns:
        Logits (1, 2, h, w) of the whole image; the longer side is up to twice that of the network's input.
    """
    size, share = image.shape[:2], enlarged.zoom.share
    windows = tile_windows(size, share)
    nothing = np.zeros(size, np.uint8)
    samples = [transform_sample(resize, w.of(image), w.of(nothing)) for w in windows]
    longer = max(samples[0].valid_size or samples[0].image.shape[1:]) * min(1 / share, _CANVAS)
    height, width = (max(1, round(side * longer / max(size))) for side in size)
    places = [_scaled(window, height / size[0], width / size[1]) for window in windows]
    total = torch.zeros(2, height, width, device=model.device)  # of weighted probabilities, and of weights
    presence = whole.presence
    at_once = 1 if model.device.type == "cpu" else _AT_ONCE
    for start in range(0, len(samples), at_once):
        some = slice(start, start + at_once)
        leads, shown = _leads(model, samples[some], enlarged.support)
        presence = torch.maximum(presence, shown.amax(dim=0, keepdim=True))
        for place, lead in zip(places[some], leads, strict=True):
            part = total[:, place.top : place.bottom, place.left : place.right]
            weights = torch.from_numpy(tile_weights(*part.shape[1:])).to(part)
            lead = resize_maps(lead[None, None], part.shape[1:], align_corners=False)[0, 0]
            part[0] += lead.sigmoid() * weights
            part[1] += weights
    probability = total[0] / total[1]
    if not enlarged.zoom.many:
        seen = resize_maps(whole.logits.float(), (height, width), align_corners=False)[0]
        probability = (probability + (seen[1] - seen[0]).sigmoid()) / 2
    half = probability.clamp(_LEAST, 1 - _LEAST).logit() / 2
    output = Output(torch.stack([-half, half])[None], presence=presence)
    canvas = SquashTransform(height, width).apply_image(image)
    return model.refined(torch.from_numpy(canvas).permute(2, 0, 1)[None], output)


def _scaled(window: Window, down: float, right: float) -> Window:
    left, top, end, bottom = window
    return Window(round(left * right), round(top * down), round(end * right), round(bottom * down))


def _leads(
    model: FewShotSegmentor, samples: Sequence[Sample], support: SupportSet
) -> tuple[list[Tensor], Tensor]:
    """Unrefined lead of the object (h, w) in each of N samples, without padding; logits (N,) of presence."""
    query = model.encode_query(torch.stack([sample.image for sample in samples]))
    output = model.match(query, support, refined=False)
    logits = output.logits.float()
    sizes = [sample.valid_size or tuple(sample.image.shape[1:]) for sample in samples]
    return [(one[1] - one[0])[:h, :w] for one, (h, w) in zip(logits, sizes, strict=True)], output.presence


class EnlargingSegmentor(nn.Module):
    """Evaluate episodes of many small objects enlarged (TEST.ZOOM_TILES), and all others as before.

    ``segmentor`` takes and gives Detectron2's dicts: the model itself, or a `MultiScaleSegmentor` of it.
    """

    def __init__(
        self, segmentor: nn.Module, model: FewShotSegmentor, resize: T.Augmentation, most_tiles: int
    ) -> None:
        super().__init__()
        self.segmentor, self.model = segmentor, model
        self.resize, self.most_tiles = resize, most_tiles
        self.training = model.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Run episodes, which have "whole" besides what the segmentor reads: see `EpisodeMapper`."""
        found = [self._enlarged(episode["whole"]["support"]) for episode in batched_inputs]
        rest = [e for e, enlarged in zip(batched_inputs, found, strict=True) if enlarged is None]
        others = iter(self.segmentor(rest) if rest else ())
        return [
            next(others) if enlarged is None else self._segment(episode, enlarged)
            for episode, enlarged in zip(batched_inputs, found, strict=True)
        ]

    def _enlarged(self, supports: Sequence[tuple[Tensor, Tensor]]) -> Enlarged | None:
        parts: list[Enlarged | None] = []
        for image, mask in supports:
            size = next((part.support.size for part in parts if part), None)
            parts.append(
                encode_enlarged(self.model, self.resize, image.numpy(), mask.numpy(), self.most_tiles, size)
            )
        return merge_enlarged(self.model, parts)

    def _segment(self, episode: Mapping[str, Any], enlarged: Enlarged) -> dict[str, Any]:
        whole = self._whole(episode.get("views", [episode])[0])
        output = match_enlarged(self.model, self.resize, episode["whole"]["image"].numpy(), enlarged, whole)
        size = {name: episode[name] for name in ("height", "width")}
        scores = self.model.to_frame(output.logits[0], size)
        return {"sem_seg": scores, "presence": output.presence[0], "aux": {}}

    def _whole(self, episode: Mapping[str, Any]) -> Output:
        """The unrefined output for an episode as it is, without padding."""
        support = self.model.encode_support(*stack_supports([episode]))
        query = self.model.encode_query(episode["image"][None])
        output = self.model.match(query, support, refined=False)
        height, width = episode.get("valid_size", output.logits.shape[2:])
        return replace(output, logits=output.logits[:, :, :height, :width])
