"""JC2A: the paper's parameter counts, its switches, its K-shot rule."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fss_d2.config import get_cfg
from fss_d2.modeling.meta_arch import JC2A
from fss_d2.modeling.meta_arch.contract import Output, Target
from tests.modeling.episodes import make_episode, make_model, match

# P2P, P2B, CKMM: millions of parameters in the paper's Table 3 (ResNet-50), and ours.
TABLE_3 = {
    (False, False, False): (34.09, 34_054_602),
    (True, False, False): (34.52, 34_513_354),
    (False, True, False): (34.61, 34_522_932),
    (True, True, False): (34.61, 34_522_932),
    (False, False, True): (34.11, 34_078_666),
    (True, True, True): (34.64, 34_546_996),
}


def switches(p2p: bool, p2b: bool, ckmm: bool) -> list[Any]:
    return ["MODEL.JC2A.P2P", p2p, "MODEL.JC2A.P2B", p2b, "MODEL.JC2A.CKMM", ckmm]


def published_size(rows: tuple[bool, bool, bool]) -> int:
    """Parameters, and prototypes, of the model on a ResNet-50."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "JC2A"
    cfg.MODEL.BACKBONE.NAME = "build_fss_resnet_backbone"
    cfg.MODEL.DEVICE = "cpu"
    backbone = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM", "deep", "MODEL.RESNETS.DILATION", "pspnet"]
    cfg.merge_from_list([*backbone, *switches(*rows)])
    with torch.device("meta"):
        model = JC2A(cfg)
    prototypes = model.knowledge.prototypes.numel() if model.knowledge else 0
    return sum(p.numel() for p in model.parameters()) + prototypes


def test_parameters_of_table_3() -> None:
    sizes = {rows: published_size(rows) for rows in TABLE_3}
    assert sizes == {rows: ours for rows, (_, ours) in TABLE_3.items()}
    for rows, (millions, _) in TABLE_3.items():
        assert abs(sizes[rows] / 1e6 - millions) < 0.15
    by_paper = sorted(TABLE_3, key=lambda rows: (TABLE_3[rows][0], sizes[rows]))
    assert by_paper == sorted(TABLE_3, key=lambda rows: sizes[rows])


@pytest.mark.parametrize("rows", TABLE_3)
@pytest.mark.parametrize("merge", ["concat", "add", "multiply"])
def test_every_combination_trains_and_segments(rows: tuple[bool, bool, bool], merge: str) -> None:
    model = make_model("JC2A", *switches(*rows), "MODEL.JC2A.AGNOSTIC_MERGE", merge)
    with torch.no_grad():
        (output,) = model([make_episode(0, shots=2)])
    assert output["sem_seg"].isfinite().all()
    assert ("agnostic" in output["aux"]) == rows[2]
    sum(model.train()([make_episode(0), make_episode(1)]).values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("overrides", "channels"),
    [
        ([], 3 * 32 + 1),
        (["MODEL.JC2A.ATTENTION_MERGE", "concat"], 4 * 32 + 1),
        (["MODEL.JC2A.AGNOSTIC_MERGE", "add"], 3 * 32),
        (["MODEL.JC2A.CKMM", False], 3 * 32),
        (["MODEL.JC2A.P2P", False, "MODEL.JC2A.P2B", False], 2 * 32 + 1),
        (["MODEL.JC2A.P2P", False, "MODEL.JC2A.P2B", False, "MODEL.JC2A.AGNOSTIC_MERGE", "add"], 2 * 32 + 1),
    ],
)
def test_channels_that_are_merged(overrides: list[Any], channels: int) -> None:
    first = next(iter(make_model("JC2A", *overrides).enrich.parameters()))
    assert first.shape == (32, channels, 1, 1)


def test_k_shots_are_the_mean_of_k_predictions() -> None:
    model = make_model("JC2A")
    episode = make_episode(0, shots=3)
    with torch.no_grad():
        (joint,) = model([episode])
        each = [model([{**episode, "support": [s]}])[0] for s in episode["support"]]
    mean = torch.stack([e["sem_seg"].softmax(dim=0) for e in each]).mean(dim=0)
    torch.testing.assert_close(joint["sem_seg"].softmax(dim=0), mean)
    assert not torch.allclose(each[0]["sem_seg"], each[1]["sem_seg"])
    levels = match(model, episode).levels
    shots = [match(model, {**episode, "support": [s]}).levels for s in episode["support"]]
    inner = torch.stack([s[1].softmax(dim=1) for s in shots]).mean(dim=0)
    torch.testing.assert_close(levels[1].softmax(dim=1), inner)


def test_a_repeated_support_changes_nothing() -> None:
    model = make_model("JC2A")
    one = make_episode(0)
    with torch.no_grad():
        scores = [model([{**one, "support": one["support"] * k}])[0]["sem_seg"] for k in (1, 4)]
    torch.testing.assert_close(scores[0].softmax(dim=0), scores[1].softmax(dim=0))


def test_every_image_is_read_once_whatever_the_shots(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("JC2A")
    images: list[int] = []
    extract = model.backbone.forward

    def counted(x: torch.Tensor, *names: object) -> object:
        images.append(len(x))
        return extract(x, *names)

    monkeypatch.setattr(model.backbone, "forward", counted)
    with torch.no_grad():
        model([make_episode(0, shots=5)])
    assert sum(images) == 1 + 5


def test_nothing_behind_the_features_is_computed() -> None:
    model = make_model("JC2A", "MODEL.BASE_KNOWLEDGE.IN_FEATURES", ("res4", "res2"))
    assert model.backbone.selected == ("res4", "res3", "res2")
    assert "res5_0" in model.backbone.layers  # but it is there, and counted


def test_losses_by_hand() -> None:
    """Main and auxiliary cross entropy; pixels marked 255 count in neither."""
    model = make_model("JC2A", "MODEL.JC2A.AUX_WEIGHT", 0.5)
    target = torch.tensor([[[0, 1], [1, 255]]])
    logits = torch.zeros(1, 2, 2, 2)
    sure = torch.zeros(1, 2, 2, 2)
    sure[:, 1] = math.log(3)  # object with probability 3/4
    losses = model.losses(Output(logits, levels=[logits, sure]), Target(target))
    level1 = (math.log(4) + 2 * math.log(4 / 3)) / 3
    assert losses["loss_seg"].item() == pytest.approx(math.log(2))
    assert losses["loss_aux"].item() == pytest.approx(0.5 * (math.log(2) + level1) / 2)


def test_the_map_is_of_the_backbones_own_features() -> None:
    """The mean prototype's product with [F3, F2], scaled to 0 ... 1 (Eq. 13)."""
    model = make_model("JC2A")
    episode = make_episode(0)
    with torch.no_grad():
        (output,) = model([episode])
        features = model.backbone(model.normalise(episode["image"][None]))
    size = features["res4"].shape[-2:]
    fine = F.interpolate(features["res3"], size=size, mode="bilinear", align_corners=True)
    mean = model.knowledge.prototypes.mean(dim=0)
    product = torch.einsum("bchw,c->bhw", torch.cat([features["res4"], fine], dim=1), mean)
    scaled = (product - product.min()) / (product.max() - product.min() + 1e-7)
    torch.testing.assert_close(output["aux"]["agnostic"], scaled)


@pytest.mark.parametrize(
    ("overrides", "culprit"),
    [
        (["MODEL.BACKBONE.BN_TRAIN_STATS", True], "BN_TRAIN_STATS False"),
        (["MODEL.BACKBONE.FREEZE", False], "FREEZE True"),
        (["MODEL.JC2A.AGNOSTIC_MERGE", "max"], "AGNOSTIC_MERGE 'max'"),
        (["MODEL.JC2A.ATTENTION", "flash"], "ATTENTION 'flash'"),
        (["MODEL.JC2A.BINS", ()], r"BINS \(\)"),
        (["MODEL.JC2A.BINS", (6, 0)], r"BINS \(6, 0\)"),
        (["MODEL.JC2A.BINS", (6,)], r"BINS \(6,\)"),
        (["MODEL.JC2A.IN_FEATURES", ()], r"IN_FEATURES \(\)"),
    ],
)
def test_wrong_settings_are_named(overrides: list[Any], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        make_model("JC2A", *overrides)


def test_an_unknown_feature_of_the_knowledge_is_named() -> None:
    with pytest.raises(KeyError, match=r"'res9' of MODEL\.BASE_KNOWLEDGE\.IN_FEATURES"):
        make_model("JC2A", "MODEL.BASE_KNOWLEDGE.IN_FEATURES", ("res9",))


def test_prototypes_that_were_not_built_are_refused() -> None:
    model = make_model("JC2A")
    model.knowledge.filled.fill_(False)
    with pytest.raises(ValueError, match=r"never built.*MODEL\.WEIGHTS"), torch.no_grad():
        model([make_episode()])
