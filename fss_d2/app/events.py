"""What happens when a visitor shows and marks objects (step 1), and what the page then shows."""

import logging
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from fss_d2.data.mask_values import UnclearMask
from fss_d2.engine.command_line import one_line
from fss_d2.inference.annotations import Box

from .drawing import draw_support, to_picture
from .painter import brush_of
from .session import Session

__all__ = ["MEANINGS", "add_box", "add_supports", "change_support", "click_corner", "handled"]
__all__ += [
    "mark_absent",
    "mask_values",
    "mean_negative",
    "name_object",
    "open_support",
    "paint",
    "plain",
    "public_message",
    "read_mask",
    "support_view",
]

logger = logging.getLogger(__name__)

MEANINGS = ("the object", "not the object")  # of what is marked

# Raised for input that a method cannot take. Any other error is a bug, of which a visitor sees nothing.
_EXPECTED_ERRORS = (ValueError, OSError, RuntimeError)
_MARK_UP = re.compile(r"[^\w\s.,;%?'()-]|_")
_FOLDERS = re.compile(r"""(?:\b[A-Za-z]:)?(?:[\\/][^\s\\/:;,'"()<>]+)*[\\/](?=[^\s\\/])""")


def handled(handler: Callable[..., Any], *, emptied: Any = None) -> Callable[..., Any]:
    """Let the events of a session take turns, and turn an error into one line for the visitor.

    The component ``emptied`` loses its value also after an error; all others then stay as they are.
    """

    @wraps(handler)
    def handle(session: Session, *arguments: Any) -> Any:
        with session.lock:
            try:
                return handler(session, *arguments)
            except _EXPECTED_ERRORS as error:
                logger.info("refused: %s", error)
                gr.Warning(escape(public_message(error)), title="")
                return gr.skip() if emptied is None else {emptied: None}

    return handle


def plain(text: str) -> str:
    """Markdown that shows a text as it is: names of files and objects are no mark-up."""
    return _MARK_UP.sub(lambda found: f"&#{ord(found[0])};", text)


def public_message(error: BaseException) -> str:
    """The message of an expected error on one line; paths in it lose their folders."""
    lines = str(error).strip().splitlines()
    text = one_line(error) or (lines[0] if lines else type(error).__name__)
    return _FOLDERS.sub(_last_part, text)


def _last_part(found: re.Match[str]) -> str:
    """Nothing in place of folders; a slash between words ("and/or") stays."""
    start = found.start()
    inside_word = start > 0 and found.string[start - 1].isalnum()
    return found.group() if inside_word and len(found.group()) == 1 else ""


def add_supports(session: Session, class_name: str, files: Sequence[str]) -> tuple[Any, ...]:
    """Pictures of an object were uploaded; the upload field is emptied."""
    session.add_supports(files, class_name.strip() or "object")
    return *support_view(session), None


def open_support(session: Session, event: gr.SelectData) -> tuple[Any, ...]:
    """A picture of the gallery was clicked."""
    session.supports.select(event.index)
    return support_view(session)


def name_object(session: Session, class_name: str) -> Any:
    """The name of the object was typed: gallery, and the brush in the colour of the class."""
    supports = session.supports
    if not supports.pictures or class_name.strip() == supports.open.class_name:
        return gr.skip()
    supports.name_class(class_name)
    return support_view(session)[0], gr.update(brush=brush_of(supports.number_of(supports.open.class_name)))


def paint(session: Session, class_name: str, drawn: dict[str, Any] | None) -> tuple[Any, ...]:
    """The object was painted; the next picture opens."""
    layers: list[np.ndarray] = drawn["layers"] if drawn else []
    session.supports.name_class(class_name)
    session.supports.paint(layers)
    session.supports.select_next()
    return support_view(session)


def click_corner(session: Session, class_name: str, event: gr.SelectData) -> tuple[Any, ...]:
    """A corner of a box was clicked."""
    supports = session.supports
    height, width = supports.open.upload.pixels.shape[:2]
    supports.name_class(class_name)
    supports.click(to_picture(tuple(event.index), height, width))
    return support_view(session)


def add_box(session: Session, class_name: str, *sides: float | None) -> tuple[Any, ...]:
    """A box was typed, in pixels of the picture."""
    if any(side is None for side in sides):
        raise ValueError("a box needs all four numbers: left, top, right, bottom")
    session.supports.name_class(class_name)
    session.supports.add_box(Box(*(float(side) for side in sides if side is not None)))
    return support_view(session)


def read_mask(session: Session, class_name: str, file: str, values: str) -> tuple[Any, ...]:
    """A mask was uploaded; the upload field is emptied, and the next picture opens.

    ``values`` say what its values mean. The field for them appears when they are not understood.
    """
    session.supports.name_class(class_name)
    try:
        session.supports.read_mask(file, values)
    except UnclearMask as error:
        asked = f"{error.found}: answer in the field below, {error.example}, and press Enter"
        gr.Warning(escape(public_message(ValueError(asked))), title="")
        return *[gr.skip()] * 6, None, gr.update(visible=True)
    session.supports.select_next()
    return *support_view(session), None, gr.skip()


def mask_values(session: Session, class_name: str, values: str) -> tuple[Any, ...]:
    """The values of mask files were explained: the mask that was not understood is read again."""
    if session.supports.unclear is None:
        return (gr.skip(),) * 8  # they count from the next mask on
    return read_mask(session, class_name, session.supports.unclear, values)


def mean_negative(session: Session, class_name: str, meaning: str) -> tuple[Any, ...]:
    """Chosen was what the marks of the open picture mean, one of `MEANINGS`."""
    session.supports.name_class(class_name)
    session.supports.mean_negative(meaning == MEANINGS[1])
    return support_view(session)


def mark_absent(session: Session, class_name: str) -> tuple[Any, ...]:
    """The whole open picture does not show the object; the next picture opens."""
    session.supports.name_class(class_name)
    session.supports.mark_absent()
    session.supports.select_next()
    return support_view(session)


def change_support(action: str, session: Session) -> tuple[Any, ...]:
    """Do something with the open picture or all of them: "unmark", "remove" or "clear"."""
    getattr(session.supports, action)()
    return support_view(session)


def support_view(session: Session) -> tuple[Any, ...]:
    """Values of gallery, class name, editor, picture for boxes, meaning of marks, and what is next."""
    supports, show = session.supports, session.files.picture
    doubtful = session.hints(session.method)
    pictures = []
    for i, one in enumerate(supports.pictures):
        number = None if one.negative else supports.number_of(one.class_name)
        drawn = draw_support(one.upload.pixels, one.mask, number)
        sign = "✗ not" if one.negative else "⚠" if i in doubtful else "✓"
        pictures.append((show(drawn), "not marked" if one.mask is None else f"{sign} {one.class_name}"))
    gallery = gr.update(value=pictures, selected_index=supports.current)
    if supports.current is None:
        return gallery, gr.update(), gr.update(value=None), None, MEANINGS[0], _next_step(session)
    picture = supports.open
    number = None if picture.negative else supports.number_of(picture.class_name)
    marked = pictures[supports.current][0]
    painter = {"background": marked, "layers": [], "composite": None}
    boxed = marked
    if supports.corner is not None:
        boxed = show(draw_support(picture.upload.pixels, picture.mask, number, supports.corner))
    editor = gr.update(value=painter, brush=brush_of(supports.number_of(picture.class_name)))
    meaning = MEANINGS[picture.negative]
    return gallery, picture.class_name, editor, boxed, meaning, _next_step(session)


def _next_step(session: Session) -> str:
    """The state of the open picture, and a line for each doubtful one."""
    supports = session.supports
    if not supports.pictures:
        return "Add a picture that shows the object."
    if supports.corner is not None:
        return "Now click the opposite corner of the box."
    marked = sum(picture.mask is not None for picture in supports.pictures)
    number, name = (supports.current or 0) + 1, supports.open.upload.name
    what = "is marked" if supports.open.mask is not None else "is not marked yet"
    if supports.open.mask is not None and supports.open.negative:
        what = f"is marked where it does not show {supports.open.class_name}"
    lines = [f"Picture {number} of {len(supports.pictures)}, {name}, {what}; {marked} marked in all."]
    for i, hint in session.hints(session.method).items():
        lines.append(f"⚠ Picture {i + 1}, {supports.pictures[i].upload.name}: {hint}")
    return "\n\n".join(map(plain, lines))
