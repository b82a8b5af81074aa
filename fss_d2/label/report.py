"""The report of a job: one page with all labels, the images to review, a summary."""

import html
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from fss_d2.visualization.colors import class_color, class_css
from fss_d2.visualization.tiles import draw_regions

from .check import ClassCheck, describe
from .output import ImageRecord, OutputFile, json_bytes
from .writers import LabelSet

__all__ = ["THUMBNAILS", "report_files", "summarize", "thumbnail"]

THUMBNAILS = "thumbnails"  # folder next to the page
_SIDE = 320  # longer side of a thumbnail, pixels
_STYLE = """
body { font: 15px sans-serif; margin: 1.5em; color: #222; background: #fff }
main { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; padding: 6px; width: 320px; border: 2px solid #ccc; border-radius: 4px }
figure.nothing { opacity: .75 }
figure.review { border-color: #d33; opacity: 1 }
img { max-width: 320px; display: block; margin: 0 auto }
figcaption { overflow-wrap: anywhere }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: -2px }
"""


def thumbnail(image: np.ndarray, record: ImageRecord, class_names: Sequence[str]) -> bytes:
    """A small JPEG of an image (H, W, 3) uint8 with its labels drawn, one colour per class."""
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    labels = Image.fromarray(record.class_map(class_names)).resize(size, Image.Resampling.NEAREST)
    regions = [(np.asarray(labels) == i + 1, class_color(i)) for i in range(len(class_names))]
    buffer = io.BytesIO()
    Image.fromarray(draw_regions(small, regions)).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def summarize(
    labels: LabelSet,
    review_below: float,
    skipped: Sequence[str],
    failed: Mapping[str, str],
    left_out: Mapping[str, str],
    formats_left_out: Mapping[str, str],
) -> dict[str, Any]:
    """The content of ``summary.json``.

    ``failed`` are images that could not be labelled, ``left_out`` files that were not tried, and why.
    "doubtful" are, of each class, the images with or without it whose expected IoU is below ``review_below``.
    """
    found = [name for record in labels.records for name in record.class_names]
    empty = [record.image for record in labels.records if not record.objects]
    low = [n for r in labels.records for n, value in r.expected_iou.items() if value < review_below]
    return {
        "labelled": len(labels.records),
        "with_class": {name: found.count(name) for name in labels.class_names},
        "without_class": {name: len(labels.records) - found.count(name) for name in labels.class_names},
        "doubtful": {name: low.count(name) for name in labels.class_names},
        "nothing_found": len(empty),
        "nothing_found_in": empty,
        "needs_review": sum(record.lowest_iou < review_below for record in labels.records),
        "mean_expected_iou": round(sum(r.lowest_iou for r in labels.records) / len(labels.records), 6),
        "skipped_supports": list(skipped),
        "unreadable": [{"image": name, "error": text} for name, text in failed.items()],
        "left_out": [{"image": name, "reason": text} for name, text in left_out.items()],
        "formats_left_out": [{"format": name, "reason": why} for name, why in formats_left_out.items()],
    }


def report_files(
    labels: LabelSet,
    review_below: float,
    checks: Sequence[ClassCheck],
    summary: Mapping[str, Any],
    origin: str,
) -> Iterator[OutputFile]:
    """``needs_review.txt`` and ``.json``, ``report.html`` and ``summary.json``.

    Images with an expected IoU below ``review_below`` need a review. ``origin`` says what the numbers behind
    it were fitted on. The thumbnails lie in `THUMBNAILS`, at the path of their image + ".jpg".
    """
    ordered = sorted(labels.records, key=lambda record: (record.lowest_iou, record.image))
    review = [record for record in ordered if record.lowest_iou < review_below]
    yield "needs_review.txt", b"".join(os.fsencode(f"{record.image}\n") for record in review)
    yield "needs_review.json", json_bytes([_row(record) for record in review])
    legend = "".join(
        f'<span class="swatch" style="background: {class_css(i)}"></span>{html.escape(name)}'
        for i, name in enumerate(labels.class_names)
    )
    notes = [f"{row['image']} could not be labelled: {row['error']}" for row in summary["unreadable"]]
    notes += [f"The format {o['format']} is left out: {o['reason']}" for o in summary["formats_left_out"]]
    notes += [f"{row['image']} was left out: {row['reason']}" for row in summary["left_out"]]
    counts = (
        f"{name}: found in {summary['with_class'][name]} images, not in {summary['without_class'][name]}; "
        f"{summary['doubtful'][name]} doubtful"
        for name in labels.class_names
    )
    parts = [
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>Labels</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{len(labels.records)} images</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in (*counts, *notes)),
        f"<pre>{html.escape(describe(checks))}</pre>" if checks else "",
        f"<p>Lowest expected IoU first; {len(review)} images below {review_below:g} have a red frame.{legend}"
        f"</p><p>{html.escape(_explanation(checks, origin))}</p>",
        "<main>",
        *(_figure(record, labels, record.lowest_iou < review_below) for record in ordered),
        "</main></body></html>\n",
    ]
    yield "report.html", "\n".join(parts).encode("utf-8", "surrogateescape")
    yield "summary.json", json_bytes(dict(summary))


def _row(record: ImageRecord) -> dict[str, Any]:
    """An entry of needs_review.json."""
    expected = {"expected_iou": record.lowest_iou, "of_classes": record.expected_iou}
    found = {"classes": list(record.class_names), "presence": dict(record.presence)}
    return {"image": record.image, **expected, **found}


def _explanation(checks: Sequence[ClassCheck], origin: str) -> str:
    """What the expected IoU is, and what it rests on."""
    adjusted = [check.class_name for check in checks if check.supports]
    check = f"and adjusted by the check of the supports ({', '.join(adjusted)})" if adjusted else "only"
    return (
        "The expected IoU is an estimate of how far a mask agrees with the true one, 1 being all of it: the "
        "probability that the image shows the object, times what is expected then from how sure the network "
        "is, and from how well the mask and the objects of the supports resemble each other. Its numbers "
        f"come from {origin} {check}. Of a class that was not found it is the probability that the image "
        "does not show it. An image with several classes counts by the worst. It is no proof: an image that "
        "shows something similar instead of the object can get a high one."
    )


def _figure(record: ImageRecord, labels: LabelSet, review: bool) -> str:
    found = ", ".join(record.class_names) or "nothing found"
    present = ", ".join(f"{name} {value:.2f}" for name, value in record.presence.items())
    original = os.path.relpath(labels.images / record.image, labels.output)
    mark = ' class="review"' if review else "" if record.objects else ' class="nothing"'
    return (
        f'<figure{mark}><a href="{_link(original)}">'
        f'<img loading="lazy" alt="" src="{_link(f"{THUMBNAILS}/{record.image}.jpg")}"></a>'
        f"<figcaption>{html.escape(record.image)}<br>{record.lowest_iou:.2f}: {html.escape(found)}"
        f"<br>present: {html.escape(present)}</figcaption></figure>"
    )


def _link(path: str | Path) -> str:
    return quote(os.fsencode(str(path).replace(os.sep, "/")))
