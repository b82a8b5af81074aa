"""What to expect of supports, from the supports alone: each is labelled by the others."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from fss_d2.evaluation.metrics import count_areas, iou

from .interfaces import Predictor
from .supports import Support

__all__ = ["ClassCheck", "SupportCheck", "check_supports", "describe"]

_CLEARLY = 0.05  # IoU that the others gain, on average, without a support that hurts
_LARGEST = 12  # supports of a class up to which every pair is left out too: k (k - 1) / 2 encodings


@dataclass(frozen=True)
class SupportCheck:
    """One support.

    Attributes:
        name: its picture's.
        iou: of its mask with what the class's other supports make of it, 0 to 1.
        gain_without: how much the mean IoU of the other supports rises when they do without this one; None
            where that cannot be told (fewer than three supports, or very many).
    """

    name: str
    iou: float
    gain_without: float | None

    @property
    def hurts(self) -> bool:
        """Whether the others do clearly better without it, though they are fewer then."""
        return self.gain_without is not None and self.gain_without >= _CLEARLY


@dataclass(frozen=True)
class ClassCheck:
    """The supports of one class; ``supports`` is empty where there is only one, which cannot be checked."""

    class_name: str
    supports: tuple[SupportCheck, ...]

    @property
    def expected_iou(self) -> float | None:
        """Mean IoU, 0 to 1, with one support less than the run will have; None if it cannot be checked."""
        return float(np.mean([s.iou for s in self.supports])) if self.supports else None


def check_supports(predictor: Predictor, supports: Mapping[str, Sequence[Support]]) -> list[ClassCheck]:
    """Label every support by the others of its class.

    To see whether a support hurts, the others are labelled once more without it. Pixels of 255 do not count.
    Classes are looked at one by one; that they compete later can only be seen on images that show several.

    Args:
        predictor: its supports are replaced.
        supports: of each class.
    """
    encodings = {name: _left_out(len(of_class)) for name, of_class in supports.items()}
    with tqdm(total=sum(map(len, encodings.values())), desc="Leave one out", disable=None) as bar:
        return [
            ClassCheck(name, _check_class(predictor, name, of_class, encodings[name], bar))
            for name, of_class in supports.items()
        ]


def _left_out(count: int) -> list[tuple[int, ...]]:
    """Which supports of a class to leave out together: each, then each pair."""
    singles = [(i,) for i in range(count)] if count >= 2 else []
    pairs = list(itertools.combinations(range(count), 2)) if 3 <= count <= _LARGEST else []
    return [*singles, *pairs]


def _check_class(
    predictor: Predictor,
    name: str,
    supports: Sequence[Support],
    left_out: Sequence[tuple[int, ...]],
    bar: tqdm,
) -> tuple[SupportCheck, ...]:
    count = len(supports)
    # scores[i, j]: IoU of support i, labelled by all but i and j; the diagonal leaves out i alone.
    scores = np.full((count, count), np.nan)
    for out in left_out:
        rest = [s for i, s in enumerate(supports) if i not in out]
        predictor.set_support_classes({name: ([s.image for s in rest], [s.mask for s in rest])})
        for i in out:
            scores[i, out[-1] if i == out[0] else out[0]] = _iou(predictor, supports[i])
        bar.update()
    if count < 2:
        return ()
    with_all = np.diag(scores)
    gains = [np.delete(scores[:, j] - with_all, j).mean() for j in range(count)]  # NaN: no pairs
    return tuple(
        SupportCheck(s.name, float(with_all[i]), None if np.isnan(gains[i]) else float(gains[i]))
        for i, s in enumerate(supports)
    )


def _iou(predictor: Predictor, support: Support) -> float:
    predicted = predictor.predict(support.image).labels == 1
    intersection, union = count_areas(predicted, support.mask)
    return float(iou(intersection, union)[1])


def describe(checks: Sequence[ClassCheck]) -> str:
    """A table of the IoU to expect of each class in percent, and which supports hurt, in words."""
    rows, remarks = [], []
    for check in checks:
        if check.expected_iou is None:
            rows.append([check.class_name, 1, "cannot be checked: add a second support", ""])
            continue
        worst = min(check.supports, key=lambda s: s.iou)
        lowest = f"{100 * worst.iou:.1f} ({worst.name})"
        rows.append([check.class_name, len(check.supports), f"{100 * check.expected_iou:.1f}", lowest])
        known = [s for s in check.supports if s.gain_without is not None]
        if known and not any(s.hurts for s in known):
            remarks.append(f"{check.class_name}: none of its supports makes the others worse; keep them all")
        for s in known:
            if s.hurts:
                others = np.mean([o.iou for o in check.supports if o is not s])
                remarks.append(
                    f"{check.class_name}: {s.name} hurts: without it the others reach "
                    f"{100 * (others + s.gain_without):.1f} instead of {100 * others:.1f}; "
                    "look at its mask, or take it out"
                )
    table = tabulate(rows, ["class", "supports", "IoU to expect, %", "lowest"], disable_numparse=True)
    return "\n".join([table, *remarks])
