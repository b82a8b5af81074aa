"""What was found: how good it seems, and the zip file."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fss_d2.inference.prediction import Prediction
from fss_d2.label import REVIEW_BELOW
from fss_d2.label.output import record_of
from fss_d2.label.writers import FORMATS, LabelSet, class_list, file_stems
from fss_d2.visualization.panels import class_map_png

from .drawing import LARGE, draw_prediction, jpeg

__all__ = ["QUALITY", "Result", "pack"]

QUALITY = "Expected IoU"  # see `Prediction.expected_iou`


@dataclass(frozen=True)
class Result:
    """A picture (H, W, 3) uint8 with the name of its file, its masks, and whether a person accepted them."""

    name: str
    pixels: np.ndarray
    prediction: Prediction
    accepted: bool = False

    @property
    def needs_review(self) -> bool:
        """Whether somebody should look at the masks."""
        return not self.accepted and self.prediction.lowest_iou < REVIEW_BELOW


def pack(results: Sequence[Result], class_names: Sequence[str] = ()) -> bytes:
    """Pack results into a zip file.

    It has mask/<stem>.png (0 background, i the class on line i of mask/classes.txt), coco/annotations.json
    with an annotation per connected part, masks as RLE, overlay/<stem>.jpg, and needs_review.txt: the names
    of the pictures to look at, the worst first. ``class_names`` come first; classes that only some results
    have follow.
    """
    if not results:
        raise ValueError("no masks yet: press Find the object first (step 2)")
    names = [name for result in results for name in result.prediction.names]
    in_use = [name for name in class_names if name in names]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _files(results, tuple(dict.fromkeys([*in_use, *names]))):
            archive.writestr(name, content)
    return buffer.getvalue()


def _files(results: Sequence[Result], class_names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    stems = file_stems([result.name for result in results])
    records = []
    yield "mask/classes.txt", class_list(class_names)
    for result in results:
        prediction = _of_classes(result.prediction, class_names)
        yield f"mask/{stems[result.name]}.png", class_map_png(prediction.labels)
        overlay = draw_prediction(result.pixels, prediction, side=LARGE)
        yield f"overlay/{stems[result.name]}.jpg", jpeg(overlay)
        records.append(record_of(result.name, result.prediction, 1))
    yield from FORMATS["coco"](LabelSet(class_names, tuple(records), Path(), Path()))
    review = [result for result in results if result.needs_review]
    review.sort(key=lambda result: result.prediction.lowest_iou)
    yield "needs_review.txt", "".join(f"{result.name}\n" for result in review).encode()


def _of_classes(prediction: Prediction, class_names: tuple[str, ...]) -> Prediction:
    """The labels with the numbers of other classes, without probabilities."""
    numbers = [0, *(class_names.index(name) + 1 for name in prediction.names)]
    labels = np.array(numbers, prediction.labels.dtype)[prediction.labels]
    return replace(prediction, names=class_names, labels=labels)
