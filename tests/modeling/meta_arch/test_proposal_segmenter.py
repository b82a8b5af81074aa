"""The proposal segmenter: its losses, its output, and the term of the episode's class."""

import copy
import io
from typing import Any

import pytest
import torch

from fss_d2.modeling.build import build_model
from fss_d2.modeling.layers import soft_iou, two_channel_dice
from fss_d2.modeling.meta_arch.proposal_segmenter import PotentialObjectsSegmenter
from tests.modeling.episodes import make_cfg, make_episode

TINY = {
    "NUM_QUERIES": 5,
    "DIM": 32,
    "ENCODER_LAYERS": 1,
    "ENCODER_FEEDFORWARD": 16,
    "DECODER_LAYERS": 3,
    "DECODER_FEEDFORWARD": 16,
    "NUM_HEADS": 4,
    "LOSS.NUM_POINTS": 32,
}


def make_model(*overrides: Any) -> PotentialObjectsSegmenter:
    """A tiny one in evaluation mode, always with the same weights."""
    tiny = [item for key, value in TINY.items() for item in (f"MODEL.PROPOSALS.{key}", value)]
    torch.manual_seed(0)
    return build_model(make_cfg("PotentialObjectsSegmenter", *tiny, *overrides)).eval()


def make_image(seed: int = 0, size: tuple[int, int] = (48, 48), segments: int = 2) -> dict[str, Any]:
    """An episode without supports; its first segment is the background, the second the class."""
    episode = make_episode(seed, size=size)
    del episode["support"]
    mask = episode["sem_seg"] == 1
    episode["segments"] = torch.stack([~mask, mask, mask.flip(1)])[:segments]
    episode["segment_labels"] = torch.arange(3)[:segments]
    return episode


def proposals(model: PotentialObjectsSegmenter, *images: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [output["aux"]["proposals"] for output in model(list(images))]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_training_gives_losses_and_gradients() -> None:
    model = make_model().train()
    losses = model([make_image(0), make_image(1, segments=3)])
    layers = ["", *(f"_{i}" for i in range(TINY["DECODER_LAYERS"]))]
    pairs = {f"{name}{layer}" for name in ("loss_mask", "loss_dice") for layer in layers}
    assert set(losses) == pairs | {"loss_few_shot"}
    total = sum(losses.values())
    assert total.isfinite() and total > 0
    total.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("backbone.")
        assert (parameter.grad is None) == frozen, name
        assert frozen or parameter.grad.isfinite().all(), name


def test_a_batch_of_several_sizes_trains_as_one() -> None:
    model = make_model().train()
    images = [make_image(0), make_image(1, (40, 70), segments=3), make_image(2)]
    losses = model(images)
    alone = [model([image])["loss_few_shot"] for image in images]
    close(losses["loss_few_shot"], torch.stack(alone).mean())
    assert sum(losses.values()).isfinite()


def test_an_image_without_segments_still_trains() -> None:
    model = make_model().train()
    image = make_image(segments=0)
    image["sem_seg"] = torch.zeros_like(image["sem_seg"])
    losses = model([image])
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()  # to all parameters, as processes that train together need it


@pytest.mark.parametrize("rank", [1, 2])
def test_the_few_shot_term_by_hand(rank: int) -> None:
    """Of two images, one of which has lost its class, at the weight 3."""
    keys = ("MODEL.PROPOSALS.LOSS.FEW_SHOT_WEIGHT", 3.0, "MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK", rank)
    model = make_model(*keys).train()
    image, lost = make_image(0), make_image(1)
    lost["sem_seg"] = lost["sem_seg"].masked_fill(lost["sem_seg"] == 1, 255)
    loss = model([image, lost])["loss_few_shot"]
    masks = torch.nn.functional.interpolate(
        proposals(model.eval(), image)[0][None], size=(48, 48), mode="bilinear", align_corners=False
    )
    target = image["sem_seg"][None]
    chosen = masks[:, soft_iou(masks, target)[0].argsort(descending=True)[rank - 1]]
    dice = two_channel_dice(torch.stack([1 - chosen, chosen], dim=1), target)
    close(loss, 3 * dice / 2)


@pytest.mark.parametrize("absent", ["weight", "target"])
def test_the_few_shot_term_can_be_absent(absent: str) -> None:
    model = make_model("MODEL.PROPOSALS.LOSS.FEW_SHOT_WEIGHT", 0.0 if absent == "weight" else 10.0).train()
    image = make_image()
    if absent == "target":
        del image["sem_seg"]
    assert "loss_few_shot" not in model([image])


def test_mask_classification_is_a_switch() -> None:
    model = make_model("MODEL.PROPOSALS.MASK_CLASSIFICATION", True, "MODEL.PROPOSALS.NUM_CLASSES", 4).train()
    losses = model([make_image(0), make_image(1, (40, 56), segments=3)])
    assert {"loss_class", "loss_class_0"} <= set(losses)
    assert not [name for name in make_model().state_dict() if "class" in name]
    image = make_image()
    image["segment_labels"] = image["segment_labels"] + 3
    with pytest.raises(ValueError, match=r"segment label 4 .*NUM_CLASSES"):
        model([image])


@pytest.mark.parametrize("size", [(33, 47), (40, 25), (70, 38)])
def test_odd_sizes(size: tuple[int, int]) -> None:
    (masks,) = proposals(make_model(), make_image(0, size))
    assert masks.shape == (5, -(-size[0] // 4), -(-size[1] // 4))
    assert masks.dtype == torch.float32
    assert ((masks >= 0) & (masks <= 1)).all()


def test_a_batch_equals_its_images_one_by_one() -> None:
    model = make_model()
    images = [make_image(0), make_image(1, (40, 56)), make_image(2), make_episode(3, shots=2)]
    for together, image in zip(proposals(model, *images), images, strict=True):
        close(together, proposals(model, image)[0])


def test_supports_are_not_read() -> None:
    model = make_model()
    episode = make_episode(0, shots=2)
    close(proposals(model, episode)[0], proposals(model, make_image(0))[0], 0)


def test_state_dict_round_trip() -> None:
    model, other = make_model(), make_model()
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    close(proposals(other, make_image())[0], proposals(model, make_image())[0], 0)
    assert {name.split(".")[0] for name in model.state_dict()} == {"backbone", "proposals"}


def test_inputs_are_not_changed() -> None:
    model = make_model()
    image = make_image()
    del image["image_id"]  # assert_close compares tensors and numbers
    image["image"] = image["image"].float()
    before = copy.deepcopy(image)
    proposals(model, image)
    model.train()([image])
    torch.testing.assert_close(image, before, rtol=0, atol=0)


def test_a_frozen_backbone_stays_as_it_was_while_training() -> None:
    model = make_model().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    sum(model([make_image()]).values()).backward()
    optimizer.step()
    for name, tensor in model.state_dict().items():
        assert name.startswith("backbone.") == torch.equal(tensor, before[name]), name


def test_a_backbone_can_be_trained() -> None:
    model = make_model("MODEL.BACKBONE.FREEZE", False).train()
    sum(model([make_image()]).values()).backward()
    stages = [name for name, p in model.backbone.named_parameters() if p.grad is not None]
    assert {name.split(".")[1][:4] for name in stages} == {"res2", "res3", "res4", "res5"}


def test_pixels_are_normalised() -> None:
    plain = make_model("MODEL.PIXEL_MEAN", [0.0] * 3, "MODEL.PIXEL_STD", [1.0] * 3)
    normal = make_model("MODEL.PIXEL_MEAN", [120.0, 110.0, 100.0], "MODEL.PIXEL_STD", [50.0] * 3)
    image = make_image()
    mean = torch.tensor([120.0, 110.0, 100.0]).view(3, 1, 1)
    by_hand = image | {"image": (image["image"] - mean) / 50}
    close(proposals(plain, by_hand)[0], proposals(normal, image)[0])


def test_errors_name_the_culprit() -> None:
    model = make_model()
    with pytest.raises(ValueError, match=r"give \(B, 3, H, W\)"):
        model.propose(torch.zeros(3, 48, 48))
    image = make_image(7)
    del image["segments"]
    with pytest.raises(ValueError, match=r"image image7: no 'segments'.*INPUT\.SEGMENTS"):
        model.train()([image])
    for rank in (0, 6):
        with pytest.raises(ValueError, match=rf"MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK {rank} must be 1 .* to 5"):
            make_model("MODEL.PROPOSALS.LOSS.FEW_SHOT_RANK", rank)
