"""The base class of every method: episodes in, losses or scores out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.backbone.base import STAGES
from fss_d2.modeling.baseline import Baseline, WithBaseline
from fss_d2.modeling.evidence import DEEP, Evidence, evidence_of
from fss_d2.modeling.fusion import CROSS_GUIDED, guidance_weights
from fss_d2.modeling.layers import dice_loss, resize
from fss_d2.modeling.presence import Presence, guide_of
from fss_d2.modeling.refinement import refine

from .contract import (
    Encoding,
    Masks,
    NegativeSet,
    Output,
    QueryFeatures,
    SupportSet,
    Target,
    checked_shape,
    episode_name,
    group_episodes,
    stack_supports,
)
from .image_model import ImageModel
from .options import OWN, SegmentorOptions

__all__ = ["FewShotSegmentor", "Maps", "SegmentorOptions"]

_AGAINST = 8.0  # logits that a pixel loses for a cosine of 1 by which negatives lead
_DEEPEST = 3  # blocks that tell of presence, by default

Episode = dict[str, Any]
Maps = Mapping[str, Tensor]


class FewShotSegmentor(ImageModel):
    """Few-shot segmentation in three parts: `encode_support`, `encode_query`, and `match` of the two.

    A method subclasses it, registers itself in ``META_ARCH_REGISTRY`` and defines `_encode_support`,
    `_encode_query` and `_match`, and `_join` where it keeps more of K supports than K encodings. A method
    that joins K predictions instead has `own_fusion`.

    Example:
        >>> model = build_model(cfg)  # of any method, MODEL.WEIGHTS: a trained checkpoint
        >>> support = model.encode_support(images, masks)  # (1, K, 3, H, W), (1, K, H, W)
        >>> logits = model.match(model.encode_query(queries), support).logits  # any number of queries
    """

    permutation_invariant: bool = True  # the order of the supports makes no difference
    shot_by_shot: bool = False  # supports go through the network one by one in training as well
    own_fusion: str = ""  # of `FUSIONS`, where the method's own way is K predictions, one for each support
    score_layer: str = ""  # path of the module that makes scores of the penultimate features
    query_first: bool = False  # queries are encoded before the supports: matters for batch statistics
    borrows_keys_of: tuple[str, ...] = ()  # other methods whose config keys this one reads as well
    class_weights: Tensor

    def __init__(self, backbone: Backbone, options: SegmentorOptions) -> None:
        super().__init__(backbone, options)
        self.refinement, self.align_corners = options.refinement, options.align_corners
        self.kshot = options.kshot
        self.ignore_as_background, self.negatives = options.ignore_as_background, options.negatives
        self.dice_weight, self.aux_weight = options.dice_weight, options.aux_weight
        class_weights = torch.tensor([1.0, options.foreground_weight])
        self.register_buffer("class_weights", class_weights, persistent=False)
        given = [_deepest(backbone, name) for name in options.presence_blocks]
        self._presence_blocks = tuple(dict.fromkeys(name for names in given for name in names))
        if unknown := [name for name in self._presence_blocks if name not in backbone.available]:
            known = ", ".join(backbone.available)
            raise KeyError(f"MODEL.PRESENCE.BLOCKS: no feature {unknown[0]!r}: choose from {known}")
        self.presence = Presence()
        self.baseline = None
        if options.baseline_scale:
            self.baseline = Baseline(backbone, options.baseline_features, options.baseline_scale)

    # -- what a method defines ---------------------------------------------------------------------------

    @abstractmethod
    def _encode_support(self, features: Maps, masks: Tensor) -> Encoding:
        """Encode supports: maps (B*K, C, h, w) of `extract`, masks (B, K, H, W) in {0, 1, 255}.

        Every tensor of the result is (B, K, ...), and depends on its own support alone.
        """

    def _join(self, encoded: Encoding) -> Encoding:
        """Take the K supports of each episode together; every tensor is (B, ...). Default: as they are."""
        return encoded

    def _encode_negatives(self, features: Maps, masks: Tensor) -> Encoding | None:
        """Encode negatives: as `_encode_support`, but 0 in a mask is the region without the object, 255 none.

        Default: nothing; presence and scores then change by the evidence of the base class alone.
        """
        return None

    def _add_negatives(self, joined: Any, negatives: Any) -> Encoding:
        """Join the background of encoded negatives, tensors (B, N, ...), to joined supports (B, ...)."""
        return joined

    @abstractmethod
    def _encode_query(self, features: Maps) -> Encoding:
        """Encode queries: maps (B, C, h, w) of `extract`. Whatever needs no support belongs here."""

    @abstractmethod
    def _match(self, query: Any, support: Any, size: tuple[int, int]) -> Output:
        """Segment encoded queries with joined supports, both of B episodes, at ``size`` (H, W)."""

    def losses(self, output: Output, target: Target) -> dict[str, Tensor]:
        """Losses of what `match` gave.

        "loss_seg" is the softmax cross entropy, a weighted mean over the pixels that are not 255; "loss_dice"
        the soft Dice loss of the object, where it has a weight; "loss_aux" the mean cross entropy of the
        levels, resized to the target (PFENet). With `negatives`, the Dice loss of a query without the object
        is that of the background: that of the object would be near 1 whatever is predicted.
        """
        mask = target.mask
        if self.ignore_as_background:
            mask = mask.masked_fill(mask == 255, 0)
        losses = {"loss_seg": self._cross_entropy(output.logits, mask)}
        if self.dice_weight:
            background, foreground = (output.logits.float().softmax(dim=1) * (mask != 255)[:, None]).unbind(1)
            dice = dice_loss(foreground, (mask == 1).float())
            if self.negatives:
                dice = torch.where(target.shows_object, dice, dice_loss(background, (mask == 0).float()))
            losses["loss_dice"] = self.dice_weight * dice.mean()
        if output.levels:
            levels = [resize(level, mask.shape[-2:]) for level in output.levels]
            entropies = torch.stack([self._cross_entropy(level, mask) for level in levels])
            losses["loss_aux"] = self.aux_weight * entropies.mean()
        return losses

    def _cross_entropy(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Weighted mean over the pixels that are not 255; 0 where there is none."""
        total = F.cross_entropy(logits.float(), mask, self.class_weights, ignore_index=255, reduction="sum")
        background, foreground = self.class_weights
        weight = background * (mask == 0).sum() + foreground * (mask == 1).sum()
        return total / weight.clamp(min=1)

    def _extract_queries(self, images: Tensor, features: Maps | None) -> Maps:
        """What `_encode_query` reads of images (B, 3, H, W), 0 to 255; ``features`` are those of `extract`.

        A method that needs more than the backbone's maps of an image adds it here and in `_extract_supports`.
        """
        return self.extract(self.normalise(images)) if features is None else features

    def _extract_supports(self, images: Tensor, features: Maps | None) -> Maps:
        """The same of supports and negatives (N, 3, H, W), for `_encode_support`, `_encode_negatives`."""
        return self._extract_queries(images, features)

    # -- presence ----------------------------------------------------------------------------------------

    @property
    def presence_blocks(self) -> tuple[str, ...]:
        """The blocks whose features tell whether an object is there."""
        if self._presence_blocks:
            return self._presence_blocks
        read = {name.partition(".")[0] for name in self.backbone.selected}
        stages = [stage for stage in STAGES if stage in read]
        return _deepest(self.backbone, stages[-1]) if stages else self.backbone.selected[-1:]

    def extract(self, images: Tensor) -> dict[str, Tensor]:
        """As in the base class, with the maps of the baseline; in evaluation mode with those of presence."""
        if self.training and self.baseline is None:
            return super().extract(images)
        return super().extract(images, self._kept_names)

    @property
    def _kept_names(self) -> tuple[str, ...]:
        """What the method reads, what the baseline under it reads, and what tells of presence."""
        baseline = () if self.baseline is None else self.baseline.in_features
        return tuple(dict.fromkeys((*self.backbone.selected, *baseline, *self.presence_blocks)))

    def _evidence(self, features: Maps, masks: Tensor | None = None) -> Evidence | None:
        if self.training:
            return None
        return evidence_of(features, self.backbone.selected, self.presence_blocks, masks)

    # -- what a method defines, with the baseline under it -----------------------------------------------

    def _support_encoding(self, features: Maps, masks: Tensor) -> Encoding:
        own = self._encode_support(features, masks)
        if self.baseline is None:
            return own
        return WithBaseline(own, self.baseline.encode_support(features, masks))

    def _query_encoding(self, features: Maps) -> Encoding:
        own = self._encode_query(features)
        return own if self.baseline is None else WithBaseline(own, self.baseline.encode_query(features))

    def _join_all(self, encoded: Any, negatives: Encoding | None) -> Encoding:
        own = self._join(encoded if self.baseline is None else encoded.own)
        own = own if negatives is None else self._add_negatives(own, negatives)
        return own if self.baseline is None else WithBaseline(own, self.baseline.join(encoded.baseline))

    def _segmented(self, query: Any, support: Any, size: tuple[int, int]) -> Output:
        if self.baseline is None:
            return self._match(query, support, size)
        align = self.align_corners
        lead = self.baseline.lead(query.baseline, support.baseline, size, align_corners=align)
        return self._match(query.own, support.own, size).lowered(-lead)

    # -- several supports --------------------------------------------------------------------------------

    @property
    def fusion(self) -> str:
        """How the predictions of K supports are joined; "" where `_join` takes the supports together."""
        if self.training:
            return "average" if self.own_fusion else ""  # votes have no gradient
        return self.own_fusion if self.kshot == OWN else self.kshot

    def _joined(self, support: SupportSet) -> SupportSet:
        """The set with all that `match` reads made anew from what is kept of each support and negative."""
        encoded, negatives = support.encoded, support.negatives
        further = None if negatives is None else negatives.encoded
        guide = None
        if support.evidence is not None:
            guide = guide_of(support.evidence, negatives and negatives.evidence)
        if not self.fusion:
            return replace(support, joined=self._join_all(encoded, further), guide=guide)
        K, weights = support.shots, None
        shots = encoded.map(lambda t: t.flatten(0, 1)[:, None])  # (B*K, 1, ...): K episodes of one shot
        if self.fusion == CROSS_GUIDED:
            weights = self._guidance(replace(support, joined=_by_shot(self._join_all(shots, None), K)))
        if further is not None:
            further = further.map(lambda t: t.repeat_interleave(K, dim=0))
        joined = _by_shot(self._join_all(shots, further), K)
        return replace(support, joined=joined, guide=guide, weights=weights)

    def _guidance(self, support: SupportSet) -> Tensor:
        """Segment every support with every support: the weights (B, K) of cross-guided averaging."""
        if support.queries is None or support.masks is None:
            raise ValueError(f"TEST.KSHOT {CROSS_GUIDED} needs supports that were encoded with it")
        masks, found = support.masks.masks, []
        for number in range(support.shots):
            query = support.queries.map(lambda t, number=number: t[:, number])
            logits = [self._segmented(query, shot, masks.shape[-2:]).logits for shot in support.each()]
            found.append(torch.stack([x[:, 1] > x[:, 0] for x in logits], dim=1))  # (B, K, H, W)
        return guidance_weights(torch.stack(found, dim=2), masks)

    def _match_all(self, query: QueryFeatures, support: SupportSet) -> Output:
        """One match with all supports, or one with each, whose results are joined."""
        if not self.fusion:
            return self._segmented(query.encoded, support.joined, query.size)
        outputs = [self._segmented(query.encoded, shot, query.size) for shot in support.each()]
        return Output.fused(self.fusion, outputs, support.weights) if len(outputs) > 1 else outputs[0]

    # -- the three parts ---------------------------------------------------------------------------------

    def encode_support(self, images: Tensor, masks: Tensor, features: Maps | None = None) -> SupportSet:
        """Encode the supports of B episodes; raises ValueError for shapes that do not go together.

        Args:
            images: (B, K, 3, H, W) RGB, 0 to 255, uint8 or float.
            masks: (B, K, H, W), 1 object, 0 background, 255 neither.
            features: what `extract` gave for the normalised B*K images, to save the backbone pass.
        """
        B, K = checked_shape("support", images, masks)
        masks = masks.to(self.device)
        # One by one needs less memory and, on a CPU, no more time.
        one_by_one = self.shot_by_shot or (self.device.type == "cpu" and not self.training)
        parts, kept, queries = [], [], []
        for shots in [slice(k, k + 1) for k in range(K)] if one_by_one else [slice(K)]:
            given = features and {
                name: maps.unflatten(0, (B, K))[:, shots].flatten(0, 1) for name, maps in features.items()
            }
            maps = self._extract_supports(images[:, shots].flatten(0, 1), given)
            parts.append(self._support_encoding(maps, masks[:, shots]))
            kept.append(self._evidence(maps, masks[:, shots]))
            if self.fusion == CROSS_GUIDED:
                queries.append(self._query_encoding(maps).map(lambda t: t.unflatten(0, (B, -1))))
        encoded = type(parts[0]).concatenate(parts)
        evidence = None if self.training else Evidence.concatenate(kept)
        whole = SupportSet(type(self).__name__, K, tuple(images.shape[3:]), encoded, encoded, evidence)
        if queries:
            whole = replace(whole, queries=type(queries[0]).concatenate(queries), masks=Masks(masks))
        return self._joined(whole)

    def encode_negatives(self, images: Tensor, masks: Tensor, features: Maps | None = None) -> NegativeSet:
        """Encode negatives of B episodes, pictures or regions that lack the object, in evaluation mode.

        Args:
            images: (B, N, 3, H, W) RGB, 0 to 255, uint8 or float.
            masks: (B, N, H, W), 0 in the region, 255 elsewhere.
            features: as in `encode_support`.

        Raises ValueError for shapes that do not go together, another value, or a negative without a region.
        """
        B, N = checked_shape("negative", images, masks)
        masks = masks.to(self.device)
        if not bool(((masks == 0) | (masks == 255)).all()) or not bool(
            (masks == 0).flatten(2).any(dim=2).all()
        ):
            raise ValueError("a mask of a negative is 0 where the region is, at one pixel at least, else 255")
        maps = self._extract_supports(images.flatten(0, 1), features)
        evidence = self._evidence(maps, torch.where(masks == 0, 1, 255))
        return NegativeSet(type(self).__name__, evidence, self._encode_negatives(maps, masks))

    def with_negatives(self, support: SupportSet, negatives: NegativeSet | None) -> SupportSet:
        """The support set with these negatives in place of those that it has; nothing is encoded again.

        Raises ValueError for negatives of another method or another number of episodes.
        """
        if negatives is not None:
            self._check_own("negatives", negatives.method)
            episodes = len(negatives.evidence.objects[DEEP])
            if episodes != support.batch_size:
                raise ValueError(f"negatives of {episodes} episodes for supports of {support.batch_size}")
        return self._joined(replace(support, negatives=negatives))

    def merge_supports(self, sets: Sequence[SupportSet]) -> SupportSet:
        """Join the supports of several sets into one; nothing is encoded again.

        The sets, at least one, are of the same episodes in the same order, and of one image size. Raises
        ValueError for sets that do not go together, or of another method.
        """
        for support in sets:
            self._check_own("support set", support.method)
        return self._joined(SupportSet.concatenate(sets))

    def select_supports(self, support: SupportSet, indices: Sequence[int]) -> SupportSet:
        """Keep the supports with these indices, at least one, in this order; nothing is encoded again.

        Raises ValueError for an index that no support has, no index, or a set of another method.
        """
        self._check_own("support set", support.method)
        return self._joined(support.select(indices))

    def restore_support(self, state: Mapping[str, Any]) -> SupportSet:
        """Rebuild a set, on the model's device, from what `SupportSet.state` gave; nothing is encoded again.

        Raises ValueError for an entry that is missing or does not fit, or a set of another method.
        """
        self._check_own("support set", state.get("method", type(self).__name__))
        return SupportSet.from_state(state, self.device, self._joined)

    def encode_query(self, images: Tensor, features: Maps | None = None) -> QueryFeatures:
        """Encode queries, once for any number of support sets; raises ValueError for another shape.

        Args:
            images: (B, 3, H, W) RGB, 0 to 255, uint8 or float.
            features: what `extract` gave for the normalised images, to save the backbone pass.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"query images are {tuple(images.shape)}: give (B, 3, H, W)")
        maps = self._extract_queries(images, features)
        encoded = self._query_encoding(maps)
        return QueryFeatures(type(self).__name__, images, encoded, self._evidence(maps))

    def match(self, query: QueryFeatures, support: SupportSet, *, refined: bool = True) -> Output:
        """Segment B encoded queries with the supports of B episodes, or of one that serves all queries.

        Returns logits (B, 2, H, W) and more, in evaluation mode refined (unless not ``refined``) and with the
        logits (B,) of the presence, where query and supports were encoded in evaluation mode. Raises
        ValueError for what another method encoded, or a support set of another number of episodes.
        """
        self._check_own("support set", support.method)
        self._check_own("query", query.method)
        support = support.for_queries(len(query.images))
        output, guide = self._match_all(query, support), support.guide
        if self.training:
            return output
        if guide is not None and query.evidence is not None:
            if guide.negatives is not None:
                lead = self.presence.negative_lead(query.evidence, guide)[:, None]
                output = output.lowered(_AGAINST * resize(lead, query.size, align_corners=False)[:, 0])
            presence = self.presence(query.evidence, guide, output.probability(), output.own_presence)
            output = replace(output, presence=presence)
        return self.refined(query.images, output) if refined else output

    def refined(self, images: Tensor, output: Output) -> Output:
        """Refine what `match` gave for images (B, 3, H, W) by TEST.REFINEMENT; unchanged without one."""
        if not self.refinement:
            return output
        logits = refine(self.refinement, images, output.logits, output.probability())
        return replace(output, logits=logits, unrefined=output.logits)

    def _check_own(self, what: str, made_by: str) -> None:
        if made_by != type(self).__name__:
            raise ValueError(f"{what} of {made_by} given to {type(self).__name__}: encode it again")

    def segment(self, images: Tensor, support: SupportSet) -> Tensor:
        """Segment images (B, 3, H, W) with encoded supports: logits (B, 2, H, W) of background and object."""
        return self.match(self.encode_query(images), support).logits

    # -- Detectron2's interface --------------------------------------------------------------------------

    def forward(self, batched_inputs: list[Episode]) -> dict[str, Tensor] | list[Episode]:
        """Run episodes, which may differ in number of supports and in sizes.

        Args:
            batched_inputs: one dict per episode:
                "image": (3, H, W) RGB query, 0 to 255, uint8 or float;
                "support": list of K >= 1 dicts of "image" (3, H, W) and "mask" (H, W) in {0, 1, 255};
                "features" of every query, and of every support: maps (C, h, w) that `stored_maps` gave for
                the normalised image, optional, to save the backbone pass;
                "sem_seg": (H, W) target in {0, 1, 255}, needed for training only;
                "segments", "segment_labels": see `Target`; some methods train on them;
                "height", "width": size of the scores wanted, the query's own if absent;
                "valid_size": (h, w) of the part of the query that is not padding, optional.

        Returns:
            Training: dict of losses, averaged over the episodes. Inference: one dict per episode:
            "sem_seg": (2, height, width) float logits of background and object;
            "presence": () float32 logit that the query shows the object;
            "aux": dict of the method's maps (C, h, w) for drawing.

        Raises ValueError for an episode without support, or without target in training; RuntimeError for a
        training-free method in training mode.
        """
        if self.training and not self.trainable:
            raise RuntimeError(self._untrainable())
        losses: dict[str, Tensor] = {}
        results: list[Episode] = [{}] * len(batched_inputs)
        for indices in group_episodes(batched_inputs):
            episodes = [batched_inputs[i] for i in indices]
            target = self._target(episodes) if self.training else None
            query, support = self._encode(episodes)
            output = self.match(query, support)
            if target is None:
                for row, i in enumerate(indices):
                    scores = self.to_frame(output.logits[row], batched_inputs[i])
                    results[i] = {
                        "sem_seg": scores,
                        "presence": output.presence[row],
                        "aux": {n: m[row] for n, m in output.maps.items()},
                    }
            else:
                for name, loss in self.losses(output, target).items():
                    losses[name] = losses.get(name, 0) + loss * (len(indices) / len(batched_inputs))
        return losses if self.training else results

    @property
    def frozen_parts(self) -> dict[str, nn.Module]:
        """The modules behind `stored_maps`, by the names of what they give."""
        return {", ".join(self._kept_names): self.backbone}

    def stored_maps(self, images: Tensor) -> dict[str, Tensor]:
        """What a feature cache keeps of normalised images (N, 3, H, W), as their "features" (N, C, h, w).

        They are those of evaluation mode. A method may add what its frozen parts make of the backbone's maps.
        """
        return super().extract(images, self._kept_names)

    def _encode(self, episodes: list[Episode]) -> tuple[QueryFeatures, SupportSet]:
        """Encode episodes of one shape."""
        images = torch.stack([e["image"] for e in episodes])
        maps = self._given_maps(episodes)
        of_supports = self._given_maps([support for e in episodes for support in e["support"]])
        if self.query_first:
            query = self.encode_query(images, maps)
            return query, self.encode_support(*stack_supports(episodes), of_supports)
        support = self.encode_support(*stack_supports(episodes), of_supports)
        return self.encode_query(images, maps), support

    def _given_maps(self, images: Sequence[Episode]) -> Maps | None:
        """Stack the "features" of images to (N, C, h, w); None if an image has none."""
        if not all("features" in image for image in images):
            return None
        stacked = {n: torch.stack([i["features"][n] for i in images]) for n in images[0]["features"]}
        return {name: maps.to(self.device, torch.float32) for name, maps in stacked.items()}

    def _target(self, episodes: list[Episode]) -> Target:
        if any("sem_seg" not in e for e in episodes):
            raise ValueError(f"{episode_name(episodes[0])}: no 'sem_seg' to train on")
        mask = torch.stack([e["sem_seg"] for e in episodes]).to(self.device, torch.long)
        segments = [e["segments"] for e in episodes if "segments" in e]
        return Target(mask, segments, [e["segment_labels"] for e in episodes if "segment_labels" in e])

    def _untrainable(self) -> str:
        return f"{type(self).__name__} is training-free: evaluate it, or choose another method"

    def to_frame(self, logits: Tensor, episode: Episode) -> Tensor:
        """Crop the padding of logits (2, H, W) of one query and resize them to the frame asked for.

        The episode has "height", "width" and "valid_size", each optional, as in `forward`.
        Returns (2, height, width) float32.
        """
        h, w = episode.get("valid_size", logits.shape[1:])
        size = (episode.get("height", h), episode.get("width", w))
        return resize(logits[None, :, :h, :w].float(), size, align_corners=self.align_corners)[0]


def _deepest(backbone: Backbone, name: str) -> tuple[str, ...]:
    """The last blocks of a stage; any other name stands for itself."""
    blocks = backbone.blocks(name) if name in STAGES and name in backbone.available else []
    return tuple(blocks[-_DEEPEST:]) or (name,)


def _by_shot(joined: Encoding, K: int) -> Encoding:
    """(B*K, ...) to (B, K, ...)."""
    return joined.map(lambda t: t.unflatten(0, (-1, K)))
