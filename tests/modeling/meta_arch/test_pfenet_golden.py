"""PFENet against the official model's numbers, through the converter of official checkpoints."""

import json
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fss_d2.checkpoint.convert import convert_pfenet
from fss_d2.checkpoint.convert_matching import _pfenet_head_name
from fss_d2.config import get_cfg
from fss_d2.engine.solver import build_lr_scheduler, build_optimizer
from fss_d2.modeling import PFENet, SegmentorOptions
from fss_d2.modeling.backbone import ResNetBackbone, VGGBackbone
from fss_d2.modeling.layers import mask_features, shot_prototypes, soft_mask, support_activations
from tests.golden.pfenet import FOLDER, load, official_pfenet_state, random
from tests.golden.recipe import recipe_tensor

CASES = {  # backbone, arguments of the model
    "r50_1shot": ("r50", {}),
    "r50_5shot": ("r50", {}),
    "r50_fracbins": ("r50", {"bins": (1.0, 0.5, 0.25, 0.125)}),
    "vgg_1shot": ("vgg", {}),
}


@lru_cache(maxsize=1)
def converted(backbone: str) -> dict[str, Tensor]:
    return convert_pfenet(official_pfenet_state(backbone)).model


def load_model(backbone: str, **arguments: Any) -> PFENet:
    ours = VGGBackbone() if backbone == "vgg" else ResNetBackbone(depth=50, stem="deep", dilation="pspnet")
    model = PFENet(backbone=ours, **arguments).eval()
    model.load_state_dict(converted(backbone), strict=True)
    return model


def close(ours: Tensor, golden: Tensor, tolerance: float) -> None:
    """Largest error over the largest value, as the tolerances are stated in README.md."""
    assert ours.shape == golden.shape
    error = (ours - golden).abs().max() / golden.abs().max()
    assert error <= tolerance, f"{error:.2e}"


@pytest.mark.parametrize("case", CASES)
def test_whole_model(case: str) -> None:
    golden, (backbone, arguments) = load(case), CASES[case]
    model = load_model(backbone, **arguments)
    side, shots, batch = (int(golden[name]) for name in ("size", "shot", "batch"))
    kept: dict[str, Tensor] = {}
    for name in ("reduce_query", "enrichment", "classifier"):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(name, output)
        )
    with torch.no_grad():
        support = model.encode_support(
            random(f"{case}/support", batch, shots, 3, side, side), golden["support_mask"]
        )
        output = model.match(model.encode_query(random(f"{case}/query", batch, 3, side, side)), support)
    close(kept["reduce_query"][:, :8], golden["query_feat_first8"], 1e-5)
    close(support.joined.prototype[:, :, None, None], golden["prototype"], 1e-5)
    close(output.maps["prior"], golden["prior"], 2e-4)
    for j, level in enumerate(output.levels):
        close(level, golden[f"inner{j}"], 5e-5)
    assert len(output.levels) == 4
    close(kept["enrichment"][0][:, :8], golden["final_feat_first8"], 5e-5)
    close(kept["classifier"], golden["logits_low"], 5e-5)
    close(output.logits, golden["logits"], 5e-5)


def test_prior_and_prototype_of_given_features() -> None:
    golden = load("prior")
    masks = golden["support_mask"]
    query = random("prior/q4", 2, 48, 9, 9)
    supports = torch.stack([random(f"prior/s4_{k}", 2, 48, 9, 9) for k in range(3)], dim=1)
    supports = mask_features(supports, masks)
    each = [support_activations(query, supports[:, k : k + 1]) for k in range(3)]
    close(torch.stack(each, dim=1), golden["prior_each"], 2e-4)
    close(support_activations(query, supports), golden["prior_mean"], 2e-4)

    kernel = torch.from_numpy(recipe_tensor("down_supp.0.weight", (256, 1536, 1, 1)))
    middle = [
        nn.functional.conv2d(
            torch.cat([random(f"prior/f3_{k}", 2, 1024, 9, 9), random(f"prior/f2_{k}", 2, 512, 9, 9)], dim=1),
            kernel,
        ).relu()
        for k in (1, 2, 3)
    ]
    prototype = shot_prototypes(torch.stack(middle, dim=1), soft_mask(masks, (9, 9))).mean(dim=1)
    close(prototype[:, :, None, None], golden["prototype_mean"], 1e-5)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_training_step(batch_statistics: bool) -> None:
    golden = load("r50_train_bntrain" if batch_statistics else "r50_train_bneval")
    options = SegmentorOptions(bn_train_stats=batch_statistics)
    model = load_model("r50", dropout=0.0, options=options).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    side = int(golden["size"])
    queries = random("r50_train/query", 2, 3, side, side)
    supports = random("r50_train/support", 2, 1, 3, side, side)
    losses = model(
        [
            {
                "image": queries[i],
                "sem_seg": golden["query_mask"][i],
                "support": [{"image": supports[i, 0], "mask": golden["support_mask"][i, 0]}],
            }
            for i in range(2)
        ]
    )
    assert losses["loss_seg"].item() == pytest.approx(float(golden["main_loss"]), rel=2e-5)
    assert losses["loss_aux"].item() == pytest.approx(float(golden["aux_loss"]), rel=2e-5)
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norms = dict(zip(golden["grad_norm_names"], golden["grad_norm_values"].tolist(), strict=True))
    assert {_pfenet_head_name(name) for name in norms} == gradients.keys()
    for name, norm in norms.items():
        assert gradients[_pfenet_head_name(name)].norm().item() == pytest.approx(norm, rel=2e-4), name
    for name in (key for key in golden if key.startswith("grad:")):
        close(gradients[_pfenet_head_name(name.removeprefix("grad:"))], golden[name], 2e-4)
    if batch_statistics:  # moved by the query, then by the support
        close(model.backbone.bn1.running_mean, golden["layer0.1.running_mean"], 1e-5)
        last = model.backbone.layer4[2].bn3
        close(last.running_var[:16], golden["layer4.2.bn3.running_var_first16"], 1e-5)
        assert last.num_batches_tracked == golden["layer4.2.bn3.num_batches_tracked"] == 2


def test_learning_rates_of_the_released_code() -> None:
    """LR_FACTOR 10: what the code really sets; its iterations count from 1, ours from 0."""
    recorded = json.loads((FOLDER / "pfenet_schedule_resize.json").read_text())
    rates = next(
        value for key, value in recorded.items() if key.startswith("poly_lr(base=0.0025, max_iter=1000")
    )
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupPolyLR"
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.MAX_ITER = 1000
    cfg.SOLVER.BASE_LR, cfg.SOLVER.LR_FACTOR = 0.0025, 10.0
    optimizer = build_optimizer(cfg, nn.Linear(2, 2))
    scheduler = build_lr_scheduler(cfg, optimizer)
    ours = {}
    for iteration in range(1, 1001):
        optimizer.step()
        scheduler.step()
        ours[iteration] = optimizer.param_groups[0]["lr"]
    for iteration, (rate, _) in rates.items():
        assert ours[int(iteration)] == pytest.approx(rate, rel=1e-6, abs=1e-12), iteration
