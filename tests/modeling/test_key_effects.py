"""Every documented key of a method changes something, or is refused by name."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from fss_d2.config import get_cfg
from fss_d2.modeling import FEW_SHOT_META_ARCHS, Output
from tests.modeling.episodes import make_cfg, make_episode, make_model

METHODS = (*FEW_SHOT_META_ARCHS, "PotentialObjectsSegmenter")
TRAINING_FREE = ("FROST", "INSID3", "Prototype")
TRAINED = tuple(method for method in METHODS if method not in TRAINING_FREE)
CLASSIFIED = ("MODEL.PROPOSALS.MASK_CLASSIFICATION", True)
END_TO_END = ("MODEL.MM_FORMER.TRAIN_PROPOSALS", True)
CKMM = ("MODEL.DANET.CKMM", True)

# Method -> key of its section -> another valid value, and the other settings under which the key counts.
TABLE: dict[str, dict[str, tuple[Any, ...]]] = {
    "MODEL.PROTOTYPE on Prototype": {
        "IN_FEATURES": (("res5", "res4"),),
        "TEMPERATURE": (0.1,),
        "OBJECT_PROTOTYPES": (3,),
        "BACKGROUND_PROTOTYPES": (3,),
        "BACKWARD_VOTES": (True, "MODEL.PROTOTYPE.IN_FEATURES", ("res2",)),
    },
    "MODEL.INSID3 on INSID3": {
        "IN_FEATURES": (("res4",),),
        "POSITIONAL_RANK": (4,),
        "TEMPERATURE": (0.1,),
        "CLUSTER_SIMILARITY": (0.99,),
        "THRESHOLD": (0.4,),
    },
    "MODEL.FROST on FROST": {
        "IN_FEATURES": (("res4",),),
        "POSITIONAL_RANK": (4,),
        "MIRRORED": (True,),
        "BANDWIDTHS": ((0.3,),),
        "STEPS": (0,),
        "TEMPERATURE": (2.0,),
    },
    **{
        f"MODEL.TRAINING_FREE on {method}": {"LEAVE_ONE_OUT": (("threshold", "temperature"),)}
        for method in TRAINING_FREE
    },
    "MODEL.DCAMA on DCAMA": {
        "ATTENTION_LEVELS": (("res4", "res5"),),
        "SKIP_LEVELS": (("res2",),),
        "SKIP_SUPPORT": (False,),
        "SUPPORT_BACKGROUND": (False,),
        "REGION_PIXELS": (4,),
        "REGION_MEANS": (True,),
        "NUM_HEADS": (4,),
        "PROJECTION": ("cosine",),
        "TEMPERATURE": (0.5, "MODEL.DCAMA.PROJECTION", "cosine"),
        "POSITION_ENCODING": (False,),
        "DROPOUT": (0.1,),
        "WIDTHS": ((8, 16),),
        "MIXER_WIDTHS": ((32, 16, 8),),
        "IGNORE_AS_BACKGROUND": (False,),
        "CKMM": (True,),
    },
    "MODEL.PFENET on PFENet": {
        "IN_FEATURES": (("res3", "res4"),),
        "PRIOR_FEATURE": ("res4",),
        "DIM": (8,),
        "BINS": ((1.0, 0.5),),
        "DROPOUT": (0.1,),
        "AUX_WEIGHT": (0.5,),
        "PLUG_INS": (("ckmm",),),
        "MASK_BEFORE_PRIOR": (True, "MODEL.BACKBONE.NAME", "build_fss_resnet_backbone"),
    },
    "MODEL.DPCN on DPCN": {
        "IN_FEATURES": (("res3", "res4"),),
        "SAM_FEATURE": ("res4",),
        "DIM": (8,),
        "DROPOUT": (0.1,),
        "SAM": (False,),
        "FFM": (False,),
        "DCM": (False,),
        "WINDOWS": (((1, 1), (3, 3)),),
        "MASK_BEFORE_SAM": (True, "MODEL.BACKBONE.NAME", "build_fss_resnet_backbone"),
        "FFM_KERNEL": (3,),
        "KERNEL_SIZE": (5,),
        "KERNELS": (("square",),),
        "KERNEL_GENERATION": ("parallel",),
        "ASPP_DILATIONS": ((2, 3, 4),),
        "RETURN_WEIGHT": (0.5,),
        "CKMM": (True,),
        "TRAIN_LAST_STAGE": (True, "MODEL.BACKBONE.NAME", "build_fss_resnet_backbone"),
        "LAST_STAGE_START": (
            0.5,
            *("MODEL.BACKBONE.NAME", "build_fss_resnet_backbone"),
            *("MODEL.DPCN.TRAIN_LAST_STAGE", True),
        ),
    },
    "MODEL.DPCN on PFENet": {
        "KERNEL_SIZE": (5, "MODEL.PFENET.PLUG_INS", ("dcm",)),
        "KERNELS": (("square",), "MODEL.PFENET.PLUG_INS", ("dcm",)),
        "KERNEL_GENERATION": ("parallel", "MODEL.PFENET.PLUG_INS", ("dcm",)),
    },
    "MODEL.HSNET on HSNet": {
        "LEVELS": (("res4", "res5"),),
        "WIDTHS": ((8, 16, 16),),
        "SUPPORT_BACKGROUND": (True,),
    },
    "MODEL.JC2A on JC2A": {
        "IN_FEATURES": (("res3", "res4"),),
        "DIM": (16,),
        "DROPOUT": (0.1,),
        "BINS": ((5, 4),),
        "P2P": (False,),
        "P2B": (False,),
        "CKMM": (False,),
        "BLOCK_SIDES": ((2, 2),),
        "TOP_BLOCKS": ((1, 1),),
        "ATTENTION": ("softmax",),
        "POSITION_EMBEDDING": (False,),
        "ATTENTION_MERGE": ("multiply",),
        "AGNOSTIC_MERGE": ("add",),
        "AUX_WEIGHT": (0.5,),
    },
    "MODEL.DANET on DANet": {
        "IN_FEATURES": (("res2", "res4"),),
        "DIM": (16,),
        "DROPOUT": (0.1,),
        "LDA": (False,),
        "PCA": (False,),
        "LIGHT_SCALE": (True,),
        "PCA_RATIO": (8,),
        "PCA_MASKED": (True,),
        "USE_PRIOR": (True,),
        "PRIOR_FEATURE": ("res4", "MODEL.DANET.USE_PRIOR", True),
        "PPM_BINS": ((1, 2),),
        "CKMM": (True,),
    },
    "MODEL.DENSE_CORRELATION on DenseCorrelation": {
        "CORRELATION_FEATURES": (("res5",),),
        "EMBEDDING_FEATURES": (("res5",),),
        "FINE_FEATURES": ((),),
        "SKIP_FEATURES": (("res4", "res3", "res3"),),
        "TEMPERATURE": (0.1,),
        "EMBEDDING_DIM": (8,),
        "WIDTH": (16,),
        "SKIP_WIDTHS": ((8, 8, 8),),
        "DECODER_WIDTHS": ((8, 8, 8),),
        "DROPOUT": (0.5,),
        "EMBEDDING_DROPOUT": (0.9,),
        "NEGATIVE_WEIGHT": (1.0, "MODEL.DENSE_CORRELATION.NEGATIVE_START", 0.0),
        "NEGATIVE_START": (0.0,),
        "PRESENCE_WEIGHT": (0.1,),
        "CLASS_WEIGHT": (0.3,),
        "NUM_CLASSES": (4, "MODEL.DENSE_CORRELATION.CLASS_WEIGHT", 0.3),
    },
    "MODEL.MM_FORMER on MMFormer": {
        "FEATURES": ("pixel_decoder",),
        "SELF_ALIGNMENT": (False,),
        "CROSS_ALIGNMENT": ("parameter_free",),
        "LEARNABLE_MATCHING": (False,),
        "DIM": (16,),
        "NUM_HEADS": (2,),
        "NUM_LAYERS": (1,),
        "FEEDFORWARD": (16,),
        "STANDARDIZE_SIMILARITY": (True,),
        "MATCHING_WIDTH": (8,),
        "MEMORY_SIDE": (5,),
        "DICE_WEIGHT": (5.0,),
        "CONTRASTIVE_WEIGHT": (3.0,),
        "TRAIN_PROPOSALS": (True,),
    },
    **{
        f"MODEL.PROPOSALS on {method}": {
            "NUM_QUERIES": (10, *how),
            "DIM": (64, *how),
            "ENCODER_LAYERS": (2, *how),
            "ENCODER_FEEDFORWARD": (16, *how),
            "DECODER_LAYERS": (1, *how),
            "DECODER_FEEDFORWARD": (16, *how),
            "NUM_HEADS": (2, *how),
            "RESIZE_DILATED": (
                False,
                *("MODEL.BACKBONE.NAME", "build_fss_resnet_backbone"),
                *("MODEL.RESNETS.DILATION", "pspnet"),
                *how,
            ),
            "MASK_CLASSIFICATION": (True, *how),
            "NUM_CLASSES": (7, *CLASSIFIED, *how),
            "LOSS.MASK_WEIGHT": (2.0, *how),
            "LOSS.DICE_WEIGHT": (2.0, *how),
            "LOSS.CLASS_WEIGHT": (1.0, *CLASSIFIED, *how),
            "LOSS.NO_OBJECT_WEIGHT": (0.5, *CLASSIFIED, *how),
            "LOSS.DEEP_SUPERVISION": (False, *how),
            "LOSS.NUM_POINTS": (32, *how),
            "LOSS.OVERSAMPLE_RATIO": (2.0, *how),
            "LOSS.IMPORTANCE_RATIO": (0.5, *how),
        }
        for method, how in (("PotentialObjectsSegmenter", ()), ("MMFormer", END_TO_END))
    },
    "MODEL.BASE_KNOWLEDGE on DANet": {
        "IN_FEATURES": (("res4",), *CKMM),
        "NUM_CLASSES": (3, *CKMM),
        "SIMILARITY": ("cosine", *CKMM),
        "NORMALIZATION": ("sigmoid", *CKMM),
    },
}
TABLE["MODEL.PROPOSALS on PotentialObjectsSegmenter"] |= {
    "LOSS.FEW_SHOT_WEIGHT": (5.0,),
    "LOSS.FEW_SHOT_RANK": (2,),
}
# Keys that leave a model's numbers as they are on purpose, with what they change.
APART = {
    "MODEL.DCAMA.FUSED_ATTENTION": "speed; test_fused_and_plain_attention_agree",
    "MODEL.PROPOSALS.SAMPLING": "speed; test_deformable_attention",
    "MODEL.BASE_KNOWLEDGE.MIN_PIXELS": "what prototypes are built from; test_base_prototypes",
    "MODEL.BASE_KNOWLEDGE.CACHE_DIR": "where prototypes are kept; test_base_prototypes",
}
ROWS = [
    (place.split(" on ")[1], f"{place.split(' on ')[0]}.{key}", *setting)
    for place, keys in TABLE.items()
    for key, setting in keys.items()
]


def leaves(node: CfgNode, prefix: str) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def with_segments(episode: dict[str, Any]) -> dict[str, Any]:
    mask = episode["sem_seg"] == 1
    segments = torch.stack([~mask, mask, mask.flip(1)])
    return {**episode, "segments": segments, "segment_labels": torch.arange(3)}


def outcome(method: str, *settings: Any) -> dict[str, Tensor]:
    """Everything that a setting can change: parameters, what is trained, scores, losses."""
    model = make_model(method, *settings)
    for parameter in model.parameters():
        if parameter.dim() == 0:  # factors that start at 0
            torch.nn.init.constant_(parameter, 0.5)
    found = {f"parameter {n}": torch.tensor(p.shape) for n, p in model.named_parameters()}
    found |= {f"trained {n}": torch.tensor(p.requires_grad) for n, p in model.named_parameters()}
    size = (96, 80)
    with torch.no_grad():
        (result,) = model([make_episode(0, 2, size)])
    found |= {f"map {n}": t for n, t in result["aux"].items()} | {"scores": result.get("sem_seg", size)}
    if getattr(model, "trainable", True):
        torch.manual_seed(0)
        episodes = [with_segments(make_episode(seed, 1, size)) for seed in (0, 1)]
        if method == "DenseCorrelation":  # which learns from queries without the object
            episodes.append({**episodes[0], "sem_seg": torch.zeros_like(episodes[0]["sem_seg"])})
        losses = model.train()(episodes)
        found |= losses
        sum(losses.values()).backward()
        found |= {f"gradient {n}": torch.tensor(p.grad is not None) for n, p in model.named_parameters()}
    return found


def differ(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if a.keys() != b.keys():
        return True
    pairs = [(a[name], b[name]) for name in a if isinstance(a[name], Tensor)]
    return any(x.shape != y.shape or not torch.allclose(x.float(), y.float()) for x, y in pairs)


def test_the_table_has_every_key() -> None:
    cfg = get_cfg()
    sections = {place.split(" on ")[0] for place in TABLE}
    known = {leaf for section in sections for leaf in leaves(cfg.MODEL[section.split(".")[1]], section)}
    assert {key for _, key, *_ in ROWS} | set(APART) == known
    assert {method for method, *_ in ROWS} == set(METHODS)


@pytest.mark.parametrize(("method", "key", "value", "settings"), [(*row[:3], row[3:]) for row in ROWS])
def test_a_key_changes_the_outcome(method: str, key: str, value: Any, settings: tuple[Any, ...]) -> None:
    cfg = make_cfg(method, *settings)
    node = cfg
    for part in key.split("."):
        node = node[part]
    assert node != value, f"the table has the default of {key}"
    assert differ(outcome(method, *settings), outcome(method, *settings, key, value))


# -- keys that all methods share -------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_refinement_changes_the_scores_or_is_refused(method: str) -> None:
    if method == "PotentialObjectsSegmenter":
        with pytest.raises(ValueError, match=r"TEST.REFINEMENT 'grabcut': PotentialObjectsSegmenter gives"):
            make_model(method, "TEST.REFINEMENT", "grabcut")
        return
    plain, refined = (make_model(method, "TEST.REFINEMENT", kind) for kind in ("", "grabcut"))
    for model in (plain, refined):
        _spread(model)
    episode = make_episode(0, 2, (96, 80))
    with torch.no_grad():
        before, after = (model([episode])[0]["sem_seg"] for model in (plain, refined))
    was, now = before[1] - before[0], after[1] - after[0]
    changed = (was > 0) != (now > 0)
    assert changed.any() and not changed.all()
    kept = ~changed & (was.abs() > 0.04)
    assert torch.equal(after[:, kept], before[:, kept])
    torch.testing.assert_close(now[~kept].abs(), torch.full_like(now[~kept], 0.04))
    torch.testing.assert_close(after.sum(dim=0), before.sum(dim=0))


def _spread(model: nn.Module) -> None:
    """Let an untrained model find as much object as background, with leads of different sizes."""
    match = model._match

    def spread(*args: Any) -> Output:
        output = match(*args)
        lead = output.logits[:, 1] - output.logits[:, 0]
        lead = (lead - lead.median()) / lead.std() / 2
        return replace(output, logits=torch.stack([0.5 - lead, 0.5 + lead], dim=1))

    model._match = spread


@pytest.mark.parametrize("method", TRAINED)
@pytest.mark.parametrize(("key", "value"), [("FOREGROUND_WEIGHT", 3.0), ("DICE_WEIGHT", 0.5)])
def test_loss_weights_change_the_losses_or_are_refused(method: str, key: str, value: float) -> None:
    if method in ("MMFormer", "PotentialObjectsSegmenter"):
        with pytest.raises(ValueError, match=f"MODEL.LOSS.{key} {value}: {method} does not use it; leave it"):
            make_model(method, f"MODEL.LOSS.{key}", value)
        return
    default, other = (
        torch.stack(list(_losses(method, *settings).values())).sum()
        for settings in ((), (f"MODEL.LOSS.{key}", value))
    )
    assert abs(default - other) > 1e-3


def _losses(method: str, *settings: Any) -> dict[str, Tensor]:
    model = make_model(method, *settings).train()
    torch.manual_seed(0)
    return model([make_episode(0), make_episode(1)])
