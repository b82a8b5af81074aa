"""Official Mask2Former checkpoints to the proposal segmenter."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fss_d2.modeling.backbone.base import FeatureBackbone
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.backbone.weights import detectron2_resnet_name, microsoft_swin_name
from fss_d2.modeling.proposals.head import ProposalHead

from .conversion import Conversion, State, bare, convert, require

__all__ = ["RecognisedBackbone", "convert_mask2former", "count_queries", "head_name", "recognise_backbone"]

# The classifier, its loss's weights, tables that Swin recomputes.
_DROPPED = re.compile(
    r"criterion\.|sem_seg_head\.predictor\.class_embed\.|backbone\..*(relative_position_index|attn_mask)$"
)
_DEPTHS = {6: 50, 23: 101, 36: 152}  # blocks of res4 -> ResNet depth
_SWINS = {
    (96, 6): "tiny",
    (96, 18): "small",
    (128, 18): "base",
    (192, 18): "large",
}  # channels, blocks of res4
_PUBLISHED_QUERIES = 100


@dataclass(frozen=True)
class RecognisedBackbone:
    """A backbone, recognised by its tensors.

    Attributes:
        name: e.g. "ResNet-50".
        build: returns our module.
        rename: our name of a tensor of it; neither name has a prefix.
        settings: config keys and values that build it, "KEY value".
    """

    name: str
    build: Callable[[], FeatureBackbone]
    rename: Callable[[str], str | None]
    settings: tuple[str, ...] = ()


def convert_mask2former(state: State) -> Conversion:
    """Convert a state dict of the official Mask2Former (ResNet or Swin; semantic, instance or panoptic).

    The class-agnostic segmenter takes everything but the classifier. The number of queries is read from the
    tensors. Names of earlier versions (a pixel decoder without "pixel_decoder.", "static_query") are known.

    Raises:
        ValueError: the checkpoint is of another method or incomplete.
    """
    state = bare(state)
    backbone = recognise_backbone(state)
    has_head = any(name.startswith("sem_seg_head.") and not _DROPPED.match(name) for name in state)
    require(
        "Mask2Former",
        state,
        {
            "backbone.stem.conv1.weight": backbone is not None,
            "sem_seg_head.predictor.query_feat.weight": has_head,
        },
    )
    queries, settings = count_queries(state)

    def rename(name: str, tensor: Tensor) -> str | None:
        if _DROPPED.match(name):
            return None
        prefix, _, rest = name.partition(".")
        return f"backbone.{backbone.rename(rest)}" if prefix == "backbone" else head_name(name)

    def build() -> dict[str, nn.Module]:
        ours = backbone.build()
        return {"backbone": ours, "proposals": ProposalHead(ours.output_shape(), num_queries=queries)}

    return convert(f"Mask2Former {backbone.name}", state, rename, build, backbone.settings + settings)


def count_queries(state: State) -> tuple[int, tuple[str, ...]]:
    """Return the number of queries of an official model, and the config keys that it needs."""
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


def recognise_backbone(state: State) -> RecognisedBackbone | None:
    """Recognise Detectron2's ResNet or the Swin of detectors under "backbone."; None if it is neither."""
    if "backbone.stem.conv1.weight" in state:
        depth = _DEPTHS.get(_count(r"backbone\.res4\.(\d+)\.", state), 50)
        settings = () if depth == 50 else (f"MODEL.RESNETS.DEPTH {depth}",)
        return RecognisedBackbone(
            f"ResNet-{depth}", lambda: ResNetBackbone(depth=depth), detectron2_resnet_name, settings
        )
    if "backbone.patch_embed.proj.weight" in state:
        channels = len(state["backbone.patch_embed.proj.weight"])
        size = _SWINS.get((channels, _count(r"backbone\.layers\.2\.blocks\.(\d+)\.", state)), "tiny")
        settings = (
            "MODEL.BACKBONE.NAME build_fss_swin_backbone",
            f"MODEL.FSS_SWIN.SIZE {size}",
            "MODEL.FSS_SWIN.OUT_NORM True",
        )
        return RecognisedBackbone(
            f"Swin-{size[0].upper()}", lambda: SwinBackbone(size=size, out_norm=True), _swin_name, settings
        )
    return None


def _swin_name(name: str) -> str:
    """Our name of a tensor of Swin; norm0..norm3 normalise the outputs of its stages."""
    norm = re.fullmatch(r"norm([0-3])\.(\w+)", name)
    return f"out_norms.res{int(norm[1]) + 2}.{norm[2]}" if norm else f"model.{microsoft_swin_name(name)}"


def _count(pattern: str, state: State) -> int:
    """Count the different numbers that the pattern finds."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})
