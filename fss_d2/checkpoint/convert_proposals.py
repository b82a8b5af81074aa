"""Official checkpoints of Mask2Former and MM-Former, the models with mask proposals, to ours."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from fss_d2.modeling.backbone.base import FeatureBackbone
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.backbone.weights import detectron2_resnet_name, microsoft_swin_name
from fss_d2.modeling.meta_arch.mm_former import MaskMatching
from fss_d2.modeling.proposals.head import ProposalHead
from fss_d2.modeling.proposals.pixel_decoder import LEVELS

from .conversion import Conversion, State, bare, convert, deep_stem_name, require

__all__ = ["convert_mask2former", "convert_mmformer", "merge_factors"]

# The classifier, its loss's weights, tables that Swin recomputes.
_MASK2FORMER_DROPPED = re.compile(
    r"criterion\.|sem_seg_head\.predictor\.class_embed\.|backbone\..*(relative_position_index|attn_mask)$"
)
_DEPTHS = {6: 50, 23: 101, 36: 152}  # blocks of res4 -> ResNet depth
# By channels and blocks of res4.
_SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}
_PUBLISHED_QUERIES = 100


@dataclass(frozen=True)
class RecognisedBackbone:
    """A backbone, recognised by its tensors."""

    name: str  # e.g. "ResNet-50"
    build: Callable[[], FeatureBackbone]  # returns our module
    rename: Callable[[str], str | None]  # our name of a tensor of it; neither name has a prefix
    settings: tuple[str, ...] = ()  # config keys and values that build it, "KEY value"


def convert_mask2former(state: State) -> Conversion:
    """Convert a state dict of the official Mask2Former (ResNet or Swin; semantic, instance or panoptic).

    The class-agnostic segmenter takes everything but the classifier. The number of queries is read from the
    tensors. Names of earlier versions (a pixel decoder without "pixel_decoder.", "static_query") are known.
    """
    state = bare(state)
    backbone = _recognise_backbone(state)
    _require_parts("Mask2Former", state, backbone, "backbone.stem.conv1.weight", _MASK2FORMER_DROPPED)
    queries, settings = _count_queries(state)

    def rename(name: str, tensor: Tensor) -> str | None:
        if _MASK2FORMER_DROPPED.match(name):
            return None
        prefix, _, rest = name.partition(".")
        return f"backbone.{backbone.rename(rest)}" if prefix == "backbone" else head_name(name)

    def build() -> dict[str, nn.Module]:
        ours = backbone.build()
        return {"backbone": ours, "proposals": ProposalHead(ours.output_shape(), num_queries=queries)}

    return convert(f"Mask2Former {backbone.name}", state, rename, build, backbone.settings + settings)


def _require_parts(
    method: str, state: State, backbone: RecognisedBackbone | None, example: str, dropped: re.Pattern[str]
) -> None:
    """Refuse a checkpoint without a known backbone or without a head; `example` is a name of a backbone."""
    has_head = any(name.startswith("sem_seg_head.") and not dropped.match(name) for name in state)
    head = "sem_seg_head.predictor.query_feat.weight"
    require(method, state, {example: backbone is not None, head: has_head})


def _count_queries(state: State) -> tuple[int, tuple[str, ...]]:
    """Return the number of queries of an official model, and the config keys that they need."""
    names = [name for name in state if head_name(name) == "proposals.predictor.query_feat.weight"]
    queries = state[names[0]] if names else None
    count = _PUBLISHED_QUERIES if queries is None or queries.dim() != 2 else len(queries)
    return count, () if count == _PUBLISHED_QUERIES else (f"MODEL.PROPOSALS.NUM_QUERIES {count}",)


def head_name(name: str) -> str:
    """Our name ("proposals.") of a tensor under "sem_seg_head."; other names stay."""
    if not name.startswith("sem_seg_head."):
        return name
    name = name.removeprefix("sem_seg_head.")
    if not name.startswith(("pixel_decoder.", "predictor.")):
        name = f"pixel_decoder.{name}"
    return "proposals." + name.replace("predictor.static_query.", "predictor.query_feat.")


def _recognise_backbone(state: State) -> RecognisedBackbone | None:
    """Recognise Detectron2's ResNet or the Swin of detectors under "backbone."; None if it is neither."""
    if "backbone.stem.conv1.weight" in state:
        depth = _DEPTHS.get(_count(r"backbone\.res4\.(\d+)\.", state), 50)
        settings = () if depth == 50 else (f"MODEL.RESNETS.DEPTH {depth}",)
        build = partial(ResNetBackbone, depth=depth)
        return RecognisedBackbone(f"ResNet-{depth}", build, detectron2_resnet_name, settings)
    if "backbone.patch_embed.proj.weight" in state:
        channels = len(state["backbone.patch_embed.proj.weight"])
        size = _SWINS.get((channels, _count(r"backbone\.layers\.2\.blocks\.(\d+)\.", state)), "tiny")
        settings = (
            "MODEL.BACKBONE.NAME build_fss_swin_backbone",
            f"MODEL.FSS_SWIN.SIZE {size}",
            "MODEL.FSS_SWIN.OUT_NORM True",
        )
        build = partial(SwinBackbone, size=size, out_norm=True)
        return RecognisedBackbone(f"Swin-{size[0].upper()}", build, _swin_name, settings)
    return None


def _swin_name(name: str) -> str:
    """Our name of a tensor of Swin; norm0..norm3 normalise the outputs of its stages."""
    norm = re.fullmatch(r"norm([0-3])\.(\w+)", name)
    return f"out_norms.res{int(norm[1]) + 2}.{norm[2]}" if norm else f"model.{microsoft_swin_name(name)}"


def _count(pattern: str, state: State) -> int:
    """Count the different numbers that the pattern finds."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


# Parameters that are never used, and weights of a loss that is not computed.
_MMFORMER_DROPPED = re.compile(r"criterion\.empty_weight$|sem_seg_head\.pixel_decoder\.crossat_|crossat_3\.")
_PARTS = {"transformer_cross_attention_layers": "attention", "transformer_ffn_layers": "feedforward"}


def convert_mmformer(state: State) -> Conversion:
    """Convert a state dict of the official MM-Former.

    The names tell the paper's version ("backbone.") from the later one ("layer0."), whose convolutions are
    stored as factors and multiplied here, and the segmenter of stage 1 from the whole model of stage 2.
    """
    state = merge_factors(bare(state))
    is_later = any(name.startswith("layer0.") for name in state)
    backbone = _DEEP_STEM if is_later else _recognise_backbone(state)
    example = "backbone.stem.conv1.weight or layer0.0.conv_U.weight"
    _require_parts("MM-Former", state, backbone, example, _MMFORMER_DROPPED)
    queries, settings = _count_queries(state)
    stage = 2 if any(_matching_name(name).startswith("matching.") for name in state) else 1

    def rename(name: str, tensor: Tensor) -> str | None:
        if _MMFORMER_DROPPED.match(name):
            return None
        if re.match(r"layer[0-4]\." if is_later else r"backbone\.", name):
            return f"backbone.{backbone.rename(name.removeprefix('backbone.'))}"
        return _matching_name(head_name(name))

    def build() -> dict[str, nn.Module]:
        ours = backbone.build()
        shapes = ours.output_shape()
        parts = {"backbone": ours, "proposals": ProposalHead(shapes, num_queries=queries)}
        if stage == 2:
            channels = {level: shapes[level].channels for level in LEVELS}
            parts["matching"] = MaskMatching(channels, num_proposals=queries)
        return parts

    architecture = f"MM-Former v{2 if is_later else 1} stage {stage}, {backbone.name}"
    return convert(architecture, state, rename, build, backbone.settings + settings)


_DEEP_STEM = RecognisedBackbone(  # of the later version
    "deep-stem ResNet-50",
    partial(ResNetBackbone, depth=50, stem="deep", dilation="torchvision"),
    deep_stem_name,
    (
        "MODEL.RESNETS.STEM deep",
        "MODEL.RESNETS.DILATION torchvision",
        "MODEL.BACKBONE.BN_TRAIN_STATS True",  # matters in training only
    ),
)


def _matching_name(name: str) -> str:
    """Our name of a tensor of the matching module; other names stay."""
    if name.startswith(("fc1.", "fc2.")):
        return f"matching.{name}"
    found = re.fullmatch(r"(conv|crossat)_([012])\.(.+)", name)
    if not found:
        return name
    kind, level, rest = found[1], LEVELS[int(found[2])], found[3]  # in the order of the official numbers
    if kind == "conv":
        return f"matching.reduce.{level}.{rest}"
    part = re.fullmatch(rf"({'|'.join(_PARTS)})\.(\d+)\.(.+)", rest)
    return f"matching.align.{level}.layers.{part[2]}.{_PARTS[part[1]]}.{part[3]}" if part else name


def merge_factors(state: State) -> dict[str, Tensor]:
    """Multiply factored convolutions: W = U diag(S) V.

    ``NAME.conv_V.weight`` (r, I, k, k), ``NAME.vector_S`` (1, r, 1, 1) and ``NAME.conv_U.weight``
    (O, r, 1, 1) become ``NAME.weight`` (O, I, k, k); the product is computed in float64. Other tensors stay.

    Raises:
        ValueError: a factor is missing, or factors do not fit each other.
    """
    factors = (".vector_S", ".conv_U.weight", ".conv_V.weight")
    merged = {name: tensor for name, tensor in state.items() if not name.endswith(factors)}
    scales = {n.removesuffix(".vector_S"): tensor for n, tensor in state.items() if n.endswith(".vector_S")}
    for stem, scale in scales.items():
        left, right = (state.get(f"{stem}.conv_{factor}.weight") for factor in "UV")
        if left is None or right is None:
            raise ValueError(
                f"{stem}.vector_S lacks its factors {stem}.conv_U.weight and conv_V.weight; "
                "get the whole file"
            )
        are_convolutions = left.dim() == right.dim() == 4 and left.shape[1:] == (len(right), 1, 1)
        if not are_convolutions or scale.numel() != len(right):
            shapes = ", ".join(str(tuple(t.shape)) for t in (left, scale, right))
            raise ValueError(
                f"factors of {stem}, {shapes}, do not fit each other; this variant is not supported"
            )
        product = (left.flatten(1).double() * scale.flatten().double()) @ right.flatten(1).double()
        merged[f"{stem}.weight"] = product.to(right.dtype).view(len(left), *right.shape[1:])
    return merged
