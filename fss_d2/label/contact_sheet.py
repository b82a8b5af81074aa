"""One page that shows all labels, the least sure first."""

import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from detectron2.utils.colormap import colormap
from PIL import Image

from fss_d2.visualization.tiles import Color, draw_regions

from .leave_one_out import ClassCheck, describe
from .records import ImageRecord
from .writers import LabelSet

__all__ = ["THUMBNAILS", "contact_sheet", "thumbnail"]

THUMBNAILS = "thumbnails"  # folder, beside the page
_SIDE = 320  # pixels, the longer one
_STYLE = """
body { font: 15px sans-serif; margin: 1.5em; color: #222; background: #fff }
main { display: flex; flex-wrap: wrap; gap: 12px }
figure { margin: 0; padding: 6px; width: 320px; border: 2px solid #ccc; border-radius: 4px }
figure.review { border-color: #d33 }
img { max-width: 320px; display: block; margin: 0 auto }
figcaption { overflow-wrap: anywhere }
.swatch { display: inline-block; width: 1em; height: 1em; margin: 0 .3em 0 1em; vertical-align: -2px }
"""


def thumbnail(image: np.ndarray, record: ImageRecord, class_names: Sequence[str]) -> bytes:
    """A small JPEG of an image (H, W, 3) uint8 with its labels laid over it, a colour for each class."""
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    labels = Image.fromarray(record.class_map(class_names)).resize(size, Image.Resampling.NEAREST)
    regions = [(np.asarray(labels) == i + 1, _color(i)) for i in range(len(class_names))]
    buffer = io.BytesIO()
    Image.fromarray(draw_regions(small, regions)).save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()


def contact_sheet(
    labels: LabelSet, *, review_below: float, checks: Sequence[ClassCheck] = (), notes: Sequence[str] = ()
) -> bytes:
    """An HTML page in UTF-8, sorted by confidence, the lowest first.

    Args:
        labels: their thumbnails lie in `THUMBNAILS`, in the images' folders and by their names + ".jpg".
        review_below: images of less confidence have a red frame.
        checks: what was found about the supports.
        notes: sentences to put at the top.
    """
    legend = "".join(
        f'<span class="swatch" style="background: rgb({_css(i)})"></span>{html.escape(name)}'
        for i, name in enumerate(labels.class_names)
    )
    parts = [
        "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>Labels</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{len(labels.records)} images</h1>",
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        f"<pre>{html.escape(describe(checks))}</pre>" if checks else "",
        f"<p>Least sure first; a red frame: confidence below {review_below:g}.{legend}</p>",
        "<p>Confidence takes for granted that the object is there: look for pictures without it.</p>",
        "<main>",
    ]
    ordered = sorted(labels.records, key=lambda record: (record.confidence, record.image))
    parts += [_figure(record, labels, record.confidence < review_below) for record in ordered]
    return "\n".join([*parts, "</main></body></html>\n"]).encode("utf-8", "surrogateescape")


def _figure(record: ImageRecord, labels: LabelSet, review: bool) -> str:
    found = ", ".join(record.class_names) or "nothing found"
    original = os.path.relpath(labels.images / record.image, labels.output)
    mark = ' class="review"' if review else ""
    return (
        f'<figure{mark}><a href="{_link(original)}">'
        f'<img loading="lazy" alt="" src="{_link(f"{THUMBNAILS}/{record.image}.jpg")}"></a>'
        f"<figcaption>{html.escape(record.image)}<br>{record.confidence:.3f}: {html.escape(found)}"
        "</figcaption></figure>"
    )


def _link(path: str | Path) -> str:
    return quote(os.fsencode(str(path).replace(os.sep, "/")))


def _color(index: int) -> Color:
    colors = colormap(rgb=True, maximum=1)
    red, green, blue = colors[index % len(colors)]
    return float(red), float(green), float(blue)


def _css(index: int) -> str:
    return ", ".join(str(round(255 * value)) for value in _color(index))
