"""Every configuration key that fss_d2 adds to Detectron2's defaults, one comment each."""

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as get_detectron2_cfg

from .backbone import add_backbone_keys
from .data import add_dataset_keys, add_episode_keys, add_input_keys
from .engine import add_solver_and_test_keys
from .methods import add_method_keys
from .mm_former import add_mm_former_keys, add_proposal_keys
from .pfenet_family import (
    add_base_knowledge_keys,
    add_danet_keys,
    add_dpcn_keys,
    add_jc2a_keys,
    add_pfenet_keys,
)

__all__ = ["add_fss_config", "get_cfg"]


def get_cfg() -> CN:
    """Return Detectron2's default config with the keys of fss_d2 added."""
    cfg = get_detectron2_cfg()
    add_fss_config(cfg)
    return cfg


def add_fss_config(cfg: CN) -> None:
    """Add the keys of fss_d2 to a Detectron2 config, in place."""
    for add in (
        add_dataset_keys,
        add_episode_keys,
        add_input_keys,
        add_backbone_keys,
        add_method_keys,
        add_proposal_keys,
        add_mm_former_keys,
        add_pfenet_keys,
        add_base_knowledge_keys,
        add_dpcn_keys,
        add_jc2a_keys,
        add_danet_keys,
        add_solver_and_test_keys,
    ):
        add(cfg)
