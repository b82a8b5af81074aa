"""PFENet's own behaviour; the numbers of the official code are in test_pfenet_golden.py."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling import PFENet, SegmentorOptions
from fss_d2.modeling.backbone import ResNetBackbone, VGGBackbone
from fss_d2.modeling.layers import BaseKnowledge, resize
from fss_d2.modeling.layers.dynamic_convolution import DynamicQuery
from tests.golden.pfenet import published
from tests.modeling.episodes import make_episode, make_model, match
from tests.modeling.fake_backbone import FakeBackbone


def tiny(**arguments: Any) -> PFENet:
    """On the fake backbone, always with the same weights, in evaluation mode."""
    torch.manual_seed(0)
    settings = {"backbone": FakeBackbone(), "dim": 8, "bins": (1.0, 0.5), "mask_before_prior": False}
    return PFENet(**settings | arguments).eval()


def outputs(model: PFENet, *episodes: dict[str, Any]) -> list[dict[str, Any]]:
    with torch.no_grad():
        return model(list(episodes))


@pytest.mark.parametrize("name", ["r50", "r101", "vgg"])
def test_number_of_parameters(name: str) -> None:
    expected = published(name)
    with torch.device("meta"):
        if name == "vgg":
            backbone = VGGBackbone()
        else:
            backbone = ResNetBackbone(depth=int(name[1:]), stem="deep", dilation="pspnet")
        model = PFENet(backbone=backbone)
    counted = {
        "total": sum(p.numel() for p in model.parameters()),
        "backbone": sum(p.numel() for p in model.backbone.parameters()),
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    names = {"trained": "parameters_learnt"}
    assert counted == {part: expected[names.get(part, f"parameters_{part}")] for part in counted}


def test_shots_are_averaged_after_each_ones_min_max() -> None:
    model = tiny()
    episode = make_episode(0, shots=3, size=(96, 96))
    together = outputs(model, episode)[0]["aux"]["prior"]
    alone = [outputs(model, episode | {"support": [s]})[0]["aux"]["prior"] for s in episode["support"]]
    torch.testing.assert_close(together, torch.stack(alone).mean(dim=0))
    assert all((prior.min(), prior.max()) == (0, pytest.approx(1, abs=0.02)) for prior in alone)


def test_repeating_a_support_changes_nothing() -> None:
    model = tiny()
    episode = make_episode(0)
    repeated = episode | {"support": episode["support"] * 4}
    one, four = outputs(model, episode, repeated)
    torch.testing.assert_close(one["sem_seg"], four["sem_seg"], rtol=1e-4, atol=1e-5)


def test_the_prior_sees_the_object_alone() -> None:
    """What surrounds a support's object, 255 included, changes neither prior nor prototype."""
    model = tiny(backbone=FakeBackbone())
    episode = make_episode(0, size=(64, 64))
    support = episode["support"][0]
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:32, :32] = 1
    image = support["image"].clone()
    image[:, 40:] = 255 - image[:, 40:]
    ignored = mask.clone()
    ignored[40:] = 255
    first = outputs(model, episode | {"support": [{"image": support["image"], "mask": mask}]})[0]
    second = outputs(model, episode | {"support": [{"image": image, "mask": ignored}]})[0]
    torch.testing.assert_close(first["sem_seg"], second["sem_seg"])


def test_masking_before_the_stage_matters_and_can_be_left_out() -> None:
    torch.manual_seed(0)
    backbone = ResNetBackbone(depth=50, dilation="pspnet")
    episode = make_episode(0, size=(49, 49))
    priors = []
    for before in (True, False):
        model = tiny(backbone=backbone, mask_before_prior=before, in_features=("res3",))
        assert model.prior_source == ("res4" if before else "res5")
        priors.append(outputs(model, episode)[0]["aux"]["prior"])
    assert (priors[0] - priors[1]).abs().max() > 0.01


def test_a_mask_without_object_and_a_full_one() -> None:
    model = tiny()
    for value in (0, 1, 255):
        episode = make_episode(0)
        episode["support"][0]["mask"] = torch.full((48, 48), value, dtype=torch.uint8)
        assert outputs(model, episode)[0]["sem_seg"].isfinite().all()


def test_levels_are_listed_with_their_sizes() -> None:
    output = match(tiny(bins=(1.0, 0.5, 5)), make_episode(0, size=(96, 64)))
    assert {name: tuple(t.shape) for name, t in output.maps.items()} == {"prior": (1, 1, 6, 4)}
    assert [tuple(t.shape) for t in output.levels] == [(1, 2, 6, 4), (1, 2, 3, 2), (1, 2, 5, 5)]


def test_losses_by_hand() -> None:
    model = tiny(options=SegmentorOptions(aux_weight=0.5), dropout=0.0)
    episode = make_episode(0)
    target = episode["sem_seg"][None].long()
    levels = [resize(level, (48, 48)) for level in match(model, episode).levels]
    assert len(levels) == 2
    expected = [nn.functional.cross_entropy(x, target, ignore_index=255) for x in levels]
    for module in model.train().modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    losses = model([episode])
    torch.testing.assert_close(losses["loss_aux"], 0.5 * sum(expected) / 2)
    assert losses.keys() == {"loss_seg", "loss_aux"}


def test_batch_statistics_are_of_the_query_then_of_each_support() -> None:
    model = tiny(options=SegmentorOptions(bn_train_stats=True)).train()
    seen: list[Tensor] = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    episodes = [make_episode(seed, shots=2) for seed in range(3)]
    before = model.backbone.state_dict()["layers.res4_1.1.running_mean"].clone()
    model(episodes)
    expected = [[e["image"] for e in episodes]]
    expected += [[e["support"][k]["image"] for e in episodes] for k in range(2)]
    for ours, images in zip(seen, expected, strict=True):
        assert torch.equal(ours, torch.stack(images).float())
    assert (model.backbone.state_dict()["layers.res4_1.1.running_mean"] != before).any()


def test_dynamic_convolution_reworks_the_query() -> None:
    base = tiny()
    torch.manual_seed(1)
    model = tiny(dynamic=DynamicQuery(8, kernel_size=3))
    extra = {name for name in model.state_dict() if name not in base.state_dict()}
    assert extra and all(name.startswith("dynamic.") for name in extra)
    assert not model.permutation_invariant
    episode = make_episode(0, shots=2, size=(96, 96))
    plain, reworked = (outputs(m, episode)[0] for m in (base, model))
    torch.testing.assert_close(plain["aux"]["prior"], reworked["aux"]["prior"])
    assert (plain["sem_seg"] - reworked["sem_seg"]).abs().max() > 1e-5
    sum(model.train()([episode]).values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.dynamic.parameters())


def test_plug_ins_of_a_config() -> None:
    model = make_model(
        "PFENet", "MODEL.PFENET.PLUG_INS", ("dcm", "ckmm"), "MODEL.BASE_KNOWLEDGE.NUM_CLASSES", 3
    )
    assert isinstance(model.dynamic, DynamicQuery)
    assert model.knowledge.num_classes == 3
    assert model.enrichment.merge[0][0].in_channels == 2 * 16 + 2
    assert make_model("PFENet").dynamic is make_model("PFENet").knowledge is None


def test_class_agnostic_map_is_one_more_channel() -> None:
    knowledge = BaseKnowledge({"res4": 24, "res3": 16}, 5)
    knowledge.fill(torch.rand(5, 40))
    model = tiny(knowledge=knowledge)
    assert model.enrichment.merge[0][0].in_channels == 2 * 8 + 2
    aux = outputs(model, make_episode(0))[0]["aux"]
    assert aux["agnostic"].shape == aux["prior"].shape == (1, 3, 3)
    assert (aux["agnostic"].min(), aux["agnostic"].max()) == (0, pytest.approx(1))
    with_map = outputs(model, make_episode(0))[0]["sem_seg"]
    knowledge.fill(-knowledge.prototypes)
    assert (outputs(model, make_episode(0))[0]["sem_seg"] - with_map).abs().max() > 1e-5


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"FakeBackbone cannot run 'res5' .*set mask_before_prior False"):
        tiny(mask_before_prior=True)
    with pytest.raises(ValueError, match=r"'res5' .*set MODEL.PFENET.MASK_BEFORE_PRIOR False"):
        make_model("PFENet", "MODEL.PFENET.MASK_BEFORE_PRIOR", True)
    for bins in ((1.5,), (), (60, 0)):
        with pytest.raises(ValueError, match=re.escape(f"bins {bins} must be numbers of cells, or fract")):
            tiny(bins=bins)
    with pytest.raises(KeyError, match="res9"):
        tiny(in_features=("res9",))
    with pytest.raises(ValueError, match=r"unknown MODEL.PFENET.PLUG_INS 'dcn': choose from dcm, ckmm"):
        make_model("PFENet", "MODEL.PFENET.PLUG_INS", ("dcn",))
