"""What happens when a visitor does something; each handler gets the session first."""

import logging
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from fss_d2.inference.annotations import Box

from .drawing import to_picture
from .messages import EXPECTED_ERRORS, public_message
from .session import Session
from .views import chosen_view, query_view, support_view

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
    "handled",
    "name_object",
    "open_support",
    "pack",
    "paint",
    "read_mask",
]

logger = logging.getLogger(__name__)

_NO_MAPS = "**{}** keeps no record of where a pixel looks; methods of the DCAMA family do."


def handled(handler: Callable[..., Any], *, emptied: Any = None) -> Callable[..., Any]:
    """Let events of a session take turns, and turn errors into one line for the visitor.

    Args:
        handler: takes the session first.
        emptied: component that loses its value in any case; after an error all others stay as they are.
    """

    @wraps(handler)
    def handle(session: Session, *arguments: Any) -> Any:
        """The handler's answer, or a warning in the page."""
        with session.lock:
            try:
                return handler(session, *arguments)
            except EXPECTED_ERRORS as error:
                logger.info("refused: %s", error)
                gr.Warning(escape(public_message(error)), title="")
                return gr.skip() if emptied is None else {emptied: None}

    return handle


def add_supports(session: Session, class_name: str, files: Sequence[str]) -> tuple[Any, ...]:
    """Pictures of the object were uploaded; the field that they came by is emptied."""
    session.supports.add(files, class_name.strip() or "object")
    return *support_view(session), None


def open_support(session: Session, event: gr.SelectData) -> tuple[Any, ...]:
    """A picture of the gallery was clicked."""
    session.supports.select(event.index)
    return support_view(session)


def name_object(session: Session, class_name: str) -> Any:
    """The name of the object was typed."""
    if session.supports.pictures:
        session.supports.name_class(class_name)
    return support_view(session)[0]


def paint(session: Session, class_name: str, drawn: dict[str, Any] | None) -> tuple[Any, ...]:
    """What was painted is the object; go on with the next picture."""
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


def read_mask(session: Session, class_name: str, file: str) -> tuple[Any, ...]:
    """A mask was uploaded; the field that it came by is emptied."""
    session.supports.name_class(class_name)
    session.supports.read_mask(file)
    return *support_view(session), None


def change_support(action: str, session: Session) -> tuple[Any, ...]:
    """Do something with the open picture or all of them: "unmark", "remove" or "clear"."""
    getattr(session.supports, action)()
    return support_view(session)


def add_queries(session: Session, method: str, threshold: float, files: Sequence[str]) -> tuple[Any, ...]:
    """Pictures to look through were uploaded; the field that they came by is emptied."""
    session.add_queries(files)
    return *query_view(session, method, threshold), None


def clear_queries(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """All pictures to look through shall go."""
    session.clear_queries()
    return query_view(session, method, threshold)


def drop_outdated(session: Session, method: str, threshold: float) -> Any:
    """Supports may have changed: masks that were found with others go."""
    return query_view(session, method, threshold) if session.drop_outdated() else gr.skip()


def find(
    session: Session,
    method: str,
    threshold: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008
) -> tuple[Any, ...]:
    """Look through all pictures."""
    session.find(method, lambda done, total: progress((done, total), desc="Looking"))
    return query_view(session, method, threshold)


def choose_query(session: Session, method: str, threshold: float, event: gr.SelectData) -> tuple[Any, ...]:
    """A picture that was looked through was clicked; what was said of the last one goes."""
    hidden = gr.update(visible=False)
    return chosen_view(session, method, threshold, event.index), hidden, hidden


def attend(session: Session, method: str, event: gr.SelectData) -> tuple[Any, Any]:
    """A pixel was clicked: show where it looks, or say that the method cannot tell."""
    if not session.pool.has_attention(method):
        return gr.update(visible=False), gr.update(value=_NO_MAPS.format(method), visible=True)
    height, width = session.query(session.chosen).pixels.shape[:2]
    drawn = session.attention(method, session.chosen, to_picture(tuple(event.index), height, width))
    return gr.update(value=session.files.picture(drawn), visible=True), gr.update(visible=False)


def pack(session: Session, method: str, threshold: float) -> Any:
    """Offer the zip file."""
    content = session.zip_file(method, threshold)
    return gr.update(value=session.files.file(content, "/masks.zip"), visible=True)
