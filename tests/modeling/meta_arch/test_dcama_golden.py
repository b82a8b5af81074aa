"""DCAMA against the official model's numbers, through the converter of official checkpoints."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fss_d2.checkpoint.convert import Conversion, convert_dcama
from fss_d2.modeling import DCAMA
from fss_d2.modeling.backbone.resnet import ResNetBackbone
from fss_d2.modeling.backbone.swin import SwinBackbone
from fss_d2.modeling.meta_arch.contract import Output, Target
from fss_d2.modeling.meta_arch.dcama import QueryEncoding
from tests.golden.official import head_features, image, load_case, masks, official_dcama_state

LEVELS = {8: "res3", 16: "res4", 32: "res5"}
# The official names of the convolution stacks, and ours.
STACKS = {
    "conv1": "squeeze.res5",
    "conv2": "squeeze.res4",
    "conv3": "squeeze.res3",
    "conv4": "merge.res4",
    "conv5": "merge.res3",
}


@lru_cache(maxsize=1)
def converted(backbone: str) -> tuple[dict[str, Tensor], Conversion]:
    """Official state dict and its conversion; the adjustments are the same in all cases."""
    _, meta = load_case("head_r50_1shot")
    official = official_dcama_state(backbone, meta["adjust"], prefix="module.")
    return official, convert_dcama(official)


def load_model(backbone: str, **aggregation: Any) -> DCAMA:
    ours = SwinBackbone(size="base") if backbone == "swinb" else ResNetBackbone(depth=50)
    model = DCAMA(backbone=ours, head={"aggregation": aggregation}).eval()
    model.load_state_dict(converted(backbone)[1].model, strict=True)
    return model


def close(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, golden, rtol=0, atol=tolerance)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("shots", "batch"), [(1, 2), (5, 1)])
def test_head(shots: int, batch: int, fused: bool) -> None:
    golden, _ = load_case(f"head_r50_{shots}shot")
    head = load_model("r50", fused=fused).head
    stacks: dict[str, Tensor] = {}
    for name, ours in STACKS.items():
        head.get_submodule(ours).register_forward_hook(
            lambda module, args, output, name=name: stacks.__setitem__(name, output)
        )
    query = head_features("query", batch)
    if shots == 1:
        support, mask = head_features("support", batch), masks(0, batch, 96)[:, None]
    else:
        each = [head_features(f"support{k}", 1) for k in range(shots)]
        support = {name: torch.cat([e[name] for e in each]) for name in query}
        mask = masks(1, shots, 96)[None]
    with torch.no_grad():
        joined = head.join(head.encode(support, mask.float()))
        logits, aggregated = head(QueryEncoding(query), joined, (96, 96))
    for scale, level in LEVELS.items():
        close(aggregated[level], golden[f"aggregated_{scale}"], 2e-5)
    for name, output in stacks.items():
        close(output, golden[name], 2e-4)
    assert stacks.keys() == STACKS.keys()
    close(logits, golden["logits"], 2e-4)


@pytest.mark.parametrize(
    ("case", "backbone", "tolerance"),
    [
        ("full_r50_1shot", "r50", 2e-4),
        ("full_r50_5shot", "r50", 2e-4),
        ("full_swinb_1shot", "swinb", 5e-4),
    ],
)
def test_whole_model(case: str, backbone: str, tolerance: float) -> None:
    golden, meta = load_case(case)
    size, shots = meta["size"], meta["shots"]
    model = load_model(backbone)
    supports = masks(0, shots, size)
    episode = {
        "image": image("query", size),
        "support": [{"image": image(f"support{k}", size), "mask": supports[k]} for k in range(shots)],
    }
    with torch.no_grad():
        output = model([episode])[0]
        close(output["sem_seg"], golden["logits"][0], tolerance)
        for scale, level in LEVELS.items():
            close(output["aux"][f"aggregated_{level}"], golden[f"aggregated_{scale}"][0], 2e-5)
        taps = list(_taps(model, episode["image"]).values())
        close(torch.stack([t.flatten()[:64] for t in taps]), golden["tap_first64"], 1e-3)
        close(torch.stack([t.mean() for t in taps]).double(), golden["tap_mean"], 1e-4)
        assert [list(t.shape[1:]) for t in taps] == golden["tap_shape"].tolist()
        if "pred_original" in golden:
            width, height = meta["original_width_height"]
            scores = model([{**episode, "height": height, "width": width}])[0]["sem_seg"]
            different = (scores.argmax(dim=0) != golden["pred_original"][0]).sum()
            assert different <= meta["pixels_with_logit_gap_below_1e-3"]
    different = (output["sem_seg"].argmax(dim=0) != golden["pred"][0]).sum()
    assert different <= meta["pixels_with_logit_gap_below_1e-3"]


def _taps(model: DCAMA, query: Tensor) -> dict[str, Tensor]:
    """Every block output, shallow to deep."""
    backbone = model.backbone
    selected = backbone.selected
    backbone.select([name for stage in ("res2", "res3", "res4", "res5") for name in backbone.blocks(stage)])
    taps = backbone(query[None])
    backbone.select(selected)
    return taps


def test_losses_and_gradients_of_sgd_steps() -> None:
    golden, meta = load_case("full_r50_1shot")
    size = meta["size"]
    model = load_model("r50", dropout=0.0).train()
    episode = {
        "image": image("query", size),
        "support": [{"image": image("support0", size), "mask": masks(0, 1, size)[0]}],
        "sem_seg": masks(3, 1, size)[0],
    }
    optimizer = torch.optim.SGD(
        model.head.parameters(), lr=1e-4, momentum=0.9, weight_decay=0.1, nesterov=True
    )
    losses = []
    for step in range(4):
        optimizer.zero_grad()
        loss = model([episode])["loss_seg"]
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            _check_gradients(model, golden["grad_l2"].tolist(), meta["grad_names"])
        optimizer.step()
    assert losses == pytest.approx(meta["loss_steps"], rel=1e-4)


def _check_gradients(model: DCAMA, norms: list[float], names: list[str]) -> None:
    official, conversion = converted("r50")
    ours = {id(tensor): name for name, tensor in conversion.model.items()}
    parameters = dict(model.named_parameters())
    for name, norm in zip(names, norms, strict=True):
        if name.endswith("linears.1.bias"):
            continue  # zero in exact arithmetic: a key bias shifts whole softmax rows
        gradient = parameters[ours[id(official[f"module.model.{name}"])]].grad
        assert gradient.double().norm().item() == pytest.approx(norm, rel=1e-5), name


def test_target_pixels_marked_255_are_background_as_in_the_reference() -> None:
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 1, 255, 1] * 4).view(1, 4, 4)
    model = load_model("r50")
    as_background = F.cross_entropy(logits, target.where(target != 255, 0))
    assert model.losses(Output(logits), Target(target))["loss_seg"].item() == pytest.approx(
        as_background.item()
    )
    model.ignore_as_background = False
    left_out = F.cross_entropy(logits, target, ignore_index=255)
    assert model.losses(Output(logits), Target(target))["loss_seg"].item() == pytest.approx(left_out.item())
