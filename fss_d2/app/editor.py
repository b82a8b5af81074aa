"""The field in which a visitor paints."""

from io import BytesIO
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server

from .limits import Limits, open_upload

__all__ = ["build_editor"]

_MOST_LAYERS = 4  # the page itself sends one
_MOST_WAITING = 64  # paintings that were sent, and not taken yet; the oldest goes first


def build_editor(limits: Limits) -> gr.ImageEditor:
    """Gradio's editor, whose value is what was painted: (h, w, 4) uint8 layers, neither picture nor both.

    Gradio's own would open every format that Pillow knows, at any size, and keep all that it is sent. A class
    made from it would have Gradio write a file beside its source; so it is this one object that differs.
    """
    editor = gr.ImageEditor(
        label="Paint over the object",
        sources=(),
        transforms=(),
        layers=gr.LayerOptions(disabled=True),
        brush=gr.Brush(default_size=24, colors=["rgb(26, 115, 242)"], color_mode="fixed"),
        eraser=gr.Eraser(default_size=24),
        format="png",
        elem_id="editor",
    )
    keep, waiting = editor.accept_blobs, editor.blob_storage

    def read(file: Any, flatten_on_white: bool = False) -> np.ndarray | None:
        """In place of `convert_and_format_image`: a painting, checked as an upload is."""
        if file is None or flatten_on_white:  # the picture, or picture and painting
            return None
        source = BytesIO(file) if isinstance(file, bytes) else file.path
        with open_upload(source, limits, "the painting") as image:
            return np.asarray(image.convert("RGBA"))

    @server
    def accept_blobs(data: Any) -> None:
        """In place of Gradio's own: keeps few layers, and few paintings."""
        index = str(data.data["index"])
        if index.isdigit() and int(index) >= _MOST_LAYERS:
            raise ValueError(f"a painting of more than {_MOST_LAYERS} layers: paint on one")
        while len(waiting) >= _MOST_WAITING:
            del waiting[next(iter(waiting))]
        keep(data)

    editor.convert_and_format_image, editor.accept_blobs = read, accept_blobs
    return editor
