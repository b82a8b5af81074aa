"""The learned part of DPCN: by hand, and against its equations written out."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fss_d2.modeling.layers import resize, soft_mask
from fss_d2.modeling.meta_arch.dpcn import DPCNHead, FeatureFilter, JoinedSupports


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_filter_by_hand() -> None:
    module = FeatureFilter(2)
    with torch.no_grad():
        module.score.weight.copy_(torch.tensor([1.0, -2.0]).view(1, 2, 1, 1))
        module.score.bias.fill_(0.5)
    query = torch.tensor([2.0, 1.0]).view(1, 2, 1, 1)
    mask, prototype = torch.full((1, 1, 1, 1), 0.25), torch.tensor([1.0, 0.5]).view(1, 2, 1, 1)
    filtered, refined = module(query, mask, prototype)
    # (2 * .25 + 1) - 2 (1 * .25 + .5) + .5 = 0.5
    weight = torch.sigmoid(torch.tensor(0.5))
    close(refined.flatten(), weight[None])
    close(filtered.flatten(), torch.tensor([2.0, 1.0]) * (1 + weight))


def test_the_head_as_written_out() -> None:
    """Equations 2 to 10 one by one, with the decoder's layers called by hand."""
    torch.manual_seed(0)
    head = DPCNHead(5, 3, dim=6, dynamic={"kernel_size": 3}, dilations=(1, 2, 3), knowledge=True).eval()
    maps, support = torch.randn(2, 5, 7, 6), torch.randn(2, 5, 7, 6)
    masks = (torch.rand(2, 1, 14, 12) > 0.5).long()
    activations, known = torch.rand(2, 3, 7, 6), torch.rand(2, 1, 4, 4)
    prototype, foreground = head.join(*head.encode([support], masks))
    joined = JoinedSupports(prototype, torch.empty(2, 1, 0), foreground)
    logits, aux = head([maps], joined, activations, known)

    x_s, x_q = F.relu(head.down_support[0](support)), F.relu(head.down_query[0](maps))
    mask = soft_mask(masks[:, 0], (7, 6))[:, None]
    p = (x_s * mask).sum(dim=(2, 3)) / (mask.sum(dim=(2, 3)) + 5e-4)
    close(prototype, p)
    x_p = p[:, :, None, None].expand_as(x_q)
    m0 = activations.mean(dim=1, keepdim=True)
    refined = torch.sigmoid(head.filter.score(x_q * m0 + x_p))
    close(aux["refined_mask"], refined)
    x = x_q * refined + x_q
    vectors = [f.flatten(1).T[m.flatten() > 0.5] for f, m in zip(x_s, mask, strict=True)]
    out = torch.cat([*head.dynamic(x, vectors), x_p, activations, resize(known, (7, 6)), refined], dim=1)
    assert out.shape[1] == 4 * 6 + 5
    first, _, pair, aspp, last = head.decoder
    y = F.relu(first(out))
    y = y + F.relu(pair[2](F.relu(pair[0](y))))
    branches = [F.relu(F.conv2d(y, aspp.convs[0].weight, aspp.convs[0].bias))]
    for rate in (1, 2, 3):
        conv = aspp.convs[rate]
        branches.append(F.relu(F.conv2d(y, conv.weight, conv.bias, padding=rate, dilation=rate)))
    pooled = y.mean(dim=(2, 3), keepdim=True)
    image = aspp.convs[4][1]
    branches.append(F.relu(F.conv2d(pooled, image.weight, image.bias)).expand_as(y))
    y = F.relu(F.conv2d(torch.cat(branches, dim=1), aspp.project.weight, aspp.project.bias))
    close(logits, last[3](F.relu(last[0](y))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": (6, 12)}, "must be three numbers"),
        ({"filter_kernel": 2}, "filter_kernel 2 must be odd"),
    ],
)
def test_settings_of_the_head(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DPCNHead(4, 3, **settings)
