"""Prior mask and support activation: by hand, against unfolded features, against the reference code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.layers import activation, mask_features
from fss_d2.modeling.layers.activation import min_max, support_activations
from tests.golden.recipe import recipe_tensor

GOLDEN = Path(__file__).parents[2] / "golden"
WINDOWS = [(1, 1), (5, 1), (3, 3), (1, 5)]


def unfolded(query: Tensor, support: Tensor, window: tuple[int, int]) -> Tensor:
    """The equation as printed: cosines of unfolded features, mean over the region, maximum, min-max."""
    padding = (window[0] // 2, window[1] // 2)
    B, C, h, w = query.shape
    q, s = (
        F.unfold(x, window, padding=padding).unflatten(1, (C, -1)) for x in (query, support)
    )  # (B, C, dh*dw, positions)
    dot = torch.einsum("bcdi,bcdj->bdij", s, q)
    cosine = dot / (s.norm(dim=1)[..., :, None] * q.norm(dim=1)[..., None, :] + 1e-7)
    return min_max(cosine.mean(dim=1).amax(dim=1).view(B, h, w))


def activate(query: Tensor, support: Tensor, window: tuple[int, int] = (1, 1)) -> Tensor:
    """Of one support (B, C, hs, ws) and one window: (B, h, w)."""
    return support_activations(query, support[:, None], [window])[:, 0]


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def test_min_max_of_each_map() -> None:
    maps = torch.tensor([[[1.0, 2.0], [3.0, 5.0]], [[-4.0, 0.0], [0.0, 4.0]]])
    expected = torch.tensor([[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.5], [0.5, 1.0]]])
    torch.testing.assert_close(min_max(maps), expected)
    assert not min_max(torch.full((1, 2, 2), 3.0)).any()  # a constant map says nothing


def test_prior_by_hand() -> None:
    support = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).view(1, 2, 1, 2)  # (3, 4) and a masked position
    query = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 4.0]]).view(1, 2, 1, 3)  # cosines 0.6, 0.8, 1
    torch.testing.assert_close(activate(query, support), torch.tensor([[[0.0, 0.5, 1.0]]]))


def test_prior_of_the_reference_code() -> None:
    with np.load(GOLDEN / "pfenet_prior.npz") as file:
        masks, expected = (torch.from_numpy(file[key]) for key in ("support_mask", "prior_each"))
    query = torch.from_numpy(recipe_tensor("input:prior/q4", (2, 48, 9, 9), "normal"))
    for shot in range(3):
        support = torch.from_numpy(recipe_tensor(f"input:prior/s4_{shot}", (2, 48, 9, 9), "normal"))
        prior = activate(query, mask_features(support, masks[:, shot]))
        torch.testing.assert_close(prior, expected[:, shot, 0], rtol=0, atol=2e-5)


def test_several_supports_give_the_mean_of_their_maps() -> None:
    query, supports = features(2, 4, 6, 5), features(2, 3, 4, 5, 7, seed=1)
    each = [activate(query, support) for support in supports.unbind(dim=1)]
    torch.testing.assert_close(support_activations(query, supports)[:, 0], sum(each) / 3)


def test_region_by_hand() -> None:
    # One channel: a cosine is 1 where both are positive, 0 where one is 0 or outside.
    support = torch.tensor([1.0, 1.0, 0.0]).view(1, 1, 1, 3)
    query = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 1, 4)
    # Regions of three, by the support's middle 0, 1, 2: query 0 fits .11 with .11 (2), query 1: 111 with 011
    # or 110 (2), query 2: 110 with 110 (2), query 3: 10. with 10. (1).
    expected = (torch.tensor([2.0, 2.0, 2.0, 1.0]) - 1).view(1, 1, 4)
    torch.testing.assert_close(activate(query, support, (1, 3)), expected)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("cells", [1, 4000, 2**24])
def test_shifted_sums_equal_unfolded_features(
    window: tuple[int, int], cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activation, "CHUNK_CELLS", cells)
    query, support = features(2, 6, 7, 9), features(2, 6, 8, 5, seed=1)
    support[:, :, 2:, 3:] = 0
    torch.testing.assert_close(activate(query, support, window), unfolded(query, support, window))


def test_windows_together_equal_each_alone() -> None:
    query, support = features(2, 4, 6, 5), features(2, 4, 5, 7, seed=1)
    together = support_activations(query, support[:, None], WINDOWS)
    assert together.shape == (2, 4, 6, 5)
    for i, window in enumerate(WINDOWS):
        torch.testing.assert_close(together[:, i], activate(query, support, window))


@pytest.mark.parametrize("cells", [1, 2**24])
def test_gradient(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "CHUNK_CELLS", cells)
    gradients = []
    for form in (lambda q, s: support_activations(q, s[:, None], WINDOWS), _all_unfolded):
        query, support = features(1, 4, 5, 6).requires_grad_(), features(1, 4, 6, 4, seed=1).requires_grad_()
        (form(query, support) * features(1, 4, 5, 6, seed=2)).sum().backward()
        gradients.append((query.grad, support.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def _all_unfolded(query: Tensor, support: Tensor) -> Tensor:
    return torch.stack([unfolded(query, support, window) for window in WINDOWS], dim=1)


def test_a_masked_position_gives_no_wild_gradient() -> None:
    query = features(1, 4, 3, 3).abs().requires_grad_()
    support = features(1, 4, 3, 3, seed=1).abs().requires_grad_()
    mask = torch.tensor([1.0, 0.0, 0.0])
    activate(query, support * mask, (3, 3)).square().sum().backward()
    assert support.grad.isfinite().all() and not support.grad[..., 1:].any()
    assert query.grad.abs().max() < 100


def test_half_precision_does_not_reach_the_cosines() -> None:
    query, support = features(1, 16, 4, 4), features(1, 16, 4, 4, seed=1)
    expected = activate(query, support)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(activate(query, support), expected, rtol=0, atol=0)


def test_a_support_without_object_activates_nothing() -> None:
    assert not support_activations(features(1, 4, 5, 5), torch.zeros(1, 1, 4, 5, 5), WINDOWS).any()


@pytest.mark.parametrize("windows", [[], [(2, 1)], [(3, 3), (1, 0)]])
def test_windows_have_a_middle(windows: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="odd sides"):
        support_activations(features(1, 2, 3, 3), features(1, 1, 2, 3, 3), windows)
