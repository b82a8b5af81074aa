"""The base class of methods that compare frozen features and learn nothing."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import choose, config_keys, require
from fss_d2.modeling.layers import area_fraction, join_levels, resize
from fss_d2.modeling.matching import choose_setting, positional_basis, without_positions
from fss_d2.modeling.matching.selection import Trial

from .contract import Encoding, Output
from .few_shot import FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["TrainingFree", "Tuned", "restrict"]

CHOICES = ("layer", "temperature", "threshold")  # of MODEL.TRAINING_FREE.LEAVE_ONE_OUT
UNIT, DEBIASED = "unit", "debiased"  # maps that `_extract_queries` adds
_VIEW = "view."  # prefix of the maps of a support's view
_KEPT_SIZES = 32  # of images whose positional basis is kept
_VIEW_SCALE = 0.7

Variant = Callable[[Tensor, Tensor | float], Tensor]  # images and the value of no picture -> images


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys that the methods that learn nothing share."""
    cfg.MODEL.TRAINING_FREE = CfgNode()
    # What leave-one-out chooses anew for each support set, of "layer" (all of the method's IN_FEATURES, or
    # one of them), "temperature" and "threshold". Each support is segmented from the others, or a single one
    # from a mirrored, smaller view of itself, which costs a second pass of the backbone.
    cfg.MODEL.TRAINING_FREE.LEAVE_ONE_OUT = ()


@dataclass(frozen=True, kw_only=True)
class Tuned(Encoding):
    """Base of what a method makes of K supports: with what leave-one-out chose, or None."""

    tuned: dict[str, Tensor] | None = None  # "channels" (B, C), "threshold" (B,), "temperature" (B,)


class TrainingFree(FewShotSegmentor):
    """Compares unit features of a frozen backbone; has no parameters.

    Feature levels are resized to the first one's size, scaled to unit length and joined, so that every level
    has the same weight. A method gives each cell of a grid a lead of the object; above `threshold` it is
    object, and `temperature` turns leads to logits.
    """

    query_kind: type[Encoding]  # of `_encode_query`
    threshold: float = 0.0
    least_threshold: float = -float("inf")  # that leave-one-out may choose

    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        in_features: Sequence[str],
        temperature: float,
        positional_rank: int = 0,
        leave_one_out: Sequence[str] = (),
        options: SegmentorOptions | None = None,
    ) -> None:
        """Raises ValueError for a value out of range, KeyError for a feature that the backbone lacks."""
        require(temperature > 0, "temperature", temperature, "above 0")
        for name in leave_one_out:
            choose("leave_one_out", name, CHOICES)
        super().__init__(backbone, options or SegmentorOptions())
        self.in_features, self.temperature = tuple(in_features), temperature
        self.positional_rank, self.leave_one_out = positional_rank, tuple(leave_one_out)
        self.backbone.select(self.in_features)
        self.widths = [backbone.available[name].channels for name in self.in_features]
        channels = sum(self.widths)
        require(0 <= positional_rank < channels, "positional_rank", positional_rank, _rule(channels))
        self._bases: dict[Any, Tensor] = {}
        backbone.register_load_state_dict_post_hook(self._forget_bases)

    @classmethod
    def shared_arguments(cls, cfg: CfgNode, section: str) -> dict[str, Any]:
        """The arguments of the base class from MODEL and a section of it, whose keys are named in errors."""
        c, key = cfg.MODEL[section], f"MODEL.{section}"
        require(c.TEMPERATURE > 0, f"{key}.TEMPERATURE", c.TEMPERATURE, "above 0")
        for name in cfg.MODEL.TRAINING_FREE.LEAVE_ONE_OUT:
            choose("MODEL.TRAINING_FREE.LEAVE_ONE_OUT", name, CHOICES)
        backbone = build_few_shot_backbone(cfg)
        names = feature_names(f"{key}.IN_FEATURES", c.IN_FEATURES, backbone)
        return {
            "backbone": backbone,
            "in_features": names,
            "temperature": c.TEMPERATURE,
            "leave_one_out": tuple(cfg.MODEL.TRAINING_FREE.LEAVE_ONE_OUT),
            "options": SegmentorOptions.from_config(cfg),
        }

    @staticmethod
    def _rank(cfg: CfgNode, section: str, arguments: Mapping[str, Any]) -> int:
        """POSITIONAL_RANK of a section of MODEL, which must suit the backbone among its other arguments."""
        rank, available = cfg.MODEL[section].POSITIONAL_RANK, arguments["backbone"].available
        channels = sum(available[name].channels for name in arguments["in_features"])
        require(0 <= rank < channels, f"MODEL.{section}.POSITIONAL_RANK", rank, _rule(channels))
        return rank

    # -- what a method defines ---------------------------------------------------------------------------

    @abstractmethod
    def _encode_shots(self, maps: Maps, masks: Tensor) -> Encoding:
        """As `_encode_support`; the result has a field ``trial``, a dict of tensors or None."""

    @abstractmethod
    def _fit(self, encoded: Any, channels: Tensor | None) -> Tuned:
        """As `_join`, on those channels (B, C) of the features that are 1, or on all."""

    @abstractmethod
    def _planes(self, query: Any, support: Any, channels: Tensor | None) -> Tensor:
        """What the method finds out about each cell of a query: (B, P, h, w) float32."""

    @abstractmethod
    def _lead(self, planes: Tensor) -> Tensor:
        """Lead of the object (B, h, w) according to these planes."""

    @abstractmethod
    def _output(
        self, planes: Tensor, threshold: Tensor, temperature: Tensor, size: tuple[int, int]
    ) -> Output:
        """The output at a size; threshold and temperature are (B,) or ()."""

    # -- features ----------------------------------------------------------------------------------------

    def _extract_queries(self, images: Tensor, features: Maps | None) -> Maps:
        """Adds the joined levels as "unit", and without what tells of positions as "debiased"."""
        maps = super()._extract_queries(images, features)
        joined = F.normalize(join_levels(maps, self.in_features), dim=1)
        basis = self._basis(tuple(images.shape[-2:]))
        if basis is None:
            return {**maps, UNIT: joined, DEBIASED: joined}
        with self._exact():
            return {**maps, UNIT: joined, DEBIASED: without_positions(joined, basis)}

    def _exact(self) -> torch.autocast:
        """Sums and similarities are in float32, also under autocast."""
        return torch.autocast(self.device.type, enabled=False)

    def _extract_supports(self, images: Tensor, features: Maps | None) -> Maps:
        """Adds what the same gives for each of the `_variants`."""
        maps = super()._extract_supports(images, features)
        images = images.to(self.device, torch.float32)
        for prefix, change in self._variants.items():
            given = {n.removeprefix(prefix): m for n, m in maps.items() if n.startswith(prefix)}
            made = self._extract_queries(change(images, self.pixel_mean), given or None)
            maps = {**maps, **{prefix + name: values for name, values in made.items()}}
        return maps

    @property
    def _variants(self) -> dict[str, Variant]:
        """Pictures that are made of a support and encoded with it, by the prefix of their maps."""
        return {_VIEW: _view} if self.leave_one_out else {}

    @property
    def frozen_parts(self) -> dict[str, nn.Module]:
        """As in the base class; the name tells which variants are stored."""
        return {", ".join([n, *self._variants]): part for n, part in super().frozen_parts.items()}

    def stored_maps(self, images: Tensor) -> dict[str, Tensor]:
        """As in the base class, with the maps of the variants."""
        maps = self._stored_once(images)
        for prefix, change in self._variants.items():
            made = self._stored_once(change(images, 0.0))
            unread = set(self.presence_blocks) - set(self.in_features)
            maps |= {prefix + name: values for name, values in made.items() if name not in unread}
        return maps

    def _stored_once(self, images: Tensor) -> dict[str, Tensor]:
        """The `stored_maps` of the images themselves."""
        return super().stored_maps(images)

    @torch.no_grad()
    def _basis(self, size: tuple[int, int]) -> Tensor | None:
        """The positional basis of images of a size, from a black picture; kept for a few sizes."""
        if not self.positional_rank:
            return None
        kept = size, self.device
        basis = self._bases.get(kept)
        if basis is None:
            black = self.extract(self.normalise(torch.zeros(1, 3, *size, device=self.device)))
            features = F.normalize(join_levels(black, self.in_features), dim=1)
            if len(self._bases) >= _KEPT_SIZES:
                self._forget_bases()
            self._bases[kept] = basis = positional_basis(features[0], self.positional_rank)
        return basis

    def _forget_bases(self, *_: Any) -> None:
        self._bases = {}

    # -- the contract ------------------------------------------------------------------------------------

    def _encode_support(self, features: Maps, masks: Tensor) -> Encoding:
        encoded = self._encode_shots(features, masks)
        if not self.leave_one_out:
            return encoded
        view_masks = _view(masks.flatten(0, 1)[:, None].float(), 255, nearest=True).view(masks.shape)
        view = {n.removeprefix(_VIEW): m for n, m in features.items() if n.startswith(_VIEW)}
        return replace(
            encoded, trial=self._trial("own", features, masks) | self._trial("view", view, view_masks)
        )

    def _trial(self, kind: str, maps: Maps, masks: Tensor) -> dict[str, Tensor]:
        """Supports encoded as queries, and what there is to find in them: tensors (B, K, ...) by name."""
        query = {n: t.unflatten(0, masks.shape[:2]) for n, t in self._encode_query(maps).flat().items()}
        grid = maps[UNIT].shape[-2:]
        query["object"] = area_fraction(masks == 1, grid)
        query["known"] = area_fraction(masks != 255, grid)
        return {f"{kind}.{name}": tensor for name, tensor in query.items()}

    def _join(self, encoded: Encoding) -> Tuned:
        if not self.leave_one_out:
            with self._exact():
                return self._fit(encoded, None)
        episodes = next(iter(encoded.flat().values())).shape[0]
        with self._exact():
            parts = [self._tuned(encoded.map(lambda t, b=b: t[b : b + 1])) for b in range(episodes)]
        flat = [part.flat() for part in parts]
        return type(parts[0]).from_flat({name: torch.cat([part[name] for part in flat]) for name in flat[0]})

    @torch.no_grad()
    def _tuned(self, encoded: Any) -> Tuned:
        """What leave-one-out over the supports of one episode gives."""
        choices = [torch.ones(sum(self.widths), device=self.device)]
        if "layer" in self.leave_one_out and len(self.widths) > 1:
            levels = torch.arange(len(self.widths)).repeat_interleave(torch.tensor(self.widths))
            choices += [(levels == i).float().to(self.device) for i in range(len(self.widths))]
        plain = replace(encoded, trial=None)
        trials = [self._left_out(plain, encoded.trial, channels[None]) for channels in choices]
        found = choose_setting(
            trials, self.threshold, self.temperature, self.leave_one_out, self.least_threshold
        )
        channels = choices[found.layers][None]
        numbers = {"threshold": found.threshold, "temperature": found.temperature}
        tuned = {name: torch.tensor([value], device=self.device) for name, value in numbers.items()}
        return replace(self._fit(plain, channels), tuned={"channels": channels, **tuned})

    def _left_out(self, encoded: Any, trial: Mapping[str, Tensor], channels: Tensor) -> Trial:
        """Leads of each support of one episode from the others; of a single one's view from itself."""
        shots = next(iter(encoded.flat().values())).shape[1]
        kind, found = "own" if shots > 1 else "view", []
        queries = {n.removeprefix(f"{kind}."): t for n, t in trial.items() if n.startswith(f"{kind}.")}
        objects, known = queries.pop("object")[0], queries.pop("known")[0]
        for k in range(shots):
            others = [i for i in range(shots) if i != k] or [0]
            query = self.query_kind.from_flat({name: t[:, k] for name, t in queries.items()})
            joined = self._fit(encoded.map(lambda t, i=others: t[:, i]), channels)
            found.append(self._lead(self._planes(query, joined, channels)))
        return Trial(torch.cat(found), objects, known)

    def _match(self, query: Any, support: Any, size: tuple[int, int]) -> Output:
        tuned = support.tuned or {}
        with self._exact():
            planes = self._planes(query, support, tuned.get("channels"))
        threshold, temperature = (
            tuned.get(name, torch.tensor(default, device=planes.device))
            for name, default in (("threshold", self.threshold), ("temperature", self.temperature))
        )
        return self._output(planes, threshold, temperature, size)


def _rule(channels: int) -> str:
    return f"at least 0 and below {channels}, the number of channels of the features"


def restrict(features: Tensor, channels: Tensor | None) -> Tensor:
    """Unit features (B, ..., C, h, w) on those channels (B, C) that are 1, scaled to unit length again."""
    if channels is None:
        return features
    shape = (len(channels), *[1] * (features.dim() - 4), -1, 1, 1)
    return F.normalize(features * channels.view(shape), dim=-3)


def _view(images: Tensor, fill: Tensor | float, *, nearest: bool = False) -> Tensor:
    """Images (N, C, H, W) mirrored and smaller, in frames of their size filled with a value."""
    sizes = [max(round(side * _VIEW_SCALE), 1) for side in images.shape[-2:]]
    mirrored = images.flip(-1)
    if nearest:
        small = F.interpolate(mirrored, sizes, mode="nearest")
    else:
        small = resize(mirrored, sizes, align_corners=False)
    view = torch.zeros_like(images) + fill
    view[..., : sizes[0], : sizes[1]] = small
    return view
