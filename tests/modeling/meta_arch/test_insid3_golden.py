"""INSID3 against the numbers of the authors' code on given features."""

import pytest
import torch
from torch import Tensor

from fss_d2.modeling import INSID3
from fss_d2.modeling.matching import backward_votes, cluster_means, forward_cells, positional_basis
from fss_d2.modeling.meta_arch.insid3 import cluster_scores
from tests.golden.frozen import Golden, close

CASES = ("1shot", "2shot", "3shot", "absent", "nocandidate", "opposite", "refused", "tinymask")
TOLERANCE = 1e-5
ALL = pytest.mark.parametrize("case", CASES)


def episode(case: str) -> tuple[Golden, INSID3]:
    golden = Golden.load(f"insid3_{case}")
    rank = golden.meta["svd_components"]
    return golden, INSID3(backbone=golden.backbone, in_features=["res5"], positional_rank=rank).eval()


def flat(array: Tensor) -> Tensor:
    return array.flatten()[None]


@ALL
def test_positions_and_supports(case: str) -> None:
    golden, model = episode(case)
    basis = model._basis((golden.meta["image_size"],) * 2)
    assert basis is not None
    close((basis @ basis.T)[::4, ::4], golden["projector"], TOLERANCE)
    query, support = golden.encode(model)
    assert torch.equal(support.encoded.objects[0], golden["reference_mask_small"].bool())
    close(query.encoded.debiased[0, ::4], golden["debiased_target"], TOLERANCE)
    close(support.joined.prototype[0], golden["reference_prototype"], TOLERANCE)


@ALL
def test_candidates(case: str) -> None:
    golden, model = episode(case)
    query, support = golden.encode(model)
    cells, joined = query.encoded.debiased.flatten(2).transpose(1, 2), support.joined
    similarity = torch.einsum("bnc,bc->bn", cells, joined.prototype)
    close(similarity, flat(golden["similarity_forward"]), TOLERANCE)
    assert torch.equal(forward_cells(similarity), flat(golden["forward"]).bool())
    votes = backward_votes(cells, joined.cells, joined.objects, joined.known)
    assert torch.equal(votes, flat(golden["votes"]).long())
    candidates = model._planes(query.encoded, joined, None)[0, 1]
    assert torch.equal(candidates, golden["candidates"].float())


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("nocandidate", "opposite")])
def test_clusters_and_scores(case: str) -> None:
    golden, model = episode(case)
    query, support = golden.encode(model)
    labels, theirs = query.encoded.clusters.flatten(1), flat(golden["cluster"]).long()
    pairs = torch.unique(torch.stack([labels[0], theirs[0]]), dim=1)
    assert pairs.shape[1] == golden.meta["clusters"] == labels.max() + 1  # one to one
    planes = model._planes(query.encoded, support.joined, None)[0]
    scores = golden["score"][theirs[0]]  # all near 0 where the object is refused
    torch.testing.assert_close(planes[0].flatten(), scores, atol=TOLERANCE, rtol=0)
    assert torch.equal(planes[0] > model.threshold, golden["mask_small"].bool())
    # By the numbers of their clusters.
    cells = query.encoded.debiased.flatten(2).transpose(1, 2)
    centres = torch.nn.functional.normalize(cluster_means(cells, theirs), dim=2)
    close(centres[0, : golden.meta["clusters"], ::4], golden["cluster_prototypes_debiased"], TOLERANCE)
    cross = cluster_means(flat(golden["similarity_forward"])[..., None], theirs)[0, :, 0]
    close(cross[: golden.meta["clusters"]], golden["cross_similarity"], TOLERANCE)


@ALL
def test_the_mask(case: str) -> None:
    golden, model = episode(case)
    query, support = golden.encode(model)
    logits = model.match(query, support).logits
    assert golden.wrong_share(logits) <= 0.002
    assert bool((logits[:, 1] > logits[:, 0]).any()) == bool(golden["final"].any())


def test_a_rank_that_leaves_nothing_is_refused() -> None:
    golden = Golden.load("insid3_1shot")
    with pytest.raises(ValueError, match="positional_rank 64 must be at least 0 and below 64"):
        INSID3(backbone=golden.backbone, in_features=["res5"], positional_rank=64)


def test_the_basis_has_the_rank_asked_for() -> None:
    basis = positional_basis(torch.rand(8, 3, 4, generator=torch.Generator().manual_seed(0)), 5)
    assert basis.shape == (8, 5)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5), atol=1e-5, rtol=0)


def test_scores_by_hand() -> None:
    """Two clusters of two cells: the seed counts whole, the other by its half of candidates."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    cells = torch.stack([a, a, b, b])[None]
    labels, candidates = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    scores = cluster_scores(cells, cells, labels, cells @ a, candidates, a[None])
    torch.testing.assert_close(scores, torch.tensor([[1.0, 1.0, 0.18, 0.18]]))
    assert not cluster_scores(cells, cells, labels, cells @ a, candidates * 0, a[None]).any()
