"""Keys of the losses that methods share, of the baseline and of DCAMA."""

from detectron2.config import CfgNode as CN

__all__ = ["add_method_keys"]


def add_method_keys(cfg: CN) -> None:
    """Add the keys of the shared losses, of Prototype and of DCAMA."""
    # The loss of the final prediction. The published recipes leave both as they are here; small sets of
    # small objects train faster with some of either.
    cfg.MODEL.LOSS = CN()
    cfg.MODEL.LOSS.FOREGROUND_WEIGHT = 1.0  # of an object pixel in the cross entropy (background: 1)
    cfg.MODEL.LOSS.DICE_WEIGHT = 0.0  # of a soft Dice loss beside it

    # Prototype: the training-free baseline.
    cfg.MODEL.PROTOTYPE = CN()
    cfg.MODEL.PROTOTYPE.IN_FEATURES = ("res4", "res5")  # resized to the first one and joined
    cfg.MODEL.PROTOTYPE.TEMPERATURE = 0.05  # of the two cosines in the softmax

    # DCAMA (Shi et al., ECCV 2022).
    cfg.MODEL.DCAMA = CN()
    cfg.MODEL.DCAMA.ATTENTION_LEVELS = ("res3", "res4", "res5")  # Table S4; fine to coarse
    cfg.MODEL.DCAMA.SKIP_LEVELS = ("res2", "res3")  # Table S3
    cfg.MODEL.DCAMA.SKIP_SUPPORT = True  # Table S5 (a): also skip-connect the support features
    cfg.MODEL.DCAMA.SUPPORT_BACKGROUND = True  # Table 3: False zeroes the support's background
    cfg.MODEL.DCAMA.REGION_PIXELS = 0  # Table S5 (b): pixels of each region kept; 0 keeps all
    # Aggregate each layer also over the mean object and the mean background token (not in the paper).
    cfg.MODEL.DCAMA.REGION_MEANS = False
    # Table 4: "one_pass", "vote", "average", "normalized_vote" (HSNet), "cross_guided" (SCL).
    cfg.MODEL.DCAMA.KSHOT = "one_pass"
    cfg.MODEL.DCAMA.NUM_HEADS = 8
    # "linear": learned query and key projections; "cosine": none, unit vectors over a temperature.
    cfg.MODEL.DCAMA.PROJECTION = "linear"
    cfg.MODEL.DCAMA.TEMPERATURE = 0.1  # of PROJECTION "cosine"
    cfg.MODEL.DCAMA.POSITION_ENCODING = True
    cfg.MODEL.DCAMA.DROPOUT = 0.5  # on tokens and attention weights (reference code, not the paper)
    # Of the convolutions on the aggregated masks, and of the mixer blocks.
    cfg.MODEL.DCAMA.WIDTHS = (16, 64, 128)
    cfg.MODEL.DCAMA.MIXER_WIDTHS = (128, 64, 16)
    cfg.MODEL.DCAMA.FUSED_ATTENTION = True  # False writes the attention maps out
    # True: pixels marked 255 count as background in the loss (reference code); False: left out.
    cfg.MODEL.DCAMA.IGNORE_AS_BACKGROUND = True
    # JC2A's class-agnostic map beside the aggregated masks (not in the paper; MODEL.BASE_KNOWLEDGE).
    cfg.MODEL.DCAMA.CKMM = False
