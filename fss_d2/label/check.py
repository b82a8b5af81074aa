"""Segment each support with the others of its class, to see what to expect of a job."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.utils import comm
from tabulate import tabulate
from tqdm import tqdm

from fss_d2.evaluation.metrics import count_areas, iou
from fss_d2.inference.predictor import FewShotPredictor

from .supports import Support

__all__ = ["ClassCheck", "SupportCheck", "check_supports", "describe"]

_HURTS = 0.05  # mean IoU that the others gain without a support that hurts
_MOST_CHECKED = 24  # supports of a class that are segmented; of more, as many spread evenly
_MOST_PAIRED = 12  # supports of a class up to which pairs are left out, too

Group = tuple[int, ...]  # indices of supports that are left out together


@dataclass(frozen=True)
class SupportCheck:
    """One support, by the name of its picture.

    Attributes:
        iou: of its mask with the mask that the other supports of the class give, 0 to 1.
        gain_without: how much the mean IoU of the other supports rises without this one; None for fewer than
            3 supports and for more than 12.
    """

    name: str
    iou: float
    gain_without: float | None

    @property
    def hurts(self) -> bool:
        """Whether the others do clearly better without it, though they are fewer then."""
        return self.gain_without is not None and self.gain_without >= _HURTS


@dataclass(frozen=True)
class ClassCheck:
    """One class: its checked supports, none if it has only one, and how many it has in total."""

    class_name: str
    supports: tuple[SupportCheck, ...]
    total: int

    @property
    def expected_iou(self) -> float | None:
        """Mean IoU, 0 to 1, with one support less than the job has; None if it cannot be checked."""
        return float(np.mean([s.iou for s in self.supports])) if self.supports else None


def check_supports(
    predictor: FewShotPredictor, supports: Mapping[str, Sequence[Support]]
) -> list[ClassCheck]:
    """Segment every support with the others of its class, and again without each one of these.

    Pixels of 255 do not count. Classes are checked one by one: how they compete shows only on images with
    several. A class with K supports costs K passes through the backbone. At most 24 supports are segmented,
    spread evenly over the class. Up to 12 supports, each pair is left out as well, to see which support
    hurts. All processes call this, and each takes its share; the first gets one check per class, the others
    an empty list.
    """
    groups = [(name, out) for name, of_class in supports.items() for out in _left_out(len(of_class))]
    mine: dict[str, list[Group]] = {}
    for name, out in groups[comm.get_rank() :: comm.get_world_size()]:
        mine.setdefault(name, []).append(out)
    scores = {}
    with tqdm(total=sum(map(len, mine.values())), desc="Leave one out", disable=None) as bar:
        for name, left_out in mine.items():
            for out, ious in _scores(predictor, supports[name], left_out):
                scores[name, out] = ious
                bar.update()
    gathered: list[dict[tuple[str, Group], list[float]]] = comm.gather(scores)
    if not comm.is_main_process():
        return []
    by_class: dict[str, dict[Group, list[float]]] = {name: {} for name in supports}
    for share in gathered:
        for (name, out), ious in share.items():
            by_class[name][out] = ious
    return [
        ClassCheck(name, _support_checks(supports[name], of_class), len(supports[name]))
        for name, of_class in by_class.items()
    ]


def _left_out(count: int) -> list[Group]:
    """Which supports of a class to leave out together: each of those to check, then each pair."""
    if count < 2:
        return []
    checked = np.linspace(0, count - 1, min(count, _MOST_CHECKED)).round().astype(int).tolist()
    pairs = itertools.combinations(range(count), 2) if 3 <= count <= _MOST_PAIRED else ()
    return [*((i,) for i in checked), *pairs]


def _scores(
    predictor: FewShotPredictor, supports: Sequence[Support], left_out: Sequence[Group]
) -> Iterator[tuple[Group, list[float]]]:
    found = predictor.leave_out([s.image for s in supports], [s.mask for s in supports], left_out)
    for out, masks in zip(left_out, found, strict=True):
        yield out, [_iou(mask, supports[i].mask) for i, mask in zip(out, masks, strict=True)]


def _iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    intersection, union = count_areas(predicted, mask)
    return float(iou(intersection, union)[1])


def _support_checks(
    supports: Sequence[Support], scores: Mapping[Group, Sequence[float]]
) -> tuple[SupportCheck, ...]:
    """The checks of the supports that were left out alone, from the IoU of each group's supports."""
    alone = {out[0]: ious[0] for out, ious in scores.items() if len(out) == 1}
    gains: dict[int, list[float]] = {i: [] for i in alone}  # of the others, without support i
    for out, ious in scores.items():
        if len(out) == 2:
            gains[out[1]].append(ious[0] - alone[out[0]])
            gains[out[0]].append(ious[1] - alone[out[1]])
    return tuple(
        SupportCheck(supports[i].name, alone[i], float(np.mean(gains[i])) if gains[i] else None)
        for i in sorted(alone)
    )


def describe(checks: Sequence[ClassCheck]) -> str:
    """A table of the IoU to expect of each class in percent, and a sentence for each support that hurts."""
    rows, remarks = [], []
    for check in checks:
        if check.expected_iou is None:
            rows.append([check.class_name, check.total, "cannot be checked: add a second support", ""])
            continue
        worst = min(check.supports, key=lambda s: s.iou)
        lowest = f"{100 * worst.iou:.1f} ({worst.name})"
        rows.append([check.class_name, check.total, f"{100 * check.expected_iou:.1f}", lowest])
        remarks += [f"{check.class_name}: {remark}" for remark in _remarks(check)]
    table = tabulate(rows, ["class", "supports", "IoU to expect, %", "lowest"], disable_numparse=True)
    return "\n".join([table, *remarks])


def _remarks(check: ClassCheck) -> Iterator[str]:
    """What the numbers of a class rest on, and which of its supports hurt."""
    if len(check.supports) < check.total:
        yield f"{len(check.supports)} of its {check.total} supports were checked, spread evenly over all"
    if check.total > _MOST_PAIRED:
        yield f"which support hurts is checked for up to {_MOST_PAIRED} supports only"
    compared = [s for s in check.supports if s.gain_without is not None]
    if compared and not any(s.hurts for s in compared):
        yield "none of its supports makes the others worse; keep them all"
    for s in compared:
        if s.hurts:
            others = np.mean([o.iou for o in check.supports if o is not s])
            without = 100 * (others + s.gain_without)
            yield (
                f"{s.name} hurts: without it the others reach {without:.1f} instead of {100 * others:.1f}; "
                "look at its mask, or take it out"
            )
