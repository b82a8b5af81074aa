"""Official MM-Former checkpoints, both versions and both stages, to ours."""

import re

import torch
from torch import Tensor

from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.meta_arch.mm_former import MaskMatching
from fss_d2.modeling.proposals.head import ProposalHead
from fss_d2.modeling.proposals.pixel_decoder import LEVELS

from .conversion import Conversion, State, check_match, named_tensors, quote
from .convert_mask2former import RecognisedBackbone, count_queries, recognise_backbone, rename_head

__all__ = ["convert_mmformer", "merge_factors"]

# Parameters that nothing uses, and weights of a loss that is not computed.
_DROPPED = re.compile(r"criterion\.empty_weight$|sem_seg_head\.pixel_decoder\.crossat_|crossat_3\.")
_LAYER0 = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}  # of the later version's stem
_PARTS = {"transformer_cross_attention_layers": "attention", "transformer_ffn_layers": "feedforward"}


def convert_mmformer(state: State) -> Conversion:
    """Convert a state dict of the official MM-Former.

    The names tell the paper's version ("backbone.") from the later one ("layer0."), whose convolutions come
    as factors and are multiplied back, and the segmenter of stage 1 from the whole model of stage 2.

    Raises:
        ValueError: not such a checkpoint, or an incomplete one.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in state.items() if not _DROPPED.match(name)}
    version, backbone = _recognise(kept)
    head = rename_head(kept)
    if backbone is None or not head:
        example = "sem_seg_head.predictor.query_feat.weight" if backbone else "backbone.stem.conv1.weight"
        raise ValueError(
            f"no MM-Former checkpoint: none of its {len(state)} names is like {example}"
            f"{'' if backbone else ' or layer0.0.conv_U.weight'} "
            f"(found {quote(state)}); check the file and --method"
        )
    rest = {
        _matching_name(name): tensor
        for name, tensor in kept.items()
        if not re.match(r"backbone\.|sem_seg_head\.|layer[0-4]\.", name)
    }
    model = {f"backbone.{name}": tensor for name, tensor in backbone.tensors.items()} | head | rest
    stage = 2 if any(name.startswith("matching.") for name in rest) else 1
    architecture = f"MM-Former v{version} stage {stage}, {backbone.name}"
    queries, settings = count_queries(head)
    missing = check_match(architecture, model, _expected(backbone, queries, stage))
    dropped = tuple(name for name in state if name not in kept)
    return Conversion(architecture, model, dropped, missing, backbone.settings + settings)


def _recognise(state: State) -> tuple[int, RecognisedBackbone | None]:
    """Version and backbone; no backbone if it is that of neither version."""
    if any(name.startswith("layer0.") for name in state):
        tensors = {name: t for name, t in state.items() if re.match(r"layer[0-4]\.", name)}
        renamed = {_deep_stem_name(name): t for name, t in merge_factors(tensors).items()}
        settings = (
            "MODEL.RESNETS.STEM deep",
            "MODEL.RESNETS.DILATION torchvision",
            "MODEL.BACKBONE.BN_TRAIN_STATS True",  # makes no difference but in training
        )
        return 2, RecognisedBackbone("deep-stem ResNet-50", _dilated_resnet, renamed, settings)
    bare = {n.removeprefix("backbone."): t for n, t in state.items() if n.startswith("backbone.")}
    return 1, recognise_backbone(bare)


def _dilated_resnet() -> ResNetBackbone:
    return ResNetBackbone(depth=50, stem="deep", dilation="torchvision")


def _expected(backbone: RecognisedBackbone, queries: int, stage: int) -> dict[str, Tensor]:
    """Names and shapes of our model, on no device."""
    with torch.device("meta"):
        ours = backbone.build()
        shapes = ours.output_shape()
        parts = {"backbone": ours, "proposals": ProposalHead(shapes, num_queries=queries)}
        if stage == 2:
            channels = {level: shapes[level].channels for level in LEVELS}
            parts["matching"] = MaskMatching(channels, num_proposals=queries)
        return named_tensors(parts)


def _deep_stem_name(name: str) -> str:
    stem = re.match(r"layer0\.(\d)\.", name)
    return f"{_LAYER0.get(int(stem[1]), name)}.{name[stem.end() :]}" if stem else name


def _matching_name(name: str) -> str:
    """Our name of a tensor of the matching module; other names stay."""
    if name.startswith(("fc1.", "fc2.")):
        return f"matching.{name}"
    found = re.fullmatch(r"(conv|crossat)_([012])\.(.+)", name)
    if not found:
        return name
    kind, level, rest = found[1], LEVELS[int(found[2])], found[3]  # the official numbers have their order
    if kind == "conv":
        return f"matching.reduce.{level}.{rest}"
    part = re.fullmatch(rf"({'|'.join(_PARTS)})\.(\d+)\.(.+)", rest)
    return f"matching.align.{level}.layers.{part[2]}.{_PARTS[part[1]]}.{part[3]}" if part else name


def merge_factors(state: State) -> dict[str, Tensor]:
    """Multiply factored convolutions back: W = U diag(S) V.

    ``NAME.conv_V.weight`` (r, I, k, k), ``NAME.vector_S`` (1, r, 1, 1) and ``NAME.conv_U.weight``
    (O, r, 1, 1) become ``NAME.weight`` (O, I, k, k); the product is taken in double precision. Other
    tensors stay.

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
