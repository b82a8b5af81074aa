"""What every registered method must do, whatever it is."""

import copy
import io
from dataclasses import replace
from typing import Any

import pytest
import torch

from fss_d2.modeling import FEW_SHOT_META_ARCHS, FewShotSegmentor
from fss_d2.modeling.layers import resize
from tests.modeling.episodes import make_episode, make_model

METHODS = pytest.mark.parametrize("method", FEW_SHOT_META_ARCHS)
FROZEN = {"MMFormer": ("backbone.", "proposals.")}  # prefixes; the backbone alone in other methods


def is_frozen(method: str, name: str) -> bool:
    return name.startswith(FROZEN.get(method, ("backbone.",)))


def scores(model: FewShotSegmentor, *episodes: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [output["sem_seg"] for output in model(list(episodes))]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_methods_are_found() -> None:
    assert {"DCAMA", "Prototype"} <= set(FEW_SHOT_META_ARCHS)


@METHODS
def test_training_gives_losses_and_gradients_or_says_why_not(method: str) -> None:
    model = make_model(method).train()
    episodes = [make_episode(0), make_episode(1)]
    if not model.trainable:
        with pytest.raises(RuntimeError, match="training-free"):
            model(episodes)
        return
    losses = model(episodes)
    assert losses and all(name.startswith("loss") for name in losses)
    total = sum(losses.values())
    assert total.isfinite() and total > 0
    total.backward()
    for name, parameter in model.named_parameters():
        frozen = is_frozen(method, name)
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.isfinite().all(), name


@METHODS
def test_inference_gives_scores_and_maps_at_the_size_asked_for(method: str) -> None:
    episode = make_episode(0, shots=2) | {"height": 30, "width": 70}
    with torch.no_grad():
        output = make_model(method)([episode])[0]
    assert output["sem_seg"].shape == (2, 30, 70)
    assert output["sem_seg"].dtype == torch.float32
    assert output["sem_seg"].isfinite().all()
    assert all(t.dim() == 3 for t in output.get("aux", {}).values())


@METHODS
def test_state_dict_round_trip(method: str) -> None:
    model, other = make_model(method), make_model(method)
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    close(scores(other, make_episode())[0], scores(model, make_episode())[0], 0)


@METHODS
@pytest.mark.parametrize("size", [(33, 47), (40, 25), (70, 38)])
def test_odd_sizes(method: str, size: tuple[int, int]) -> None:
    (result,) = scores(make_model(method), make_episode(0, 2, size, support_size=(37, 52)))
    assert result.shape == (2, *size)
    assert result.isfinite().all()


@METHODS
def test_a_ragged_batch_equals_its_episodes_one_by_one(method: str) -> None:
    model = make_model(method)
    episodes = [
        make_episode(0, shots=3),
        make_episode(1, shots=1),
        make_episode(2, shots=3),
        make_episode(3, shots=1, size=(40, 56)),
        make_episode(4, shots=3, support_size=(32, 64)),
    ]
    for together, episode in zip(scores(model, *episodes), episodes, strict=True):
        close(together, scores(model, episode)[0])


@METHODS
def test_supports_of_different_sizes_run_at_the_first_ones_size(method: str) -> None:
    episode = make_episode(0, shots=2)
    other = make_episode(1, support_size=(64, 40))["support"]
    episode["support"] += other
    model = make_model(method)
    (result,) = scores(model, episode)
    assert result.isfinite().all()
    resized = {
        "image": resize(other[0]["image"][None].float(), (48, 48), align_corners=False)[0],
        "mask": torch.nn.functional.interpolate(other[0]["mask"][None, None].float(), (48, 48))[0, 0],
    }
    episode["support"][2] = {"image": resized["image"], "mask": resized["mask"].to(torch.uint8)}
    episode["support"] = [{**s, "image": s["image"].float()} for s in episode["support"]]
    close(scores(model, episode)[0], result)


@METHODS
def test_inputs_are_not_changed(method: str) -> None:
    model = make_model(method)
    episode = make_episode(0, shots=2, support_size=(40, 56)) | {"valid_size": (40, 40)}
    del episode["image_id"]  # assert_close compares tensors and numbers
    episode["image"] = episode["image"].float()
    before = copy.deepcopy(episode)
    scores(model, episode)
    if model.trainable:
        model.train()([episode])
    torch.testing.assert_close(episode, before, rtol=0, atol=0)


@METHODS
def test_the_order_of_supports_makes_no_difference(method: str) -> None:
    model = make_model(method)
    if not model.permutation_invariant:
        pytest.skip(f"{method} reads its supports in order")
    episode = make_episode(0, shots=4)
    turned = {**episode, "support": episode["support"][2:] + episode["support"][:2]}
    close(scores(model, turned)[0], scores(model, episode)[0])


@METHODS
def test_frozen_parts_stay_as_they_were_while_training(method: str) -> None:
    model = make_model(method).train()
    if not model.trainable:
        pytest.skip(f"{method} is training-free")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    sum(model([make_episode()]).values()).backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()}
    assert changed
    assert not any(is_frozen(method, name) for name in changed)


@METHODS
def test_batch_statistics_of_a_frozen_backbone(method: str) -> None:
    fixed = ("MODEL.JC2A.CKMM", False)  # needs a backbone that stays as it is
    model = make_model(method, "MODEL.BACKBONE.BN_TRAIN_STATS", True, *fixed).train()
    assert all(not p.requires_grad for p in model.backbone.parameters())
    assert all(module.training for module in model.backbone.modules())
    assert not any(module.training for module in model.eval().backbone.modules())


@METHODS
def test_encoding_once_equals_forward(method: str) -> None:
    model = make_model(method)
    episodes = [make_episode(seed, shots=3) for seed in range(2)]
    supports = episodes[0]["support"]
    images = torch.stack([s["image"] for s in supports])[None]
    masks = torch.stack([s["mask"] for s in supports])[None]
    with torch.no_grad():
        support = model.encode_support(images, masks)
        file = io.BytesIO()
        torch.save(support.state(), file)
        file.seek(0)
        support = model.restore_support(torch.load(file, weights_only=True)).to("cpu")
        together = model.segment(torch.stack([e["image"] for e in episodes]), support)
    assert (support.shots, support.size, support.batch_size) == (3, (48, 48), 1)
    for logits, episode in zip(together, episodes, strict=True):
        close(logits, scores(model, {**episode, "support": supports})[0])


@METHODS
def test_padding_is_cropped_before_the_resize(method: str) -> None:
    model = make_model(method)
    episode = make_episode(0)
    (whole,) = scores(model, episode)
    cropped = {**episode, "valid_size": (36, 48), "height": 72, "width": 96}
    expected = resize(whole[None, :, :36], (72, 96), align_corners=model.align_corners)[0]
    close(scores(model, cropped)[0], expected)


@METHODS
def test_pixels_are_normalised(method: str) -> None:
    other = ("MODEL.FROST.STEPS", 0)  # propagation reads colours, 0 to 255, of the image itself
    plain = make_model(method, "MODEL.PIXEL_MEAN", [0.0] * 3, "MODEL.PIXEL_STD", [1.0] * 3, *other)
    numbers = ("MODEL.PIXEL_MEAN", [120.0, 110.0, 100.0], "MODEL.PIXEL_STD", [50.0] * 3)
    normal = make_model(method, *numbers, *other)
    episode = make_episode(0)
    mean = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1)
    by_hand = {
        **episode,
        "image": (episode["image"] - mean) / 50,
        "support": [{**s, "image": (s["image"] - mean) / 50} for s in episode["support"]],
    }
    close(scores(plain, by_hand)[0], scores(normal, episode)[0])


@METHODS
def test_errors_name_the_culprit(method: str) -> None:
    model = make_model(method)
    with pytest.raises(ValueError, match=r"episode 7 .*no support"):
        model([make_episode(7) | {"support": []}])
    with pytest.raises(ValueError, match=r"\(1, 3, 48, 48\).*give \(B, K, 3, H, W\)"):
        model.encode_support(torch.zeros(1, 3, 48, 48), torch.zeros(1, 48, 48))
    with pytest.raises(ValueError, match="do not fit"):
        model.encode_support(torch.zeros(1, 1, 3, 48, 48), torch.zeros(1, 1, 48, 40))
    support = model.encode_support(torch.zeros(2, 1, 3, 48, 48), torch.ones(2, 1, 48, 48))
    with pytest.raises(ValueError, match="2 episodes cannot serve 3 queries"):
        model.segment(torch.zeros(3, 3, 48, 48), support)
    with pytest.raises(ValueError, match=r"give \(B, 3, H, W\)"):
        model.segment(torch.zeros(3, 48, 48), support)
    with pytest.raises(ValueError, match=f"support set of Other given to {method}"):
        model.segment(torch.zeros(2, 3, 48, 48), replace(support, method="Other"))
    with pytest.raises(ValueError, match=f"support set of Other given to {method}"):
        model.restore_support(support.state() | {"method": "Other"})
    if model.trainable:
        episode = make_episode(7)
        del episode["sem_seg"]
        with pytest.raises(ValueError, match=r"episode 7 .*no 'sem_seg'"):
            model.train()([episode])


def test_a_broken_support_state_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks encoded, evidence, negatives, size"):
        make_model("Prototype").restore_support({"method": "Prototype", "shots": 1})
