"""One model that runs in several threads at once gives the same maps as one after the other."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from fss_d2.modeling.backbone import (
    STAGES,
    FeatureBackbone,
    ResNetBackbone,
    SwinBackbone,
    create_timm_backbone,
)

THREADS = 4
SIZES = ((64, 64), (96, 40), (50, 131), (224, 32), (33, 33), (120, 56), (64, 64), (160, 96))


def build(name: str) -> FeatureBackbone:
    torch.manual_seed(0)
    if name == "swin":
        return SwinBackbone(size="tiny").eval()
    return (ResNetBackbone(depth=50) if name == "resnet50" else create_timm_backbone(name)).eval()


def check(backbone: FeatureBackbone, selections: list[list[str] | None]) -> None:
    """Run every size with one of the selections, first one by one, then in threads that start together."""
    jobs = [(torch.randn(1, 3, *size), selections[i % len(selections)]) for i, size in enumerate(SIZES * 3)]

    def run(job: tuple[Tensor, list[str] | None]) -> dict[str, Tensor]:
        with torch.no_grad():
            return backbone(job[0]) if job[1] is None else backbone(job[0], job[1])

    expected = [run(job) for job in jobs]
    barrier = Barrier(THREADS)
    with ThreadPoolExecutor(THREADS, initializer=barrier.wait) as pool:
        results = list(pool.map(run, jobs))
    for result, serial in zip(results, expected, strict=True):
        assert list(result) == list(serial)
        assert all(torch.equal(result[name], serial[name]) for name in serial)


NAMES = ("tf_efficientnet_lite0", "convnext_atto", "resnet10t", "vit_tiny_patch16_224", "swin", "resnet50")


@pytest.mark.parametrize("name", NAMES)
def test_threads_at_different_sizes(name: str) -> None:
    backbone = build(name)
    backbone.select([*STAGES, *(block for stage in STAGES for block in backbone.blocks(stage))])
    check(backbone, [None])


@pytest.mark.parametrize("name", NAMES)
def test_threads_with_different_selections(name: str) -> None:
    backbone = build(name)
    first, second = backbone.blocks("res3")[0], backbone.blocks("res4")[-1]
    check(backbone, [[first], [second, "res2"], ["res5", first]])
    assert backbone.selected == STAGES
