"""The page: layout, and which event calls what."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from . import events
from .editor import build_editor
from .events import handled
from .limits import Limits
from .methods import MethodPool
from .session import Session
from .texts import CSS, INTRODUCTION, STEPS
from .views import query_view

__all__ = ["build_page", "look"]

# No event is an interface for programs, and none waits for another visitor's.
_EVENT = {"api_visibility": "private", "concurrency_limit": None}
_SIDES = ("left", "top", "right", "bottom")  # of a box, pixels


def look() -> dict[str, Any]:
    """Arguments of `launch` for colours and fonts; only fonts that every machine has."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return {"theme": theme, "css": CSS}


def build_page(pool: MethodPool, limits: Limits, folder: Path, *, keep: int = 3600) -> gr.Blocks:
    """Build the page.

    Args:
        pool: methods to choose from.
        limits: of each visitor.
        folder: takes the visitors' files.
        keep: seconds after which files of visitors are deleted.
    """
    with gr.Blocks(
        title="Few-shot segmentation", analytics_enabled=False, delete_cache=(min(keep, 600), keep)
    ) as page:
        session = gr.State(Session(pool, limits, folder), delete_callback=lambda gone: gone.files.clear())
        gr.Markdown(INTRODUCTION)
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
    """Step 1: pictures of the object, and the three ways to mark it; returns the pictures as marked."""
    gr.Markdown(STEPS[0])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            upload = _upload("support-upload", "Pictures of the object")
            gallery = gr.Gallery(height=200, **_gallery("supports"))
            class_name = gr.Textbox("object", label="What is it?", max_length=60, elem_id="class-name")
            with gr.Row():
                unmark = gr.Button("Unmark", size="sm", min_width=60)
                remove = gr.Button("Remove", size="sm", min_width=60)
                clear = gr.Button("Remove all", size="sm", min_width=60)
        with gr.Column(scale=5, min_width=320):
            status = gr.Markdown("Add a picture that shows the object.", elem_id="status")
            with gr.Tab("Paint", id="paint"):
                editor = build_editor(limits)
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
    """Step 2: pictures to look through, method and threshold, what was found; returns the last two inputs."""
    gr.Markdown(STEPS[1])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            upload = _upload("query-upload", "Pictures to look through")
            clear = gr.Button("Remove all", size="sm")
            method = gr.Dropdown(list(pool.names), value=pool.names[0], label="Method", elem_id="method")
            threshold = gr.Slider(
                0, 0.99, 0.5, step=0.01, label="Threshold: higher finds less", elem_id="threshold"
            )
            find = gr.Button("Find the object", variant="primary", elem_id="find")
            gallery = gr.Gallery(height=240, **_gallery("queries"))
        with gr.Column(scale=5, min_width=320):
            gr.Markdown("Click a pixel to see where in your examples it looks.")
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
        changed(handled(query_view), inputs, view, **quiet, **_EVENT)
    supports.change(handled(events.drop_outdated), inputs, view, **quiet, **_EVENT)
    gallery.select(handled(events.choose_query), inputs, [chosen, attention, said], **_EVENT)
    chosen.select(handled(events.attend), [session, method], [attention, said], **_EVENT)
    return settings


def _take_masks(session: gr.State, settings: list[Any], packed: gr.File) -> None:
    """Step 3: the zip file."""
    gr.Markdown(STEPS[2])
    with gr.Row():
        pack = gr.Button("Pack the masks", variant="primary", elem_id="pack")
        packed.render()
    pack.click(handled(events.pack), [session, *settings], packed, **_EVENT)


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
