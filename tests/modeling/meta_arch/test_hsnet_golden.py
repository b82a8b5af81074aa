"""HSNet against the official model's numbers, through the converter of official checkpoints."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.checkpoint.convert import Conversion, convert_hsnet
from fss_d2.modeling import HSNet
from fss_d2.modeling.backbone import ResNetBackbone, VGGBackbone
from fss_d2.modeling.layers import correlate, mask_features, resize, unit_features
from tests.golden.hsnet import head_features, images, load_case, masks, official_hsnet_state
from tests.golden.recipe import recipe_tensor

BACKBONES = {
    "r50": lambda: ResNetBackbone(depth=50),
    "r101": lambda: ResNetBackbone(depth=101),
    "vgg16": lambda: VGGBackbone(batch_norm=False, layout="hsnet"),
}
LEVELS = {2: "res3", 3: "res4", 4: "res5"}  # the official number of a level, and our name
PARTS = {
    **{f"sqz{number}": f"squeeze.{level}" for number, level in LEVELS.items()},
    **{"mix43": "merge.res4", "mix432": "merge.res3", "decoder1": "decoder1", "logits_low": "decoder2"},
}
# Largest error of a tap, correlation, encoder output, logit.
TAP, CORRELATION, ENCODED, LOGIT = 1e-4, 1e-5, 1e-4, 2e-4


@lru_cache(maxsize=1)
def converted(backbone: str) -> tuple[dict[str, Tensor], Conversion]:
    """Official state dict and its conversion; the adjustments are the same in all cases."""
    _, meta = load_case("vote")
    official = official_hsnet_state(backbone, meta["adjust"], meta["add"])
    return official, convert_hsnet(official)


def load_model(backbone: str) -> HSNet:
    model = HSNet(backbone=BACKBONES[backbone]()).eval()
    model.load_state_dict(converted(backbone)[1].model, strict=True)
    return model


def close(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, golden, rtol=0, atol=tolerance)


def record(head: nn.Module) -> dict[str, Tensor]:
    """What the parts of the head give in the next pass, by the official names."""
    outputs: dict[str, Tensor] = {}
    for name, ours in PARTS.items():
        head.get_submodule(ours).register_forward_hook(
            lambda module, args, output, name=name: outputs.__setitem__(name, output)
        )
    return outputs


def check_parts(outputs: dict[str, Tensor], golden: dict[str, Tensor], thin: int = 1) -> None:
    assert outputs.keys() == PARTS.keys()
    for name, output in outputs.items():
        tolerance = LOGIT if name == "logits_low" else ENCODED
        close(output if name == "logits_low" else output[:, :: 8 if thin > 1 else 1], golden[name], tolerance)


def check_correlations(
    query: dict[str, Tensor], support: dict[str, Tensor], golden: dict[str, Tensor], thin: int = 1
) -> None:
    """Of unit features, block -> (B, C, h, w)."""
    for number, level in LEVELS.items():
        names = [name for name in query if name.startswith(level)]
        maps = correlate([query[name] for name in names], [support[name] for name in names])
        expected = golden[f"corr{number}"]
        step = 4 if thin > 1 and maps.shape[2] > expected.shape[2] else 1
        close(maps[: len(expected), :, ::step, ::step, ::step, ::step], expected, CORRELATION)


def check_predictions(scores: Tensor, expected: Tensor) -> None:
    """Scores (B, 2, H, W) and masks; a lead below 0.001 may go either way."""
    undecided = (scores[:, 1] - scores[:, 0]).abs() < 1e-3
    assert ((scores.argmax(dim=1) == expected) | undecided).all()


def test_head() -> None:
    """Given features with many negative cosines: the only case in which the clamp at 0 matters."""
    golden, _ = load_case("head_r50_1shot")
    head = load_model("r50").head
    mask = masks(0, 2, 96)
    outputs = record(head)
    query = {name: unit_features(x) for name, x in head_features("query", 2).items()}
    support = head_features("support", 2)
    support = {name: unit_features(mask_features(x, mask)) for name, x in support.items()}
    with torch.no_grad():
        logits = resize(head(query, support), (96, 96))
    check_correlations(query, support, golden)
    check_parts(outputs, golden)
    close(logits, golden["logits"], LOGIT)


@pytest.mark.parametrize(
    ("case", "backbone"),
    [("r50_1shot", "r50"), ("r50_1shot_large", "r50"), ("r101_1shot", "r101"), ("vgg16_1shot", "vgg16")],
)
def test_whole_model(case: str, backbone: str) -> None:
    golden, meta = load_case(case)
    size, batch, thin = meta["size"], meta["batch"], meta["thin"]
    model = load_model(backbone)
    outputs = record(model.head)
    query = images("query", batch, size)
    with torch.no_grad():
        encoded = model.encode_query(query)
        support = model.encode_support(
            images("support0", batch, size)[:, None], masks(0, batch, size)[:, None]
        )
        logits = model.match(encoded, support).logits
        check_taps(model.backbone(query), golden)
    of_shot = {name: x[:, 0] for name, x in support.encoded.features.items()}
    check_correlations(encoded.encoded.features, of_shot, golden, thin)
    check_parts(outputs, golden, thin)
    close(logits, golden["logits"], LOGIT)
    check_predictions(logits, golden["pred"])
    if "pred_original" in golden:
        width, height = meta["original_width_height"]
        check_predictions(resize(outputs["logits_low"][:1], (height, width)), golden["pred_original"])


def check_taps(taps: dict[str, Tensor], golden: dict[str, Tensor]) -> None:
    close(torch.stack([t[0].flatten()[:64] for t in taps.values()]), golden["tap_first64"], TAP)
    for name in ("mean", "std"):
        found = torch.stack([getattr(t.double(), name)() for t in taps.values()])
        close(found, golden[f"tap_{name}"], TAP)
    close(torch.stack([t.double().min() for t in taps.values()]), golden["tap_min"], TAP)
    assert [list(t.shape[1:]) for t in taps.values()] == golden["tap_shape"].tolist()


def test_five_shots() -> None:
    golden, meta = load_case("r50_5shot")
    size, K = meta["size"], meta["shots"]
    model = load_model("r50")
    query = images("query", 2, size)
    supports = torch.stack([images(f"support{k}", 2, size) for k in range(K)], dim=1)
    of_supports = torch.stack([masks(k, 2, size) for k in range(K)], dim=1)
    with torch.no_grad():
        encoded, support = model.encode_query(query), model.encode_support(supports, of_supports)
        each = [model.match(encoded, model.select_supports(support, [k])).logits for k in range(K)]
        fused = model.match(encoded, support).logits
    close(torch.stack(each, dim=1), golden["logits"], LOGIT)
    undecided = torch.stack([(x[:, 1] - x[:, 0]).abs() < 1e-3 for x in each]).any(dim=0)
    assert ((fused.argmax(dim=1) == golden["pred"]) | undecided).all()


@pytest.mark.parametrize("shots", [2, 3, 5])
def test_votes(shots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threshold follows the largest vote of an image; the largest votes of the five images differ."""
    golden, meta = load_case("vote")
    given = []
    for k in range(shots):
        logits = 2 * recipe_tensor(f"input:vote{shots}.shot{k}", (5, 2, 12, 12), "normal")
        logits[:, 1] += torch.tensor(meta["offsets"]).numpy()[:, None, None]
        given.append(torch.from_numpy(logits))
    model = HSNet(backbone=ResNetBackbone(depth=50)).eval()
    shot = iter(given)
    monkeypatch.setattr(model.head, "forward", lambda *maps: next(shot))
    images, supports = torch.zeros(5, 3, 12, 12), torch.zeros(5, shots, 3, 12, 12)
    support = model.encode_support(supports, torch.ones(5, shots, 12, 12))
    fused = model.match(model.encode_query(images), support).logits
    assert torch.equal(fused.argmax(dim=1).to(torch.uint8), golden[f"pred_{shots}shot"])
    votes = torch.stack([x.argmax(dim=1) for x in given]).sum(dim=0)
    assert torch.equal(votes.amax(dim=(1, 2)), golden[f"max_vote_{shots}shot"])


def test_losses_and_gradients_of_adam_steps() -> None:
    golden, meta = load_case("r50_1shot")
    size = meta["size"]
    model = load_model("r50").train()
    mask, target = masks(0, 2, size), masks(3, 2, size)
    query, support = images("query", 2, size), images("support0", 2, size)
    episodes: list[dict[str, Any]] = [
        {"image": query[b], "support": [{"image": support[b], "mask": mask[b]}], "sem_seg": target[b]}
        for b in range(2)
    ]
    optimizer = torch.optim.Adam(model.head.parameters(), lr=1e-3)
    norms, losses = golden["grad_l2"].tolist(), []
    for step in range(4):
        optimizer.zero_grad()
        loss = model(episodes)["loss_seg"]
        losses.append(loss.item())
        if step < 3:
            loss.backward()
            _check_gradients(model, norms[step], meta["grad_names"], (1e-4, 3e-3, 5e-2)[step])
            optimizer.step()
    for found, expected, tolerance in zip(losses, meta["loss_steps"], (1e-5, 1e-4, 1e-3, 5e-3), strict=True):
        assert found == pytest.approx(expected, rel=tolerance)


def _check_gradients(model: HSNet, norms: list[float], names: list[str], tolerance: float) -> None:
    official, conversion = converted("r50")
    ours = {id(tensor): name for name, tensor in conversion.model.items()}
    parameters = dict(model.named_parameters())
    for name, norm in zip(names, norms, strict=True):
        key = name if name.startswith("hpn_learner.") else f"hpn_learner.{name}"
        gradient = parameters[ours[id(official[f"module.{key}"])]].grad
        assert gradient.double().norm().item() == pytest.approx(norm, rel=tolerance), name
