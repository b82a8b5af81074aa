"""Self-alignment and cross-alignment: reference numbers and numbers computed by hand."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.layers import resize, sine_position_map
from fss_d2.modeling.layers.alignment import CrossAlignment, memory_size, self_alignment
from tests.golden.mmformer import ellipse, load, official_mmformer_state, random

OFFICIAL_PARTS = {"transformer_cross_attention_layers": "attention", "transformer_ffn_layers": "feedforward"}


def official_cross_alignment(level: int = 0) -> CrossAlignment:
    """The published block with recipe weights."""
    state = {}
    for name, tensor in official_mmformer_state(1, 2, f"crossat_{level}.").items():
        part, layer, rest = name.split(".", 2)
        state[f"layers.{layer}.{OFFICIAL_PARTS[part]}.{rest}"] = tensor
    block = CrossAlignment()
    block.load_state_dict(state, strict=True)
    return block.eval()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def free_block(side: int = 2, layers: int = 1) -> CrossAlignment:
    return CrossAlignment(4, num_layers=layers, memory_side=side, kind="parameter_free")


def test_reference_self_alignment() -> None:
    features = random("f:self", (2, 64, 12, 10))
    features = features * (0.2 + 2 * random("f:self:field", (2, 1, 12, 10), "uniform"))
    close(self_alignment(features), load("f_alignment")["self_align"])


def test_self_alignment_by_hand() -> None:
    features = torch.tensor([[1.0, 3.0], [0.0, 3.0]]).view(1, 2, 1, 2)
    # channel means .5 and 3; softmax over the pixels 1/(1+e^2.5), 1/(1+e^-2.5)
    second = 1 / (1 + math.exp(-2.5))
    first = 1 - second
    weights = [1 / (1 + math.exp(-(first + 3 * second))), 1 / (1 + math.exp(-3 * second))]
    expected = torch.tensor([[weights[0], 3 * weights[0]], [0.0, 3 * weights[1]]]).view(1, 2, 1, 2)
    close(self_alignment(features), expected, 1e-6)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 60), (15, 15)),
        ((16, 20), (15, 18)),
        ((20, 16), (18, 15)),
        ((4, 5), (15, 18)),
        ((1, 3), (15, 45)),
    ],
)
def test_size_of_the_memory(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert memory_size(size, 15) == expected


@pytest.mark.parametrize(
    ("tag", "size", "support_size"),
    [("small", (8, 10), (8, 10)), ("scaled", (18, 20), (20, 18)), ("notscaled", (15, 20), (15, 15))],
)
def test_reference_cross_alignment(tag: str, size: tuple[int, int], support_size: tuple[int, int]) -> None:
    golden = load("f_alignment")
    h, w = support_size
    gate = resize(ellipse(4 * h, 4 * w)[None, None], support_size, align_corners=False)[0]
    query = random(f"f:{tag}:query", (1, 256, *size))
    support = random(f"f:{tag}:support", (1, 256, h, w)) * gate
    block = official_cross_alignment()
    with torch.no_grad():
        aligned = block(query, support, gate)
        kept = block(query, support, gate, block.support_memory(support, gate))
    for name, result, again in zip(("query", "support"), aligned, kept, strict=True):
        close(result[:, ::2], golden[f"{tag}_{name}"], 2e-5)
        close(again, result, 0)


def test_reference_position_code() -> None:
    close(sine_position_map((6, 7), 256, torch.device("cpu")), load("f_alignment")["pos_encoding"])


def test_parameter_free_cross_alignment_by_hand() -> None:
    # One query cell and two support cells; memory_side 1 leaves both maps as they are.
    query = torch.tensor([2.0, 0.0, 0.0, 0.0]).view(1, 4, 1, 1)
    support = torch.tensor([[4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).T.reshape(1, 4, 1, 2)
    gate = torch.tensor([[[1.0, 0.0]]])
    here = sine_position_map((1, 1), 4, torch.device("cpu")).flatten()
    there = sine_position_map((1, 2), 4, torch.device("cpu"))[:, 0, 0]
    # The second support cell is zero with a zero code, but is attended to with logit 0.
    logit = ((query.flatten() + here) @ (support[0, :, 0, 0] + there)).item() / 2
    mixed = query.flatten().clone()
    mixed[0] += 4 / (1 + math.exp(-logit))
    expected = (mixed - mixed.mean()) / (mixed.var(unbiased=False) + 1e-5).sqrt()
    aligned, objects = free_block(side=1)(query, support, gate)
    close(aligned.flatten(), expected, 1e-6)
    # Each support cell sees the one query cell: it is added as it is.
    close(objects[0, :, 0, 1], _normalised(query.flatten()), 1e-6)
    close(objects[0, :, 0, 0], _normalised(torch.tensor([6.0, 0.0, 0.0, 0.0])), 1e-6)


def _normalised(x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("kind", ["learned", "parameter_free"])
def test_supports_do_not_see_each_other(kind: str) -> None:
    torch.manual_seed(0)
    block = CrossAlignment(8, feedforward=16, memory_side=3, kind=kind)
    query, support, gate = torch.randn(2, 8, 5, 6), torch.randn(6, 8, 4, 7), torch.rand(6, 4, 7)
    aligned, objects = block(query, support, gate)
    assert (aligned.shape, objects.shape) == ((6, 8, 5, 6), (6, 8, 4, 7))
    for i in range(6):
        alone = block(query[i // 3][None], support[i][None], gate[i][None])
        close(torch.cat([alone[0]]), aligned[i][None])
        close(alone[1], objects[i][None])


def test_both_directions_are_the_same_function() -> None:
    torch.manual_seed(0)
    block = CrossAlignment(8, feedforward=16, memory_side=3)
    a, b = torch.randn(1, 8, 5, 6), torch.randn(1, 8, 4, 7)
    first, second = block(a, b, torch.ones(1, 4, 7))
    turned_second, turned_first = block(b, a, torch.ones(1, 5, 6))
    close(first, turned_first)
    close(second, turned_second)


def test_parameters() -> None:
    count = {
        kind: sum(p.numel() for p in CrossAlignment(kind=kind).parameters())
        for kind in ("learned", "parameter_free")
    }
    assert count == {"learned": 1_054_208, "parameter_free": 0}


def test_layers_change_something() -> None:
    torch.manual_seed(0)
    maps = torch.randn(1, 4, 3, 3), torch.randn(1, 4, 3, 3), torch.ones(1, 3, 3)
    results = [free_block(layers=n)(*maps)[0] for n in (0, 1, 2)]
    close(results[0], maps[0], 0)
    assert all((a - b).abs().max() > 0.1 for a, b in pairwise(results))


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match=r"'cosine': choose from learned, parameter_free"):
        CrossAlignment(kind="cosine")
    with pytest.raises(ValueError, match="3 heads do not divide 256 channels"):
        CrossAlignment(num_heads=3)
