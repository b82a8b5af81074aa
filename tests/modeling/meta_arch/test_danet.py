"""DANet: what its parts do together."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.modeling import DANet
from fss_d2.modeling.backbone import ResNetBackbone
from fss_d2.modeling.layers import (
    mask_features,
    resize,
    shot_prototypes,
    soft_mask,
    soft_pool,
    support_activations,
)
from tests.modeling.episodes import make_episode, make_model
from tests.modeling.fake_backbone import FakeBackbone


def trained(model: DANet) -> DANet:
    """The model as if its attention had been trained."""
    with torch.no_grad():
        for unit, names in ((model.light, ("alpha", "beta")), (model.dense, ("theta",))):
            for name in names if unit is not None else ():
                getattr(unit, name).fill_(0.5)
    return model


def make_danet(*overrides: Any) -> DANet:
    return trained(make_model("DANet", *overrides))


def supports(shots: int = 1, size: tuple[int, int] = (48, 48)) -> tuple[Tensor, Tensor]:
    episode = make_episode(3, shots, support_size=size)["support"]
    return torch.stack([s["image"] for s in episode])[None], torch.stack([s["mask"] for s in episode])[None]


@torch.no_grad()
def test_the_whole_by_its_equations() -> None:
    """One support, everything written out from the backbone's features on (Fig. 1)."""
    model = make_danet()
    images, masks = supports()
    query = make_episode(5)["image"][None]
    theirs, ours = model.extract(model.normalise(images[0])), model.extract(model.normalise(query))
    size = theirs["res3"].shape[-2:]
    mask = resize((masks[0, :, None] == 1).float(), size)
    low = theirs["res3"] * mask
    reduced = F.relu(model.reduce_support[0](torch.cat([low, resize(theirs["res4"], size) * mask], dim=1)))
    light = model.light(ours["res3"], model.light.key(low)[:, None])
    joined = torch.cat([light, resize(ours["res4"], size)], dim=1)
    dense = model.dense(F.relu(model.reduce_query[0](joined)), model.dense.key(reduced)[:, None])
    prototype = soft_pool(model.channel_attention.respond(reduced))[:, :, None, None].expand_as(dense)
    logits = model.classifier(model.pyramid(torch.cat([dense, prototype], dim=1)))
    expected = F.interpolate(logits, size=(48, 48), mode="bilinear", align_corners=True)
    result = model.segment(query, model.encode_support(images, masks))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equal_supports_are_one_support() -> None:
    model = make_danet("MODEL.DANET.USE_PRIOR", True)
    images, masks = supports()
    query = make_episode(5)["image"][None]
    one = model.segment(query, model.encode_support(images, masks))
    three = model.segment(query, model.encode_support(images.repeat(1, 3, 1, 1, 1), masks.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(three, one, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_support_pixels_outside_the_object_make_no_difference() -> None:
    model = make_danet()
    images, masks = supports(size=(64, 64))
    masks = torch.zeros_like(masks)
    masks[..., 8:16, 8:16] = 1
    other = images.clone()
    other[..., 32:, :] = (
        255 - other[..., 32:, :]
    )  # cells of the object read the first two rows of res4's four
    a, b = model.encode_support(images, masks), model.encode_support(other, masks)
    for name, tensor in a.joined.flat().items():
        torch.testing.assert_close(tensor, b.joined.flat()[name], msg=name)


@torch.no_grad()
def test_a_larger_support_is_compared_at_the_query_s_size() -> None:
    """Resizing keys is resizing the features compared; the prototype keeps the support's own size."""
    model = make_danet()
    images, masks = supports(2, size=(80, 56))
    encoded = model.encode_support(images, masks)
    assert encoded.joined.light_keys.shape == (1, 2, 2, 10, 7)
    features = model.extract(model.normalise(images[0]))
    low = features["res3"] * soft_mask(masks[0], (10, 7))[:, None]
    resized = resize(encoded.joined.light_keys[0], (6, 6))
    torch.testing.assert_close(model.light.key(resize(low, (6, 6))), resized, rtol=1e-4, atol=1e-5)
    assert model.segment(make_episode(1)["image"][None], encoded).isfinite().all()


@torch.no_grad()
def test_without_light_and_dense_attention() -> None:
    model = make_danet("MODEL.DANET.LDA", False)
    assert not any("light" in name or "dense" in name for name in model.state_dict())
    assert set(model.encode_support(*supports()).joined.flat()) == {"prototype"}


@torch.no_grad()
def test_without_channel_attention_the_prototype_is_the_masked_average() -> None:
    model = make_danet("MODEL.DANET.PCA", False)
    images, masks = supports(2)
    features = model.extract(model.normalise(images[0]))
    size = features["res3"].shape[-2:]
    weights = soft_mask(masks[0], size)
    maps = [resize(features[name], size) * weights[:, None] for name in ("res3", "res4")]
    reduced = model.reduce_support(maps)
    expected = shot_prototypes(reduced[None], weights[None]).mean(dim=1)
    torch.testing.assert_close(model.encode_support(images, masks).joined.prototype, expected)


@torch.no_grad()
def test_the_prior_is_the_mean_of_the_supports_priors() -> None:
    model = make_danet("MODEL.DANET.USE_PRIOR", True)
    assert model.pyramid.out_channels == 65 + 4 * 16
    episode = make_episode(2, shots=2)
    output = model([episode])[0]["aux"]["prior"]
    features = model.extract(model.normalise(episode["image"][None]))["res5"]
    priors = []
    for support in episode["support"]:
        theirs = model.extract(model.normalise(support["image"][None]))["res5"]
        masked = mask_features(theirs, support["mask"][None])
        priors.append(support_activations(features, masked[:, None])[0])
    torch.testing.assert_close(output, torch.cat(priors).mean(dim=0, keepdim=True))


def test_the_class_agnostic_map_is_one_more_channel() -> None:
    model = make_danet("MODEL.DANET.CKMM", True, "MODEL.BASE_KNOWLEDGE.NUM_CLASSES", 3)
    torch.manual_seed(0)
    model.knowledge.fill(torch.randn_like(model.knowledge.prototypes))
    with torch.no_grad():
        aux = model([make_episode(0)])[0]["aux"]
    assert aux["agnostic"].shape[0] == 1
    assert model.pyramid.branches[0][1].in_channels == 65
    model.train()([make_episode(0), make_episode(1)])["loss_seg"].backward()


def test_training_on_a_single_episode_runs() -> None:
    """Pyramid pooling's bin of one cell has no batch statistics of one image."""
    model = make_danet().train()
    loss = model([make_episode(0)])["loss_seg"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_parameters_of_the_published_model() -> None:
    model = DANet(backbone=ResNetBackbone(depth=50, stem="deep", dilation="pspnet"), channel_attention={})
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert parts.pop("presence") == 0
    assert parts == {
        "backbone": 23_631_808,
        "reduce_query": 393_216,
        "reduce_support": 393_216,
        "light": 65_664 + 262_656 + 2,
        "dense": 16_448 + 65_792 + 1,
        "channel_attention": 8_192,
        "pyramid": 263_168,
        "classifier": 2_360_322,
    }
    assert sum(parts.values()) - parts["backbone"] == 3_828_677


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": ["res3"]}, r"in_features \('res3',\) must be the low features, then the high ones"),
        ({"light_dense": False}, "light_dense is False and channel_attention None: the baseline is PFENet"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DANet(backbone=FakeBackbone(), **arguments)


def test_the_docstring_says_which_danet_this_is() -> None:
    assert "Not the scene-segmentation DANet" in DANet.__doc__
