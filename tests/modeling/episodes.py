"""Small random episodes and models."""

from typing import Any

import torch
from detectron2.config import CfgNode

from fss_d2.config import get_cfg
from fss_d2.modeling import FewShotSegmentor, Output
from fss_d2.modeling.build import build_model
from fss_d2.modeling.meta_arch.contract import stack_supports
from tests.modeling.fake_backbone import register_fake_backbone

# A size for tests of what is large by default.
TINY = (
    *("MODEL.PROPOSALS.DIM", 32),
    *("MODEL.PROPOSALS.NUM_QUERIES", 12),
    *("MODEL.PROPOSALS.ENCODER_LAYERS", 1),
    *("MODEL.PROPOSALS.ENCODER_FEEDFORWARD", 32),
    *("MODEL.PROPOSALS.DECODER_LAYERS", 2),
    *("MODEL.PROPOSALS.DECODER_FEEDFORWARD", 32),
    *("MODEL.PROPOSALS.NUM_HEADS", 4),
    *("MODEL.PROPOSALS.LOSS.NUM_POINTS", 64),
    *("MODEL.MM_FORMER.DIM", 32),
    *("MODEL.MM_FORMER.FEEDFORWARD", 32),
    *("MODEL.MM_FORMER.MATCHING_WIDTH", 16),
    *("MODEL.PFENET.DIM", 16),
    *("MODEL.PFENET.BINS", (1.0, 0.5, 3.0, 2.0)),
    *("MODEL.PFENET.MASK_BEFORE_PRIOR", False),  # stages of the fake backbone do not run alone
    *("MODEL.HSNET.WIDTHS", (8, 8, 16)),
    *("MODEL.JC2A.DIM", 32),
    *("MODEL.JC2A.BINS", (6, 4)),
    *("MODEL.JC2A.BLOCK_SIDES", (3, 2)),
    *("MODEL.JC2A.TOP_BLOCKS", (2, 1)),
    *("MODEL.DANET.DIM", 32),
    *("MODEL.DPCN.DIM", 16),
    *("MODEL.DPCN.KERNEL_SIZE", 3),
    *("MODEL.DPCN.ASPP_DILATIONS", (1, 2, 3)),
    *("MODEL.DPCN.TRAIN_LAST_STAGE", False),  # as PFENET.MASK_BEFORE_PRIOR
    *("MODEL.FROST.MIRRORED", False),  # a second pass of the backbone for each support
)


def make_episode(
    seed: int = 0,
    shots: int = 1,
    size: tuple[int, int] = (48, 48),
    support_size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """An episode of noise with blobs for masks, some pixels 255."""
    g = torch.Generator().manual_seed(seed)

    def image(h: int, w: int) -> torch.Tensor:
        coarse = torch.randint(0, 256, (1, 3, 4, 4), generator=g).float()
        return torch.nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")[0].to(torch.uint8)

    def mask(h: int, w: int) -> torch.Tensor:
        result = torch.zeros(h, w, dtype=torch.uint8)
        top, left = (int(x) for x in torch.randint(2, 10, (2,), generator=g))
        result[top : top + h // 2, left : left + w // 2] = 1
        result[-2:] = 255
        return result

    h, w = support_size or size
    return {
        "image": image(*size),
        "sem_seg": mask(*size),
        "height": size[0],
        "width": size[1],
        "image_id": f"image{seed}",
        "episode_index": seed,
        "support": [{"image": image(h, w), "mask": mask(h, w)} for _ in range(shots)],
    }


def make_cfg(meta_arch: str, *overrides: Any) -> CfgNode:
    """Config of a method on the fake backbone, with KEY, VALUE, ... overrides."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = meta_arch
    cfg.MODEL.BACKBONE.NAME = register_fake_backbone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list([*TINY, *overrides])
    return cfg


def make_model(meta_arch: str, *overrides: Any) -> FewShotSegmentor:
    """Build a method in evaluation mode, always with the same weights and prototypes of base classes."""
    torch.manual_seed(0)
    model = build_model(make_cfg(meta_arch, *overrides)).eval()
    if (knowledge := getattr(model, "knowledge", None)) is not None:
        knowledge.fill(torch.rand_like(knowledge.prototypes))
    return model


@torch.no_grad()
def match(model: FewShotSegmentor, *episodes: dict[str, Any]) -> Output:
    """What a model says of episodes of one shape, before scores are brought to their frames."""
    support = model.encode_support(*stack_supports(episodes))
    return model.match(model.encode_query(torch.stack([e["image"] for e in episodes])), support)
