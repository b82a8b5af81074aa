"""From the counts of a run's episodes to its scores in percent."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bootstrap import bootstrap_episode_iou, bootstrap_mean_iou, interval
from .metrics import class_iou, class_sums, episode_iou, fb_iou, mean_iou
from .rows import EpisodeCounts, stack_rows

__all__ = ["score_classes", "summarise"]


def summarise(
    rows: Sequence[EpisodeCounts],
    classes: Sequence[int],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
    resamples: int = 1000,
) -> dict[str, float]:
    """Scores of a run over the split's classes.

    Returns:
        "mIoU", "FB_IoU", "episode_IoU" in percent; "mIoU_low", "mIoU_high", "episode_IoU_low",
        "episode_IoU_high", the 95 % intervals, unless ``resamples`` is 0; "ROM" and "RUM", fractions, where
        the rows hold them.
    """
    class_ids, intersection, union = stack_rows(rows)
    rule = {"counting": counting, "absent": absent}
    alone = episode_iou(intersection, union, counting)
    alone = alone[~np.isnan(alone)]
    summary = {
        "mIoU": 100 * mean_iou(class_ids, intersection, union, classes, **rule),
        "FB_IoU": 100 * fb_iou(intersection, union, counting),
        "episode_IoU": 100 * float(alone.mean()) if len(alone) else 0.0,
    }
    if resamples:
        pooled = bootstrap_mean_iou(class_ids, intersection, union, classes, **rule, resamples=resamples)
        single = bootstrap_episode_iou(intersection, union, counting=counting, resamples=resamples)
        summary["mIoU_low"], summary["mIoU_high"] = interval(100 * pooled)
        summary["episode_IoU_low"], summary["episode_IoU_high"] = interval(100 * single)
    for name in ("rom", "rum"):
        values = [getattr(row, name) for row in rows if getattr(row, name) is not None]
        if values:
            summary[name.upper()] = float(np.mean(values))
    return summary


def score_classes(
    rows: Sequence[EpisodeCounts],
    classes: Sequence[int],
    class_names: Sequence[str],
    *,
    counting: str = "hsnet",
    absent: str = "zero",
) -> list[dict[str, Any]]:
    """One dict a class, in the order of ``classes``; with ``absent="skip"`` a class never drawn has none.

    Returns:
        dicts of "class_id", "name", "IoU" (percent), "episodes" (how many drew it), "intersection" and
        "union" (pixels of background and foreground, added over those episodes).
    """
    class_ids, intersection, union = stack_rows(rows)
    scores = class_iou(class_ids, intersection, union, classes, counting=counting, absent=absent)
    episodes = class_sums(class_ids, np.ones(len(rows), np.int64), classes)
    inter, total = class_sums(class_ids, intersection, classes), class_sums(class_ids, union, classes)
    return [
        {
            "class_id": int(class_id),
            "name": class_names[class_id] if class_id < len(class_names) else f"class {class_id}",
            "IoU": 100 * float(scores[i]),
            "episodes": int(episodes[i]),
            "intersection": inter[i].tolist(),
            "union": total[i].tolist(),
        }
        for i, class_id in enumerate(classes)
        if not np.isnan(scores[i])
    ]
