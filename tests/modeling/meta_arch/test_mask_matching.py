"""The matching module: reference numbers, numbers computed by hand, settings of the ablation tables."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.layers import resize, soft_iou, two_channel_dice
from fss_d2.modeling.meta_arch.mm_former import (
    MaskMatching,
    Matching,
    ShotEncoding,
    contrastive_loss,
    fuse_masks,
    pool_masks,
    standardized,
)
from tests.golden.mmformer import blocky, ellipse, feat, load, official_mmformer_state

CHANNELS = {"res5": 2048, "res4": 1024, "res3": 512}
STRIDES = {"res5": 32, "res4": 16, "res3": 8}
SIZE = (128, 160)
OURS = {
    "conv_0": "reduce.res5",
    "conv_1": "reduce.res4",
    "conv_2": "reduce.res3",
    "crossat_0": "align.res5",
    "crossat_1": "align.res4",
    "crossat_2": "align.res3",
}


def our_name(official: str) -> str:
    """Name in `MaskMatching` of a parameter of the published model."""
    official = re.sub(r"transformer_cross_attention_layers\.(\d)", r"layers.\1.attention", official)
    official = re.sub(r"transformer_ffn_layers\.(\d)", r"layers.\1.feedforward", official)
    return ".".join(OURS.get(part, part) for part in official.split("."))


def golden_module() -> MaskMatching:
    parts = [f"{part}_{level}." for part in ("conv", "crossat") for level in range(3)]
    state = {
        our_name(part + name): tensor
        for part in (*parts, "fc1.", "fc2.")
        for name, tensor in official_mmformer_state(1, 2, part).items()
    }
    matching = MaskMatching(CHANNELS)
    matching.load_state_dict(state, strict=True)
    return matching


def golden_features(name: str, batch: int) -> dict[str, Tensor]:
    return {
        level: feat(f"{name}:{level}", (batch, CHANNELS[level], SIZE[0] // s, SIZE[1] // s))
        for level, s in STRIDES.items()
    }


def golden_inputs(shots: int) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]:
    """Query features, proposals, support features and masks (episodes first)."""
    name, batch = f"g:{shots}shot", 2 if shots == 1 else 1
    proposals = blocky(f"{name}:pred_masks", batch, 100, 32, 40, 8, 4.0).sigmoid()
    supports = [golden_features(f"{name}:support{s}", batch) for s in range(shots)]
    support = {level: torch.stack([s[level] for s in supports], dim=1).flatten(0, 1) for level in CHANNELS}
    masks = torch.stack(
        [
            torch.stack(
                [ellipse(*SIZE, 0.4 + 0.05 * s, 0.5 - 0.04 * s, 0.3, 0.2 + 0.03 * i) for s in range(shots)]
            )
            for i in range(batch)
        ]
    )
    masks[..., :6] = 255
    return golden_features(f"{name}:query", batch), proposals, support, masks.flatten(0, 1)


def encode(matching: MaskMatching, support: dict[str, Tensor], masks: Tensor, shots: int) -> ShotEncoding:
    return matching.encode(support, masks).map(lambda t: t.unflatten(0, (-1, shots)))


def compare(
    matching: MaskMatching, query: dict[str, Tensor], proposals: Tensor, support: ShotEncoding
) -> Matching:
    return matching(matching.embed(query), proposals, support)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shots", [1, 5])
def test_reference_matching(shots: int) -> None:
    golden = load(f"g_stage2_{shots}shot")
    matching = golden_module()
    query, proposals, support, masks = golden_inputs(shots)
    aligned: dict[str, Any] = {}
    for level, block in matching.align.items():
        block.register_forward_hook(lambda _m, _i, output, level=level: aligned.__setitem__(level, output))
    result = compare(matching, query, proposals, encode(matching, support, masks, shots))
    first = slice(None, None, shots)  # the first support of each episode
    close(aligned["res5"][0][first, ::4], golden["crossalign0_query"], 2e-5)
    close(aligned["res5"][1][first, ::4], golden["crossalign0_support"], 2e-5)
    close(aligned["res3"][0][first, ::8], golden["crossalign2_query"], 2e-5)
    close(result.query[:, ::10], golden["query_prototypes"])
    close(result.support, golden["support_prototype"])
    close(result.similarity, golden["similarity"])
    close(result.coefficients, golden["coefficients"])
    fused = fuse_masks(result.coefficients, proposals, SIZE)
    close(fused[:, ::2, ::2], golden["mask"], 5e-4)
    _check_losses(matching, result, fused, proposals, golden)


def _check_losses(
    matching: MaskMatching, result: Matching, fused: Tensor, proposals: Tensor, golden: dict[str, Any]
) -> None:
    target = ellipse(*SIZE, 0.6, 0.45, 0.25, 0.3)
    target[:4] = 255
    target = target.expand(len(fused), -1, -1)
    dice = 10 * two_channel_dice(torch.stack([1 - fused, fused], dim=1), target)
    iou = soft_iou(resize(proposals, SIZE, align_corners=False), target)
    contrast = 6 * contrastive_loss(result.similarity, iou)
    assert dice.item() == pytest.approx(golden["loss_fewshot"].item(), rel=1e-5)
    assert contrast.item() == pytest.approx(golden["loss_co"].item(), rel=1e-3)
    (dice + contrast).backward()
    parameters = dict(matching.named_parameters())
    assert len(golden["grad_names"]) == len(parameters) == 79
    for name, norm in zip(golden["grad_names"], golden["grad_norms"].tolist(), strict=True):
        gradient = parameters[our_name(name)].grad
        assert gradient.norm().item() == pytest.approx(norm, rel=2e-3, abs=1e-5), name


def test_parameter_count_of_the_published_module() -> None:
    matching = MaskMatching(CHANNELS)
    count = {part: sum(p.numel() for p in module.parameters()) for part, module in matching.named_children()}
    assert count == {"reduce": 917_504, "align": 3 * 1_054_208, "fc1": 50_500, "fc2": 50_100}
    assert sum(count.values()) == 4_180_728


# -- by hand ---------------------------------------------------------------------------------------------


def test_prototypes_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 8.0, 0.0]]).view(1, 2, 2, 2)
    masks = torch.tensor([[1.0, 0.0, 0.5, 0.0], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 0.0, 0.0]]).view(
        1, 3, 2, 2
    )
    # (1 + 1.5) / 1.5 and 4 / 1.5; the plain means; nothing under an empty mask
    expected = torch.tensor([[[5 / 3, 8 / 3], [2.5, 2.0], [0.0, 0.0]]])
    close(pool_masks(features, masks), expected, 1e-6)
    close(pool_masks(features, masks, 0.5)[:, 0], torch.tensor([[1.25, 2.0]]), 1e-6)


def test_prototypes_are_not_pooled_in_half_precision() -> None:
    torch.manual_seed(0)
    features, masks = 300 + torch.rand(1, 4, 60, 60), torch.rand(1, 2, 60, 60)
    expected = pool_masks(features, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        close(pool_masks(features, masks), expected, 1e-6)


def test_gradients_under_an_empty_mask_are_finite() -> None:
    features, masks = torch.ones(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 1, 2, 2, requires_grad=True)
    torch.cosine_similarity(pool_masks(features, masks), torch.ones(1, 1, 2), dim=2).sum().backward()
    assert features.grad.isfinite().all()
    assert masks.grad.isfinite().all()


def test_fusion_by_hand() -> None:
    masks = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(1, 2, 1, 2)
    fused = fuse_masks(torch.tensor([[2.0, -1.0]]), masks, (1, 2))  # Eq. 4: 2 M_1 - M_2
    close(fused, torch.tensor([[[-0.5, 1.5]]]), 0)
    wide = fuse_masks(torch.tensor([[2.0, -1.0]]), masks, (1, 4))
    close(wide, torch.tensor([[[-0.5, 0.0, 1.0, 1.5]]]), 1e-6)


def test_contrastive_loss_by_hand() -> None:
    similarity = torch.tensor([[0.2, 0.6, 0.3, 0.4], [0.0, 1.0, 0.25, 0.5]], requires_grad=True)
    iou = torch.tensor([[0.1, 0.2, 0.05, 0.9], [0.3, 0.1, 0.2, 0.8]])
    # image 1: positive 3 at (.4 - .2) / .4, negative 2 at .25; image 2: positive 3 at .5, negative 1 at 1
    loss = contrastive_loss(similarity, iou)
    expected = -(math.log(0.5) + math.log(0.75) + math.log(0.5) - 100) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert similarity.grad.isfinite().all()
    assert similarity.grad[0, 3] < 0 < similarity.grad[0, 2]


def test_equal_similarities_give_a_finite_loss() -> None:
    similarity = torch.full((1, 3), 0.7, requires_grad=True)
    loss = contrastive_loss(similarity, torch.tensor([[0.1, 0.2, 0.3]]))
    loss.backward()
    assert loss.item() == pytest.approx(50)  # log 0 counts as -100, log 1 is 0
    assert similarity.grad.isfinite().all()


def plain(**settings: Any) -> MaskMatching:
    """Two levels of two channels, matched as they are by default."""
    off = {"self_alignment": False, "cross_alignment": "none", "learnable_matching": False}
    return MaskMatching({"res5": 2, "res4": 2}, num_proposals=2, **(off | settings))


def two_levels(*values: float) -> dict[str, Tensor]:
    """Maps of 1 x 2 cells: [channel, cell] on res5; res4 is all 1."""
    return {"res5": torch.tensor(values).view(1, 2, 1, 2), "res4": torch.ones(1, 2, 1, 2)}


def test_similarity_and_choice_by_hand() -> None:
    matching = plain()
    support = encode(matching, two_levels(3.0, 0.0, 0.0, 9.0), torch.tensor([[[1, 0]]]), 1)
    proposals = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    result = compare(matching, two_levels(0.0, 2.0, 2.0, 0.0), proposals, support)
    close(result.support, torch.tensor([[3.0, 0.0, 1.0, 1.0]]), 1e-6)
    close(result.query, torch.tensor([[[0.0, 2.0, 1.0, 1.0], [2.0, 0.0, 1.0, 1.0]]]), 1e-6)
    cosines = [2 / math.sqrt(11 * 6), (6 + 2) / math.sqrt(11 * 6)]
    close(result.similarity, torch.tensor([cosines]), 1e-6)
    close(result.coefficients, torch.tensor([[0.0, 1.0]]), 0)


def test_coefficients_by_hand() -> None:
    matching = plain(learnable_matching=True, dim=2, width=2)
    matching.fc1.load_state_dict({"weight": torch.eye(2), "bias": torch.tensor([-0.5, 0.0])})
    matching.fc2.load_state_dict({"weight": torch.tensor([[1.0, 2.0], [0.0, -4.0]]), "bias": torch.ones(2)})
    support = encode(matching, two_levels(3.0, 0.0, 0.0, 9.0), torch.tensor([[[1, 0]]]), 1)
    result = compare(matching, two_levels(0.0, 2.0, 2.0, 0.0), torch.rand(1, 2, 1, 2), support)
    a, b = result.similarity[0].tolist()
    expected = [max(a - 0.5, 0) + 2 * max(b, 0) + 1, 1 - 4 * max(b, 0)]
    close(result.coefficients, torch.tensor([expected]), 1e-6)


def test_standardized_similarities_by_hand() -> None:
    expected = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    close(standardized(torch.tensor([[0.44, 0.46, 0.48], [0.5, 0.5, 0.5]])), expected, 1e-4)


def test_standardized_coefficients_depend_on_the_order_of_similarities_alone() -> None:
    matching = plain(learnable_matching=True, dim=2, width=3, standardize=True)
    support = encode(matching, two_levels(3.0, 0.0, 0.0, 9.0), torch.tensor([[[1, 0]]]), 1)
    result = compare(matching, two_levels(0.0, 2.0, 2.0, 0.0), torch.rand(1, 2, 1, 2), support)
    sign = (result.similarity - result.similarity.mean()).sign() / math.sqrt(2)
    close(result.coefficients, matching.fc2(matching.fc1(sign).relu()), 1e-2)


def test_supports_marked_255_are_background() -> None:
    matching = plain()
    marked = matching.encode(two_levels(3.0, 5.0, 0.0, 9.0), torch.tensor([[[1, 255]]]))
    close(marked.prototype, torch.tensor([[3.0, 0.0, 1.0, 1.0]]), 1e-6)


@pytest.mark.parametrize("cross_alignment", ["none", "learned"])
def test_prototypes_are_averaged_over_the_supports_before_the_cosine(cross_alignment: str) -> None:
    torch.manual_seed(0)
    matching = MaskMatching({"res5": 8}, num_proposals=3, dim=8, width=4, cross_alignment=cross_alignment)
    query, proposals = {"res5": torch.rand(2, 8, 4, 5)}, torch.rand(2, 3, 8, 10)
    supports, masks = torch.rand(2, 3, 8, 6, 5), torch.randint(0, 2, (2, 3, 12, 10))
    encoded = encode(matching, {"res5": supports.flatten(0, 1)}, masks.flatten(0, 1), 3)
    result = compare(matching, query, proposals, encoded)
    each = [encoded.map(lambda t, k=k: t[:, k : k + 1]) for k in range(3)]
    alone = [compare(matching, query, proposals, support) for support in each]
    close(result.query, torch.stack([r.query for r in alone]).mean(dim=0))
    close(result.support, torch.stack([r.support for r in alone]).mean(dim=0))
    close(result.similarity, torch.cosine_similarity(result.query, result.support[:, None], dim=2))


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({}, {"reduce", "align", "fc1", "fc2"}),
        ({"cross_alignment": "none"}, {"reduce", "fc1", "fc2"}),
        ({"cross_alignment": "parameter_free"}, {"reduce", "fc1", "fc2"}),
        ({"learnable_matching": False}, {"reduce", "align"}),
        ({"learnable_matching": False, "cross_alignment": "parameter_free"}, set()),
        ({"learnable_matching": False, "cross_alignment": "none"}, set()),
    ],
)
def test_what_is_learned(settings: dict[str, Any], parts: set[str]) -> None:
    matching = MaskMatching({"res5": 8, "res4": 12}, num_proposals=3, dim=8, **settings)
    assert {name.split(".")[0] for name, _ in matching.named_parameters()} == parts
    features = {"res5": torch.rand(1, 8, 2, 3), "res4": torch.rand(1, 12, 4, 5)}
    support = encode(matching, features, torch.ones(1, 30, 40), 1)
    result = compare(matching, features, torch.rand(1, 3, 8, 10), support)
    assert result.query.shape[2] == (16 if parts else 20)
    assert result.coefficients.isfinite().all()


def test_self_alignment_is_a_switch() -> None:
    torch.manual_seed(0)
    features = two_levels(3.0, 0.0, 0.0, 9.0)
    close(plain().embed(features)["res5"], features["res5"], 0)
    assert (plain(self_alignment=True).embed(features)["res5"] != features["res5"]).any()


def test_unknown_cross_alignment() -> None:
    with pytest.raises(
        ValueError, match=r"unknown cross_alignment 'both': choose from learned, parameter_free, none"
    ):
        plain(cross_alignment="both")
