"""Layers of the mask decoder against torch's own attention."""

import pytest
import torch
from torch import nn

from fss_d2.modeling.layers.transformer import (
    FeedForwardLayer,
    MaskedAttentionLayer,
    SelfAttentionLayer,
)


@pytest.mark.parametrize("masked", [True, False])
def test_masked_attention_is_that_of_torch(masked: bool) -> None:
    layer = MaskedAttentionLayer(16, num_heads=4)
    nn.init.normal_(layer.multihead_attn.in_proj_bias)
    x, position = torch.randn(2, 5, 16, requires_grad=True), torch.randn(5, 16)
    keys, values = torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    allowed = torch.rand(2, 5, 7) > 0.5
    allowed[:, :, 3] = True
    blocked = ~allowed[:, None].expand(-1, 4, -1, -1).flatten(0, 1) if masked else None
    attended, _ = layer.multihead_attn(x + position, keys, values, attn_mask=blocked)
    expected = layer.norm(x + attended)
    ours = layer(x, position, keys, values, allowed if masked else None)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    weight = torch.randn_like(ours)
    (theirs,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((ours * weight).sum(), x)[0], theirs, rtol=0, atol=1e-5)


def test_self_attention_is_that_of_torch() -> None:
    layer = SelfAttentionLayer(16, num_heads=2)
    x, position = torch.randn(2, 5, 16), torch.randn(5, 16)
    attended, _ = layer.self_attn(x + position, x + position, x)
    torch.testing.assert_close(layer(x, position), layer.norm(x + attended), rtol=0, atol=1e-6)


def test_initial_weights_are_xavier_uniform() -> None:
    attention, feedforward = MaskedAttentionLayer(64, num_heads=8).multihead_attn, FeedForwardLayer(64, 128)
    for weight in (
        attention.in_proj_weight,
        attention.out_proj.weight,
        feedforward.linear1.weight,
        feedforward.linear2.weight,
    ):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    assert attention.in_proj_bias.abs().max() == attention.out_proj.bias.abs().max() == 0
