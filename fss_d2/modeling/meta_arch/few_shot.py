"""The base class of every method: episodes in, losses or scores out."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.keys import config_keys
from fss_d2.modeling.layers import dice_loss, resize
from fss_d2.modeling.refinement import check_refinement, refine

from .image_model import ImageModel
from .support import SupportSet, stack_supports

__all__ = ["FewShotSegmentor"]


@config_keys
def add_loss_keys(cfg: CfgNode) -> None:
    """Keys of the losses that methods share."""
    # The loss of the final prediction. The published recipes leave both as they are here; small sets of
    # small objects train faster with some of either.
    cfg.MODEL.LOSS = CfgNode()
    cfg.MODEL.LOSS.FOREGROUND_WEIGHT = 1.0  # of an object pixel in the cross entropy (background: 1)
    cfg.MODEL.LOSS.DICE_WEIGHT = 0.0  # of a soft Dice loss beside it


Episode = dict[str, Any]


class FewShotSegmentor(ImageModel):
    """Few-shot segmentation split into `encode_support` and `segment`.

    A method subclasses it, registers itself in ``META_ARCH_REGISTRY`` and defines `_encode` and `_decode`.

    Attributes:
        permutation_invariant: the order of the supports makes no difference.
    """

    permutation_invariant: bool = True

    def __init__(
        self,
        *,
        ignore_as_background: bool = False,
        align_corners: bool = False,
        foreground_weight: float = 1.0,
        dice_weight: float = 0.0,
        aux_weight: float = 1.0,
        refinement: str = "",
        **image_model: Any,
    ) -> None:
        """
        Args:
            ignore_as_background: target pixels marked 255 count as background in the loss.
            align_corners: how scores are resized to the frame asked for.
            foreground_weight: weight of an object pixel in the cross entropy; of a background pixel it is 1.
            dice_weight: weight of a soft Dice loss of the object beside the cross entropy; 0 leaves it out.
            aux_weight: weight of the loss of a method's levels; see `_losses`.
            refinement: of the scores, in evaluation mode; see `refine`.
            image_model: see `ImageModel`; "backbone" is required.

        Raises:
            ValueError: as `ImageModel`, or an unknown refinement.
        """
        super().__init__(**image_model)
        self.refinement = check_refinement(refinement)
        self.ignore_as_background = ignore_as_background
        self.align_corners = align_corners
        self.dice_weight = dice_weight
        self.aux_weight = aux_weight
        class_weights = torch.tensor([1.0, foreground_weight])
        self.register_buffer("class_weights", class_weights, persistent=False)

    @classmethod
    def base_arguments(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read the arguments that all methods share, the backbone apart."""
        return {
            **cls.image_arguments(cfg),
            "foreground_weight": cfg.MODEL.LOSS.FOREGROUND_WEIGHT,
            "dice_weight": cfg.MODEL.LOSS.DICE_WEIGHT,
            "refinement": cfg.TEST.REFINEMENT,
        }

    # -- what a method defines ---------------------------------------------------------------------------

    @abstractmethod
    def _encode(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, K, 3, H, W), masks (B, K, H, W) in {0, 1, 255}: tensors of a `SupportSet`."""

    @abstractmethod
    def _decode(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Tensor]]:
        """Normalised queries (B, 3, H, W): logits (B, 2, H, W) and maps for visualisation, episodes first."""

    def _losses(self, logits: Tensor, aux: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        """Losses of what `_decode` returned against target (B, H, W) in {0, 1, 255}.

        "loss_seg" is the softmax cross entropy, a weighted mean over the pixels that count; "loss_dice" the
        soft Dice loss of the object, where it has a weight; "loss_aux" the mean cross entropy of the logits
        (B, 2, h, w) that a method returns as "level0", "level1", ..., resized to the target (PFENet).
        """
        if self.ignore_as_background:
            target = target.masked_fill(target == 255, 0)
        losses = {"loss_seg": self._cross_entropy(logits, target)}
        if self.dice_weight:
            foreground = logits.float().softmax(dim=1)[:, 1] * (target != 255)
            losses["loss_dice"] = self.dice_weight * dice_loss(foreground, (target == 1).float()).mean()
        levels = [resize(x, target.shape[-2:]) for name, x in aux.items() if name.startswith("level")]
        if levels:
            entropies = torch.stack([self._cross_entropy(level, target) for level in levels])
            losses["loss_aux"] = self.aux_weight * entropies.mean()
        return losses

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted mean over the pixels that are not 255; 0 where there is none."""
        total = F.cross_entropy(logits.float(), target, self.class_weights, ignore_index=255, reduction="sum")
        return total / self.class_weights[target[target != 255]].sum().clamp(min=1)

    # -- encode once, segment many times -----------------------------------------------------------------

    def encode_support(self, images: Tensor, masks: Tensor) -> SupportSet:
        """Encode the supports of B episodes.

        Args:
            images: (B, K, 3, H, W) RGB, 0 to 255, uint8 or float.
            masks: (B, K, H, W), 1 object, 0 background, 255 neither.

        Raises:
            ValueError: shapes that do not go together.
        """
        if images.dim() != 5 or images.shape[2] != 3 or images.shape[1] == 0:
            raise ValueError(f"support images are {tuple(images.shape)}: give (B, K, 3, H, W) with K >= 1")
        if masks.shape != (*images.shape[:2], *images.shape[3:]):
            raise ValueError(f"support masks {tuple(masks.shape)} do not fit images {tuple(images.shape)}")
        tensors = self._encode(self.normalise(images), masks.to(self.device))
        return SupportSet(type(self).__name__, images.shape[1], tuple(images.shape[3:]), tensors)

    def segment(self, images: Tensor, support: SupportSet) -> Tensor:
        """Segment queries with encoded supports.

        Args:
            images: (B, 3, H, W) RGB, 0 to 255, uint8 or float.
            support: of B episodes, or of one that serves all queries.

        Returns:
            (B, 2, H, W) logits: background, object.

        Raises:
            ValueError: the support set is another method's or of another batch size.
        """
        return self._segment(images, support)[0]

    def _segment(self, images: Tensor, support: SupportSet) -> tuple[Tensor, dict[str, Tensor]]:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"query images are {tuple(images.shape)}: give (B, 3, H, W)")
        if support.method != type(self).__name__:
            names = f"support set of {support.method} given to {type(self).__name__}"
            raise ValueError(f"{names}: encode it again")
        logits, aux = self._decode(self.normalise(images), support.expand(images.shape[0]))
        return logits if self.training else refine(self.refinement, images, logits), aux

    # -- Detectron2's interface --------------------------------------------------------------------------

    def forward(self, batched_inputs: list[Episode]) -> dict[str, Tensor] | list[Episode]:
        """Run episodes, which may differ in number of supports and in sizes.

        Args:
            batched_inputs: one dict an episode:
                "image": (3, H, W) RGB query, 0 to 255, uint8 or float;
                "support": list of K >= 1 dicts of "image" (3, H, W) and "mask" (H, W) in {0, 1, 255};
                "sem_seg": (H, W) target in {0, 1, 255}, needed for training only;
                "height", "width": size of the scores wanted, the query's own if absent;
                "valid_size": (h, w) of the part of the query that is not padding, optional.

        Returns:
            Training: dict of losses, averaged over the episodes. Inference: one dict an episode:
            "sem_seg": (2, height, width) float logits of background and object;
            "aux": dict of the method's maps (C, h, w) for visualisation.

        Raises:
            ValueError: an episode without support, or without target in training.
        """
        if self.training:
            return self._training_losses(batched_inputs)
        outputs: list[Episode] = [{}] * len(batched_inputs)
        for indices in _group(batched_inputs):
            logits, aux = self._run([batched_inputs[i] for i in indices])
            for row, i in enumerate(indices):
                scores = self.to_frame(logits[row], batched_inputs[i])
                outputs[i] = {"sem_seg": scores, "aux": {name: t[row] for name, t in aux.items()}}
        return outputs

    def _training_losses(self, batched_inputs: list[Episode]) -> dict[str, Tensor]:
        if not self.trainable:
            name = type(self).__name__
            raise RuntimeError(f"{name} is training-free: evaluate it, or choose another method")
        losses: dict[str, Tensor] = {}
        for indices in _group(batched_inputs):
            for name, value in self._group_losses([batched_inputs[i] for i in indices]).items():
                losses[name] = losses.get(name, 0) + value * (len(indices) / len(batched_inputs))
        return losses

    def _group_losses(self, episodes: list[Episode]) -> dict[str, Tensor]:
        """Losses of episodes that run as one batch; extend it where `_losses` gets too little."""
        if any("sem_seg" not in e for e in episodes):
            raise ValueError(f"{_name(episodes[0])}: no 'sem_seg' to train on")
        target = torch.stack([e["sem_seg"] for e in episodes]).to(self.device, torch.long)
        return self._losses(*self._run(episodes), target)

    def _run(self, episodes: list[Episode]) -> tuple[Tensor, dict[str, Tensor]]:
        support = self.encode_support(*stack_supports(episodes))
        return self._segment(torch.stack([e["image"] for e in episodes]), support)

    def to_frame(self, logits: Tensor, episode: Episode) -> Tensor:
        """Crop the padding of (2, H, W) logits and resize them to the frame asked for.

        Args:
            logits: of one query, at the network's size.
            episode: "height", "width" of the frame and "valid_size", each optional, as in `forward`.

        Returns:
            (2, height, width) float32.
        """
        h, w = episode.get("valid_size", logits.shape[1:])
        size = (episode.get("height", h), episode.get("width", w))
        return resize(logits[None, :, :h, :w].float(), size, align_corners=self.align_corners)[0]


def _name(episode: Episode) -> str:
    return f"episode {episode.get('episode_index', '?')} (query {episode.get('image_id', '?')})"


def _group(episodes: list[Episode]) -> list[list[int]]:
    """Indices of the episodes that can run as one batch, group by group."""
    groups: dict[tuple, list[int]] = defaultdict(list)
    for i, episode in enumerate(episodes):
        if not episode.get("support"):
            raise ValueError(f"{_name(episode)}: no support, give at least one image with its mask")
        supports = episode["support"]
        groups[len(supports), episode["image"].shape, supports[0]["image"].shape].append(i)
    return list(groups.values())
