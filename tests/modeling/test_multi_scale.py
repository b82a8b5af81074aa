"""Averaging over sizes: by hand, and for every method."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling import FEW_SHOT_META_ARCHS
from fss_d2.modeling.layers import resize
from fss_d2.modeling.multi_scale import MultiScaleSegmentor
from tests.modeling.episodes import make_episode, make_model

METHODS = pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)


class _Given(nn.Module):
    """Returns the "scores" of each input."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sem_seg": e["scores"], "aux": {"number": e["scores"][:1]}} for e in batched_inputs]


def _fused(*scores: Tensor, height: int, width: int) -> dict[str, Any]:
    episode = {"height": height, "width": width, "views": [{"scores": s} for s in scores]}
    with torch.no_grad():
        return MultiScaleSegmentor(_Given().eval())([episode])[0]


def _winner(scores: Tensor) -> Tensor:
    return scores[1] > scores[0]


def test_what_no_view_covers_is_background() -> None:
    output = _fused(torch.tensor([0.0, 5.0]).view(2, 1, 1).expand(2, 3, 4), height=5, width=6)
    assert output["sem_seg"].shape == (2, 5, 6)
    expected = torch.zeros(5, 6, dtype=torch.bool)
    expected[:3, :4] = True
    assert torch.equal(_winner(output["sem_seg"]), expected)


def test_maps_of_the_first_view_are_kept_and_not_a_number_stays() -> None:
    first, second = torch.zeros(2, 4, 4), torch.full((2, 4, 4), torch.nan)
    output = _fused(first, second, height=4, width=4)
    assert torch.equal(output["aux"]["number"], first[:1])
    assert output["sem_seg"].isnan().all()  # for the evaluator to refuse


def test_training_and_missing_views_are_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be trained"):
        MultiScaleSegmentor(_Given())([])
    model = MultiScaleSegmentor(_Given().eval())
    assert not model.training  # the mode of what it holds
    assert model([]) == []
    with pytest.raises(ValueError, match=r"episode 7: no 'views'.*TEST\.SCALES"):
        model([{"episode_index": 7, "height": 1, "width": 1}])


def _at(episode: dict[str, Any], size: tuple[int, int], **extra: Any) -> dict[str, Any]:
    """The episode with its images resized, its frame as it is."""
    picture = {"image": resize(episode["image"][None].float(), size, align_corners=False)[0]}
    masks = (s["mask"][None, None] for s in episode["support"])
    support = [
        {
            "image": resize(s["image"][None].float(), size, align_corners=False)[0],
            "mask": torch.nn.functional.interpolate(mask, size=size, mode="nearest")[0, 0],
        }
        for s, mask in zip(episode["support"], masks, strict=True)
    ]
    frame = {"height": episode["height"], "width": episode["width"]}
    return picture | frame | {"support": support} | extra


@METHODS
def test_the_own_size_alone_changes_no_prediction(method: str) -> None:
    model = make_model(method)
    episodes = [make_episode(i, shots=2) | {"height": 60, "width": 40} for i in range(2)]
    with torch.no_grad():
        plain = model(episodes)
        averaged = MultiScaleSegmentor(model)([{**e, "views": [_at(e, (48, 48))]} for e in episodes])
    for expected, output in zip(plain, averaged, strict=True):
        assert torch.equal(_winner(output["sem_seg"]), _winner(expected["sem_seg"]))
        assert output["aux"].keys() == expected["aux"].keys()


@METHODS
def test_two_sizes_are_the_mean_of_their_softmax(method: str) -> None:
    """The second one is letterboxed: its padding does not enter the mean."""
    model = make_model(method)
    episode = make_episode(0) | {"height": 60, "width": 60}
    views = [_at(episode, (48, 48)), _at(episode, (64, 56), valid_size=(56, 48))]
    with torch.no_grad():
        (output,) = MultiScaleSegmentor(model)([{**episode, "views": views}])
        scores = [model([view])[0]["sem_seg"] for view in views]
        whole = model([_at(episode, (64, 56)) | {"height": 64, "width": 56}])[0]["sem_seg"]
    cut = resize(whole[None, :, :56, :48], (60, 60), align_corners=model.align_corners)[0]
    mean = (scores[0].softmax(0) + cut.softmax(0)) / 2
    torch.testing.assert_close(output["sem_seg"].exp().float(), mean, rtol=1e-4, atol=1e-5)
    assert output["sem_seg"].shape == (2, 60, 60)
