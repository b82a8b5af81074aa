"""What happens when a visitor does something, and what the page then shows."""

import logging
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from fss_d2.engine.command_line import one_line
from fss_d2.inference.annotations import Box
from fss_d2.visualization.panels import class_color

from .drawing import draw_support, to_picture
from .session import Finding, Session

__all__ = [
    "add_box",
    "add_queries",
    "add_supports",
    "attend",
    "change_support",
    "choose_query",
    "clear_queries",
    "click_corner",
    "drop_outdated",
    "find",
    "findings_table",
    "handled",
    "name_object",
    "open_support",
    "pack",
    "paint",
    "public_message",
    "query_view",
    "read_mask",
]

logger = logging.getLogger(__name__)

# Raised for input that a method cannot take. Any other error is a bug, of which a visitor sees nothing.
_EXPECTED_ERRORS = (ValueError, OSError, RuntimeError)
_FOLDERS = re.compile(r"""(?:\b[A-Za-z]:)?(?:[\\/][^\s\\/:;,'"()<>]+)*[\\/](?=[^\s\\/])""")
_NO_MAPS = "**{}** cannot show where a pixel looks; methods of the DCAMA family can."


def handled(handler: Callable[..., Any], *, emptied: Any = None) -> Callable[..., Any]:
    """Let the events of a session take turns, and turn an error into one line for the visitor.

    Args:
        handler: gets the session first.
        emptied: component that loses its value in any case; after an error all others stay as they are.
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
    session.supports.add(files, class_name.strip() or "object")
    return *_support_view(session), None


def open_support(session: Session, event: gr.SelectData) -> tuple[Any, ...]:
    """A picture of the gallery was clicked."""
    session.supports.select(event.index)
    return _support_view(session)


def name_object(session: Session, class_name: str) -> Any:
    """The name of the object was typed."""
    if session.supports.pictures:
        session.supports.name_class(class_name)
    return _support_view(session)[0]


def paint(session: Session, class_name: str, drawn: dict[str, Any] | None) -> tuple[Any, ...]:
    """The object was painted; the next picture opens."""
    layers: list[np.ndarray] = drawn["layers"] if drawn else []
    session.supports.name_class(class_name)
    session.supports.paint(layers)
    session.supports.select_next()
    return _support_view(session)


def click_corner(session: Session, class_name: str, event: gr.SelectData) -> tuple[Any, ...]:
    """A corner of a box was clicked."""
    supports = session.supports
    height, width = supports.open.upload.pixels.shape[:2]
    supports.name_class(class_name)
    supports.click(to_picture(tuple(event.index), height, width))
    return _support_view(session)


def add_box(session: Session, class_name: str, *sides: float | None) -> tuple[Any, ...]:
    """A box was typed, in pixels of the picture."""
    if any(side is None for side in sides):
        raise ValueError("a box needs all four numbers: left, top, right, bottom")
    session.supports.name_class(class_name)
    session.supports.add_box(Box(*(float(side) for side in sides if side is not None)))
    return _support_view(session)


def read_mask(session: Session, class_name: str, file: str) -> tuple[Any, ...]:
    """A mask was uploaded; the upload field is emptied."""
    session.supports.name_class(class_name)
    session.supports.read_mask(file)
    return *_support_view(session), None


def change_support(action: str, session: Session) -> tuple[Any, ...]:
    """Do something with the open picture or all of them: "unmark", "remove" or "clear"."""
    getattr(session.supports, action)()
    return _support_view(session)


def add_queries(session: Session, method: str, threshold: float, files: Sequence[str]) -> tuple[Any, ...]:
    """Pictures to search were uploaded; the upload field is emptied."""
    session.add_queries(files)
    return *query_view(session, method, threshold), None


def clear_queries(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """All pictures to search were removed."""
    session.clear_queries()
    return query_view(session, method, threshold)


def drop_outdated(session: Session, method: str, threshold: float) -> Any:
    """Supports may have changed: masks that were found with earlier ones go."""
    return query_view(session, method, threshold) if session.drop_outdated() else gr.skip()


def find(
    session: Session,
    method: str,
    threshold: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008
) -> tuple[Any, ...]:
    """Search all pictures."""
    session.find(method, lambda done, total: progress((done, total), desc="Searching"))
    return query_view(session, method, threshold)


def choose_query(session: Session, method: str, threshold: float, event: gr.SelectData) -> tuple[Any, ...]:
    """A searched picture was clicked: show it large, and hide what is shown about the last one."""
    finding = session.finding(method, threshold, event.index)
    session.chosen = event.index
    hidden = gr.update(visible=False)
    return session.files.picture(finding.picture), hidden, hidden


def attend(session: Session, method: str, event: gr.SelectData) -> tuple[Any, Any]:
    """A pixel was clicked: show its attention in the supports, or say that the method has none."""
    if not session.pool.has_attention(method):
        return gr.update(visible=False), gr.update(value=_NO_MAPS.format(method), visible=True)
    height, width = session.query(session.chosen).pixels.shape[:2]
    drawn = session.attention(method, session.chosen, to_picture(tuple(event.index), height, width))
    return gr.update(value=session.files.picture(drawn), visible=True), gr.update(visible=False)


def pack(session: Session, method: str, threshold: float) -> Any:
    """Offer the zip file."""
    content = session.zip_file(method, threshold)
    return gr.update(value=session.files.file(content, "/masks.zip"), visible=True)


def _support_view(session: Session) -> tuple[Any, ...]:
    """Values of gallery, class name, editor, picture for boxes, and the line that says what is next."""
    supports = session.supports
    show = session.files.picture
    pictures = [
        (show(draw_support(p.upload.pixels, p.mask)), "not marked" if p.mask is None else f"✓ {p.class_name}")
        for p in supports.pictures
    ]
    gallery = gr.update(value=pictures, selected_index=supports.current)
    if supports.current is None:
        return gallery, gr.update(), None, None, _next_step(session)
    picture = supports.open
    marked = pictures[supports.current][0]
    editor = {"background": marked, "layers": [], "composite": None}
    boxed = marked
    if supports.corner is not None:
        boxed = show(draw_support(picture.upload.pixels, picture.mask, supports.corner))
    return gallery, picture.class_name, editor, boxed, _next_step(session)


def _next_step(session: Session) -> str:
    supports = session.supports
    if not supports.pictures:
        return "Add a picture that shows the object."
    if supports.corner is not None:
        return "Now click the opposite corner of the box."
    marked = sum(picture.mask is not None for picture in supports.pictures)
    number = (supports.current or 0) + 1
    what = "is marked" if supports.open.mask is not None else "is not marked yet"
    return f"Picture {number} of {len(supports.pictures)} {what}; {marked} marked in all."


def query_view(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """Values of gallery, table and large picture; attention, its message and the zip file are hidden."""
    findings = session.findings(method, threshold)
    pictures = [(session.files.picture(finding.picture), finding.name) for finding in findings]
    chosen = pictures[session.chosen][0] if pictures else None
    hidden = gr.update(visible=False)
    return gr.update(value=pictures), findings_table(findings), chosen, hidden, hidden, hidden


def findings_table(findings: Sequence[Finding]) -> str:
    """HTML with a row for each class of each picture: picture, class, share of the picture, confidence."""
    rows = []
    for finding in findings:
        for i, (name, area) in enumerate((finding.areas or {}).items()):
            color = ", ".join(str(round(255 * part)) for part in class_color(i))
            confidence = f"{(finding.confidence or {})[name]:.2f}" if area else "not found"
            cells = (
                escape(finding.name),
                f'<i style="background: rgb({color})"></i>{escape(name)}',
                f"{100 * area / finding.pixels:.1f} %",
                confidence,
            )
            rows.append(f'<tr data-pixels="{area}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    if not rows:
        return '<p class="hint">No masks yet.</p>'
    head = "".join(f"<th>{name}</th>" for name in ("Picture", "Object", "Share of picture", "Confidence"))
    return f'<table class="findings"><tr>{head}</tr>{"".join(rows)}</table>'
