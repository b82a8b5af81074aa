"""The Detectron2 evaluator of few-shot segmentation."""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import Tensor

from fss_d2.io.files import check_writable

from .bootstrap import EpisodeCounts, write_rows
from .metrics import COUNTINGS, area_counts, areas_of, check_absent, region_wise_measures
from .report import (
    CLASS_PREFIX,
    TASK,
    format_class_table,
    format_table,
    score_classes,
    summarise,
    write_results,
)

__all__ = ["FewShotEvaluator"]

logger = logging.getLogger(__name__)

PRESENCES = ("off", "gate")  # for TEST.PRESENCE

Draw = Callable[[Path, dict[str, Any], np.ndarray, str | None], None]


class FewShotEvaluator(DatasetEvaluator):
    """Score episodes; the number of processes and the order of the episodes do not change the scores.

    Each process keeps integer pixel counts per episode. `evaluate` joins them on the main process, drops
    episodes that were scored twice, sorts by ``episode_index`` and only then divides.

    With ``output_dir`` the main process writes ``results.json`` (settings, summary, classes) and
    ``episodes.jsonl`` (counts per episode, see `read_rows`); pictures go to ``pictures/NNNN.png``.

    Args:
        dataset_name: a registered dataset, whose metadata gives ``class_ids`` and ``stuff_classes``.
        class_ids, class_names: of the split, instead of those in the metadata; names are indexed by class id.
        counting, absent_classes: see `fss_d2.evaluation.metrics`.
        bootstrap: resamples for the confidence intervals; 0 computes no intervals.
        pictures: episodes with an index below this are drawn.
        draw: writes such a picture, given file, episode, predicted mask (H, W) and class name.
        region_wise: also report ROM and RUM.
        presence: "gate" takes away the mask where the model says that the object is absent; "off" does not.
        settings: further entries for the "settings" of ``results.json``.
    """

    task: ClassVar[str] = TASK  # the key of the scores that `evaluate` returns
    _scored: ClassVar[str] = "the model's scores"  # for messages

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | Path | None = None,
        *,
        class_ids: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        counting: str = "hsnet",
        absent_classes: str = "zero",
        bootstrap: int = 1000,
        pictures: int = 0,
        draw: Draw | None = None,
        region_wise: bool = False,
        presence: str = "off",
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if counting not in COUNTINGS:
            raise ValueError(f"TEST.COUNTING is {counting!r}; use one of {', '.join(COUNTINGS)}")
        check_absent(absent_classes)
        if presence not in PRESENCES:
            raise ValueError(f"TEST.PRESENCE is {presence!r}; use one of {', '.join(PRESENCES)}")
        if bootstrap < 0:
            raise ValueError(
                f"TEST.BOOTSTRAP is {bootstrap}; give a number of resamples, or 0 for no intervals"
            )
        metadata = MetadataCatalog.get(dataset_name)
        class_ids = metadata.get("class_ids", ()) if class_ids is None else class_ids
        self._class_ids = [int(c) for c in class_ids]
        if not self._class_ids:
            fix = "register it, or pass class_ids"
            raise ValueError(f"dataset {dataset_name!r} has no class_ids in its metadata; {fix}")
        self._class_names = metadata.get("stuff_classes", ()) if class_names is None else class_names
        self._dataset_name = dataset_name
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._counting = counting
        self._absent = absent_classes
        self._bootstrap = bootstrap
        self._draw = draw
        self._pictures = pictures if output_dir is not None and draw is not None else 0
        self._region_wise = region_wise
        self._gate = presence == "gate"
        self._settings = dict(settings or {})
        if self._output_dir is not None and (comm.is_main_process() or self._pictures):
            check_writable(self._output_dir)
        self._rows: list[EpisodeCounts] = []

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        output_dir: str | Path | None = None,
        *,
        draw: Draw | None = None,
    ) -> "FewShotEvaluator":
        """Build from ``cfg.TEST``; ``results.json`` records the keys that influence the scores."""
        return cls(
            dataset_name,
            output_dir,
            counting=cfg.TEST.COUNTING,
            absent_classes=cfg.TEST.ABSENT_CLASSES,
            bootstrap=cfg.TEST.BOOTSTRAP,
            pictures=cfg.TEST.PICTURES,
            draw=draw,
            region_wise=cfg.TEST.REGION_WISE,
            presence=cfg.TEST.PRESENCE,
            settings={
                "method": cfg.MODEL.META_ARCHITECTURE,
                "weights": cfg.MODEL.WEIGHTS,
                "frame": cfg.TEST.FRAME,
                "input_size": list(cfg.INPUT.FEW_SHOT_SIZE),
                "resize": cfg.INPUT.TEST_RESIZE,
                "scales": list(cfg.TEST.SCALES),
                "kshot": cfg.TEST.KSHOT,
                "refinement": cfg.TEST.REFINEMENT,
                "zoom_tiles": cfg.TEST.ZOOM_TILES,
                "presence": cfg.TEST.PRESENCE,
                "support_annotation": cfg.FEW_SHOT.TEST.SUPPORT_ANNOTATION,
                "support_views": list(cfg.FEW_SHOT.TEST.SUPPORT_VIEWS),
                "query_rule": cfg.FEW_SHOT.TEST.QUERY_RULE,
                "manifest": cfg.FEW_SHOT.TEST.MANIFEST,
                "seed": cfg.FEW_SHOT.TEST.SEED,
            },
        )

    @property
    def method(self) -> str:
        """The name of the scored model, if ``settings`` has it."""
        return self._settings.get("method", "the model")

    def reset(self) -> None:
        """Remove the counts of all episodes scored so far."""
        self._rows = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Count a batch of episodes, on the device of the scores; one transfer brings the counts to the CPU.

        Args:
            inputs: per episode "target" (h, w) uint8 in {0, 1, 255}, "class_id", "episode_index",
                "image_id", and "support_ids", the image ids of its K supports. The list "support" is not
                counted: it shows every support once per view.
            outputs: per episode "sem_seg" (2, h, w): background and foreground scores; ties are background;
                and optionally "presence" (), the logit that the query shows the class.
        """
        masks, counts = [], []
        for episode, output in zip(inputs, outputs, strict=True):
            mask = self.predict(episode, output)
            target = torch.as_tensor(episode["target"]).to(mask.device, non_blocking=True)
            has_nan = self._scores(output).isnan().any()
            masks.append(mask)
            presence = output.get("presence", has_nan.new_tensor(torch.nan, dtype=torch.float64))
            counted = [*area_counts(mask, target), has_nan, presence]
            counts.append(torch.stack([value.double() for value in counted]))
        rows = torch.stack(counts).tolist() if counts else []
        for episode, mask, (*areas, has_nan, presence) in zip(inputs, masks, rows, strict=True):
            index = int(episode["episode_index"])
            if has_nan:
                fix = "check the model's weights and precision"
                raise ValueError(f"episode {index}: {self._scored} hold NaN; {fix}")
            row = self._row(episode, mask, list(map(int, areas)))
            self._rows.append(row if isnan(presence) else replace(row, presence=presence))
            if index < self._pictures:
                class_id = int(episode["class_id"])
                name = self._class_names[class_id] if class_id < len(self._class_names) else None
                file = self._output_dir / "pictures" / f"{index:04d}.png"
                self._draw(file, episode, mask.cpu().numpy(), name)

    def predict(self, episode: Mapping[str, Any], output: Mapping[str, Any]) -> Tensor:
        """The mask (h, w) bool of one episode that is scored, on its device; NaN is not looked for."""
        scores, size = self._scores(output), tuple(episode["target"].shape)
        if tuple(scores.shape) != (2, *size):
            raise ValueError(
                f"episode {int(episode['episode_index'])}: scores {tuple(scores.shape)} do not fit the target"
                f' {size}; the model must return (2, height, width) for "height" and "width" of its input'
            )
        found = scores[1] > scores[0]
        if not self._gate:
            return found
        if "presence" not in output:
            raise ValueError(f"TEST.PRESENCE 'gate': {self.method} gives no presence; set it to 'off'")
        return found & (output["presence"] > 0)

    def _scores(self, output: Mapping[str, Any]) -> Tensor:
        if "sem_seg" not in output:
            fix = "set it to ('oracle', 'proposal_recall')"
            raise ValueError(f"TEST.EVALUATORS: {self.method} gives no scores for few_shot_seg; {fix}")
        return output["sem_seg"]

    def _row(self, episode: Mapping[str, Any], mask: Tensor, areas: Sequence[int]) -> EpisodeCounts:
        index = int(episode["episode_index"])
        if "support_ids" not in episode:
            message = "has no 'support_ids'; add the image ids of its K supports (EpisodeMapper gives them)"
            raise ValueError(f"episode {index} {message}")
        measures = (None, None)
        if self._region_wise:
            measures = region_wise_measures(mask.cpu().numpy(), np.asarray(episode["target"]))
        supports = tuple(episode["support_ids"])
        class_id, query = int(episode["class_id"]), episode["image_id"]
        return EpisodeCounts(index, class_id, query, supports, *areas_of(areas), *measures)

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Join the episodes of all processes and score them.

        Returns:
            ``{"few_shot_seg": {"mIoU": ..., "FB_IoU": ..., "episode_IoU": ..., "IoU/<class name>": ...}}`` in
            percent, and the limits of the intervals as "mIoU_low", "mIoU_high" and so on; ROM and RUM are
            fractions. Empty if nothing was processed, and on every process except the main one.
        """
        gathered = comm.gather(self._rows)
        if not comm.is_main_process():
            return OrderedDict()
        by_index: dict[int, EpisodeCounts] = {}
        for row in itertools.chain.from_iterable(gathered):
            by_index.setdefault(row.episode_index, row)
        if not by_index:
            logger.warning("No episode of %s was evaluated; there are no scores.", self._dataset_name)
            return OrderedDict()
        rows = [by_index[index] for index in sorted(by_index)]
        rule = {"counting": self._counting, "absent": self._absent}
        summary = summarise(rows, self._class_ids, **rule, resamples=self._bootstrap)
        per_class = score_classes(rows, self._class_ids, self._class_names, **rule)
        scores = summary | {CLASS_PREFIX + entry["name"]: entry["IoU"] for entry in per_class}
        results = OrderedDict({self.task: scores})
        if self._output_dir is not None:
            self._write(rows, summary, per_class)
        logger.info("%s, %d episodes:\n%s", self._dataset_name, len(rows), format_table(results))
        logger.info("Classes of %s:\n%s", self._dataset_name, format_class_table(scores))
        return results

    def _write(
        self, rows: Sequence[EpisodeCounts], summary: dict[str, float], per_class: list[dict[str, Any]]
    ) -> None:
        shots = sorted({len(row.supports) for row in rows})
        settings = {
            "dataset": self._dataset_name,
            "episodes": len(rows),
            "episodes_without_foreground": sum(row.union[1] == 0 for row in rows),
            "shots": shots[0] if len(shots) == 1 else shots,
            "counting": self._counting,
            "absent_classes": self._absent,
            "bootstrap": self._bootstrap,
        }
        write_rows(self._output_dir / "episodes.jsonl", rows)
        file = self._output_dir / "results.json"
        write_results(file, settings=settings | self._settings, summary=summary, per_class=per_class)
