"""Swin: parameter counts, timm's own forward, window shifts, reference taps."""

import pytest
import timm
import torch
from detectron2.modeling import build_backbone

from fss_d2.config import get_cfg
from fss_d2.modeling.backbone import STAGES, SwinBackbone, build_fss_swin_backbone
from fss_d2.modeling.backbone.swin import _run_layer, _shift
from fss_d2.modeling.backbone.weights import rename_microsoft_swin
from tests.golden.official import image, load_case, official_dcama_state


@pytest.mark.parametrize(
    ("size", "parameters", "channels"),
    [("base", 87_903_584 - 1_025_000 - 2_048, 128), ("large", 195_198_516 - 3_072, 192)],
)
def test_parameter_counts(size: str, parameters: int, channels: int) -> None:
    with torch.device("meta"):
        backbone = SwinBackbone(size=size)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == parameters
    assert [len(backbone.blocks(stage)) for stage in STAGES] == [2, 2, 18, 2]
    assert [backbone.available[stage].channels for stage in STAGES] == [channels * 2**i for i in range(4)]


def test_equal_to_the_fixed_size_model_at_its_size() -> None:
    """At 224 pixels the last stage is one window, which the fixed-size model does not shift."""
    torch.manual_seed(0)
    library = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    backbone = SwinBackbone(size="tiny").eval()
    assert backbone.library_module.load_state_dict(library.state_dict(), strict=False).missing_keys == []
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = library.forward_intermediates(x, intermediates_only=True)
        outputs = backbone(x)
    for stage, value in zip(STAGES, expected, strict=True):
        torch.testing.assert_close(outputs[stage], value)


@pytest.mark.parametrize(("size", "shift"), [((56, 120), (0, 3)), ((224, 224), (3, 3)), ((40, 40), (0, 0))])
def test_windows_shift_only_along_axes_with_several(size: tuple[int, int], shift: tuple[int, int]) -> None:
    """Map of res3 in windows of 7; the mask keeps apart what a shift brings together."""
    backbone = SwinBackbone(size="tiny").eval()
    blocks = backbone.model.layers[1].blocks
    masks: list[torch.Tensor | None] = []
    for block in blocks:
        block.attn.register_forward_pre_hook(
            lambda _, args, kwargs: masks.append(kwargs["mask"]), with_kwargs=True
        )
    backbone(torch.randn(1, 3, *size), ["res3"])
    cells = (size[0] // 8, size[1] // 8)
    assert [_shift(block, cells) for block in blocks] == [(0, 0), shift]
    rows, columns = (-(-side // 7) for side in cells)
    assert masks[0] is None
    if shift == (0, 0):
        assert masks[1] is None
    else:
        assert masks[1].shape == (rows * columns, 49, 49) and masks[1].unique().tolist() == [-100, 0]


def test_a_forward_pass_leaves_the_blocks_as_they_are() -> None:
    backbone = SwinBackbone(size="tiny").eval()
    block = backbone.model.layers[0].blocks[1]
    before = dict(vars(block))
    for size in ((40, 40), (56, 120), (25, 300)):
        backbone(torch.randn(1, 3, *size))
        assert vars(block) == before


def test_opposite_edges_do_not_see_each_other_where_windows_are_not_full() -> None:
    """Windows of 7 on a 12 x 12 map: the shift brings the first rows next to the last ones."""
    torch.manual_seed(0)
    layer = SwinBackbone(size="tiny").eval().model.layers[0]
    layer.blocks = layer.blocks[1:]
    block = layer.blocks[0]
    x = torch.randn(1, 12, 12, block.dim, requires_grad=True)
    assert _shift(block, x.shape[1:3]) == (3, 3)
    (output,) = _run_layer(layer, x)
    seen = torch.autograd.grad(output[0, -1, -1].sum(), x)[0].abs().sum(-1)[0] > 0
    # Shifted by 3 the windows are rows 3 to 9, and 10, 11, two of padding, 0 to 2; row 11 sees 10 and 11.
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[10:, 10:] = True
    assert torch.equal(seen, expected)


def test_norms_on_what_is_given_out() -> None:
    torch.manual_seed(0)
    plain, normed = SwinBackbone(size="tiny").eval(), SwinBackbone(size="tiny", out_norm=True).eval()
    normed.model.load_state_dict(plain.model.state_dict())
    for stage, norm in normed.out_norms.items():
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
        assert norm.normalized_shape == (plain.available[stage].channels,)
    for backbone in (plain, normed):
        backbone.select([*STAGES, "res4.5"])
    with torch.no_grad():
        x = torch.randn(1, 3, 60, 92)
        expected, outputs = plain(x), normed(x)
    torch.testing.assert_close(outputs["res4.5"], expected["res4.5"])
    for stage in STAGES:
        mean, variance = (
            expected[stage].mean(1, keepdim=True),
            expected[stage].var(1, keepdim=True, correction=0),
        )
        norm = normed.out_norms[stage]
        by_hand = (expected[stage] - mean) / (variance + 1e-5).sqrt()
        by_hand = by_hand * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)
        torch.testing.assert_close(outputs[stage], by_hand, rtol=1e-4, atol=1e-5)
    assert set(normed.state_dict()) - set(plain.state_dict()) == {
        f"out_norms.{stage}.{part}" for stage in STAGES for part in ("weight", "bias")
    }


def test_taps_equal_the_reference() -> None:
    arrays, meta = load_case("full_swinb_1shot")
    state = official_dcama_state("swinb", meta["adjust"])
    weights = {
        key.removeprefix("feature_extractor."): value
        for key, value in state.items()
        if key.startswith("feature_extractor.")
    }
    backbone = SwinBackbone(size="base").eval()
    result = backbone.library_module.load_state_dict(rename_microsoft_swin(weights), strict=False)
    assert result.missing_keys == []
    backbone.select([block for stage in STAGES for block in backbone.blocks(stage)])
    with torch.no_grad():
        taps = backbone(image("query", meta["size"])[None])
    assert len(taps) == len(arrays["tap_shape"])
    for i, tap in enumerate(taps.values()):
        assert list(tap.shape[1:]) == arrays["tap_shape"][i].tolist()
        torch.testing.assert_close(tap.flatten()[:64], arrays["tap_first64"][i], rtol=1e-4, atol=1e-4)
        statistics = torch.stack([tap.mean(), tap.std(), tap.min()]).double()
        expected = torch.stack([arrays[f"tap_{key}"][i] for key in ("mean", "std", "min")])
        torch.testing.assert_close(statistics, expected, rtol=1e-4, atol=1e-4)


def test_built_from_a_config() -> None:
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = build_fss_swin_backbone.__name__
    cfg.MODEL.FSS_SWIN.SIZE = "large"
    cfg.MODEL.FSS_SWIN.OUT_NORM = True
    with torch.device("meta"):
        backbone = build_backbone(cfg)
    assert backbone.output_shape()["res5"].channels == 1536
    assert set(backbone.out_norms) == set(STAGES)
    with pytest.raises(ValueError, match="unknown size 'huge': choose from tiny, small, base, large"):
        SwinBackbone(size="huge")
    cfg.MODEL.FSS_SWIN.SIZE = "huge"
    with pytest.raises(
        ValueError, match=r"MODEL\.FSS_SWIN\.SIZE 'huge': choose from tiny, small, base, large"
    ):
        build_backbone(cfg)
