"""Detectron2's own backbones: their maps, their names, and every kind of method on them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone, build_model
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.config import get_cfg
from fss_d2.modeling.backbone import STAGES, Detectron2Backbone, map_size
from fss_d2.modeling.backbone.detectron2 import prepare_detectron2_keys
from fss_d2.modeling.build import build_few_shot_backbone
from tests.modeling.episodes import TINY, make_episode

SMALL = (
    *("MODEL.RESNETS.DEPTH", 18),
    *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    *("MODEL.FPN.OUT_CHANNELS", 32),
)
RESNET, FPN = "build_resnet_backbone", "build_resnet_fpn_backbone"
RETINA = "build_retinanet_resnet_fpn_backbone"


def config(name: str, *overrides: Any) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([*TINY, *SMALL, "MODEL.BACKBONE.NAME", name, *overrides])
    return cfg


def build(name: str, *overrides: Any) -> Detectron2Backbone:
    torch.manual_seed(0)
    backbone = build_few_shot_backbone(config(name, *overrides)).eval()
    assert isinstance(backbone, Detectron2Backbone)
    return backbone


@pytest.mark.parametrize("name", [RESNET, FPN, RETINA])
@pytest.mark.parametrize("size", [(64, 96), (97, 131), (33, 40)])
def test_every_map_has_the_announced_shape(name: str, size: tuple[int, int]) -> None:
    backbone = build(name)
    assert backbone.size_divisibility == 0
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        outputs = backbone(x, list(backbone.available))
        alone = backbone(x, ["res3", "res5.0"])
    for feature, spec in backbone.available.items():
        assert outputs[feature].shape == (1, spec.channels, *map_size(size, spec.stride)), feature
    assert all(torch.equal(alone[feature], outputs[feature]) for feature in alone)


def test_maps_of_a_resnet_are_its_own() -> None:
    cfg = config(RESNET)
    backbone = build(RESNET)
    assert list(backbone.available) == [n for stage in STAGES for n in (f"{stage}.0", stage)]
    assert [backbone.available[stage].channels for stage in STAGES] == [64, 128, 256, 512]
    prepare_detectron2_keys(cfg)
    plain = build_backbone(cfg).eval()
    plain.load_state_dict(backbone.model.state_dict())
    x = torch.randn(2, 3, 70, 45)
    with torch.no_grad():
        expected, found = plain(x), backbone(x)
    assert all(torch.equal(found[stage], expected[stage]) for stage in STAGES)


def test_maps_of_an_fpn_are_of_the_padded_image() -> None:
    backbone = build(FPN)
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        expected = backbone.model(F.pad(x, (0, 26, 0, 14)))
        found = backbone(x, ["p2", "res3", "res4.0", "res5"])
    for name, own, (height, width) in (
        ("p2", "p2", (13, 18)),
        ("res3", "p3", (7, 9)),
        ("res4.0", "p4", (4, 5)),
        ("res5", "p5", (2, 3)),
    ):
        assert torch.equal(found[name], expected[own][..., :height, :width])
    assert "p6" in expected and "p6" not in backbone.available
    assert backbone.blocks("res3") == ["res3.0"]


def test_a_retinanet_pyramid_begins_where_its_config_says() -> None:
    backbone = build(RETINA, "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    assert list(backbone.available) == [n for i in (3, 4, 5) for n in (f"p{i}", f"res{i}.0", f"res{i}")]
    with pytest.raises(KeyError, match=r"no feature 'res2' .*res3 \(res3.0 \.\.\. res3.0\), res4"):
        backbone.select(["res2"])


def test_dilation_keeps_two_stages_of_one_stride_apart() -> None:
    wide = ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256)
    backbone = build(
        RESNET, *wide, "MODEL.RESNETS.RES5_DILATION", 2, "MODEL.RESNETS.OUT_FEATURES", ["stem", *STAGES]
    )
    assert [backbone.available[stage].stride for stage in STAGES] == [4, 8, 16, 16]
    assert backbone.available["stem"].channels == 64 and backbone.available["res2"].channels == 256
    assert backbone.available["res4"].channels == 1024 and backbone.available["res5"].channels == 2048


def test_nothing_behind_the_deepest_selected_stage_runs() -> None:
    backbone = build(RESNET)
    ran: list[str] = []
    for stage in STAGES:
        backbone.model.get_submodule(stage).register_forward_hook(lambda *_, stage=stage: ran.append(stage))
    backbone(torch.randn(1, 3, 64, 64), ["res3"])
    assert ran == ["res2", "res3"]


def test_stages_of_a_resnet_run_alone_and_those_of_an_fpn_do_not() -> None:
    backbone = build(RESNET)
    assert backbone.separate_stages == STAGES[1:]
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
        for before, stage in pairwise(STAGES):
            assert torch.equal(backbone.run_stage(stage, maps[before]), maps[stage])
    with pytest.raises(
        NotImplementedError, match=r"Detectron2Backbone cannot run 'res5' .*none of its stages"
    ):
        build(FPN).run_stage("res5", maps["res4"])


def test_only_our_freeze_freezes() -> None:
    assert all(p.requires_grad for p in build(RESNET, "MODEL.RESNETS.NORM", "BN").parameters())
    assert any(
        isinstance(m, nn.BatchNorm2d) for m in build(RESNET, "MODEL.RESNETS.NORM", "BN").model.stem.modules()
    )
    model = build_model(config(RESNET, "MODEL.META_ARCHITECTURE", "DCAMA"))
    assert not any(p.requires_grad for p in model.backbone.parameters())


@pytest.mark.parametrize("name", [RESNET, FPN])
def test_weights_in_its_own_names(name: str, tmp_path: Path) -> None:
    source = build(name)
    state = {key: torch.randn_like(value) for key, value in source.model.state_dict().items()}
    path = tmp_path / "weights.pth"
    for prefix in ("", "backbone."):  # of a backbone alone, of a whole model
        torch.save({"model": {prefix + key: value for key, value in state.items()}}, path)
        loaded = build(name, "MODEL.BACKBONE.WEIGHTS", str(path)).model.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())
    other = FPN if name == RESNET else RESNET
    with pytest.raises(ValueError, match=r"weights\.pth fits the backbone|lacks") as error:
        build(other, "MODEL.BACKBONE.WEIGHTS", str(path))
    assert "\n" not in str(error.value) and "MODEL.BACKBONE" in str(error.value)


METHODS = ("DCAMA", "PFENet", "Prototype", "PotentialObjectsSegmenter", "MMFormer", "DPCN")


@pytest.mark.parametrize("name", [RESNET, FPN])
@pytest.mark.parametrize("method", METHODS)
def test_methods_score_and_train_at_odd_sizes(method: str, name: str) -> None:
    alone = name == RESNET  # stages of a ResNet run alone: PFENet's first mask, DPCN's trained stage
    overrides = ("MODEL.PFENET.MASK_BEFORE_PRIOR", alone, "MODEL.DPCN.TRAIN_LAST_STAGE", alone)
    torch.manual_seed(0)
    model = build_model(config(name, "MODEL.META_ARCHITECTURE", method, *overrides)).eval()
    episode = make_episode(0, 2, (70, 45), support_size=(37, 52))
    segments = torch.stack([episode["sem_seg"] == 1, episode["sem_seg"] == 0])
    episode |= {"segments": segments, "segment_labels": torch.tensor([1, 2])}
    with torch.no_grad():
        output = model([episode])[0]
    if method == "PotentialObjectsSegmenter":
        assert output["aux"]["proposals"].shape == (12, 18, 12)
    else:
        assert output["sem_seg"].shape == (2, 70, 45) and output["sem_seg"].isfinite().all()
    if not model.trainable:
        return
    frozen = {n: p.clone() for n, p in model.backbone.named_parameters() if not p.requires_grad}
    assert bool(frozen) and (len(frozen) == len(list(model.backbone.parameters())) or method == "DPCN")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = model.train()([episode])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    optimizer.step()
    assert all(torch.equal(p, frozen[n]) for n, p in model.backbone.named_parameters() if n in frozen)


def test_what_needs_a_stage_alone_is_refused_on_an_fpn() -> None:
    with pytest.raises(ValueError, match=r"Detectron2Backbone cannot run 'res5' .*MASK_BEFORE_PRIOR False"):
        build_model(config(FPN, "MODEL.META_ARCHITECTURE", "PFENet", "MODEL.PFENET.MASK_BEFORE_PRIOR", True))


def test_the_pixel_decoder_reads_an_fpn() -> None:
    cfg = config(FPN, "MODEL.META_ARCHITECTURE", "Prototype", "MODEL.BACKBONE.FEATURES", "pixel_decoder")
    model = build_model(cfg).eval()
    with torch.no_grad():
        assert model([make_episode(0, size=(70, 45))])[0]["sem_seg"].shape == (2, 70, 45)


class Coarse(Backbone):
    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"last": ShapeSpec(channels=3, stride=64)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"last": x[..., ::64, ::64]}


def test_a_backbone_without_usable_levels_is_refused() -> None:
    name = "build_coarse_backbone"
    if name not in BACKBONE_REGISTRY:
        BACKBONE_REGISTRY._do_register(name, lambda cfg, shape: Coarse())
    with pytest.raises(ValueError, match=rf"NAME {name}: Coarse has no level of stride .* but last \(64\)"):
        build(name)
