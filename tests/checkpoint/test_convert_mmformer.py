"""MM-Former checkpoints: versions, stages, and the later version's factored convolutions."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fss_d2.checkpoint.convert import convert_mmformer
from fss_d2.checkpoint.convert_proposals import merge_factors
from fss_d2.config import get_cfg
from fss_d2.io.state_dict import read_state_dict
from fss_d2.modeling.backbone import ResNetBackbone
from fss_d2.modeling.meta_arch.proposal_segmenter import PotentialObjectsSegmenter
from tests.checkpoint.official import on_no_device
from tests.golden.mmformer import key_shapes

State = dict[str, Tensor]
V2_SETTINGS = (
    "MODEL.RESNETS.STEM deep",
    "MODEL.RESNETS.DILATION torchvision",
    "MODEL.BACKBONE.BN_TRAIN_STATS True",
)
DEAD = ("criterion.empty_weight", "sem_seg_head.pixel_decoder.crossat_", "crossat_3.")


def official(version: int, stage: int, prefix: str = "") -> State:
    return on_no_device(key_shapes(version, stage), prefix)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("version", "stage", "name", "settings"),
    [
        (1, 1, "MM-Former v1 stage 1, ResNet-50", ()),
        (1, 2, "MM-Former v1 stage 2, ResNet-50", ()),
        (2, 1, "MM-Former v2 stage 1, deep-stem ResNet-50", V2_SETTINGS),
        (2, 2, "MM-Former v2 stage 2, deep-stem ResNet-50", V2_SETTINGS),
    ],
)
def test_versions_and_stages(
    version: int, stage: int, name: str, settings: tuple[str, ...], prefix: str
) -> None:
    state = official(version, stage, prefix)
    conversion = convert_mmformer(state)
    assert conversion.architecture == name
    assert conversion.settings == settings
    get_cfg().merge_from_list(" ".join(settings).split())  # KeyError for a key that there is not
    assert len(conversion.missing) == (53 if version == 1 else 0)
    assert set(conversion.dropped) == {n for n in key_shapes(version, stage) if n.startswith(DEAD)}
    factors = 2 * sum("vector_S" in n for n in state)  # three become one
    assert len(conversion.model) == len(state) - len(conversion.dropped) - factors
    assert {n.partition(".")[0] for n in conversion.model} == {
        "backbone",
        "proposals",
        *(["matching"] if stage == 2 else []),
    }


def test_parts_of_the_matching_module_go_to_their_places() -> None:
    state = official(1, 2)
    model = convert_mmformer(state).model
    attention, ffn = "transformer_cross_attention_layers", "transformer_ffn_layers"
    first = f"crossat_0.{attention}.0.multihead_attn"
    for ours, theirs in {
        "reduce.res5.weight": "conv_0.weight",
        "reduce.res3.weight": "conv_2.weight",
        "align.res5.layers.0.attention.multihead_attn.in_proj_weight": f"{first}.in_proj_weight",
        "align.res4.layers.1.attention.norm.bias": f"crossat_1.{attention}.1.norm.bias",
        "align.res3.layers.1.feedforward.linear2.weight": f"crossat_2.{ffn}.1.linear2.weight",
        "align.res3.layers.0.feedforward.norm.weight": f"crossat_2.{ffn}.0.norm.weight",
        "fc1.weight": "fc1.weight",
        "fc2.bias": "fc2.bias",
    }.items():
        assert model[f"matching.{ours}"] is state[theirs], ours


def test_the_deep_stem_and_its_norms() -> None:
    state = official(2, 1)
    model = convert_mmformer(state).model
    assert model["backbone.conv1.weight"].shape == (64, 3, 3, 3)
    assert model["backbone.conv3.weight"].shape == (128, 64, 3, 3)
    for ours, theirs in {
        "bn1.bias": "layer0.1.bias",
        "bn2.running_mean": "layer0.4.running_mean",
        "bn3.weight": "layer0.7.weight",
        "layer1.0.downsample.1.running_var": "layer1.0.downsample.1.running_var",
        "layer4.2.bn3.num_batches_tracked": "layer4.2.bn3.num_batches_tracked",
    }.items():
        assert model[f"backbone.{ours}"] is state[theirs], ours


def test_a_pruned_proposal_set_is_read_off() -> None:
    """Table 4b: 50 proposals; they also set the width of the matching network."""
    shapes = {name: [50 if n == 100 else n for n in shape] for name, shape in key_shapes(1, 2).items()}
    conversion = convert_mmformer(on_no_device(shapes))
    assert conversion.settings == ("MODEL.PROPOSALS.NUM_QUERIES 50",)


def factored(convolution: nn.Conv2d, rank: int) -> State:
    """Singular value decomposition as the official code stores it."""
    weight = convolution.weight.detach()
    left, scale, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    return {
        "a.vector_S": scale[:rank].view(1, -1, 1, 1),
        "a.conv_U.weight": left[:, :rank, None, None],
        "a.conv_V.weight": right[:rank].reshape(-1, *weight.shape[1:]),
    }


@pytest.mark.parametrize("convolution", [(6, 5, 3), (4, 9, 1)])
def test_factors_multiply_to_the_convolution_they_came_from(convolution: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    whole = nn.Conv2d(*convolution, stride=2, padding=1, bias=False)
    merged = merge_factors(factored(whole, rank=99) | {"b.bias": torch.ones(1)})
    assert merged.keys() == {"a.weight", "b.bias"}
    torch.testing.assert_close(merged["a.weight"], whole.weight.detach(), rtol=1e-5, atol=1e-6)


def test_a_truncated_convolution_does_what_its_three_factors_do() -> None:
    torch.manual_seed(0)
    state = factored(nn.Conv2d(3, 8, 3), rank=4)
    x = torch.randn(2, 3, 9, 7)
    steps = F.conv2d(x, state["a.conv_V.weight"], stride=2, padding=2, dilation=2)
    steps = F.conv2d(steps * state["a.vector_S"], state["a.conv_U.weight"])
    once = F.conv2d(x, merge_factors(state)["a.weight"], stride=2, padding=2, dilation=2)
    torch.testing.assert_close(once, steps, rtol=1e-5, atol=1e-6)


def test_factors_by_hand() -> None:
    state = {
        "a.vector_S": torch.tensor([2.0, 3.0]).view(1, 2, 1, 1),
        "a.conv_U.weight": torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 2, 1, 1),
        "a.conv_V.weight": torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]).view(2, 3, 1, 1),
    }
    weight = merge_factors(state)["a.weight"]
    assert weight[:, :, 0, 0].tolist() == [[2.0, 4.0, 0.0], [2.0, 7.0, -3.0]]


def without(part: str) -> Callable[[State], State]:
    return lambda state: {name: tensor for name, tensor in state.items() if part not in name}


@pytest.mark.parametrize(
    ("version", "change", "message"),
    [
        (1, lambda s: {}, "no MM-Former checkpoint: none of its 0 names"),
        (1, lambda s: {"a": torch.ones(1)}, r"like backbone.stem.conv1.weight or layer0.* \(found a\)"),
        (1, without("sem_seg_head"), "is like sem_seg_head.predictor.query_feat.weight"),
        (1, without("crossat_1"), "24 tensors missing .matching.align.res4"),
        (1, without("fc1"), "2 tensors missing .matching.fc1.weight"),
        (
            1,
            lambda s: s | {"sem_seg_head.predictor.class_embed.bias": torch.ones(1)},
            "unknown .*class_embed",
        ),
        (1, lambda s: s | {"conv_0.weight": torch.ones(256, 512, 1, 1)}, r"reduce.res5.weight is \(256, 512"),
        (1, lambda s: s | {"conv_7.weight": torch.ones(1)}, "1 tensors unknown .conv_7.weight"),
        (2, without("layer3.1.conv2.conv_U"), "layer3.1.conv2.vector_S lacks its factors"),
        (2, without("layer3.1.conv2.vector_S"), "1 tensors missing .backbone.layer3.1.conv2.weight"),
        (
            2,
            lambda s: s | {"layer0.0.vector_S": torch.ones(1, 7, 1, 1)},
            "factors of layer0.0, .* do not fit",
        ),
        (2, lambda s: s | {"layer0.9.weight": torch.ones(1)}, "1 tensors unknown .backbone.layer0.9.weight"),
    ],
)
def test_what_does_not_fit_is_named(version: int, change: Callable[[State], State], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        convert_mmformer(change(official(version, 2)))
    assert "\n" not in str(error.value)


def test_stage_1_of_v1_from_its_file_to_a_loaded_model(tmp_path: Path) -> None:
    """Saved with its optimizer, as the official code does; the segmenter takes all of it."""
    state = {name: torch.full(shape, 0.5) for name, shape in key_shapes(1, 1).items()}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    torch.save(
        {"model": state, "optimizer": optimizer.state_dict(), "scheduler": {"last_epoch": 3}},
        tmp_path / "model_best.pth",
    )
    conversion = convert_mmformer(read_state_dict(tmp_path / "model_best.pth"))
    model = PotentialObjectsSegmenter(backbone=ResNetBackbone(depth=50))
    model.load_state_dict(conversion.model, strict=True)  # batch counters apart, which it does without
    assert all((p == 0.5).all() for p in model.parameters())
