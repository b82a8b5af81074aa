"""Does a model use its supports? Its score with its own supports, and with those of another class."""

import json
import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from tabulate import tabulate
from torch import nn
from torch.utils.data import DataLoader

from fss_d2.data import build_few_shot_test_loader
from fss_d2.data.mapper import ForeignSupportMapper
from fss_d2.evaluation import Comparison, FewShotEvaluator, compare, read_rows
from fss_d2.files import check_writable, write_atomic
from fss_d2.modeling.fusion import MultiScaleSegmentor
from fss_d2.visualization import save_episode_panel

__all__ = ["check_support_use", "format_support_use"]

logger = logging.getLogger(__name__)


def check_support_use(
    cfg: CfgNode, model: nn.Module, dataset: str, shots: int, episodes: int
) -> tuple[Comparison, Path]:
    """Score both kinds of supports, and write ``OUTPUT_DIR/support_use/<dataset>_<K>shot``.

    The model is in eval mode. A data set of a single class is a ValueError.

    Returns:
        The comparison of own (a) and foreign (b) supports, with the bootstrap interval over episodes; and
        ``support_use.json``, which holds the same numbers. The counts of each episode are next to it.
    """
    loaders = _build_loaders(cfg, dataset, shots, episodes)
    model = MultiScaleSegmentor(model) if cfg.TEST.SCALES else model
    folder = Path(cfg.OUTPUT_DIR) / "support_use" / f"{dataset}_{shots}shot"
    check_writable(folder)
    rows = []
    for name, loader in loaders.items():
        logger.info("Scoring %s with %s supports", dataset, name)
        evaluator = FewShotEvaluator.from_config(cfg, dataset, folder / name, draw=save_episode_panel)
        inference_on_dataset(model, loader, evaluator)
        rows.append(read_rows(folder / name / "episodes.jsonl"))
    result = compare(
        *rows,
        same_supports=False,
        classes=MetadataCatalog.get(dataset).class_ids,
        counting=cfg.TEST.COUNTING,
        absent=cfg.TEST.ABSENT_CLASSES,
    )
    file = folder / "support_use.json"
    write_atomic(file, (json.dumps(_numbers(cfg, dataset, shots, result), indent=2) + "\n").encode())
    return result, file


def format_support_use(method: str, result: Comparison) -> str:
    """Markdown: mIoU in percent with either kind of supports, their difference, and a verdict."""
    cells = [f"{result.mean_iou_a:.2f}", f"{result.mean_iou_b:.2f}"]
    cells.append(f"{result.difference:+.2f} [{result.low:+.2f}, {result.high:+.2f}]")
    headers = ["mIoU, %", "own supports", "of another class", "difference [95 % interval]"]
    lines = tabulate([[method, *cells]], headers=headers, tablefmt="pipe", disable_numparse=True)
    if result.low <= 0:
        return f"{lines}\n\nThese {result.episodes} episodes do not show that the supports are used."
    kept = result.mean_iou_b / result.mean_iou_a
    return f"{lines}\n\nWith supports of another class, {kept:.0%} of the score remains."


def _build_loaders(cfg: CfgNode, dataset: str, shots: int, episodes: int) -> dict[str, DataLoader]:
    """The loaders of the episodes as they are ("own") and with supports of another class ("foreign")."""
    own, foreign = (build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=episodes) for _ in "ab")
    try:
        foreign.dataset.mapper = ForeignSupportMapper(foreign.dataset.mapper, foreign.sampler.episodes)
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}") from error
    return {"own": own, "foreign": foreign}


def _numbers(cfg: CfgNode, dataset: str, shots: int, result: Comparison) -> dict[str, Any]:
    """The settings and the scores (mIoU in percent) for ``support_use.json``."""
    return {
        "method": cfg.MODEL.META_ARCHITECTURE,
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": dataset,
        "shots": shots,
        "episodes": result.episodes,
        "seed": cfg.FEW_SHOT.TEST.SEED,
        "query_rule": cfg.FEW_SHOT.TEST.QUERY_RULE,
        "manifest": cfg.FEW_SHOT.TEST.MANIFEST,
        "support_views": list(cfg.FEW_SHOT.TEST.SUPPORT_VIEWS),
        "refinement": cfg.TEST.REFINEMENT,
        "mIoU_own": result.mean_iou_a,
        "mIoU_foreign": result.mean_iou_b,
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
    }
