"""What the page's components show of a session."""

from typing import Any

import gradio as gr

from .drawing import draw_support
from .session import Session
from .texts import findings_table

__all__ = ["chosen_view", "query_view", "support_view"]


def support_view(session: Session) -> tuple[Any, ...]:
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
    """Values of gallery, table, and the picture to look at closely; what is older than they is hidden."""
    findings = session.findings(method, threshold)
    pictures = [(session.files.picture(finding.picture), finding.name) for finding in findings]
    chosen = pictures[session.chosen][0] if pictures else None
    hidden = gr.update(visible=False)  # attention, the message in its place, the zip file
    return gr.update(value=pictures), findings_table(findings), chosen, hidden, hidden, hidden


def chosen_view(session: Session, method: str, threshold: float, number: int) -> str:
    """The picture to look at closely from now on."""
    finding = session.finding(method, threshold, number)
    session.chosen = number
    return session.files.picture(finding.picture)
