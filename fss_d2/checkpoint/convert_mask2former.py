"""Official Mask2Former checkpoints to the proposal segmenter."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fss_d2.modeling.backbone.base import FeatureBackbone
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.proposals.head import ProposalHead

from .conversion import Conversion, State, check_match, named_tensors, quote
from .renaming import rename_detectron2_resnet, rename_microsoft_swin

__all__ = [
    "RecognisedBackbone",
    "convert_mask2former",
    "count_queries",
    "recognise_backbone",
    "rename_head",
]

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
    """What the tensors of a backbone say about it.

    Attributes:
        name: e.g. "ResNet-50".
        build: makes our module.
        tensors: its state dict, under our names.
        settings: config keys and values that build it, "KEY value".
    """

    name: str
    build: Callable[[], FeatureBackbone]
    tensors: dict[str, Tensor]
    settings: tuple[str, ...] = ()


def convert_mask2former(state: State) -> Conversion:
    """Convert a state dict of the official Mask2Former (ResNet or Swin; semantic, instance or panoptic).

    The class-agnostic segmenter takes everything but the classifier. The number of queries is read off.
    Names of its earlier versions (the pixel decoder's without "pixel_decoder.", "static_query") are known.

    Raises:
        ValueError: not such a checkpoint, or an incomplete one.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in state.items() if not _DROPPED.match(name)}
    bare = {n.removeprefix("backbone."): t for n, t in kept.items() if n.startswith("backbone.")}
    backbone = recognise_backbone(bare)
    head = rename_head(kept)
    if backbone is None or not head:
        example = "sem_seg_head.predictor.query_feat.weight" if backbone else "backbone.stem.conv1.weight"
        raise ValueError(
            f"no Mask2Former checkpoint: none of its {len(state)} names is like {example} "
            f"(found {quote(state)}); check the file and --method"
        )
    foreign = {n: t for n, t in kept.items() if not n.startswith(("backbone.", "sem_seg_head."))}
    model = {f"backbone.{name}": tensor for name, tensor in backbone.tensors.items()} | head | foreign
    architecture = f"Mask2Former {backbone.name}"
    queries, settings = count_queries(head)
    with torch.device("meta"):
        ours = backbone.build()
        proposals = ProposalHead(ours.output_shape(), num_queries=queries)
        expected = named_tensors({"backbone": ours, "proposals": proposals})
    missing = check_match(architecture, model, expected)
    dropped = tuple(name for name in state if name not in kept)
    return Conversion(architecture, model, dropped, missing, backbone.settings + settings)


def count_queries(head: State) -> tuple[int, tuple[str, ...]]:
    """Number of queries of renamed tensors, and what a config must say for it."""
    queries = head.get("proposals.predictor.query_feat.weight")
    count = _PUBLISHED_QUERIES if queries is None or queries.dim() != 2 else len(queries)
    changed = count != _PUBLISHED_QUERIES
    return count, (f"MODEL.PROPOSALS.NUM_QUERIES {count}",) if changed else ()


def rename_head(state: State) -> dict[str, Tensor]:
    """What is under "sem_seg_head.", under our names ("proposals.")."""
    names = {name: name.removeprefix("sem_seg_head.") for name in state if name.startswith("sem_seg_head.")}
    return {f"proposals.{_head_name(rest)}": state[name] for name, rest in names.items()}


def _head_name(name: str) -> str:
    if not name.startswith(("pixel_decoder.", "predictor.")):
        name = f"pixel_decoder.{name}"
    return name.replace("predictor.static_query.", "predictor.query_feat.")


def recognise_backbone(state: State) -> RecognisedBackbone | None:
    """Recognise a ResNet of Detectron2 or the Swin of detectors by bare names; None if it is neither."""
    if "stem.conv1.weight" in state:
        return _recognise_resnet(state)
    if "patch_embed.proj.weight" in state:
        return _recognise_swin(state)
    return None


def _recognise_resnet(state: State) -> RecognisedBackbone:
    depth = _DEPTHS.get(_count(r"res4\.(\d+)\.", state), 50)
    settings = () if depth == 50 else (f"MODEL.RESNETS.DEPTH {depth}",)
    tensors = rename_detectron2_resnet(state)
    return RecognisedBackbone(f"ResNet-{depth}", lambda: ResNetBackbone(depth=depth), tensors, settings)


def _recognise_swin(state: State) -> RecognisedBackbone:
    channels = len(state["patch_embed.proj.weight"])
    size = _SWINS.get((channels, _count(r"layers\.2\.blocks\.(\d+)\.", state)), "tiny")
    tensors = {_swin_name(name): tensor for name, tensor in rename_microsoft_swin(state).items()}
    settings = (
        "MODEL.BACKBONE.NAME build_fss_swin_backbone",
        f"MODEL.FSS_SWIN.SIZE {size}",
        "MODEL.FSS_SWIN.OUT_NORM True",
    )
    name = f"Swin-{size[0].upper()}"
    return RecognisedBackbone(name, lambda: SwinBackbone(size=size, out_norm=True), tensors, settings)


def _swin_name(name: str) -> str:
    """Our name of a tensor in timm's layout: norm0..norm3 normalise what the stages give out."""
    norm = re.fullmatch(r"norm([0-3])\.(\w+)", name)
    return f"out_norms.res{int(norm[1]) + 2}.{norm[2]}" if norm else f"model.{name}"


def _count(pattern: str, state: State) -> int:
    """How many different numbers the pattern finds."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})
