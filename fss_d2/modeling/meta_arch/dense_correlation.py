"""Dense correlation: how similar each position is to the supports, in absolute terms, decoded to a mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling.backbone import FeatureBackbone
from fss_d2.modeling.build import build_few_shot_backbone, feature_names
from fss_d2.modeling.keys import at_least, config_keys, require, share
from fss_d2.modeling.layers import (
    COMPARISONS,
    FixedStandardisation,
    MetricEmbedding,
    PresenceHead,
    PrototypeClassifier,
    SkipDecoder,
    area_fraction,
    compare,
    dice_loss,
    finest_size,
    region_prototypes,
    resize,
    unit,
)

from .contract import Encoding, Output, Target
from .few_shot import Episode, FewShotSegmentor, Maps, SegmentorOptions

__all__ = ["DenseCorrelation"]

EMBEDDING = "embedding"  # the name of the learned map among the compared ones
STATISTICS_ITERATIONS = 8  # at the start of a training, whose maps give the standardisation its statistics
DRAWN = ("vote", "object")  # the comparisons among the maps for drawing
_UNLABELLED = -1


@config_keys
def add_keys(cfg: CfgNode) -> None:
    """Keys of the dense correlation."""
    cfg.MODEL.DENSE_CORRELATION = CfgNode()
    c = cfg.MODEL.DENSE_CORRELATION
    c.CORRELATION_FEATURES = ("res4", "res5")  # stages or blocks that are compared as they are
    c.EMBEDDING_FEATURES = ("res4", "res5")  # joined, they are the input of the learned embedding
    # Compared as well, at their own size: of SKIP_FEATURES, joined to the decoder there. () compares none.
    c.FINE_FEATURES = ("res3",)
    c.SKIP_FEATURES = ("res4", "res3", "res2")  # of the query, read by the decoder; coarse to fine
    c.TEMPERATURE = 0.05  # of cosines of backbone features; that of the embedding is learned
    c.EMBEDDING_DIM = 96
    c.WIDTH = 48  # of the convolutions on the compared maps
    c.SKIP_WIDTHS = (24, 16, 8)  # channels to which the skip features are projected
    c.DECODER_WIDTHS = (40, 32, 16)  # of the convolutions after each skip feature
    c.DROPOUT = 0.1  # of the channels of the projected skip features
    c.EMBEDDING_DROPOUT = 0.0  # share of the training episodes whose maps of the embedding are 0
    # Weight of the loss of the mask on queries that do not show the object, and the share of the iterations
    # from which on it counts.
    c.NEGATIVE_WEIGHT = 0.5
    c.NEGATIVE_START = 0.2
    c.PRESENCE_WEIGHT = 0.3  # of the loss of the presence
    # Weight of the classification of the query's positions among the training classes, which shapes the
    # embedding; above 0 it needs INPUT.SEGMENTS "semantic".
    c.CLASS_WEIGHT = 0.0
    c.NUM_CLASSES = 81  # of that classification: largest class id + 2, 0 is the background


@dataclass(frozen=True)
class ShotEncoding(Encoding):
    """Of each support, by the name of a compared map with N positions."""

    tokens: dict[str, Tensor]  # (B, K, N, C) unit vectors
    objects: dict[str, Tensor]  # (B, K, N), share of the object at each position
    grounds: dict[str, Tensor]  # (B, K, N), share of the background


@dataclass(frozen=True)
class JoinedSupports(Encoding):
    """All supports and negatives of an episode, by the name of a compared map with N positions in all."""

    tokens: dict[str, Tensor]  # (B, N, C)
    objects: dict[str, Tensor]  # (B, N)
    grounds: dict[str, Tensor]  # (B, N)
    prototypes: dict[str, Tensor]  # (B, 2, C) of object and background


@dataclass(frozen=True)
class QueryEncoding(Encoding):
    """Of each query."""

    compared: dict[str, Tensor]  # by name, (B, C, h, w) unit vectors
    skips: dict[str, Tensor] = field(default_factory=dict)  # by feature, (B, C, h, w)


@dataclass(frozen=True)
class DenseOutput(Output):
    """With what the classification is trained on."""

    embedding: Tensor | None = None  # (B, C, h, w) unit vectors of the queries, in training


@META_ARCH_REGISTRY.register()
class DenseCorrelation(FewShotSegmentor):
    """Compare each position of the query with the supports and decode the comparisons to a mask.

    Compared are several blocks of a frozen backbone, and one learned embedding of them, in six ways each
    (`layers.compare`), finer ones at their own size. The comparisons keep their absolute level
    (`FixedStandardisation`): how similar the best position is tells whether the object is there at all, which
    attention and scaled priors forget. The decoder sees the query's own features as well (`SkipDecoder`). A
    small network judges the presence of the object from the coarse maps (`PresenceHead`); its logit is one
    signal of `Output.presence`.

    Training wants queries that do not show the object among the episodes (FEW_SHOT.TRAIN.NEGATIVES): only
    they train the presence, and the mask to stay empty.
    """

    score_layer = "decoder.logit"

    @configurable
    def __init__(
        self,
        *,
        backbone: FeatureBackbone,
        correlation_features: Sequence[str] = ("res4", "res5"),
        embedding_features: Sequence[str] = ("res4", "res5"),
        fine_features: Sequence[str] = ("res3",),
        skip_features: Sequence[str] = ("res4", "res3", "res2"),
        temperature: float = 0.05,
        embedding_dim: int = 96,
        embedding_dropout: float = 0.0,
        skip_widths: Sequence[int] = (24, 16, 8),
        decoder: Mapping[str, Any] | None = None,  # "width", "widths" and "dropout" of `SkipDecoder`
        negative_weight: float = 0.5,
        negative_start: int = 0,  # iteration
        presence_weight: float = 0.3,
        class_weight: float = 0.0,
        num_classes: int = 81,
        options: SegmentorOptions | None = None,
    ) -> None:
        """See also the keys of MODEL.DENSE_CORRELATION above.

        Raises ValueError for numbers that do not go together, KeyError for a feature that the backbone lacks.
        """
        require(temperature > 0, "temperature", temperature, "above 0")
        require(
            len(skip_widths) == len(skip_features), "skip_widths", skip_widths, "one for each skip feature"
        )
        wrong = [n for n in fine_features if n not in skip_features or n in correlation_features]
        require(not wrong, "fine_features", wrong, "of skip_features and not of correlation_features")
        super().__init__(backbone, options or SegmentorOptions())
        self.correlation_features = tuple(correlation_features)
        self.embedding_features, self.skip_features = tuple(embedding_features), tuple(skip_features)
        self.fine_features, self.embedding_dropout = tuple(fine_features), embedding_dropout
        backbone.select([*self.correlation_features, *self.embedding_features, *self.skip_features])
        channels = {name: spec.channels for name, spec in backbone.available.items()}
        self.temperature = temperature
        self.log_temperature = nn.Parameter(torch.tensor(-2.3))  # of the embedding
        self.embedding = MetricEmbedding(sum(channels[n] for n in self.embedding_features), embedding_dim)
        compared = len(COMPARISONS) * (len(self.correlation_features) + 1)
        self.standardisation = FixedStandardisation(compared)
        skips = [(channels[n], width) for n, width in zip(self.skip_features, skip_widths, strict=True)]
        joining = [len(COMPARISONS) * (n in self.fine_features) for n in self.skip_features]
        self.fine_standardisations = nn.ModuleDict(
            {name: FixedStandardisation(len(COMPARISONS)) for name in self.fine_features}
        )
        self.decoder = SkipDecoder(compared, skips, joining=joining, **(decoder or {}))
        self.presence_head = PresenceHead(compared)
        self.negative_weight, self.negative_start = negative_weight, negative_start
        self.presence_weight, self.class_weight = presence_weight, class_weight
        self.num_classes = num_classes
        if class_weight:
            self.auxiliary = PrototypeClassifier(embedding_dim, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments from MODEL.DENSE_CORRELATION and the backbone's keys."""
        c, key = cfg.MODEL.DENSE_CORRELATION, "MODEL.DENSE_CORRELATION"
        require(c.TEMPERATURE > 0, f"{key}.TEMPERATURE", c.TEMPERATURE, "above 0")
        numbers = len(c.SKIP_FEATURES)
        for name in ("SKIP_WIDTHS", "DECODER_WIDTHS"):
            require(len(c[name]) == numbers, f"{key}.{name}", c[name], f"{numbers} numbers, as SKIP_FEATURES")
        for width in (c.WIDTH, *c.DECODER_WIDTHS):
            require(width > 0 and width % 4 == 0, f"{key}.WIDTH or DECODER_WIDTHS", width, "a multiple of 4")
        backbone = build_few_shot_backbone(cfg)
        lists = ("CORRELATION_FEATURES", "EMBEDDING_FEATURES", "SKIP_FEATURES")
        fine = c.FINE_FEATURES and feature_names(f"{key}.FINE_FEATURES", c.FINE_FEATURES, backbone)
        wrong = [n for n in fine if n not in c.SKIP_FEATURES or n in c.CORRELATION_FEATURES]
        rule = "of SKIP_FEATURES and not of CORRELATION_FEATURES"
        require(not wrong, f"{key}.FINE_FEATURES", wrong, rule)
        weights = ("NEGATIVE_WEIGHT", "PRESENCE_WEIGHT", "CLASS_WEIGHT")
        start = share(f"{key}.NEGATIVE_START", c.NEGATIVE_START)
        return {
            "backbone": backbone,
            **{name.lower(): feature_names(f"{key}.{name}", c[name], backbone) for name in lists},
            "fine_features": tuple(fine),
            "temperature": c.TEMPERATURE,
            "embedding_dim": at_least(f"{key}.EMBEDDING_DIM", c.EMBEDDING_DIM, 1),
            "embedding_dropout": share(f"{key}.EMBEDDING_DROPOUT", c.EMBEDDING_DROPOUT),
            "skip_widths": tuple(at_least(f"{key}.SKIP_WIDTHS", width, 1) for width in c.SKIP_WIDTHS),
            "decoder": {
                "width": c.WIDTH,
                "widths": tuple(c.DECODER_WIDTHS),
                "dropout": share(f"{key}.DROPOUT", c.DROPOUT),
            },
            **{name.lower(): at_least(f"{key}.{name}", c[name], 0) for name in weights},
            "negative_start": round(start * cfg.SOLVER.MAX_ITER),
            "num_classes": at_least(f"{key}.NUM_CLASSES", c.NUM_CLASSES, 2),
            "options": SegmentorOptions.from_config(cfg),
        }

    # -- the three parts ---------------------------------------------------------------------------------

    def _compared(self, features: Maps) -> dict[str, Tensor]:
        """The maps that are compared, (N, C, h, w) unit vectors, by name."""
        maps = {name: unit(features[name]) for name in (*self.correlation_features, *self.fine_features)}
        return {**maps, EMBEDDING: self.embedding([features[name] for name in self.embedding_features])}

    def _encode_support(self, features: Maps, masks: Tensor) -> ShotEncoding:
        shape, maps = masks.shape[:2], self._compared(features)
        tokens = {n: m.flatten(2).transpose(1, 2).unflatten(0, shape) for n, m in maps.items()}
        objects, grounds = (
            {n: area_fraction(masks == value, m.shape[-2:]).flatten(2) for n, m in maps.items()}
            for value in (1, 0)
        )
        return ShotEncoding(tokens, objects, grounds)

    def _encode_negatives(self, features: Maps, masks: Tensor) -> ShotEncoding:
        return self._encode_support(features, masks)  # no pixel of their masks is 1

    def _join(self, encoded: ShotEncoding) -> JoinedSupports:
        joined = encoded.map(lambda t: t.flatten(1, 2))
        return _with_prototypes(joined.tokens, joined.objects, joined.grounds)

    def _add_negatives(self, joined: JoinedSupports, negatives: ShotEncoding) -> JoinedSupports:
        further = negatives.map(lambda t: t.flatten(1, 2))
        together = (
            {name: torch.cat([tensor, others[name]], dim=1) for name, tensor in own.items()}
            for own, others in (
                (joined.tokens, further.tokens),
                (joined.objects, further.objects),
                (joined.grounds, further.grounds),
            )
        )
        return _with_prototypes(*together)

    def _encode_query(self, features: Maps) -> QueryEncoding:
        return QueryEncoding(self._compared(features), {name: features[name] for name in self.skip_features})

    def _match(self, query: QueryEncoding, support: JoinedSupports, size: tuple[int, int]) -> DenseOutput:
        learned = self.log_temperature.exp()
        every = {
            name: compare(
                maps,
                support.tokens[name],
                support.objects[name],
                support.grounds[name],
                support.prototypes[name],
                learned if name == EMBEDDING else self.temperature,
            )
            for name, maps in query.compared.items()
        }
        fine = {name: self.fine_standardisations[name](every.pop(name)) for name in self.fine_features}
        grid = finest_size(list(every.values()))
        compared = torch.cat([resize(x, grid, align_corners=False) for x in every.values()], dim=1)
        maps = self._without_some_embeddings(self.standardisation(compared))
        skips = [query.skips[name] for name in self.skip_features]
        lead = self.decoder(maps, skips, [fine.get(name) for name in self.skip_features]).float()
        probability = resize(lead.detach(), grid, align_corners=False).sigmoid()
        half = resize(lead, size, align_corners=self.align_corners) / 2
        votes, objects = (compared[:, i :: len(COMPARISONS)] for i in map(COMPARISONS.index, DRAWN))
        return DenseOutput(
            torch.cat([-half, half], dim=1),
            maps={"vote": votes + 0.5, "similarity": objects},
            own_presence=self.presence_head(maps, probability),
            embedding=query.compared[EMBEDDING] if self.training else None,
        )

    def _without_some_embeddings(self, maps: Tensor) -> Tensor:
        """Maps (B, C, h, w); in training, those of the embedding, the last ones, are 0 in some episodes."""
        if not self.training or not self.embedding_dropout:
            return maps
        kept = torch.rand(len(maps), 1, 1, 1, device=maps.device) >= self.embedding_dropout
        own = len(COMPARISONS)
        return torch.cat([maps[:, :-own], maps[:, -own:] * kept], dim=1)

    # -- training ----------------------------------------------------------------------------------------

    def forward(self, batched_inputs: list[Episode]) -> dict[str, Tensor] | list[Episode]:
        """As in the base class; the first iterations of a training collect statistics of the maps."""
        parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        for standardisation in (self.standardisation, *self.fine_standardisations.values()):
            standardisation.collects = self.training and self.iteration < STATISTICS_ITERATIONS
            if parallel and self.training and 0 < self.iteration <= STATISTICS_ITERATIONS:
                standardisation.average_over_processes()
        return super().forward(batched_inputs)

    def _target(self, episodes: list[Episode]) -> Target:
        target = super()._target(episodes)
        if not self.class_weight:
            return target
        if len(target.labels) < len(episodes):
            raise ValueError(
                f"episode {episodes[0].get('episode_index', '?')}: no 'segments' to classify; set "
                "INPUT.SEGMENTS to 'semantic', or MODEL.DENSE_CORRELATION.CLASS_WEIGHT to 0"
            )
        largest = max(int(label) for labels in target.labels for label in labels)
        if largest >= self.num_classes:
            raise ValueError(
                f"a segment of class {largest - 1}: set MODEL.DENSE_CORRELATION.NUM_CLASSES to {largest + 1}"
            )
        return target

    def losses(self, output: DenseOutput, target: Target) -> dict[str, Tensor]:
        """Losses of the mask, the presence and the classes.

        "loss_seg" and "loss_dice" are the cross entropy and the Dice loss of the base class, but means over
        the queries that show the object; "loss_negative" is the mean softplus of the object's lead over those
        that do not, "loss_presence" the binary cross entropy of the method's own logit, the mean over either
        kind of query, and "loss_class" the cross entropy of the classification.
        """
        mask, known = target.mask, target.mask != 255
        if self.ignore_as_background:
            mask, known = mask.masked_fill(~known, 0), torch.ones_like(known)
        logits = output.logits.float()
        shown = (mask == 1).flatten(1).any(dim=1).float()  # (B,)
        absent, lead = 1 - shown, logits[:, 1] - logits[:, 0]
        entropy = F.cross_entropy(logits, mask, self.class_weights, ignore_index=255, reduction="none")
        weights = torch.where(mask == 1, self.class_weights[1], self.class_weights[0]) * known
        losses = {"loss_seg": _mean(entropy.flatten(1).sum(dim=1) / _area(weights), shown)}
        if self.dice_weight:
            dice = dice_loss(lead.sigmoid() * known, (mask == 1).float())
            losses["loss_dice"] = self.dice_weight * _mean(dice, shown)
        weight = self.negative_weight if self.iteration >= self.negative_start else 0.0
        false = (F.softplus(lead) * known).flatten(1).sum(dim=1) / _area(known)
        losses["loss_negative"] = weight * _mean(false, absent)
        doubt = F.binary_cross_entropy_with_logits(output.own_presence, shown, reduction="none")
        losses["loss_presence"] = self.presence_weight * (_mean(doubt, shown) + _mean(doubt, absent))
        if self.class_weight:
            losses["loss_class"] = self.class_weight * self._classification(output.embedding, target)
        return losses

    def _classification(self, embedding: Tensor, target: Target) -> Tensor:
        """Cross entropy of the classes, the mean over the positions (B, C, h, w) that have one."""
        size = embedding.shape[-2:]
        labels = torch.stack(
            [_label_map(s, n, size) for s, n in zip(target.segments, target.labels, strict=True)]
        ).to(embedding.device)
        logits = self.auxiliary(embedding).float()
        total = F.cross_entropy(logits, labels, ignore_index=_UNLABELLED, reduction="sum")
        return total / (labels != _UNLABELLED).sum().clamp(min=1)


def _with_prototypes(
    tokens: dict[str, Tensor], objects: dict[str, Tensor], grounds: dict[str, Tensor]
) -> JoinedSupports:
    found = {name: region_prototypes(t, objects[name], grounds[name]) for name, t in tokens.items()}
    return JoinedSupports(tokens, objects, grounds, found)


def _area(weights: Tensor) -> Tensor:
    """Sum of the weights (B, H, W) of each image, at least 1."""
    return weights.flatten(1).sum(dim=1).clamp(min=1)


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of values (B,) over those that (B,) chooses with 1; 0 where it chooses none."""
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def _label_map(segments: Tensor, labels: Tensor, size: Sequence[int]) -> Tensor:
    """Class (h, w) of the smallest of M segments (M, H, W) at each position, `_UNLABELLED` without one.

    ``labels`` (M,) are their classes; M may be 0.
    """
    if not len(segments):
        return torch.full(tuple(size), _UNLABELLED, device=segments.device)
    covered = F.interpolate(segments[None].float(), size=tuple(size), mode="nearest-exact")[0]
    sizes = segments.flatten(1).sum(dim=1).clamp(min=1)
    smallest = (covered / sizes[:, None, None]).argmax(dim=0)
    found = labels.to(segments.device)[smallest]
    return torch.where(covered.amax(dim=0) > 0, found, _UNLABELLED)
