"""Point-to-point and point-to-block attention against their equations, written out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling.layers import PointBlockAttention
from fss_d2.modeling.layers.point_block_attention import ATTENTIONS, split_blocks, top_blocks

KINDS = pytest.mark.parametrize("attention", ATTENTIONS)
DIM, SIDE = 4, 6


def build(**settings: Any) -> PointBlockAttention:
    given = {"block_sides": (3,), "kept_blocks": (2,), **settings}
    return PointBlockAttention(DIM, (SIDE,), **given).eval()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Query and support features, mask."""
    return (
        torch.randn(batch, DIM, SIDE, SIDE),
        torch.randn(batch, DIM, SIDE, SIDE),
        torch.rand(batch, SIDE, SIDE),
    )


def run(module: PointBlockAttention, query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return module(module.queries(0, query), module.encode(0, support, mask))


def rows(maps: Tensor) -> Tensor:
    """One map (C, h, w) as a matrix [N, C]."""
    return maps.flatten(1).T


def attend(kind: str, q: Tensor, s: Tensor, w: dict[str, Tensor]) -> Tensor:
    """Queries [N, C] and support positions [n, C] by the definition of each kind."""
    Q, K, V = q @ w["query"], s @ w["key"], s @ w["value"]
    if kind == "softmax":
        return (Q @ K.T / DIM**0.5).softmax(dim=1) @ V
    if kind == "cosine":
        return F.cosine_similarity(q[:, None], s[None], dim=2) @ V / len(s)
    context = K.softmax(dim=0).T @ V  # over the positions, channel by channel
    return (Q / (1 + 1e-5) ** 0.5 if kind == "normalized_linear" else Q.relu()) @ context


def weights(module: PointBlockAttention) -> dict[str, Tensor]:
    parts = {name: getattr(module, name) for name in ("query", "key", "value")}
    return {name: getattr(p, "weight", torch.eye(DIM)).detach().T for name, p in parts.items()}


@KINDS
def test_point_to_point_by_its_equations(attention: str) -> None:
    module = build(p2b=False, attention=attention)
    query, support, mask = inputs()
    result = run(module, query, support, mask)
    for b in range(2):
        expected = attend(attention, rows(query[b]), rows(support[b] * mask[b]), weights(module))
        torch.testing.assert_close(rows(result[b]), expected)


@KINDS
def test_point_to_block_by_its_equations(attention: str) -> None:
    """Each offset inside a block attends to the kept blocks on its own; then the mean (Eq. 4 to 9)."""
    module = build(p2p=False, attention=attention)
    query, support, mask = inputs()
    result = run(module, query, support, mask)
    for b in range(2):
        q = rows(query[b] + module.query_position[0].detach())
        s = support[b] * mask[b] + module.support_position[0].detach()
        corners = [(y, x) for y in (0, 3) for x in (0, 3)]
        importance = [mask[b, y : y + 3, x : x + 3].mean().item() for y, x in corners]
        kept = sorted(range(4), key=lambda i: -importance[i])[:2]
        answers = []
        for dy in range(3):
            for dx in range(3):
                tokens = torch.stack([s[:, corners[i][0] + dy, corners[i][1] + dx] for i in kept])
                answers.append(attend(attention, q, tokens, weights(module)))
        torch.testing.assert_close(rows(result[b]), torch.stack(answers).mean(dim=0))


def test_the_mean_over_the_offsets_is_one_context_matrix() -> None:
    module = build(p2p=False)
    _, support, mask = inputs()
    encoded = module.encode(0, support, mask)
    assert {name: tuple(t.shape) for name, t in encoded.items()} == {"p2b": (2, DIM, DIM)}


@KINDS
def test_a_support_without_object_answers_nothing(attention: str) -> None:
    query, support, _ = inputs()
    nothing = torch.zeros(2, SIDE, SIDE)
    assert not run(build(p2b=False, attention=attention), query, support, nothing).any()
    without = build(attention=attention, position_embedding=False)
    assert not run(without, query, support, nothing).any()
    assert run(build(p2p=False, attention=attention), query, support, nothing).any()  # the embeddings do


def test_what_lies_outside_the_object_makes_no_difference() -> None:
    query, support, mask = inputs()
    mask = (mask > 0.5).float()
    other = torch.where(mask[:, None] == 1, support, torch.randn_like(support))
    module = build()
    assert torch.equal(run(module, query, support, mask), run(module, query, other, mask))


def test_blocks_are_cut_row_by_row() -> None:
    maps = torch.arange(24.0).view(1, 1, 4, 6)
    blocks = split_blocks(maps, 2)[0, :, :, 0]
    assert blocks.tolist()[:4] == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11], [12, 13, 18, 19]]
    assert split_blocks(maps, 4)[0, :, :, 0].tolist() == [
        [0, 1, 2, 3, 6, 7, 8, 9, 12, 13, 14, 15, 18, 19, 20, 21],
        [4, 5, 0, 0, 10, 11, 0, 0, 16, 17, 0, 0, 22, 23, 0, 0],  # padded on the right
    ]
    assert split_blocks(torch.rand(2, 3, 8, 8), 3).shape == (2, 9, 9, 3)


def test_the_fullest_blocks_are_kept_and_ties_go_to_the_first() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 2] = 1  # block 1
    mask[0, 2:, :2] = 0.5  # block 2
    assert top_blocks(mask, 2, 3).tolist() == [[2, 1, 0]]
    assert top_blocks(mask, 2, 9).tolist() == [[2, 1, 0, 3]]
    assert top_blocks(torch.ones(1, 60, 60), 3, 60).tolist() == [list(range(60))]


@pytest.mark.parametrize(("merge", "channels"), [("add", DIM), ("multiply", DIM), ("concat", 2 * DIM)])
def test_merging_both(merge: str, channels: int) -> None:
    query, support, mask = inputs()
    module = build(merge=merge)
    result = run(module, query, support, mask)
    assert result.shape == (2, channels, SIDE, SIDE) and module.out_channels == channels
    module.p2b = False
    points = run(module, query, support, mask)
    module.p2p, module.p2b = False, True
    blocks = run(module, query, support, mask)
    expected = {"add": points + blocks, "multiply": points * blocks}.get(
        merge, torch.cat([points, blocks], 1)
    )
    torch.testing.assert_close(result, expected)


def test_supports_keep_their_own_context() -> None:
    query, support, mask = inputs()
    module = build()
    both = run(module, query, support, mask)
    for b in range(2):
        alone = run(module, query[b : b + 1], support[b : b + 1], mask[b : b + 1])
        torch.testing.assert_close(both[b : b + 1], alone)


def test_parameters() -> None:
    def count(**settings: Any) -> int:
        return sum(p.numel() for p in build(**settings).parameters())

    projections, positions = 3 * DIM**2, 2 * SIDE**2
    assert count(p2b=False) == projections
    assert count(p2p=False) == count() == projections + positions  # shared projections
    assert count(position_embedding=False) == projections
    assert count(attention="normalized_linear") == projections + positions + 2 * DIM
    assert count(attention="cosine") == DIM**2 + positions


@KINDS
def test_every_parameter_learns(attention: str) -> None:
    module = build(attention=attention).train()
    query, support, mask = inputs()
    module(module.queries(0, query), module.encode(0, support, mask)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({"attention": "flash"}, "unknown attention 'flash'"),
        ({"merge": "max"}, "merge 'max': choose from"),
        ({"p2p": False, "p2b": False}, "p2p and p2b are both False"),
        ({"block_sides": (3, 3)}, r"block_sides \(3, 3\)"),
        ({"kept_blocks": (0,)}, r"kept_blocks \(0,\)"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], culprit: str) -> None:
    with pytest.raises(ValueError, match=culprit):
        build(**settings)
