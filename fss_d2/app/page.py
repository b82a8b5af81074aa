"""The page: texts, layout, and which event calls what."""

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.components.base import server

from . import events
from .events import handled
from .session import MethodPool, Session
from .uploads import Limits, open_upload

__all__ = ["build_page", "look"]

# No event is an interface for programs, and none waits for another visitor's.
_EVENT = {"api_visibility": "private", "concurrency_limit": None}
_SIDES = ("left", "top", "right", "bottom")  # of a box, pixels
_MOST_LAYERS = 4  # of a painting; the page itself sends one
_MOST_WAITING = 64  # paintings that were sent and not used yet; the oldest goes first

_INTRODUCTION = """
# Few-shot segmentation
Mark an object in a few pictures, and get its mask in many others. Your pictures go to no other server.
"""
_STEPS = (
    "## <b>1</b> Show the object\nAdd pictures. Paint over the object, draw boxes, or upload a mask.",
    "## <b>2</b> Search pictures\nAdd the pictures to search, then press **Find the object**.",
    "## <b>3</b> Download the masks\nPNG masks and COCO JSON in one zip file, at the size of your pictures.",
)
_CSS = """
.gradio-container { max-width: 1180px !important; width: 100% !important; margin: 0 auto !important; }
.gradio-container main { max-width: 100% !important; width: 100% !important; }
.step { border: 1px solid var(--border-color-primary); border-radius: 14px; padding: 18px 20px; }
.step h2 { display: flex; align-items: center; gap: 10px; margin: 0 0 2px 0; }
.step h2 b { background: var(--primary-500); color: white; border-radius: 50%; min-width: 1.6em;
  height: 1.6em; display: inline-flex; align-items: center; justify-content: center; font-size: 0.85em; }
table.findings, .findings tr { border: none !important; }
table.findings { width: 100%; border-collapse: collapse; font-size: 0.92em; }
.findings th, .findings td { text-align: left !important; padding: 5px 12px 5px 0 !important;
  border: none !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.findings i { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 3px; margin-right: 6px; }
.hint { opacity: 0.75; font-size: 0.92em; }
"""


def look() -> dict[str, Any]:
    """Arguments of `launch` for colours and fonts; all fonts are on every machine."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": _CSS}


def build_page(pool: MethodPool, limits: Limits, folder: Path, *, keep: int = 3600) -> gr.Blocks:
    """Build the page.

    Args:
        pool: methods to choose from.
        limits: of each visitor.
        folder: gets the visitors' files.
        keep: seconds until a visitor's file is deleted.
    """
    with gr.Blocks(
        title="Few-shot segmentation", analytics_enabled=False, delete_cache=(min(keep, 600), keep)
    ) as page:
        session = gr.State(Session(pool, limits, folder), delete_callback=lambda gone: gone.files.clear())
        gr.Markdown(_INTRODUCTION)
        with gr.Column(elem_classes="step"):
            supports = _show_object(session, limits)
        with gr.Column(elem_classes="step"):
            packed = gr.File(label="Zip file", interactive=False, visible=False, elem_id="zip", render=False)
            settings = _give_pictures(session, pool, supports, packed)
        with gr.Column(elem_classes="step"):
            _take_masks(session, settings, packed)
        # Gradio deletes only states that an event has set.
        page.load(lambda: Session(pool, limits, folder), None, session, api_name="start", **_EVENT)
    return page


def _show_object(session: gr.State, limits: Limits) -> gr.Gallery:
    """Step 1: pictures of the object, and three ways to mark it; returns the gallery."""
    gr.Markdown(_STEPS[0])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            upload = _upload("support-upload", "Pictures of the object")
            gallery = gr.Gallery(height=200, **_gallery("supports"))
            class_name = gr.Textbox("object", label="Name of the object", max_length=60, elem_id="class-name")
            with gr.Row():
                unmark = gr.Button("Unmark", size="sm", min_width=60)
                remove = gr.Button("Remove", size="sm", min_width=60)
                clear = gr.Button("Remove all", size="sm", min_width=60)
        with gr.Column(scale=5, min_width=320):
            status = gr.Markdown("Add a picture that shows the object.", elem_id="status")
            with gr.Tab("Paint", id="paint"):
                editor = _editor(limits)
                painted = gr.Button("Add what I painted", variant="primary", elem_id="use-paint")
            with gr.Tab("Box", id="box"):
                boxed = gr.Image(label="Click two opposite corners", elem_id="boxed", **_image())
                with gr.Row():
                    sides = [gr.Number(label=name, precision=1, min_width=70) for name in _SIDES]
                    numbers = gr.Button("Add this box", elem_id="add-box")
            with gr.Tab("Mask file", id="mask"):
                mask = _upload("mask-upload", "Mask of this picture, white where the object is", "single")
    view = [gallery, class_name, editor, boxed, status]
    both = [session, class_name]
    upload.upload(handled(events.add_supports, emptied=upload), [*both, upload], [*view, upload], **_EVENT)
    gallery.select(handled(events.open_support), session, view, **_EVENT)
    class_name.blur(handled(events.name_object), both, gallery, show_progress="hidden", **_EVENT)
    painted.click(handled(events.paint), [*both, editor], view, **_EVENT)
    boxed.select(handled(events.click_corner), both, view, **_EVENT)
    numbers.click(handled(events.add_box), [*both, *sides], view, **_EVENT)
    mask.upload(handled(events.read_mask, emptied=mask), [*both, mask], [*view, mask], **_EVENT)
    for button, action in ((unmark, "unmark"), (remove, "remove"), (clear, "clear")):
        button.click(
            handled(partial(events.change_support, action)), session, view, api_name=action, **_EVENT
        )
    return gallery


def _give_pictures(session: gr.State, pool: MethodPool, supports: gr.Gallery, packed: gr.File) -> list[Any]:
    """Step 2: pictures to search, method and threshold, masks; returns the inputs method and threshold."""
    gr.Markdown(_STEPS[1])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            upload = _upload("query-upload", "Pictures to search")
            clear = gr.Button("Remove all", size="sm")
            method = gr.Dropdown(list(pool.names), value=pool.names[0], label="Method", elem_id="method")
            threshold = gr.Slider(
                0, 0.99, 0.5, step=0.01, label="Threshold: higher finds less", elem_id="threshold"
            )
            find = gr.Button("Find the object", variant="primary", elem_id="find")
            gallery = gr.Gallery(height=240, **_gallery("queries"))
        with gr.Column(scale=5, min_width=320):
            gr.Markdown("Click a pixel to see where it looks in your pictures of step 1.")
            chosen = gr.Image(elem_id="chosen", show_label=False, **_image())
            said = gr.Markdown(visible=False, elem_id="said")
            attention = gr.Image(elem_id="attention", show_label=False, visible=False, **_image())
    table = gr.HTML(elem_id="table")
    settings = [method, threshold]
    inputs, view = [session, *settings], [gallery, table, chosen, attention, said, packed]
    upload.upload(handled(events.add_queries, emptied=upload), [*inputs, upload], [*view, upload], **_EVENT)
    clear.click(handled(events.clear_queries), inputs, view, **_EVENT)
    find.click(handled(events.find), inputs, view, **_EVENT)
    quiet = {"show_progress": "hidden", "trigger_mode": "always_last"}
    for changed in (method.change, threshold.release):
        changed(handled(events.query_view), inputs, view, **quiet, **_EVENT)
    supports.change(handled(events.drop_outdated), inputs, view, **quiet, **_EVENT)
    gallery.select(handled(events.choose_query), inputs, [chosen, attention, said], **_EVENT)
    chosen.select(handled(events.attend), [session, method], [attention, said], **_EVENT)
    return settings


def _take_masks(session: gr.State, settings: list[Any], packed: gr.File) -> None:
    """Step 3: the zip file."""
    gr.Markdown(_STEPS[2])
    with gr.Row():
        pack = gr.Button("Make the zip file", variant="primary", elem_id="pack")
        packed.render()
    pack.click(handled(events.pack), [session, *settings], packed, **_EVENT)


def _editor(limits: Limits) -> gr.ImageEditor:
    """Gradio's editor; its value is what was painted, (h, w, 4) uint8 layers, without the picture.

    Gradio's own would open any format that Pillow knows at any size, and keep everything that it gets. For a
    subclass Gradio would write a file next to its source, so the methods of this one object are replaced.
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
        """In place of `convert_and_format_image`: a painting, checked like an upload."""
        if file is None or flatten_on_white:  # the picture, with or without the painting
            return None
        source = BytesIO(file) if isinstance(file, bytes) else file.path
        with open_upload(source, limits, "the painting") as image:
            return np.asarray(image.convert("RGBA"))

    @server
    def accept_blobs(data: Any) -> None:
        """In place of Gradio's own: keeps few layers and few paintings."""
        index = str(data.data["index"])
        if index.isdigit() and int(index) >= _MOST_LAYERS:
            raise ValueError(f"a painting of more than {_MOST_LAYERS} layers: paint on one")
        while len(waiting) >= _MOST_WAITING:
            del waiting[next(iter(waiting))]
        keep(data)

    editor.convert_and_format_image, editor.accept_blobs = read, accept_blobs
    return editor


def _upload(elem_id: str, label: str, count: str = "multiple") -> gr.File:
    return gr.File(file_count=count, file_types=["image"], label=label, height=140, elem_id=elem_id)


def _gallery(elem_id: str) -> dict[str, Any]:
    return {
        "columns": 2,
        "fit_columns": False,
        "buttons": [],
        "show_label": False,
        "interactive": False,
        "allow_preview": False,
        "object_fit": "contain",
        "elem_id": elem_id,
    }


def _image() -> dict[str, Any]:
    return {"interactive": False, "buttons": [], "sources": None}
