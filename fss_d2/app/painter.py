"""Gradio's image editor, which keeps and opens no more than the page allows."""

from abc import ABCMeta
from dataclasses import replace
from io import BytesIO
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server

from fss_d2.visualization import class_css

from .drawing import CANVAS, PAINT_OPACITY
from .uploads import MEGA, Limits, open_upload

__all__ = ["PAINTER", "brush_of", "painter_class"]

_MOST_LAYERS = 4  # of a painting; the page itself sends one
_MOST_WAITING = 24_000_000  # bytes that were sent and not used yet, of one visitor; the oldest go first


def brush_of(number: int) -> gr.Brush:
    """A translucent brush in the colour of a class."""
    color = (class_css(number), PAINT_OPACITY)
    return gr.Brush(default_size=24, colors=[color], default_color=color, color_mode="fixed")


# How the page builds a painter.
PAINTER: dict[str, Any] = {
    "sources": (),
    "transforms": (),
    "layers": gr.LayerOptions(disabled=True),
    "brush": brush_of(0),
    "eraser": gr.Eraser(default_size=24),
    "format": "png",
}


def painter_class(limits: Limits) -> type[gr.ImageEditor]:
    """A class of editors whose value is what was painted, (h, w, 4) uint8 layers, without the picture.

    Gradio's own opens any format that Pillow knows at any size, and keeps everything that it gets. Gradio
    builds an editor per visitor from the class of the first one, so this must be a class.
    """

    own = replace(limits, megapixels=max(limits.megapixels, CANVAS * CANVAS / MEGA))

    def read(self: Any, file: Any, flatten_on_white: bool = False) -> np.ndarray | None:
        """In place of `convert_and_format_image`: a painting, checked like an upload."""
        if file is None or flatten_on_white:  # the picture, with or without the painting
            return None
        source = BytesIO(file) if isinstance(file, bytes) else file.path
        with open_upload(source, own, "the painting") as image:
            return np.asarray(image.convert("RGBA"))

    @server
    def accept_blobs(self: Any, data: Any) -> None:
        """In place of Gradio's own: limits the layers and the paintings that are kept."""
        index = str(data.data["index"])
        if index not in ("", "null", "None", *map(str, range(_MOST_LAYERS))):
            raise ValueError(f"a painting of more than {_MOST_LAYERS} layers: paint on one")
        waiting, size = self.blob_storage, sum(len(content) for _, content in data.files)
        while waiting and size + sum(map(_bytes, waiting.values())) > _MOST_WAITING:
            del waiting[next(iter(waiting))]
        gr.ImageEditor.accept_blobs(self, data)

    methods = {"convert_and_format_image": read, "accept_blobs": accept_blobs, "is_template": True}
    # Not by `class` or `type`: for these, Gradio writes a file next to the source.
    return ABCMeta.__new__(type(gr.ImageEditor), "Painter", (gr.ImageEditor,), methods)


def _bytes(painting: Any) -> int:
    parts = (painting.background, painting.composite, *painting.layers)
    return sum(len(part) for part in parts if part)
