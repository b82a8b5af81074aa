"""Official MM-Former checkpoints, both versions and both stages, to ours."""

import re

from torch import Tensor, nn

from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.meta_arch.mm_former import MaskMatching
from fss_d2.modeling.proposals.head import ProposalHead
from fss_d2.modeling.proposals.pixel_decoder import LEVELS

from .conversion import Conversion, State, bare, convert, require
from .convert_mask2former import RecognisedBackbone, count_queries, head_name, recognise_backbone

__all__ = ["convert_mmformer", "merge_factors"]

# Parameters that are never used, and weights of a loss that is not computed.
_DROPPED = re.compile(r"criterion\.empty_weight$|sem_seg_head\.pixel_decoder\.crossat_|crossat_3\.")
_LAYER0 = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}  # of the later version's stem
_PARTS = {"transformer_cross_attention_layers": "attention", "transformer_ffn_layers": "feedforward"}


def convert_mmformer(state: State) -> Conversion:
    """Convert a state dict of the official MM-Former.

    The names tell the paper's version ("backbone.") from the later one ("layer0."), whose convolutions are
    stored as factors and multiplied here, and the segmenter of stage 1 from the whole model of stage 2.

    Raises:
        ValueError: the checkpoint is of another method or incomplete.
    """
    state = merge_factors(bare(state))
    is_later = any(name.startswith("layer0.") for name in state)
    backbone = _DEEP_STEM if is_later else recognise_backbone(state)
    has_head = any(name.startswith("sem_seg_head.") and not _DROPPED.match(name) for name in state)
    require(
        "MM-Former",
        state,
        {
            "backbone.stem.conv1.weight or layer0.0.conv_U.weight": backbone is not None,
            "sem_seg_head.predictor.query_feat.weight": has_head,
        },
    )
    queries, settings = count_queries(state)
    stage = 2 if any(_matching_name(name).startswith("matching.") for name in state) else 1

    def rename(name: str, tensor: Tensor) -> str | None:
        if _DROPPED.match(name):
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


def _deep_stem_name(name: str) -> str:
    stem = re.match(r"layer0\.(\d)\.", name)
    return f"{_LAYER0.get(int(stem[1]), name)}.{name[stem.end() :]}" if stem else name


_DEEP_STEM = RecognisedBackbone(
    "deep-stem ResNet-50",
    lambda: ResNetBackbone(depth=50, stem="deep", dilation="torchvision"),
    _deep_stem_name,
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
    merged = {
        n: t for n, t in state.items() if not n.endswith((".vector_S", ".conv_U.weight", ".conv_V.weight"))
    }
    for name, scale in state.items():
        if not name.endswith(".vector_S"):
            continue
        stem = name.removesuffix(".vector_S")
        left, right = (state.get(f"{stem}.conv_{factor}.weight") for factor in "UV")
        if left is None or right is None:
            raise ValueError(
                f"{name} lacks its factors {stem}.conv_U.weight and conv_V.weight; get the whole file"
            )
        if not (
            left.dim() == right.dim() == 4 and left.shape[1:] == (len(right), 1, 1)
        ) or scale.numel() != len(right):
            shapes = ", ".join(str(tuple(t.shape)) for t in (left, scale, right))
            raise ValueError(
                f"factors of {stem}, {shapes}, do not fit each other; this variant is not supported"
            )
        product = (left.flatten(1).double() * scale.flatten().double()) @ right.flatten(1).double()
        merged[f"{stem}.weight"] = product.to(right.dtype).view(len(left), *right.shape[1:])
    return merged
