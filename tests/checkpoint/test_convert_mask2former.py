"""Mask2Former checkpoints, ResNet and Swin, into the proposal segmenter."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fss_d2.checkpoint.checkpointer import FewShotCheckpointer
from fss_d2.checkpoint.convert import convert_mask2former
from fss_d2.config import get_cfg
from fss_d2.modeling.backbone import ResNetBackbone, SwinBackbone
from fss_d2.modeling.meta_arch.proposal_segmenter import PotentialObjectsSegmenter
from tests.checkpoint.official import (
    SWINS,
    on_no_device,
    resnet50_shapes,
    run,
    swin_shapes,
)

State = dict[str, Tensor]
BLOCKS = {"tiny": 12, "small": 24, "base": 24, "large": 24}
HEAD = "sem_seg_head.pixel_decoder."
QUERIES = "sem_seg_head.predictor.query_feat.weight"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_resnet50(prefix: str) -> None:
    state = on_no_device(resnet50_shapes(), prefix)
    conversion = convert_mask2former(state)
    assert conversion.architecture == "Mask2Former ResNet-50"
    assert conversion.settings == ()
    assert conversion.dropped == (
        "sem_seg_head.predictor.class_embed.weight",
        "sem_seg_head.predictor.class_embed.bias",
        "criterion.empty_weight",
    )
    assert len(conversion.missing) == 53  # batch counters of frozen norms
    assert conversion.summary() == "Mask2Former ResNet-50: 555 tensors matched, 3 dropped, 53 missing"
    for ours, theirs in {
        "backbone.conv1.weight": "backbone.stem.conv1.weight",
        "backbone.bn1.running_var": "backbone.stem.conv1.norm.running_var",
        "backbone.layer1.0.downsample.0.weight": "backbone.res2.0.shortcut.weight",
        "backbone.layer1.0.downsample.1.bias": "backbone.res2.0.shortcut.norm.bias",
        "backbone.layer3.5.conv2.weight": "backbone.res4.5.conv2.weight",
        "backbone.layer4.2.bn3.running_mean": "backbone.res5.2.conv3.norm.running_mean",
        "proposals.pixel_decoder.adapter_1.norm.weight": f"{HEAD}adapter_1.norm.weight",
        "proposals.predictor.query_feat.weight": QUERIES,
    }.items():
        assert conversion.model[ours] is state[prefix + theirs], ours


def test_resnet101_by_its_blocks() -> None:
    shapes = resnet50_shapes()
    last = {name: shape for name, shape in shapes.items() if name.startswith("backbone.res4.5.")}
    for i in range(6, 23):
        shapes |= {name.replace("res4.5.", f"res4.{i}."): shape for name, shape in last.items()}
    conversion = convert_mask2former(on_no_device(shapes))
    assert conversion.architecture == "Mask2Former ResNet-101"
    assert conversion.settings == ("MODEL.RESNETS.DEPTH 101",)


@pytest.mark.parametrize("size", SWINS)
def test_swins(size: str) -> None:
    """The largest was published with 200 queries too, for 80 classes of instances."""
    large = size == "large"
    state = on_no_device(swin_shapes(size, queries=200, classes=80) if large else swin_shapes(size))
    conversion = convert_mask2former(state)
    assert conversion.architecture == f"Mask2Former Swin-{size[0].upper()}"
    assert len(conversion.dropped) == 3 + BLOCKS[size]  # an index table each block
    assert conversion.missing == ()
    assert conversion.settings == (
        "MODEL.BACKBONE.NAME build_fss_swin_backbone",
        f"MODEL.FSS_SWIN.SIZE {size}",
        "MODEL.FSS_SWIN.OUT_NORM True",
        *(["MODEL.PROPOSALS.NUM_QUERIES 200"] if large else []),
    )
    get_cfg().merge_from_list(" ".join(conversion.settings).split())  # KeyError for a key that there is not
    assert conversion.summary().endswith("dropped, 0 missing")
    assert all(setting in conversion.summary() for setting in conversion.settings)
    for ours, theirs in {
        "model.layers.3.downsample.reduction.weight": "layers.2.downsample.reduction.weight",
        "model.layers.1.blocks.1.attn.qkv.bias": "layers.1.blocks.1.attn.qkv.bias",
        "out_norms.res2.weight": "norm0.weight",
        "out_norms.res5.bias": "norm3.bias",
    }.items():
        assert conversion.model[f"backbone.{ours}"] is state[f"backbone.{theirs}"]
    with torch.device("meta"):
        model = PotentialObjectsSegmenter(
            backbone=SwinBackbone(size=size, out_norm=True), head={"num_queries": 200 if large else 100}
        )
    model.load_state_dict(conversion.model, strict=True, assign=True)


def test_names_of_earlier_versions() -> None:
    shapes = {
        name.replace(HEAD, "sem_seg_head.").replace("query_feat", "static_query"): shape
        for name, shape in resnet50_shapes().items()
    }
    assert "sem_seg_head.predictor.static_query.weight" in shapes
    assert not any("pixel_decoder" in name for name in shapes)
    state = on_no_device(shapes)
    conversion = convert_mask2former(state)
    assert conversion.model.keys() == convert_mask2former(on_no_device(resnet50_shapes())).model.keys()
    assert (
        conversion.model["proposals.predictor.query_feat.weight"]
        is (state["sem_seg_head.predictor.static_query.weight"])
    )
    assert (
        conversion.model["proposals.pixel_decoder.mask_features.bias"]
        is state["sem_seg_head.mask_features.bias"]
    )


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "no Mask2Former checkpoint: none of its 0 names is like backbone.stem.conv1.weight"),
        (lambda s: {"a": torch.ones(1)}, r"no Mask2Former checkpoint: none of its 1 .*\(found a\)"),
        (without("sem_seg_head"), "none of its 266 names is like sem_seg_head.predictor.query_feat.weight"),
        (without("mask_embed.layers.2"), "2 tensors missing .proposals.predictor.mask_embed.layers.2.weight"),
        (without(QUERIES), "1 tensors missing .proposals.predictor.query_feat.weight"),
        (without("res3.1.conv2"), "5 tensors missing .backbone.layer2.1.conv2.weight"),
        (
            lambda s: s | {f"{HEAD}crossat_0.x": torch.ones(1)},
            "unknown .proposals.pixel_decoder.crossat_0.x.*method",
        ),
        (lambda s: s | {"fc1.weight": torch.ones(1)}, "1 tensors unknown .fc1.weight"),
        (lambda s: s | {QUERIES: torch.ones(3, 8)}, r"query_feat.weight is \(3, 8\) instead of \(3, 256\)"),
        (lambda s: s | {QUERIES: torch.ones(3)}, r"query_feat.weight is \(3,\) instead of \(100, 256\)"),
    ],
)
def test_what_does_not_fit_is_named(change: Callable[[State], State], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        convert_mask2former(change(on_no_device(resnet50_shapes())))
    assert "\n" not in str(error.value)


def test_from_a_pickle_of_arrays_to_a_loaded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the model zoo gives it: numpy arrays, pickled with the name of its author."""
    arrays = {name: np.full(shape, 0.25, np.float32) for name, shape in resnet50_shapes().items()}
    source, target = tmp_path / "model_final.pkl", tmp_path / "ours.pth"
    with source.open("wb") as file:
        pickle.dump({"model": arrays, "__author__": "Mask2Former", "matching_heuristics": True}, file)
    arguments = ["--method", "mask2former", "--verbose", str(source), str(target)]
    assert run(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Mask2Former ResNet-50: 555 tensors matched, 3 dropped, 53 missing; wrote {target}"
    assert "dropped sem_seg_head.predictor.class_embed.bias" in lines
    assert "missing backbone.bn1.num_batches_tracked" in lines
    model = PotentialObjectsSegmenter(backbone=ResNetBackbone(depth=50))
    FewShotCheckpointer(model).load(str(target))
    assert all((p == 0.25).all() for p in model.parameters())
    assert (model.backbone.layer4[2].bn3.running_var == 0.25).all()


def test_the_other_method_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"layer0.0.weight": torch.ones(1)}, tmp_path / "a.pth")
    for method in ("mask2former", "mmformer", "dcama"):
        assert run(["--method", method, str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 1
        error = capsys.readouterr().err
        assert "check the file and --method" in error
        assert error.count("\n") == 1
    assert not (tmp_path / "b.pth").exists()
