"""Segment each support with the others of its class, to see what to expect of a job."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.utils import comm
from tabulate import tabulate

from fss_d2.evaluation.metrics import count_areas, iou
from fss_d2.inference.negatives import Negatives
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.inference.quality import class_shift, shifted
from fss_d2.io.progress import progress

from .supports import Support

__all__ = ["MOST_CHECKED", "ClassCheck", "SupportCheck", "check_steps", "check_supports", "describe"]
__all__ += ["left_out"]

MOST_CHECKED = 24  # supports of a class that are segmented, unless a job says otherwise

_HURTS = 0.05  # mean IoU that the others gain without a support that hurts
_MISSED = 0.2  # IoU of a support below which its mask may be of something else, as on the page
_MOST_PAIRED = 12  # supports of a class up to which pairs are left out, too
_PARTNERS = 2  # to either side: a support is left out together with at most four others

Group = tuple[int, ...]  # indices of supports that are left out together
Result = tuple[float, float, bool]  # IoU of a support's mask, what was expected, whether it was judged absent


@dataclass(frozen=True)
class SupportCheck:
    """One support, by the name of its picture.

    Attributes:
        iou: of its mask with the mask that the other supports of the class give, 0 to 1.
        gain_without: how much the mean IoU of the other supports rises without this one; None for fewer than
            3 supports and for more than 12.
        expected_iou: what was expected for that mask, see `Prediction.mask_iou`.
        absent: whether the others judged that it does not show the class; its mask is empty then.
    """

    name: str
    iou: float
    gain_without: float | None
    expected_iou: float
    absent: bool = False

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
    shift: float = 0.0  # of the expected IoUs of this class, from its supports; see `class_shift`

    @property
    def expected_iou(self) -> float | None:
        """Mean IoU, 0 to 1, with one support less than the job has; None if it cannot be checked."""
        return float(np.mean([s.iou for s in self.supports])) if self.supports else None


def check_supports(
    predictor: FewShotPredictor,
    supports: Mapping[str, Sequence[Support]],
    most: int = MOST_CHECKED,
    *,
    harm: bool = True,
    negatives: Negatives | None = None,
) -> list[ClassCheck]:
    """Segment supports with the others of their class, and again without some of these.

    Pixels of 255 do not count. Classes are checked one by one: how they compete shows only on images with
    several. The cost grows with the number of supports, see `check_steps`. At most ``most`` supports of a
    class are segmented, spread evenly over it. Up to 12 supports that are all checked, each is left out
    together with up to four others as well, to see which support hurts, unless ``harm`` is False. The
    ``negatives``, as of `FewShotPredictor.set_support_classes`, are used each time. All processes call this,
    and each takes its share; the first gets one check per class, the others an empty list.
    """
    groups = [(name, out) for name, many in supports.items() for out in left_out(len(many), most, harm)]
    mine: dict[str, list[Group]] = {}
    for name, out in groups[comm.get_rank() :: comm.get_world_size()]:
        mine.setdefault(name, []).append(out)
    scores = {}
    with progress("Check the supports", sum(map(len, mine.values()))) as advance:
        for name, of_class in mine.items():
            against = [pair for key in ("", name) for pair in (negatives or {}).get(key, ())]
            for out, pairs in _scores(predictor, supports[name], of_class, against):
                scores[name, out] = pairs
                advance()
    gathered: list[dict[tuple[str, Group], list[Result]]] = comm.gather(scores)
    if not comm.is_main_process():
        return []
    by_class: dict[str, dict[Group, list[Result]]] = {name: {} for name in supports}
    for share in gathered:
        for (name, out), pairs in share.items():
            by_class[name][out] = pairs
    spread = predictor.quality.spread
    return [_class_check(name, supports[name], found, spread) for name, found in by_class.items()]


def check_steps(supports: Mapping[str, Sequence[Support]], most: int = MOST_CHECKED) -> int:
    """How many supports a check encodes, plus how many masks it predicts; of K supports at most 6 K."""
    groups = {name: left_out(len(of_class), most) for name, of_class in supports.items()}
    return sum(len(supports[name]) + sum(map(len, of_class)) for name, of_class in groups.items() if of_class)


def left_out(count: int, most: int, harm: bool = True) -> list[Group]:
    """Which of a class's supports to leave out together: each to check alone, and for ``harm`` pairs, too."""
    if count < 2 or most < 1:
        return []
    checked = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    if not harm or not 3 <= count <= min(most, _MOST_PAIRED):
        return [(i,) for i in checked]
    near = {*range(1, _PARTNERS + 1), *range(count - _PARTNERS, count)}
    pairs = [(i, j) for i, j in itertools.combinations(range(count), 2) if j - i in near]
    return [*((i,) for i in checked), *pairs]


def _scores(
    predictor: FewShotPredictor,
    supports: Sequence[Support],
    groups: Sequence[Group],
    negatives: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[Group, list[Result]]]:
    found = predictor.leave_out([s.image for s in supports], [s.mask for s in supports], groups, negatives)
    for out, predictions in zip(groups, found, strict=True):
        yield (
            out,
            [
                (
                    _iou(prediction.labels == 1, supports[i].mask),
                    *prediction.iou_if_present.values(),
                    not all(prediction.present.values()),
                )
                for i, prediction in zip(out, predictions, strict=True)
            ],
        )


def _iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    intersection, union = count_areas(predicted, mask)
    return float(iou(intersection, union)[1])


def _class_check(
    name: str, supports: Sequence[Support], scores: Mapping[Group, Sequence[Result]], spread: float
) -> ClassCheck:
    """The check of the supports that were left out alone, from what each group's supports got."""
    alone = {out[0]: pairs[0] for out, pairs in scores.items() if len(out) == 1}
    gains: dict[int, list[float]] = {i: [] for i in alone}  # of the others, without support i
    for out, pairs in scores.items():
        if len(out) == 2:
            gains[out[1]].append(pairs[0][0] - alone[out[0]][0])
            gains[out[0]].append(pairs[1][0] - alone[out[1]][0])
    checks = tuple(
        SupportCheck(supports[i].name, true, float(np.mean(gains[i])) if gains[i] else None, expected, absent)
        for i, (true, expected, absent) in sorted(alone.items())
    )
    found = [(check.expected_iou, check.iou) for check in checks if not check.absent]
    shift = class_shift(found, spread)
    return ClassCheck(name, checks, len(supports), shift)


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
    if found := [s.expected_iou for s in check.supports if not s.absent]:
        before = float(np.mean(found))
        change = f"{'raises' if check.shift > 0 else 'lowers'} what is expected of all its masks"
        example = f"0.50 becomes {shifted(0.5, check.shift):.2f}"
        yield f"for these supports {100 * before:.1f} was expected, so the check {change}: {example}"
    if absent := [s.name for s in check.supports if s.absent]:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        yield f"by the others, {absent[0]}{more} does not show it; look, or lower the limit (--present-above)"
    compared = [s for s in check.supports if s.gain_without is not None]
    # All of them, perhaps, if one hurts.
    missed = [s.name for s in check.supports if s.iou < _MISSED and not s.absent]
    if missed and not any(s.hurts for s in compared):
        more = f" and {len(missed) - 1} more" if len(missed) > 1 else ""
        yield f"{missed[0]}{more}: the others do not find what its mask shows; look at it"
    if compared and not any(s.hurts for s in compared):
        yield "none of its supports makes the others worse" + ("" if missed else "; keep them all")
    for s in compared:
        if s.hurts:
            others = np.mean([o.iou for o in check.supports if o is not s])
            without = 100 * (others + s.gain_without)
            yield (
                f"{s.name} hurts: without it the others reach {without:.1f} instead of {100 * others:.1f}; "
                "look at its mask, or take it out"
            )
