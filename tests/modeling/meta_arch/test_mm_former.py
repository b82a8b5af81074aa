"""MM-Former: what is frozen, what is trained by which loss, settings of the ablation tables."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.layers import resize, two_channel_dice
from fss_d2.modeling.meta_arch.mm_former import MMFormer
from tests.modeling.episodes import make_episode, make_model


def mm_former(*overrides: Any) -> MMFormer:
    names = [f"MODEL.MM_FORMER.{o}" if i % 2 == 0 and "." not in o else o for i, o in enumerate(overrides)]
    return make_model("MMFormer", *names)


def with_segments(episode: dict[str, Any]) -> dict[str, Any]:
    foreground = episode["sem_seg"] == 1
    labels = torch.tensor([0, 5])
    return {**episode, "segments": torch.stack([~foreground, foreground]), "segment_labels": labels}


def gradients(model: nn.Module) -> set[str]:
    """Parts of the model, two names deep, that have a gradient which is not zero."""
    return {
        ".".join(name.split(".")[:2])
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }


@torch.no_grad()
def scores(model: MMFormer, episode: dict[str, Any]) -> Tensor:
    return model([episode])[0]["sem_seg"]


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_parameter_counts_of_the_published_model() -> None:
    with torch.device("meta"):
        model = MMFormer(backbone=ResNetBackbone(depth=50))
    count = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    assert (count["proposals"], count["matching"]) == (20_494_528, 4_180_728)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.startswith("matching.") for name in trained)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 4_180_728


@pytest.mark.parametrize("end_to_end", [False, True])
def test_proposals_are_in_train_mode_only_when_trained(end_to_end: bool) -> None:
    model = mm_former("TRAIN_PROPOSALS", end_to_end).train()
    assert model.matching.training
    assert all(module.training == end_to_end for module in model.proposals.modules())
    assert all(p.requires_grad == end_to_end for p in model.proposals.parameters())
    assert not any(module.training for module in model.backbone.modules())
    assert not any(module.training for module in model.eval().modules())


def test_scores_are_the_fused_proposals() -> None:
    model = mm_former()
    with torch.no_grad():
        output = model([make_episode(0, shots=2)])[0]
    aux = output["aux"]
    assert {name: tuple(t.shape) for name, t in aux.items()} == {
        "proposals": (12, 12, 12),
        "similarity": (12, 1, 1),
        "coefficients": (12, 1, 1),
    }
    assert aux["proposals"].min() >= 0
    assert aux["proposals"].max() <= 1
    large = resize(aux["proposals"][None], (48, 48), align_corners=False)[0]
    fused = (aux["coefficients"] * large).sum(dim=0)
    close(output["sem_seg"], torch.stack([1 - fused, fused]))


def test_support_sets_keep_what_the_query_does_not_change() -> None:
    model = mm_former("MEMORY_SIDE", 5)
    support = model.encode_support(torch.rand(2, 3, 3, 64, 48) * 255, torch.ones(2, 3, 64, 48))
    shapes = {name: tuple(t.shape) for name, t in support.joined.flat().items() if name.endswith("res4")}
    assert shapes == {
        "features.res4": (2, 3, 32, 4, 3),
        "gates.res4": (2, 3, 4, 3),
        "masks.res4": (2, 3, 4, 3),
        "memory.res4": (2, 3, 32, 6, 5),
        "positions.res4": (2, 3, 32, 6, 5),
    }
    none = mm_former("CROSS_ALIGNMENT", "none")
    encoded = none.encode_support(torch.rand(1, 1, 3, 64, 48), torch.ones(1, 1, 64, 48))
    assert set(encoded.joined.flat()) == {"prototype"}


def test_the_same_support_five_times_is_one_support() -> None:
    model, episode = mm_former(), make_episode(0)
    close(scores(model, {**episode, "support": episode["support"] * 5}), scores(model, episode), 1e-4)


def test_a_query_map_of_the_memorys_side_is_attended_to_as_it_is() -> None:
    # Maps of 6 x 6 on res3 against a memory of side 6; supports are larger, and attended to whole.
    episode = make_episode(0, size=(48, 48), support_size=(64, 80))
    results = {side: scores(mm_former("MEMORY_SIDE", side), episode) for side in (6, 7)}
    assert (results[6] - results[7]).abs().max() > 1e-6
    assert results[6].isfinite().all()


@pytest.mark.parametrize("value", [0, 1, 255])
def test_supports_of_one_value(value: int) -> None:
    model, episode = mm_former(), make_episode(0)
    episode["support"][0]["mask"].fill_(value)
    assert scores(model, episode).isfinite().all()
    losses = model.train()([episode])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.matching.parameters())


def test_empty_proposals_stay_finite() -> None:
    model, episode = mm_former(), make_episode(0)
    model.proposals.register_forward_hook(
        lambda _module, _inputs, output: replace(output, masks=[torch.full_like(output.masks[-1], -1e4)])
    )
    assert scores(model, episode).isfinite().all()
    losses = model.train()([episode])
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.matching.parameters())


# -- losses ----------------------------------------------------------------------------------------------


def test_losses_of_stage_2() -> None:
    model, episode = mm_former("DICE_WEIGHT", 3.0), make_episode(0)
    logits = scores(model, episode)
    losses = model.train()([episode])
    assert set(losses) == {"loss_fewshot", "loss_co"}
    close(losses["loss_fewshot"], 3 * two_channel_dice(logits[None], episode["sem_seg"][None]))
    assert set(mm_former("CONTRASTIVE_WEIGHT", 0.0).train()([episode])) == {"loss_fewshot"}
    halved = mm_former("CONTRASTIVE_WEIGHT", 3.0).train()([episode])["loss_co"]
    close(2 * halved, losses["loss_co"])


def test_which_loss_trains_what() -> None:
    matching = {"matching.reduce", "matching.align", "matching.fc1", "matching.fc2"}
    for loss, parts in (("loss_fewshot", matching), ("loss_co", {"matching.reduce", "matching.align"})):
        model = mm_former().train()
        model([make_episode(0)])[loss].backward()
        assert gradients(model) == parts


def test_end_to_end_training() -> None:
    model = mm_former("TRAIN_PROPOSALS", True).train()
    episodes = [
        with_segments(make_episode(seed, size=size)) for seed, size in enumerate([(48, 48), (40, 56)])
    ]
    losses = model(episodes)
    layers = [f"loss_{kind}{suffix}" for kind in ("mask", "dice") for suffix in ("", "_0", "_1")]
    assert set(losses) == {"loss_fewshot", "loss_co", *layers}
    losses["loss_fewshot"].backward(retain_graph=True)
    assert {"proposals.pixel_decoder", "proposals.predictor"} <= gradients(model)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert not any(name.startswith("backbone") for name in gradients(model))
    with pytest.raises(ValueError, match=r"episode 0: no 'segments'.*INPUT.SEGMENTS"):
        model([make_episode(0)])
    assert scores(model.eval(), make_episode(0)).isfinite().all()


def test_end_to_end_training_with_classified_proposals() -> None:
    classified = ("MODEL.PROPOSALS.MASK_CLASSIFICATION", True, "MODEL.PROPOSALS.NUM_CLASSES", 6)
    model = mm_former("TRAIN_PROPOSALS", True, *classified).train()
    assert "loss_class" in model([with_segments(make_episode(0))])


# -- settings of the ablation tables ---------------------------------------------------------------------


@pytest.mark.parametrize("matched", ["backbone", "pixel_decoder"])
@pytest.mark.parametrize("cross_alignment", ["learned", "parameter_free", "none"])
@pytest.mark.parametrize("learnable", [True, False])
def test_every_combination_runs(matched: str, cross_alignment: str, learnable: bool) -> None:
    settings = ("FEATURES", matched, "CROSS_ALIGNMENT", cross_alignment, "LEARNABLE_MATCHING", learnable)
    model = mm_former(*settings)
    assert scores(model, make_episode(0, 2, (50, 37), (41, 64))).isfinite().all()
    assert model.trainable == (learnable or cross_alignment == "learned")
    if model.trainable:
        sum(model.train()([make_episode(0)]).values()).backward()
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in model.named_parameters() if p.grad is not None}


def test_without_learned_matching_the_most_similar_proposal_is_the_result() -> None:
    model = mm_former("LEARNABLE_MATCHING", False)
    with torch.no_grad():
        output = model([make_episode(0)])[0]
    best = output["aux"]["similarity"].flatten().argmax()
    mask = resize(output["aux"]["proposals"][best][None, None], (48, 48), align_corners=False)[0, 0]
    close(output["sem_seg"], torch.stack([1 - mask, mask]), 1e-6)


def test_what_cannot_be_trained_says_so() -> None:
    model = mm_former("LEARNABLE_MATCHING", False, "CONTRASTIVE_WEIGHT", 0.0)
    with pytest.raises(RuntimeError, match=r"training-free.*LEARNABLE_MATCHING.*CONTRASTIVE_WEIGHT"):
        model.train()([make_episode(0)])
    heuristic = mm_former("LEARNABLE_MATCHING", False, "CROSS_ALIGNMENT", "none")
    assert not list(heuristic.matching.parameters())
    assert not heuristic.trainable
    assert mm_former(
        "LEARNABLE_MATCHING", False, "CROSS_ALIGNMENT", "none", "TRAIN_PROPOSALS", True
    ).trainable


@pytest.mark.parametrize("settings", list(itertools.product((True, False), (0.0, 6.0), (True, False))))
@pytest.mark.parametrize("cross_alignment", ["learned", "parameter_free", "none"])
def test_what_the_settings_leave_to_train(settings: tuple[Any, ...], cross_alignment: str) -> None:
    matching, weight, proposals = settings
    model = mm_former(
        *("LEARNABLE_MATCHING", matching),
        *("CONTRASTIVE_WEIGHT", weight),
        *("TRAIN_PROPOSALS", proposals),
        *("CROSS_ALIGNMENT", cross_alignment),
    )
    assert model.trainable == (proposals or matching or (weight > 0 and cross_alignment == "learned"))


def test_unknown_features() -> None:
    with pytest.raises(ValueError, match=r"FEATURES 'both': choose from backbone, pixel_decoder"):
        mm_former("FEATURES", "both")
