"""DPCN: the equations, the ablations' switches, both losses, the stage that learns late."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.modeling import FewShotSegmentor, SegmentorOptions
from fss_d2.modeling.backbone import STAGES, FeatureBackbone, ResNetBackbone
from fss_d2.modeling.layers import BaseKnowledge, mask_features, resize, support_activations
from fss_d2.modeling.meta_arch.dpcn import DPCN
from tests.modeling.episodes import make_episode, make_model

HEAD = {"dim": 8, "dropout": 0.0, "dynamic": {"kernel_size": 3}, "dilations": (1, 2, 3)}


class ChainBackbone(FeatureBackbone):
    """Stages of pooling and a 1x1 convolution that read one another."""

    separate_stages = STAGES[1:]

    def __init__(self, widths: Sequence[int] = (4, 6, 6, 8)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(i, o, 1) for i, o in pairwise((3, *widths)))
        specs = [ShapeSpec(channels=w, stride=s) for w, s in zip(widths, (4, 8, 16, 32), strict=True)]
        self._declare(dict(zip(STAGES, specs, strict=True)))

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        x = F.avg_pool2d(x / 255, 2)
        for stage in STAGES:
            x = self._run_stage(stage, x)
            yield stage, x

    def _run_stage(self, stage: str, x: Tensor) -> Tensor:
        return self.layers[STAGES.index(stage)](F.avg_pool2d(x, 2, ceil_mode=True)).relu()


def build(head: dict[str, Any] | None = None, **settings: Any) -> DPCN:
    torch.manual_seed(0)
    model = DPCN(backbone=ChainBackbone(), head=HEAD | (head or {}), **settings)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d):  # the default would hide what the images differ in
            nn.init.kaiming_normal_(module.weight)
    return model


def run(model: FewShotSegmentor, episode: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        return model.eval()([episode])[0]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# -- sizes -----------------------------------------------------------------------------------------------


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_with_resnet50() -> None:
    backbone = ResNetBackbone(depth=50, stem="deep", dilation="pspnet")
    assert count(backbone) == 23_631_808
    model = DPCN(backbone=backbone, head={"dynamic": {}}, train_last_stage=True)
    head = model.head
    assert count(head.down_query) + count(head.down_support) == 786_432
    assert count(head.filter) == 257
    assert count(head.dynamic) == 1_181_184
    reduction, _, pair, aspp, last = head.decoder
    assert (count(reduction), count(pair), count(last)) == (263_168, 1_179_648, 590_338)
    assert count(aspp) == 1_901_824 + 327_936
    assert count(head) == 6_230_787
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 6_230_787 + 14_964_736


@pytest.mark.parametrize(
    ("overrides", "blocks", "maps"),
    [
        ((), 4, 4),  # full: three kernels and the prototype; three activation maps and the refined one
        (("DCM", False), 2, 4),
        (("SAM", False), 4, 2),
        (("FFM", False), 4, 4),
        (("SAM", False, "FFM", False, "DCM", False), 2, 1),  # the baseline
        (("WINDOWS", ((1, 1),)), 4, 2),  # COCO
        (("KERNELS", ("square",)), 2, 4),
        (("KERNELS", ("horizontal",)), 2, 4),
        (("KERNELS", ("horizontal", "vertical")), 3, 4),
    ],
)
def test_channels_of_the_ablations(overrides: tuple[Any, ...], blocks: int, maps: int) -> None:
    pairs = [x if i % 2 else f"MODEL.DPCN.{x}" for i, x in enumerate(overrides)]
    model = make_model("DPCN", *pairs)
    assert model.head.decoder[0].in_channels == 16 * blocks + maps
    output = run(model, make_episode(0, shots=2))
    assert output["aux"]["activations"].shape[0] == len(model.windows)
    assert ("refined_mask" in output["aux"]) == (model.head.filter is not None)


# -- equations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [False, True])
def test_prior_of_window_one(before: bool) -> None:
    model = build(windows=[(1, 1)], mask_before_sam=before)
    episode = make_episode(0, size=(97, 65), support_size=(80, 112))
    support = episode["support"][0]
    with torch.no_grad():
        q = model.backbone(episode["image"][None].float())
        s = model.backbone(support["image"][None].float())["res4"]
        model.backbone.select(["res4", "res5"])
        query = model.backbone(episode["image"][None].float())["res5"]
        if before:
            s = mask_features(s, support["mask"][None])
        s = mask_features(model.backbone.run_stage("res5", s), support["mask"][None])
        expected = resize(support_activations(query, s[:, None]), q["res4"].shape[-2:])
    model = build(windows=[(1, 1)], mask_before_sam=before)
    close(run(model, episode)["aux"]["pseudo_mask"], expected[0])


def test_shots_are_averaged() -> None:
    model = build()
    episode = make_episode(0, shots=3)
    alone = [run(model, {**episode, "support": [s]})["aux"]["activations"] for s in episode["support"]]
    close(run(model, episode)["aux"]["activations"], torch.stack(alone).mean(dim=0))


def test_a_support_twice_changes_nothing_but_the_kernels() -> None:
    episode = make_episode(0, size=(128, 128))
    twice = {**episode, "support": episode["support"] * 2}
    plain = build({"dynamic": None})
    close(run(plain, twice)["sem_seg"], run(plain, episode)["sem_seg"])
    assert (run(build(), twice)["sem_seg"] - run(build(), episode)["sem_seg"]).abs().max() > 1e-6


def test_an_empty_support_mask_gives_finite_scores() -> None:
    episode = make_episode(0, shots=2)
    for support in episode["support"]:
        support["mask"] = torch.zeros_like(support["mask"])
    assert run(build(), episode)["sem_seg"].isfinite().all()


def test_knowledge_is_one_more_map() -> None:
    knowledge = BaseKnowledge({"res4": 6, "res3": 6}, 5)
    knowledge.fill(torch.rand(5, 12))
    model = build(knowledge=knowledge)
    assert model.head.decoder[0].in_channels == build().head.decoder[0].in_channels + 1
    aux = run(model, make_episode())["aux"]
    assert aux["agnostic"].shape[0] == 1
    close(aux["pseudo_mask"], aux["activations"].mean(dim=0, keepdim=True))  # not part of it


# -- losses ----------------------------------------------------------------------------------------------


def losses(model: DPCN, *episodes: dict[str, Any]) -> dict[str, Tensor]:
    return model.train()(list(episodes))


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("shots", [1, 2])
def test_the_return_loss_is_that_of_the_episode_turned_round(shots: int, before: bool) -> None:
    model = build(return_weight=0.5, mask_before_sam=before)
    model.head.decoder[-1][2].p = 0.0
    episode = make_episode(3, shots=shots, support_size=(64, 40))
    background, foreground = run(model, episode)["sem_seg"]
    with torch.no_grad():  # half of the query is to be predicted as object
        model.head.decoder[-1][3].bias[0] += (foreground - background).median()
    found = losses(model, episode)
    predicted = run(model, episode)["sem_seg"].argmax(dim=0)
    assert 0 < predicted.float().mean() < 1
    turned = [
        {
            "image": support["image"],
            "sem_seg": support["mask"],
            "support": [{"image": episode["image"], "mask": predicted}],
        }
        for support in episode["support"]
    ]
    expected = torch.stack([losses(model, e)["loss_seg"] for e in turned]).mean()
    close(found["loss_return"], 0.5 * expected)


def test_without_weight_there_is_no_return() -> None:
    assert losses(build(return_weight=0.0), make_episode()).keys() == {"loss_seg"}
    encoded = (
        build(return_weight=0.0).train().encode_support(torch.rand(1, 1, 3, 32, 32), torch.ones(1, 1, 32, 32))
    )
    assert set(encoded.joined.flat()) == {"prototype", "foreground", "deep"}


def test_pixels_to_ignore_are_left_out_of_the_return() -> None:
    model = build()
    model.head.decoder[-1][2].p = 0.0
    episode = make_episode(0)
    episode["support"][0]["mask"] = torch.where(episode["support"][0]["mask"] == 1, 1, 255)
    first = losses(model, episode)["loss_return"]
    with torch.no_grad():  # now all that counts is predicted right
        model.head.decoder[-1][3].weight.zero_()
        model.head.decoder[-1][3].bias.copy_(torch.tensor([-20.0, 20.0]))
    assert losses(model, episode)["loss_return"] < 1e-6 < first


def test_mixed_precision() -> None:
    model = build(train_last_stage=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(model, make_episode(0, shots=2))
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# -- the stage that learns late --------------------------------------------------------------------------


def last_stage(model: DPCN) -> list[nn.Parameter]:
    return list(model.backbone.layers[3].parameters())


def test_the_last_stage_learns_from_an_iteration_on() -> None:
    model = build(train_last_stage=True, last_stage_start=3)
    assert model.idle_parameters and not build(train_last_stage=True).idle_parameters
    trained = [p for p in model.backbone.parameters() if p.requires_grad]
    assert [id(p) for p in trained] == [id(p) for p in last_stage(model)]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    before = [p.clone() for p in trained]
    for iteration in range(4):
        model.iteration = iteration
        sum(losses(model, make_episode()).values()).backward()
        late = iteration >= 3
        assert all((p.grad is not None) == late for p in trained)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert all(torch.equal(p, b) != late for p, b in zip(trained, before, strict=True))
    assert all(p.grad is None for p in model.backbone.layers[:3].parameters())


def test_the_last_stage_starts_as_a_frozen_one() -> None:
    episode = make_episode(0, shots=2)
    expected = run(build(), episode)["sem_seg"]
    close(run(build(train_last_stage=True), episode)["sem_seg"], expected)
    assert all(not p.requires_grad for p in build().backbone.parameters())


def test_a_backbone_that_is_not_frozen_learns_as_a_whole() -> None:
    model = build(
        options=SegmentorOptions(freeze_backbone=False),
        mask_before_sam=True,
        last_stage_start=9,
        train_last_stage=True,
    )
    sum(losses(model, make_episode()).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not model.idle_parameters


# -- errors ----------------------------------------------------------------------------------------------


def test_a_trained_stage_gives_no_other_feature() -> None:
    with pytest.raises(
        ValueError, match=r"in_features 'res5' changes with sam_feature 'res5', which is trained"
    ):
        build(in_features=("res5", "res4"), train_last_stage=True)
    with pytest.raises(ValueError, match=r"knowledge 'res5' .*set train_last_stage False"):
        build(knowledge=BaseKnowledge({"res4": 8, "res5": 8}, 5), train_last_stage=True)
    with pytest.raises(ValueError, match=r"'res5.1' changes"):  # a block of it
        DPCN(backbone=ResNetBackbone(), in_features=("res4", "res5.1"), train_last_stage=True)


def test_nor_does_a_stage_behind_it() -> None:
    knowledge = BaseKnowledge({"res3": 512, "res5": 2048}, 5)
    with pytest.raises(ValueError, match=r"'res5' changes with sam_feature 'res4'"):
        build(in_features=("res3",), sam_feature="res4", knowledge=knowledge, train_last_stage=True)


def test_a_backbone_whose_stages_do_not_run_alone() -> None:
    with pytest.raises(ValueError, match=r"FakeBackbone cannot run 'res5' apart.*set MODEL.DPCN.TRAIN_LAST"):
        make_model("DPCN", "MODEL.DPCN.TRAIN_LAST_STAGE", True)
