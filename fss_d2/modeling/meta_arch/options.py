"""Settings that all few-shot methods share."""

from dataclasses import dataclass

from detectron2.config import CfgNode

from fss_d2.modeling.fusion import FUSIONS
from fss_d2.modeling.keys import at_least, choose, config_keys
from fss_d2.modeling.refinement import REFINEMENTS

from .image_model import ImageOptions

__all__ = ["KSHOTS", "OWN", "SegmentorOptions"]

OWN = "own"  # the method's own way
KSHOTS = (OWN, *FUSIONS)


@config_keys
def add_loss_keys(cfg: CfgNode) -> None:
    """Keys of the loss of the final prediction; the published recipes leave both as they are here."""
    cfg.MODEL.LOSS = CfgNode()
    # Weight of an object pixel in the cross entropy (of a background pixel: 1). Small sets of small objects
    # train faster with a larger one, or with some Dice loss.
    cfg.MODEL.LOSS.FOREGROUND_WEIGHT = 1.0
    cfg.MODEL.LOSS.DICE_WEIGHT = 0.0  # weight of a soft Dice loss that is added


@dataclass(frozen=True)
class SegmentorOptions(ImageOptions):
    """Settings that all methods share; see also the keys of MODEL.LOSS above.

    Raises ValueError as `ImageOptions`, and for a negative weight, an unknown refinement or fusion.
    """

    foreground_weight: float = 1.0
    dice_weight: float = 0.0
    aux_weight: float = 1.0  # of the loss of a method's inner levels (`Output.levels`)
    negatives: bool = False  # trained on queries without the object as well; what learns from it bears that
    ignore_as_background: bool = False  # target pixels marked 255 count as background in the loss
    align_corners: bool = False  # how scores are resized to the frame asked for
    kshot: str = OWN  # how K supports are used in evaluation mode; see TEST.KSHOT
    refinement: str = ""  # of the scores, in evaluation mode; see `refine`
    presence_blocks: tuple[str, ...] = ()  # of the backbone; see MODEL.PRESENCE.BLOCKS
    baseline_scale: float = 0.0  # this and the next: see the keys of MODEL.BASELINE
    baseline_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("foreground_weight", "dice_weight", "aux_weight", "baseline_scale"):
            at_least(name, getattr(self, name), 0)
        choose("kshot", self.kshot, KSHOTS)
        choose("refinement", self.refinement, REFINEMENTS)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SegmentorOptions":
        """Read the keys that all methods share."""
        loss = cfg.MODEL.LOSS
        return cls(
            **vars(ImageOptions.from_config(cfg)),
            foreground_weight=at_least("MODEL.LOSS.FOREGROUND_WEIGHT", loss.FOREGROUND_WEIGHT, 0),
            dice_weight=at_least("MODEL.LOSS.DICE_WEIGHT", loss.DICE_WEIGHT, 0),
            negatives=cfg.FEW_SHOT.TRAIN.NEGATIVES > 0,
            kshot=choose("TEST.KSHOT", cfg.TEST.KSHOT, KSHOTS),
            refinement=choose("TEST.REFINEMENT", cfg.TEST.REFINEMENT, REFINEMENTS),
            presence_blocks=tuple(cfg.MODEL.PRESENCE.BLOCKS),
            baseline_scale=at_least("MODEL.BASELINE.SCALE", cfg.MODEL.BASELINE.SCALE, 0),
            baseline_features=tuple(cfg.MODEL.BASELINE.IN_FEATURES),
        )
