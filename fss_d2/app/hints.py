"""What seems wrong with the supports that a visitor marked, and what IoU they give."""

from dataclasses import dataclass, field

import numpy as np

from fss_d2.evaluation.metrics import count_areas, iou
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.label.check import check_supports
from fss_d2.label.supports import Support

from .uploads import SupportList

__all__ = ["Checked", "check_marks", "size_hint"]

_MOST, _LEAST = 0.9, 0.001  # share of the picture that an object usually covers
# IoU below which a mark is doubtful. With the model of the package and 3 supports of 20 classes of VOC, it
# is lower for 97 % of boxes next to the object, 55 % of masks of another picture, and 20 % of good masks.
_DOUBTFUL = 0.2
_IGNORED = 255


def size_hint(mask: np.ndarray) -> str | None:
    """A sentence about a mask (H, W) in {0, 1, 255} that covers nearly all or nearly nothing, or None."""
    share = float((mask == 1).sum() / max(1, (mask != _IGNORED).sum()))
    if share > _MOST:
        return f"{100 * share:.0f} % of the picture is marked. Unmark it, and mark the object alone."
    if share < _LEAST:
        return "hardly anything is marked. Mark the whole object, or take a picture that shows it larger."
    return None


@dataclass(frozen=True)
class Checked:
    """A sentence for each doubtful support, by its index, and `ClassCheck.shift` by class."""

    hints: dict[int, str] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)


def check_marks(predictor: FewShotPredictor, supports: SupportList) -> Checked:
    """Segment each support with the others of its class, and the only one of a class with itself.

    ``predictor`` has all supports.
    """
    by_class: dict[str, list[Support]] = {}
    for i, picture in enumerate(supports.pictures):
        if picture.shows_object:
            one = Support(str(i), (), picture.upload.pixels, picture.mask)
            by_class.setdefault(picture.class_name, []).append(one)
    hints, shifts = {}, {}
    for check in check_supports(predictor, by_class, harm=False, negatives=supports.negatives()):
        shifts[check.class_name] = check.shift
        for one in check.supports:
            if one.iou < _DOUBTFUL:
                hints[int(one.name)] = _sentence("the other examples do not find what you marked", one.iou)
    for name, of_class in by_class.items():
        if len(of_class) == 1 and (found := _with_itself(predictor, name, of_class[0])) < _DOUBTFUL:
            hints[int(of_class[0].name)] = _sentence("the method does not find what you marked", found)
    return Checked(hints, shifts)


def _with_itself(predictor: FewShotPredictor, class_name: str, support: Support) -> float:
    mask = predictor.predict(support.image).masks[class_name]
    return float(iou(*count_areas(mask, support.mask))[1])


def _sentence(what: str, found: float) -> str:
    return (
        f"{what} ({100 * found:.0f} % overlap). Is the mark on the object, without much background, and the "
        "mask of this picture? Then keep it."
    )
