"""Does a model use its supports, and what does it do without the object? Further runs of an evaluation."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from fss_d2.data.build import build_few_shot_test_loader
from fss_d2.data.catalog import get_records
from fss_d2.data.episode import Episode, absent_donors_of
from fss_d2.data.feature_store import FeatureStore
from fss_d2.data.mapper import AbsentQueryMapper, ForeignSupportMapper
from fss_d2.data.masks import shows_class
from fss_d2.evaluation import FewShotEvaluator, compare, presence_scores, read_rows
from fss_d2.evaluation.presence import format_reliability, presences, reliability
from fss_d2.evaluation.report import format_score
from fss_d2.io.files import write_json
from fss_d2.visualization import save_episode_panel

from .episode_loop import run_loop

__all__ = ["SUPPORT_USE", "SupportUse", "absent_donors", "format_support_use"]

logger = logging.getLogger(__name__)

SUPPORT_USE = "support_use"  # a further name: runs with other supports and other queries
_RUNS = {"foreign": "supports of another class", "absent": "queries that do not show the object"}
_ABSENT_COLUMNS = {
    "absent_masked": "get a mask, %",
    "absent_area": "mean area, %",
    "lost": "objects lost, %",
    "false_alarms": "called present, %",
    "missed": "objects called absent, %",
    "presence_AUC": "AUC of presence, %",
    "presence_ECE": "calibration error, %",
}


def absent_donors(dataset: str, episodes: Sequence[Episode]) -> dict[int, Episode]:
    """By the index of an episode the one whose query lacks its class; without those that have none."""
    records = {record["image_id"]: record for record in get_records(dataset)}
    found = absent_donors_of(episodes, lambda image, class_id: shows_class(records[image], class_id))
    return {e.index: donor for e, donor in zip(episodes, found, strict=True) if donor}


class SupportUse:
    """Further runs of an evaluation: with supports of another class, and queries that lack the object.

    Raises ValueError where no episode is of another class.
    """

    def __init__(
        self,
        cfg: CfgNode,
        dataset: str,
        shots: int,
        episodes: int | None,
        features: FeatureStore | None = None,
    ) -> None:
        self._cfg, self._dataset, self._shots = cfg, dataset, shots
        options = {"shots": shots, "episodes": episodes, "features": features}
        foreign, absent = (build_few_shot_test_loader(cfg, dataset, **options) for _ in "ab")
        everything = foreign.sampler.all_episodes
        try:
            foreign.dataset.mapper = ForeignSupportMapper(foreign.dataset.mapper, everything)
        except ValueError as error:
            raise ValueError(f"{dataset}: {error}") from error
        donors = absent_donors(dataset, everything)
        absent.dataset.mapper = AbsentQueryMapper(absent.dataset.mapper, donors)
        absent.sampler.episodes = tuple(e for e in absent.sampler.episodes if e.index in donors)
        self._loaders = {"foreign": foreign, **({"absent": absent} if donors else {})}

    def run(self, model: nn.Module, folder: Path) -> dict[str, float]:
        """Score, next to the files of the own supports; returns numbers on the main process.

        They are those of `presence_scores`, "mIoU_foreign" and the paired "difference" in points, with
        their limits. ``support_use.json`` holds them too.
        """
        for name, loader in self._loaders.items():
            logger.info("Scoring %s with %s", self._dataset, _RUNS[name])
            evaluator = FewShotEvaluator.from_config(
                self._cfg, self._dataset, folder / name, draw=save_episode_panel
            )
            run_loop(model, loader, [evaluator])
        return self._scores(folder) if comm.is_main_process() else {}

    def _scores(self, folder: Path) -> dict[str, float]:
        cfg, test = self._cfg, self._cfg.FEW_SHOT.TEST
        own, foreign = (read_rows(folder / name / "episodes.jsonl") for name in (".", "foreign"))
        absent = read_rows(folder / "absent" / "episodes.jsonl") if "absent" in self._loaders else []
        classes = MetadataCatalog.get(self._dataset).class_ids
        rule = {"counting": cfg.TEST.COUNTING, "absent": cfg.TEST.ABSENT_CLASSES}
        result = compare(own, foreign, same_supports=False, classes=classes, **rule)
        scores = {
            **{"mIoU_own": result.mean_iou_a, "mIoU_foreign": result.mean_iou_b},
            **{"difference": result.difference, "low": result.low, "high": result.high},
            **presence_scores(own, absent, resamples=cfg.TEST.BOOTSTRAP),
        }
        diagram = reliability(*presences(own, absent)) if "presence_ECE" in scores else np.zeros((0, 3))
        numbers = {
            **{"method": cfg.MODEL.META_ARCHITECTURE, "weights": cfg.MODEL.WEIGHTS, "dataset": self._dataset},
            **{"shots": self._shots, "episodes": result.episodes, "seed": test.SEED},
            **{"query_rule": test.QUERY_RULE, "manifest": test.MANIFEST},
            **{"support_views": list(test.SUPPORT_VIEWS), "refinement": cfg.TEST.REFINEMENT},
            **{"kshot": cfg.TEST.KSHOT, "zoom_tiles": cfg.TEST.ZOOM_TILES},
            **{"presence": cfg.TEST.PRESENCE, **scores},
            "reliability": np.where(np.isnan(diagram), None, diagram).tolist(),
        }
        write_json(folder / "support_use.json", numbers)
        return scores


def format_support_use(method: str, numbers: Mapping[str, Any]) -> str:
    """Markdown of ``support_use.json``: scores, reliability diagram, and a verdict."""
    cells = [f"{numbers['mIoU_own']:.2f}", f"{numbers['mIoU_foreign']:.2f}"]
    cells.append("{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**numbers))
    headers = ["mIoU, %", "own supports", "of another class", "difference [95 % interval]"]
    parts = [tabulate([[method, *cells]], headers=headers, tablefmt="pipe", disable_numparse=True)]
    if "absent_masked" in numbers:
        known = [name for name in _ABSENT_COLUMNS if name in numbers]
        line = [method, *(format_score(numbers, name) for name in known)]
        headers = ["without the object", *(_ABSENT_COLUMNS[name] for name in known)]
        parts.append(tabulate([line], headers=headers, tablefmt="pipe", disable_numparse=True))
    if numbers["reliability"]:
        parts.append(format_reliability(np.array(numbers["reliability"], float)))
    kept = numbers["mIoU_foreign"] / (numbers["mIoU_own"] or 1)
    verdict = f"With supports of another class, {kept:.0%} of the score remains."
    if numbers["low"] <= 0:
        verdict = f"These {numbers['episodes']} episodes do not show that the supports are used."
    return "\n\n".join([*parts, verdict])
