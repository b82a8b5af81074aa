"""FROST against the numbers of the author's code on given features."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling import FROST
from fss_d2.modeling.matching import backward_votes, forward_cells
from fss_d2.modeling.matching.density import propagation_weights
from tests.golden.frozen import Golden, close

DENSE = ("1shot", "3shot", "absent", "largeref", "smallref", "mismatch")
CASES = (*DENSE, "nocandidate", "tinymask", "allforeground")
TOLERANCE = 1e-4
ALL = pytest.mark.parametrize("case", CASES)


def episode(case: str) -> tuple[Golden, FROST]:
    golden = Golden.load(f"frost_{case}")
    rank = golden.meta["svd_components"]
    return golden, FROST(backbone=golden.backbone, in_features=["res5"], positional_rank=rank).eval()


def flat(array: Tensor) -> Tensor:
    return array.flatten()[None]


@ALL
def test_candidates(case: str) -> None:
    golden, model = episode(case)
    query, support = golden.encode(model)
    joined = support.joined
    cells = torch.einsum("bchw,bcd->bhwd", query.encoded.debiased, joined.whitener)
    if "whitener" in golden.arrays:
        close(joined.whitener[0, ::4, ::4], golden["whitener"], TOLERANCE)
        close(cells[0, ..., ::4], golden["whitened_target"], TOLERANCE)
    close(joined.prototype[0], golden["reference_prototype"], TOLERANCE)
    cells = cells.flatten(1, 2)
    similarity = torch.einsum("bnc,bc->bn", cells, joined.prototype)
    close(similarity, flat(golden["similarity_forward"]), TOLERANCE)
    assert torch.equal(forward_cells(similarity), flat(golden["forward"]).bool())
    votes = backward_votes(cells, joined.cells, joined.objects, joined.known, 3)
    assert torch.equal(votes, flat(golden["votes"]).long())


@pytest.mark.parametrize("case", DENSE)
def test_densities_and_propagation(case: str) -> None:
    golden, model = episode(case)
    query, support = golden.encode(model)
    joined, meta = support.joined, golden.meta
    assert joined.sigma.item() == pytest.approx(meta["sigma"])
    assert joined.radius.item() == meta["radius"]
    shown = int(joined.objects.sum())
    assert (shown, joined.objects.numel() - shown) == (meta["foreground_anchors"], meta["background_anchors"])
    close(query.encoded.colours[0], golden["rgb_grid"], TOLERANCE)
    smooth, gate, scores = model._planes(query.encoded, joined, None)[0]
    close(scores, golden["score"], TOLERANCE)
    weights = propagation_weights(golden["score"], query.encoded.features[0], golden["rgb_grid"])
    close(weights.sum(dim=1), golden["degree"].flatten(), TOLERANCE)
    close(smooth, golden["score_smooth"], TOLERANCE)
    assert torch.equal(gate, golden["gate"].float())
    assert torch.equal((smooth > 0) & (gate > 0), golden["mask_small"].bool())


@ALL
def test_the_mask(case: str) -> None:
    golden, model = episode(case)
    query, support = golden.encode(model)
    logits = model.match(query, support).logits
    assert golden.wrong_share(logits) <= 0.002
    assert bool((logits[:, 1] > logits[:, 0]).any()) == bool(golden["final"].any())
    candidates = model._planes(query.encoded, support.joined, None)[0, 1]
    if case not in DENSE:
        assert torch.equal(candidates, golden["candidates"].float())


def test_negatives_are_further_background() -> None:
    """A negative of the object's own cells takes the object away; one unlike everything changes nothing."""
    golden, model = episode("1shot")
    query, support = golden.encode(model)
    side = golden.meta["image_size"]
    images, masks = torch.zeros(1, 1, 3, side, side), torch.zeros(1, 1, side, side, dtype=torch.uint8)
    features = golden["features"][:2].float() / 16

    def scores(first: Tensor, second: Tensor) -> Tensor:
        given = {"res5": first[None], "mirrored.res5": second[None]}
        more = model.with_negatives(support, model.encode_negatives(images, masks, given))
        return model._planes(query.encoded, more.joined, None)[0, 2]

    plain = model._planes(query.encoded, support.joined, None)[0, 2]
    unlike = -F.normalize(features.mean(dim=(2, 3)), dim=1)[:, :, None, None].expand_as(features)
    torch.testing.assert_close(scores(*unlike), plain)
    same = scores(*features)
    assert (same <= plain + 1e-4).all()
    assert same.max() < 2 < plain.max()
