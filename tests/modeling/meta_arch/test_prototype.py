"""The training-free baseline."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import Tensor

from fss_d2.modeling import Prototype
from fss_d2.modeling.backbone.base import FeatureBackbone
from tests.modeling.episodes import make_episode, make_model


class Pixels(FeatureBackbone):
    """The image itself is the feature map, twice."""

    def __init__(self) -> None:
        super().__init__()
        self._declare({"res2": ShapeSpec(channels=3, stride=1), "res3": ShapeSpec(channels=3, stride=1)})

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "res2", x
        yield "res3", x


def test_hand_computed_cosines() -> None:
    model = Prototype(backbone=Pixels(), in_features=["res2"], temperature=0.5).eval()
    red, green, blue = torch.eye(3)
    support = torch.stack([red, red, green, blue]).T.reshape(1, 1, 3, 2, 2)
    mask = torch.tensor([[1, 1], [0, 255]]).view(1, 1, 2, 2)
    query = torch.stack([red, green, blue, red + green]).T.reshape(1, 3, 2, 2)
    logits = model.segment(query, model.encode_support(support, mask))
    # prototypes: object = red, background = green (blue is marked 255); cosines over 0.5
    half = 2 / 2**0.5
    expected = torch.tensor([[[0, 2], [0, half]], [[2, 0], [0, half]]], dtype=torch.float32)
    torch.testing.assert_close(logits[0], expected, atol=1e-5, rtol=0)


def test_levels_have_the_same_say() -> None:
    torch.manual_seed(0)
    one = Prototype(backbone=Pixels(), in_features=["res2"]).eval()
    two = Prototype(backbone=Pixels(), in_features=["res2", "res3"]).eval()
    image, mask = torch.rand(1, 1, 3, 8, 8), (torch.rand(1, 1, 8, 8) > 0.5).long()
    query = torch.rand(1, 3, 8, 8)
    a, b = (model.segment(query, model.encode_support(image, mask)) for model in (one, two))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_mirrored_episode_gives_a_mirrored_result() -> None:
    model = make_model("Prototype")
    episode = make_episode(0, shots=2, size=(64, 64))
    mirrored = {
        **episode,
        "image": episode["image"].flip(2),
        "support": [{"image": s["image"].flip(2), "mask": s["mask"].flip(1)} for s in episode["support"]],
    }
    (plain,), (turned,) = model([episode]), model([mirrored])
    torch.testing.assert_close(turned["sem_seg"].flip(2), plain["sem_seg"], atol=1e-4, rtol=1e-4)


def test_swapped_masks_swap_the_channels() -> None:
    model = make_model("Prototype")
    episode = make_episode(0, shots=2)
    swap = torch.arange(256, dtype=torch.uint8)
    swap[:2] = torch.tensor([1, 0])
    swapped = {**episode, "support": [{**s, "mask": swap[s["mask"].long()]} for s in episode["support"]]}
    (plain,), (other,) = model([episode]), model([swapped])
    torch.testing.assert_close(other["sem_seg"].flip(0), plain["sem_seg"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [0, 255])
def test_a_support_without_object_changes_no_object_prototype(value: int) -> None:
    model = make_model("Prototype")
    images = torch.rand(1, 2, 3, 32, 32) * 255
    masks = torch.zeros(1, 2, 32, 32, dtype=torch.uint8)
    masks[0, 0, 4:20, 4:20] = 1
    masks[0, 1] = value
    both = model.encode_support(images, masks).joined.prototypes
    first = model.encode_support(images[:, :1], masks[:, :1]).joined.prototypes
    torch.testing.assert_close(both[:, 1], first[:, 1])
    assert ((both[:, 0] - first[:, 0]).abs().max() < 1e-6) == (value == 255)


def cosines(query: Tensor, cells: list[Tensor], mask: list[int], **arguments: Any) -> Tensor:
    """Cosines (2, N) of a row of query pixels to background and object, of one support, a row of pixels."""
    model = Prototype(backbone=Pixels(), in_features=["res2"], **arguments).eval()
    support = model.encode_support(
        torch.stack(cells).T[None, None, :, None], torch.tensor(mask)[None, None, None]
    )
    return model.match(model.encode_query(query.T[None, :, None]), support).maps["cosine"][0, :, 0]


def test_several_prototypes() -> None:
    """The object is red or green, the background blue or white; each query pixel is one of the four."""
    red, green, blue = torch.eye(3)
    white = torch.ones(3) / 3**0.5
    cells, mask = [red, green, green, blue, white, white], [1, 1, 1, 0, 0, 0]
    query = torch.stack([red, green, blue, white])
    one = cosines(query, cells, mask)
    assert one[1, 0] < 0.5 and one[0, 2] < 1 - 1e-3
    found = cosines(query, cells, mask, object_prototypes=2, background_prototypes=2)
    torch.testing.assert_close(found[1, :2], torch.ones(2))
    torch.testing.assert_close(found[0, 2:], torch.ones(2))
    with pytest.raises(ValueError, match="object_prototypes 0 must be at least 1"):
        Prototype(backbone=Pixels(), in_features=["res2"], object_prototypes=0)


def test_backward_votes_shut_out_what_resembles_a_part_of_the_background() -> None:
    """The second pixel is nearer to the object than to the mean background, but nearest to a pixel of it."""
    red, green, blue = torch.eye(3)
    near = 0.8 * red + 0.6 * green
    cells, mask = [red, near, blue, blue, blue], [1, 0, 0, 0, 0]
    query = torch.stack([red, 0.75 * red + 0.66 * green])
    plain, voted = (cosines(query, cells, mask, backward_votes=votes) for votes in (False, True))
    assert (plain[1] > plain[0]).all()
    assert (voted[1] > voted[0]).tolist() == [True, False]
    torch.testing.assert_close(voted[0], plain[0])
    torch.testing.assert_close(voted[0, 1] - voted[1, 1], plain[1, 1] - plain[0, 1])
