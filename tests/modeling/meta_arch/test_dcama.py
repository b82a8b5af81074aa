"""DCAMA: invariances, settings of the ablation tables, sizes of the published models."""

from typing import Any

import pytest
import torch

from fss_d2.modeling import DCAMA, SegmentorOptions
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.backbone.timm import create_timm_backbone
from tests.modeling.episodes import make_episode, make_model
from tests.modeling.fake_backbone import FakeBackbone


def dcama(**arguments: Any) -> DCAMA:
    torch.manual_seed(0)
    options = SegmentorOptions(pixel_std=(60.0,) * 3)
    return DCAMA(backbone=FakeBackbone(), options=options, **arguments).eval()


@torch.no_grad()
def scores(model: DCAMA, episode: dict[str, Any]) -> torch.Tensor:
    return model([episode])[0]["sem_seg"]


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("backbone", "trained", "projections"),
    [
        (lambda: ResNetBackbone(depth=50), 14_215_394, 11_017_216),
        (lambda: ResNetBackbone(depth=101), 14_222_194, 11_017_216),
        (lambda: SwinBackbone(size="base"), 5_073_394, 2_756_096),
    ],
)
def test_parameter_counts_of_the_published_models(backbone: Any, trained: int, projections: int) -> None:
    with torch.device("meta"):
        model = DCAMA(backbone=backbone())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    assert sum(p.numel() for p in model.head.attention.parameters()) == projections


def test_fused_and_plain_attention_agree() -> None:
    episode = make_episode(0, shots=3)
    gradients = []
    for fused in (True, False):
        model = dcama(head={"aggregation": {"fused": fused, "dropout": 0.0}}).train()
        model([episode])["loss_seg"].backward()
        gradients.append({n: p.grad for n, p in model.head.named_parameters() if ".key." not in n})
    fused, plain = (dcama(head={"aggregation": {"fused": fused}}) for fused in (True, False))
    close(scores(fused, episode), scores(plain, episode))
    for name, gradient in gradients[0].items():
        close(gradient, gradients[1][name])


def test_dropout_acts_in_training_only() -> None:
    model, episode = dcama(), make_episode(0)
    close(scores(model, episode), scores(model, episode), 0)
    model.train()
    assert model([episode])["loss_seg"] != model([episode])["loss_seg"]


def test_a_support_given_twice_changes_nothing() -> None:
    model, episode = dcama(), make_episode(0, shots=2)
    close(scores(model, episode), scores(model, {**episode, "support": episode["support"] * 2}))


def test_one_value_everywhere_is_aggregated_to_that_value() -> None:
    model = dcama()
    images, query = torch.rand(1, 2, 3, 48, 48) * 255, torch.rand(1, 3, 48, 48) * 255
    with torch.no_grad():
        support = model.encode_support(images, torch.ones(1, 2, 48, 48))
        aux = model.match(model.encode_query(query), support).maps
    assert set(aux) == {"aggregated_res3", "aggregated_res4", "aggregated_res5"}
    for masks in aux.values():
        close(masks, torch.ones_like(masks))
    assert aux["aggregated_res4"].shape == (1, 2, 3, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_levels": ["res4", "res5"]},
        {"attention_levels": ["res5"]},
        {"skip_levels": []},
        {"skip_levels": ["res2"]},
        {"skip_levels": ["res2", "res3", "res4"]},
        {"head": {"skip_support": False}},
        {"head": {"support_background": False}},
        {"head": {"region_pixels": 10}},
        {"head": {"region_means": True}},
        {"head": {"region_means": True, "region_pixels": 10, "aggregation": {"projection": "cosine"}}},
        {"head": {"aggregation": {"projection": "cosine"}}},
        {"head": {"aggregation": {"position_encoding": False}}},
        {"head": {"widths": (8, 8, 16), "mixer_widths": (16, 8, 4)}},
    ],
    ids=str,
)
def test_settings_run_and_matter(settings: dict[str, Any]) -> None:
    episode = make_episode(0, shots=2, size=(40, 64))
    result = scores(dcama(**settings), episode)
    assert result.shape == (2, 40, 64)
    assert result.isfinite().all()
    assert not torch.allclose(result, scores(dcama(), episode))
    model = dcama(**settings).train()
    model([episode])["loss_seg"].backward()
    assert all(p.grad is not None for p in model.head.parameters())


def test_without_background_only_the_object_counts() -> None:
    episode = make_episode(0, size=(64, 64))
    image = episode["support"][0]["image"].clone()
    mask = torch.zeros(64, 64)
    mask[:, :32] = 1  # whole cells at every stride
    other = image.clone()
    other[:, :, 32:] = image[:, :, :32]
    pair = [{**episode, "support": [{"image": i, "mask": mask}]} for i in (image, other)]
    without = dcama(head={"support_background": False, "skip_support": False})
    close(scores(without, pair[0]), scores(without, pair[1]))
    full = dcama(head={"skip_support": False})
    assert (scores(full, pair[0]) - scores(full, pair[1])).abs().max() > 1e-4


def test_cosine_attention_has_nothing_to_learn() -> None:
    assert not list(dcama(head={"aggregation": {"projection": "cosine"}}).head.attention.parameters())


def test_attention_maps_explain_the_aggregated_masks() -> None:
    model = dcama(attention_levels=["res4"])
    images, query = torch.rand(1, 2, 3, 64, 48) * 255, torch.rand(1, 3, 48, 64) * 255
    masks = (torch.rand(1, 2, 64, 48) > 0.5).long()
    with torch.no_grad():
        support = model.encode_support(images, masks)
        encoded = model.encode_query(query)
        aggregated = model.match(encoded, support).maps["aggregated_res4"].mean(dim=1)  # (1, 3, 4)
        weights = model.head.attention_map(
            encoded.encoded, support.joined, (0.5, 0.3), (4, 3)
        )  # row 1, column 1
    values = support.joined.masks["res4"]
    close(weights.sum(dim=(1, 2, 3)), torch.ones(1))
    # layers share their mask values, so the mean of their maps gives the mean of their masks
    close((weights * values).sum(dim=(1, 2, 3)), aggregated[:, 1, 1])
    assert model.attention_map(query, support, (0.0, 0.99)).shape == (1, 2, 64, 48)
    ensemble = make_model("DCAMA", "TEST.KSHOT", "average")
    maps = ensemble.attention_map(query, ensemble.encode_support(images, masks), (0.5, 0.5))
    assert maps.shape == (1, 2, 64, 48)
    sampled = dcama(head={"region_pixels": 4})
    with pytest.raises(ValueError, match=r"set region_pixels \(MODEL.DCAMA.REGION_PIXELS\) to 0"):
        sampled.attention_map(query, sampled.encode_support(images, masks), (0.5, 0.5))


def test_what_is_stored_of_the_supports() -> None:
    support = dcama().encode_support(torch.rand(2, 3, 3, 48, 48), torch.ones(2, 3, 48, 48))
    shapes = {name: tuple(t.shape) for name, t in support.joined.flat().items()}
    assert shapes["keys.res3.0"] == (2, 3 * 36, 16)
    assert shapes["masks.res3"] == (2, 3, 6, 6)
    assert shapes["skips.res2.1"] == (2, 8, 12, 12)
    each = {name: tuple(t.shape) for name, t in support.encoded.flat().items()}
    assert each["keys.res3.0"] == (2, 3, 36, 16)
    assert each["masks.res3"] == (2, 3, 6, 6)
    assert each["skips.res2.1"] == (2, 3, 8, 12, 12)
    assert not any(shape[-2:] == (48, 48) for shape in [*shapes.values(), *each.values()])


def test_a_level_whose_blocks_differ_in_width() -> None:
    torch.manual_seed(0)
    model = DCAMA(backbone=create_timm_backbone("tf_efficientnet_lite0")).train()
    assert set(model.head.attention["res4"].query) == {"80", "112"}
    assert model.head.squeeze["res4"][0].in_channels == len(model.backbone.blocks("res4"))
    model([make_episode(0, size=(64, 64))])["loss_seg"].backward()
    assert all(p.grad.isfinite().all() for p in model.head.parameters())


def test_config_reaches_the_head() -> None:
    model = make_model(
        "DCAMA",
        "MODEL.DCAMA.FUSED_ATTENTION", False,
        "MODEL.DCAMA.WIDTHS", (8, 8, 16),
        "MODEL.DCAMA.NUM_HEADS", 4,
        "MODEL.DCAMA.DROPOUT", 0.1,
        "MODEL.DCAMA.IGNORE_AS_BACKGROUND", False,
    )  # fmt: skip
    attention = model.head.attention["res3"]
    assert (attention.fused, attention.num_heads, attention.dropout) == (False, 4, 0.1)
    assert model.head.squeeze["res3"][6].out_channels == 16
    assert not model.ignore_as_background


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            ("MODEL.DCAMA.PROJECTION", "mlp"),
            "unknown MODEL.DCAMA.PROJECTION 'mlp': choose from linear, cosine",
        ),
        (("MODEL.DCAMA.NUM_HEADS", 7), "MODEL.DCAMA.NUM_HEADS 7 must be a divisor of .*: 16, 24, 32"),
        (("MODEL.DCAMA.WIDTHS", (10, 8, 8)), r"MODEL.DCAMA.WIDTHS \(10, 8, 8\) must be multiples of 4"),
        (("MODEL.DCAMA.ATTENTION_LEVELS", ()), r"MODEL.DCAMA.ATTENTION_LEVELS \(\) must be at least 1"),
    ],
)
def test_wrong_settings(override: tuple[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model("DCAMA", *override)


def test_unknown_level() -> None:
    with pytest.raises(KeyError, match="res6"):
        make_model("DCAMA", "MODEL.DCAMA.SKIP_LEVELS", ("res6",))


def test_the_class_agnostic_map_is_one_more_channel_of_the_mixer() -> None:
    episode = make_episode(0, shots=2)
    with_map, plain = (make_model("DCAMA", "MODEL.DCAMA.CKMM", on) for on in (True, False))
    names = set(with_map.state_dict()) - set(plain.state_dict())
    assert names == {"knowledge.prototypes", "knowledge.filled"}
    weights = {n: t for n, t in plain.state_dict().items() if n != "head.mixers.0.0.weight"}
    with_map.load_state_dict(weights, strict=False)
    first, wide = plain.head.mixers[0][0].weight, with_map.head.mixers[0][0].weight
    assert wide.shape[1] == first.shape[1] + 1
    with torch.no_grad():
        wide.copy_(torch.cat([first, torch.zeros_like(first[:, :1])], dim=1))
        close(scores(with_map, episode), scores(plain, episode))  # the channel alone makes the difference
        wide[:, -1] += 0.1
        (output,) = with_map([episode])
    assert not torch.allclose(output["sem_seg"], scores(plain, episode))
    assert output["aux"]["agnostic"].shape[0] == 1


@pytest.mark.parametrize("kshot", ["average", "cross_guided"])
def test_the_class_agnostic_map_in_every_way_of_k_shots(kshot: str) -> None:
    model = make_model("DCAMA", "MODEL.DCAMA.CKMM", True, "TEST.KSHOT", kshot)
    assert scores(model, make_episode(0, shots=2)).isfinite().all()
