"""Training steps in half precision, also with features as large as those of real backbones."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.modeling import FewShotSegmentor
from fss_d2.modeling.layers import FeatureReduction
from tests.modeling.episodes import make_episode, make_model
from tests.modeling.fake_backbone import FakeBackbone

METHODS = (
    *("DANet", "DCAMA", "DenseCorrelation", "DPCN", "HSNet", "JC2A", "MMFormer", "PFENet"),
    "PotentialObjectsSegmenter",
)
# Relative difference of a loss from float32's; half precision has 8 and 11 binary digits.
TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.03}
# Losses that a rounded number changes in steps: of a predicted hard mask, and of the proposal that fits best.
STEPWISE = {"loss_return", "loss_co"}
# Method -> settings under which its features are pooled in further ways.
VARIANTS: list[tuple[Any, ...]] = [
    *((method,) for method in METHODS),
    ("DANet", "MODEL.DANET.PCA", False),
    ("DANet", "MODEL.DANET.PCA_MASKED", True, "MODEL.DANET.USE_PRIOR", True),
    ("DCAMA", "MODEL.DCAMA.REGION_MEANS", True),
    ("PFENet", "MODEL.PFENET.PLUG_INS", ("dcm", "ckmm")),
    ("JC2A", "MODEL.JC2A.ATTENTION", "cosine"),
    ("MMFormer", "MODEL.MM_FORMER.CROSS_ALIGNMENT", "none"),
]
SETTINGS = (
    *("MODEL.DCAMA.DROPOUT", 0.0),
    # A CPU is slow in float16.
    *("MODEL.DCAMA.ATTENTION_LEVELS", ("res4", "res5")),
    *("MODEL.DCAMA.WIDTHS", (4, 8)),
    *("MODEL.DCAMA.MIXER_WIDTHS", (8, 8, 8)),
)


# The map that gives the others their size is of stride 8.
FINE = [x for m in ("PFENET", "DPCN", "JC2A") for x in (f"MODEL.{m}.IN_FEATURES", ("res3", "res4"))]


class LoudBackbone(FakeBackbone):
    """Features at least 0 with a mean of 30, as after the last ReLU of some pretrained networks."""

    def _features(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, features in super()._features(x):
            positive = features.float().abs()
            yield name, positive / positive.mean().clamp(min=1e-6) * 30


def make(*variant: Any, loud: bool = False) -> FewShotSegmentor:
    """A model in training mode, without dropout; a loud one's reduced features have a mean of 30 too."""
    model = make_model(*variant, *SETTINGS, *(FINE if loud else ())).train()
    if loud:
        for module in model.modules():
            if isinstance(module, FeatureReduction):
                nn.init.constant_(module[0].weight, 1 / module[0].in_channels)
        backbone = LoudBackbone()
        backbone.load_state_dict(model.backbone.state_dict())
        backbone.select(model.backbone.selected)
        model.backbone = backbone.eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    return model


def episode(seed: int, side: int) -> dict[str, Any]:
    made = make_episode(seed, 2 if side < 100 else 1, (side, side))
    if side > 100:  # 3,360 of 3,600 cells of stride 8, whose features add up to 100,800
        made["support"][0]["mask"] = (torch.arange(side) < side - 32)[:, None].expand(side, side).long()
    mask = made["sem_seg"] == 1
    return made | {"segments": torch.stack([~mask, mask])}


def step(model: FewShotSegmentor, side: int, dtype: torch.dtype | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        losses = model([episode(seed, side) for seed in ((0, 1) if side < 100 else (0,))])
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("side", [96, 480])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v)))
def test_a_training_step(variant: tuple[Any, ...], side: int, dtype: torch.dtype) -> None:
    """With 480 pixels the maps of stride 8 are 60 x 60, and features are loud."""
    model = make(*variant, loud=side == 480)
    exact, half = step(model, side, None), step(model, side, dtype)
    assert exact.keys() == half.keys()
    for name, loss in half.items():
        assert loss.dtype == torch.float32 and loss.isfinite(), name
        if name not in STEPWISE:
            assert abs(loss - exact[name]) <= TOLERANCE[dtype] * exact[name], name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
