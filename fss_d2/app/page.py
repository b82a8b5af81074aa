"""The page: texts, layout, and which event calls what."""

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from fss_d2.label import REVIEW_BELOW

from . import events, result_events
from .drawing import CANVAS
from .events import handled
from .methods import MethodPool
from .painter import PAINTER, painter_class
from .session import Session
from .uploads import LONGEST_NAME, Limits

__all__ = ["build_page", "look"]

# No event is an interface for programs, and none waits for another visitor's.
_EVENT = {"api_visibility": "private", "concurrency_limit": None}
_SIDES = ("left", "top", "right", "bottom")  # of a box, pixels

_INTRODUCTION = """
# Few-shot segmentation
Mark an object in a few pictures, and get its mask in many others. Your pictures go to no other server.
"""
_STEPS = (
    "## <b>1</b> Show the object\nAdd pictures. Paint over the object, draw boxes, or upload a mask. "
    "Pictures or parts that do **not** show it help, too: mark them as such.",
    "## <b>2</b> Search pictures\nAdd the pictures to search, then press **Find the object**.",
    "## <b>3</b> Check the masks\nAccept what is right, fix what is wrong. The expected IoU, from 0 to 1, "
    f"estimates how far a mask agrees with the true one; ⚠ marks pictures below {REVIEW_BELOW}, ∅ those that "
    "are judged to show no object.",
    "## <b>4</b> Download the masks\nPNG masks, COCO JSON, overlays and the list to review in one zip file.",
)
# Buttons to review a picture: text, key and look. The script presses the button whose key is pressed.
_REVIEW = {
    "previous": ("Previous", "←", "secondary"),
    "accept": ("✓ Accept", "A", "primary"),
    "fix": ("Fix", "F", "secondary"),
    "redo": ("Redo", "R", "secondary"),
    "next": ("Next", "→", "secondary"),
}
_KEYS = """<script>
const reviewing = {a: "accept", f: "fix", r: "redo", ArrowLeft: "previous", ArrowRight: "next"};
const fixing = {s: "save-fix", e: "use-fix", Escape: "cancel-fix"};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.repeat) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let busy = "input, textarea, select, [contenteditable], #editor";
  if (key.startsWith("Arrow")) busy += ", [role=tab], [role=tablist], [role=slider], [role=radio]";
  if (event.target.closest && event.target.closest(busy)) return;
  const keys = document.getElementById("save-fix")?.offsetParent ? fixing : reviewing;
  const button = Object.hasOwn(keys, key) && document.getElementById(keys[key]);
  if (!button || button.disabled || !button.offsetParent) return;
  event.preventDefault();
  button.click();
});
</script>"""
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
    fonts = {
        "font": ["ui-sans-serif", "system-ui", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }
    return {"theme": gr.themes.Default(primary_hue="indigo", **fonts), "css": _CSS, "head": _KEYS}


def build_page(pool: MethodPool, limits: Limits, folder: Path, *, keep: int = 3600) -> gr.Blocks:
    """Build the page; the files of visitors lie in ``folder`` and are deleted after ``keep`` seconds."""
    with gr.Blocks(
        title="Few-shot segmentation", analytics_enabled=False, delete_cache=(min(keep, 600), keep)
    ) as page:
        session = gr.State(Session(pool, limits, folder), delete_callback=lambda gone: gone.files.clear())
        gr.Markdown(_INTRODUCTION)
        with gr.Column(elem_classes="step"):
            supports = _show_object(session, limits)
        with gr.Column(elem_classes="step"):
            give = _give_pictures(session, pool)
        with gr.Column(elem_classes="step"):
            check = _check_masks(limits)
        with gr.Column(elem_classes="step"):
            packed = gr.File(label="Zip file", interactive=False, visible=False, elem_id="zip", render=False)
            _take_masks(session, [give["method"], give["threshold"]], packed)
        _connect_review(session, supports, give, check, packed)
        # Gradio deletes only states that an event has set.
        page.load(lambda: Session(pool, limits, folder), None, session, api_name="start", **_EVENT)
    return page


def _show_object(session: gr.State, limits: Limits) -> list[Any]:
    """Step 1: pictures of the object, and three ways to mark it; returns what shows them."""
    gr.Markdown(_STEPS[0])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            upload = _upload("support-upload", "Pictures of the object")
            gallery = gr.Gallery(height=230, **_gallery("supports", 3))
            name = {"label": "Name of the object", "max_length": LONGEST_NAME}
            class_name = gr.Textbox("object", elem_id="class-name", **name)
            with gr.Row():
                unmark = gr.Button("Unmark", size="sm", min_width=60)
                remove = gr.Button("Remove", size="sm", min_width=60)
                clear = gr.Button("Remove all", size="sm", min_width=60)
        with gr.Column(scale=5, min_width=320):
            status = gr.Markdown("Add a picture that shows the object.", elem_id="status")
            with gr.Row():
                choices = {"choices": list(events.MEANINGS), "value": events.MEANINGS[0]}
                meaning = gr.Radio(label="What I mark is", elem_id="meaning", scale=2, **choices)
                absent = gr.Button("The whole picture does not show it", elem_id="absent", scale=1)
            with gr.Tab("Paint", id="paint"):
                editor = painter_class(limits)(label="Paint over the object", elem_id="editor", **PAINTER)
                painted = gr.Button("Add what I painted", variant="primary", elem_id="use-paint")
            with gr.Tab("Box", id="box"):
                boxed = gr.Image(label="Click two opposite corners", elem_id="boxed", **_image())
                with gr.Row():
                    sides = [gr.Number(label=name, precision=1, min_width=70) for name in _SIDES]
                    numbers = gr.Button("Add this box", elem_id="add-box")
            with gr.Tab("Mask file", id="mask"):
                mask = _upload("mask-upload", "Mask of this picture, white where the object is", "single")
                values = gr.Textbox(
                    label="What the values of mask files mean",
                    info="Those of the object, such as 1,2 or nonzero or #ff0000; ignore=255 may follow.",
                    max_length=200,
                    visible=False,
                    elem_id="mask-values",
                )
    view = [gallery, class_name, editor, boxed, meaning, status]
    both = [session, class_name]
    quiet = {"show_progress": "hidden", **_EVENT}
    upload.upload(handled(events.add_supports, emptied=upload), [*both, upload], [*view, upload], **quiet)
    gallery.select(handled(events.open_support), session, view, **quiet)
    class_name.blur(handled(events.name_object), both, [gallery, editor], **quiet)
    painted.click(handled(events.paint), [*both, editor], view, **quiet)
    boxed.select(handled(events.click_corner), both, view, **quiet)
    numbers.click(handled(events.add_box), [*both, *sides], view, **quiet)
    read = [*view, mask, values]
    mask.upload(handled(events.read_mask, emptied=mask), [*both, mask, values], read, **quiet)
    meaning.input(handled(events.mean_negative), [*both, meaning], view, **quiet)
    absent.click(handled(events.mark_absent), both, view, **quiet)
    values.submit(handled(events.mask_values), [*both, values], read, **quiet)
    for button, action in ((unmark, "unmark"), (remove, "remove"), (clear, "clear")):
        button.click(handled(partial(events.change_support, action)), session, view, api_name=action, **quiet)
    return view


def _give_pictures(session: gr.State, pool: MethodPool) -> dict[str, Any]:
    """Step 2: pictures to search, method and threshold; returns the components."""
    gr.Markdown(_STEPS[1])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            upload = _upload("query-upload", "Pictures to search")
            clear = gr.Button("Remove all", size="sm", elem_id="clear-queries")
        with gr.Column(scale=5, min_width=320):
            method = gr.Dropdown(list(pool.names), value=pool.names[0], label="Method", elem_id="method")
            threshold = gr.Slider(
                0, 0.99, 0.5, step=0.01, label="Threshold: higher finds less", elem_id="threshold"
            )
            least = pool.present_above(pool.names[0])
            what = "Mask only what is there with at least this probability; 0 masks every picture"
            present = gr.Slider(0, 0.99, least, step=0.01, label=what, elem_id="present-above")
            find = gr.Button("Find the object", variant="primary", elem_id="find")
    settings = {"method": method, "threshold": threshold, "present": present}
    return {"upload": upload, "clear": clear, "find": find, **settings}


def _check_masks(limits: Limits) -> dict[str, Any]:
    """Step 3: the masks, and the buttons to review them; returns the components."""
    gr.Markdown(_STEPS[2])
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            gallery = gr.Gallery(height=420, **_gallery("queries", 2))
        with gr.Column(scale=5, min_width=320):
            state = gr.Markdown("Add the pictures to search.", elem_id="state")
            with gr.Row():
                buttons = {key: _key_button(key, *text) for key, text in _REVIEW.items()}
            fixing = _fix_panel(limits)
            with gr.Tab("Masks", id="masks"):
                large = {"show_label": False, **_image(), "buttons": ["fullscreen"]}
                chosen = gr.Image(elem_id="chosen", **large)
                gr.Markdown("Click a pixel to see where it looks in your pictures of step 1.")
                said = gr.Markdown(visible=False, elem_id="said")
                attention = gr.Image(elem_id="attention", visible=False, **large)
            with gr.Tab("Compare with the picture", id="compare"):
                compared = gr.ImageSlider(
                    elem_id="compared",
                    show_label=False,
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=720,
                )
    table = gr.HTML(elem_id="table")
    shown = {"gallery": gallery, "table": table, "chosen": chosen, "attention": attention, "said": said}
    return {**shown, "compared": compared, "state": state, **buttons, **fixing}


def _fix_panel(limits: Limits) -> dict[str, Any]:
    """The painter for a mask that was found; it is hidden until it is needed."""
    with gr.Column(visible=False, elem_id="fix-panel") as panel:
        gr.Markdown("Paint what is missing, erase what is too much. Then save.")
        classes = gr.Radio([], label="Object", visible=False, elem_id="fix-class")
        square = {"canvas_size": (CANVAS, CANVAS), "height": 600}
        painter = painter_class(limits)(label="Correct the mask", elem_id="fixer", **square, **PAINTER)
        with gr.Row():
            save = gr.Button("Save [S]", variant="primary", min_width=60, elem_id="save-fix")
            use = gr.Button("Save, and use as an example [E]", min_width=60, elem_id="use-fix")
            cancel = gr.Button("Cancel [Esc]", min_width=60, elem_id="cancel-fix")
    return {
        "panel": panel,
        "classes": classes,
        "painter": painter,
        "save": save,
        "use": use,
        "cancel": cancel,
    }


def _take_masks(session: gr.State, settings: list[Any], packed: gr.File) -> None:
    """Step 4: the zip file."""
    gr.Markdown(_STEPS[3])
    with gr.Row():
        pack = gr.Button("Make the zip file", variant="primary", elem_id="pack")
        packed.render()
    pack.click(handled(result_events.pack), [session, *settings], packed, show_progress_on=packed, **_EVENT)


def _connect_review(
    session: gr.State, supports: list[Any], give: dict[str, Any], check: dict[str, Any], packed: gr.File
) -> None:
    """Which event of steps 2 and 3 calls what; ``supports`` are the components that step 1 shows."""
    inputs = [session, give["method"], give["threshold"]]
    names = ("gallery", "table", "chosen", "attention", "said")
    view = [*(check[name] for name in names), packed, check["compared"], check["state"], check["panel"]]
    quiet = {"show_progress": "hidden", **_EVENT}
    latest = {"trigger_mode": "always_last", **quiet}
    gallery, status = supports[0], supports[-1]
    upload = give["upload"]
    added = handled(result_events.add_queries, emptied=upload)
    upload.upload(added, [*inputs, upload], [*view, upload], **quiet)
    give["clear"].click(handled(result_events.clear_queries), inputs, view, **quiet)
    give["find"].click(
        handled(result_events.find),
        inputs,
        [*view, gallery, status],
        show_progress_on=check["gallery"],
        **_EVENT,
    )
    for changed in (give["method"].change, give["threshold"].release):
        changed(handled(result_events.query_view), inputs, view, **latest)
    limit = give["present"]
    limit.release(handled(result_events.set_present_above), [*inputs, limit], view, **latest)
    gallery.change(handled(result_events.drop_outdated), inputs, view, **latest)
    check["gallery"].select(handled(result_events.choose_query), inputs, view, **quiet)
    pixel = [check["attention"], check["said"]]
    check["chosen"].select(
        handled(result_events.attend), inputs[:2], pixel, show_progress_on=check["chosen"], **_EVENT
    )
    check["accept"].click(handled(result_events.accept), inputs, view, **quiet)
    check["redo"].click(handled(result_events.redo), inputs, view, show_progress_on=check["chosen"], **_EVENT)
    for name, step in (("previous", -1), ("next", 1)):
        moved = handled(partial(result_events.move, step))
        check[name].click(moved, inputs, view, api_name=name, **latest)
    _connect_fixing(inputs, view, supports, check)


def _connect_fixing(inputs: list[Any], view: list[Any], supports: list[Any], check: dict[str, Any]) -> None:
    quiet = {"show_progress": "hidden", **_EVENT}
    panel, classes, painter = check["panel"], check["classes"], check["painter"]
    check["fix"].click(handled(result_events.fix), inputs, [panel, classes, painter], **quiet)
    classes.input(handled(result_events.fix_class), [*inputs, classes], painter, **quiet)
    for name, as_support in (("save", False), ("use", True)):
        saved = handled(partial(result_events.save_fix, as_support))
        check[name].click(
            saved, [*inputs, classes, painter], [*view, *supports], api_name=f"{name}_fix", **quiet
        )
    check["cancel"].click(result_events.cancel_fix, None, panel, **quiet)


def _key_button(key: str, text: str, hint: str, variant: str) -> gr.Button:
    return gr.Button(f"{text} [{hint}]", size="sm", min_width=60, variant=variant, elem_id=key)


def _upload(elem_id: str, label: str, count: str = "multiple") -> gr.File:
    return gr.File(file_count=count, file_types=["image"], label=label, height=140, elem_id=elem_id)


def _gallery(elem_id: str, columns: int) -> dict[str, Any]:
    off = dict.fromkeys(("fit_columns", "show_label", "interactive", "allow_preview"), False)
    return {"columns": columns, "buttons": [], "object_fit": "contain", "elem_id": elem_id, **off}


def _image() -> dict[str, Any]:
    return {"interactive": False, "buttons": [], "sources": None}
