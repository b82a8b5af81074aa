"""The pictures of ``fss-d2 demo``: of each kind of cells one picture is annotated, the rest is labelled."""

import logging
import os
import sys
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tabulate import tabulate

from fss_d2.evaluation.metrics import count_areas
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.io.files import printable, write_atomic
from fss_d2.io.progress import progress
from fss_d2.model_zoo import CELLS
from fss_d2.visualization.tiles import draw_tile, picture_grid, picture_row, save_picture

from .supports import Support, read_supports

__all__ = ["Labelled", "draw_kind", "label_cells", "label_kind", "show_page"]

logger = logging.getLogger(__name__)

_HEIGHT = 150  # of a picture, pixels
_KNOWN = (0.0, 0.85, 0.3)  # colour of known masks
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>fss_d2: cells</title>
<style>
body { font: 15px sans-serif; margin: 1.5em }
img { width: 100%; max-width: 1400px }
td, th { padding: .1em 1em .1em 0 }
</style></head><body><h1>One annotated picture, four labelled ones</h1>
<p>Left, in green: the picture that is annotated. Upper row, in red: what the model of the package finds with
it. Lower row, in green: the known masks, which the model has not seen. IoU is the overlap of both, 100 where
they are equal.</p>
<p><img src="cells.png" alt="Pictures of cells with masks"></p>
"""


class Labelled(NamedTuple):
    """A picture whose true mask is known, with the mask that was found."""

    picture: Support
    found: np.ndarray  # (H, W) bool

    @property
    def iou(self) -> float:
        """Of the found and the true mask, 0 to 100."""
        intersection, union = count_areas(self.found, self.picture.mask)
        return 100.0 * float(intersection[1]) / max(float(union[1]), 1.0)


def label_cells(output: Path, predictor: FewShotPredictor | None = None) -> Path:
    """Label the pictures of each kind with its first one; log a table, write `cells.png` and a page with it.

    ``predictor`` is by default that of the package. Returns the path of the page.
    """
    predictor = predictor or FewShotPredictor.from_config(present_above=0.0)
    kinds = dict(reversed(read_supports(CELLS).items()))  # purple first
    rows, pictures = [], []
    with _one_thread(), progress("Label", sum(len(of_kind) - 1 for of_kind in kinds.values())) as advance:
        for kind, (annotated, *others) in kinds.items():
            labelled = []
            for one in label_kind(predictor, annotated, others):
                labelled.append(one)
                advance()
            pictures.append(draw_kind(annotated, labelled))
            scores = [round(one.iou, 1) for one in labelled]
            rows.append([f"{kind} cells", *scores, round(float(np.mean(scores)), 1)])
    header = ["IoU, %", *(f"picture {i}" for i in range(2, len(rows[0]))), "mean"]
    logger.info("Found with one annotated picture:\n%s", tabulate(rows, header, tablefmt="github"))
    save_picture(output / "cells.png", picture_grid(pictures))
    page = output / "cells.html"
    write_atomic(page, f"{_PAGE}{tabulate(rows, header, tablefmt='html')}\n</body></html>\n".encode())
    return page


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tiles are small: more threads are hardly faster, and where others need the cores they wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def label_kind(
    predictor: FewShotPredictor, annotated: Support, others: Sequence[Support]
) -> Iterator[Labelled]:
    """Label pictures with one annotated picture of their kind."""
    predictor.set_support(annotated.image, annotated.mask, name="cell")
    for picture in others:
        yield Labelled(picture, predictor.predict(picture.image).masks["cell"])


def draw_kind(annotated: Support, labelled: Sequence[Labelled], height: int = _HEIGHT) -> np.ndarray:
    """Draw the annotated picture and, to its right, what was found above the known masks: (H, W, 3) uint8."""
    first = [
        draw_tile("annotated", annotated.image, height, annotated.mask, _KNOWN),
        draw_tile("the same, as it is", annotated.image, height),
    ]
    found = [draw_tile(f"found: IoU {o.iou:.0f}", o.picture.image, height, o.found) for o in labelled]
    known = [draw_tile("known", o.picture.image, height, o.picture.mask, _KNOWN) for o in labelled]
    pairs = zip(first, (found, known), strict=True)
    return picture_grid([picture_row([tile, *tiles]) for tile, tiles in pairs])


def show_page(page: Path) -> None:
    """Open a page in the browser of a person at a screen; log where it lies in any case."""
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    opened = sys.stdout.isatty() and screen and webbrowser.open(page.resolve().as_uri())
    logger.info("The pictures%s: %s", " are open in the browser" if opened else "", printable(page))
