"""The pixel decoder: official numbers, odd sizes, and what every module of the repository must keep."""

from functools import lru_cache

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.proposals.pixel_decoder import MSDeformAttnPixelDecoder
from tests.golden.mmformer import key_shapes, load, official_mmformer_state, random

PREFIX = "sem_seg_head.pixel_decoder."
CHANNELS = {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}
SMALL = {"res2": 4, "res3": 6, "res4": 8, "res5": 10}


@lru_cache(maxsize=1)
def official_state() -> dict[str, Tensor]:
    state = official_mmformer_state(1, 1, PREFIX)
    return {key: tensor for key, tensor in state.items() if not key.startswith("crossat_")}


def small_decoder(sampling: str = "auto") -> MSDeformAttnPixelDecoder:
    decoder = MSDeformAttnPixelDecoder(
        SMALL, dim=32, num_heads=4, num_layers=2, feedforward=16, num_points=2, sampling=sampling
    )
    for layer in decoder.transformer.encoder["layers"]:  # points that depend on the query
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, std=0.1)
    return decoder


def small_features(height: int, width: int, batch: int = 2) -> dict[str, Tensor]:
    """Random features of an image of that size; a map has ceil(size / stride) rows and columns."""
    return {
        f"res{stage}": torch.randn(batch, SMALL[f"res{stage}"], -(-height // 2**stage), -(-width // 2**stage))
        for stage in (2, 3, 4, 5)
    }


def test_names_and_shapes_are_the_official_ones() -> None:
    official = {
        key.removeprefix(PREFIX): shape
        for key, shape in key_shapes(1, 1).items()
        if key.startswith(PREFIX) and "crossat_" not in key
    }
    ours = MSDeformAttnPixelDecoder(CHANNELS).state_dict()
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == official
    assert sum(tensor.numel() for tensor in ours.values()) == 6_035_904


@pytest.mark.parametrize("sampling", ["grid", "gather"])
def test_official_numbers(sampling: str) -> None:
    golden = load("b_pixel_decoder")
    decoder = MSDeformAttnPixelDecoder(CHANNELS, sampling=sampling).eval()
    decoder.load_state_dict(official_state(), strict=True)
    first_layer: list[Tensor] = []
    layers = decoder.transformer.encoder["layers"]
    layers[0].register_forward_hook(lambda _module, _inputs, tokens: first_layer.append(tokens))
    sizes = {"res2": (32, 40), "res3": (16, 20), "res4": (8, 10), "res5": (4, 5)}
    features = {name: random(f"b:{name}", (2, CHANNELS[name], *size)) for name, size in sizes.items()}
    with torch.no_grad():
        mask_features, levels = decoder(features)
    found = {
        "encoder_layer0": first_layer[0][:, ::4, ::2],
        "ms0": levels[0],
        "ms1": levels[1][:, ::2],
        "ms2": levels[2][:, ::4],
        "mask_features": mask_features[:, ::8],
    }
    # The official float32 numbers are themselves up to 4e-5 from the same computation in float64 (rms 5e-6),
    # 6e-6 after the first layer.
    for name, tensor in found.items():
        error = tensor - golden[name]
        assert error.abs().max() < (2e-5 if name == "encoder_layer0" else 1e-4), name
        assert error.square().mean().sqrt() < 1e-5, name


def test_initial_weights() -> None:
    decoder = MSDeformAttnPixelDecoder(SMALL, dim=64, num_layers=1)
    state = decoder.state_dict()
    zero = [
        "input_proj.0.0.bias",
        "mask_features.bias",
        "transformer.encoder.layers.0.self_attn.value_proj.bias",
    ]
    assert all(state[key].abs().max() == 0 for key in zero)
    assert state["transformer.level_embed"].std().item() == pytest.approx(1, abs=0.2)
    # Kaiming-uniform with a = 1: within sqrt(3 / fan in).
    assert state["layer_1.weight"].abs().max().item() == pytest.approx((3 / (64 * 9)) ** 0.5, rel=1e-2)
    # Xavier-uniform: within sqrt(6 / (fan in + fan out)).
    assert state["transformer.encoder.layers.0.linear1.weight"].abs().max().item() == pytest.approx(
        (6 / (64 + 1024)) ** 0.5, rel=1e-2
    )


@pytest.mark.parametrize(("height", "width"), [(97, 65), (33, 130), (20, 20)])
def test_odd_sizes(height: int, width: int) -> None:
    features = small_features(height, width)
    kept = {name: tensor.clone() for name, tensor in features.items()}
    decoder = small_decoder("gather")
    mask_features, levels = decoder(features)
    assert mask_features.shape == (2, 32, *features["res2"].shape[2:])
    assert [level.shape[2:] for level in levels] == [
        features[name].shape[2:] for name in ("res5", "res4", "res3")
    ]
    assert all(torch.equal(features[name], kept[name]) for name in kept)
    plain = small_decoder("grid")
    plain.load_state_dict(decoder.state_dict())
    torch.testing.assert_close(plain(features)[0], mask_features, rtol=1e-4, atol=1e-4)


def test_images_of_a_batch_do_not_mix() -> None:
    decoder, features = small_decoder(), small_features(64, 96)
    together, levels = decoder(features)
    for index in range(2):
        alone, alone_levels = decoder({name: x[index : index + 1] for name, x in features.items()})
        torch.testing.assert_close(alone[0], together[index], rtol=0, atol=1e-5)
        for one, both in zip(alone_levels, levels, strict=True):
            torch.testing.assert_close(one[0], both[index], rtol=0, atol=1e-5)


def test_every_parameter_and_input_gets_a_gradient() -> None:
    decoder = small_decoder()
    features = {name: x.requires_grad_() for name, x in small_features(64, 64).items()}
    mask_features, levels = decoder(features)
    sum((x * torch.randn_like(x)).sum() for x in (mask_features, *levels)).backward()
    named = dict(decoder.named_parameters()) | features
    assert [name for name, x in named.items() if x.grad is None or x.grad.abs().max() == 0] == []


def test_half_precision_around_it_changes_nothing() -> None:
    decoder, features = small_decoder(), small_features(64, 64)
    features = {name: x.bfloat16() for name, x in features.items()}
    expected, _ = decoder({name: x.float() for name, x in features.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, levels = decoder(features)
    assert all(x.dtype == torch.float32 for x in (found, *levels))
    assert torch.equal(found, expected)


def test_one_cell_of_one_channel_a_group_is_too_little() -> None:
    with pytest.raises(
        ValueError, match=r"one cell of res5.*a larger image \(above 32 pixels\), or more channels"
    ):
        small_decoder()(small_features(32, 20, batch=1))
    wider = MSDeformAttnPixelDecoder(SMALL, dim=64, num_heads=4, num_layers=1, feedforward=16)
    assert wider(small_features(32, 20, batch=1))[1][0].shape == (1, 64, 1, 1)


@pytest.mark.parametrize(
    ("dim", "message"),
    [(48, "dim 48 is not a multiple of the 32 norm groups"), (32, "5 heads do not divide 32")],
)
def test_wrong_width(dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSDeformAttnPixelDecoder(SMALL, dim=dim, num_heads=5)
