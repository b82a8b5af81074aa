"""Masks of many pictures as one zip file, in the formats of the other programs."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fss_d2.inference.prediction import Prediction
from fss_d2.label.output import record_of
from fss_d2.label.writers import FORMATS, LabelSet, class_list, file_stems
from fss_d2.visualization.panels import class_map_png

__all__ = ["pack"]


def pack(predictions: Sequence[tuple[str, Prediction]]) -> bytes:
    """Pack predictions of the same classes.

    Args:
        predictions: a picture's file name, which no other has, and what was found in it.

    Returns:
        A zip file with mask/<stem>.png (0 background, i the class on line i of mask/classes.txt) and
        coco/annotations.json (an annotation for each connected part, masks as RLE).

    Raises:
        ValueError: there are none.
    """
    if not predictions:
        raise ValueError("no masks to pack yet: look for the object first (step 2)")
    class_names = predictions[0][1].names
    stems = file_stems([name for name, _ in predictions])
    files = {"mask/classes.txt": class_list(class_names)}
    files |= {f"mask/{stems[name]}.png": class_map_png(p.labels) for name, p in predictions}
    records = tuple(record_of(name, prediction, 1) for name, prediction in predictions)
    files |= dict(FORMATS["coco"](LabelSet(class_names, records, Path(), Path())))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
