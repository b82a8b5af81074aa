"""What happens when a visitor searches pictures and reviews the masks, and what the page then shows."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from fss_d2.visualization import class_css

from .drawing import on_canvas, paint_layer, to_picture
from .events import plain, support_view
from .painter import brush_of
from .results import QUALITY
from .session import Finding, Session

__all__ = ["accept", "add_queries", "attend", "cancel_fix", "choose_query", "clear_queries", "drop_outdated"]
__all__ += ["find", "findings_table", "fix", "fix_class", "move", "pack", "query_view", "redo", "save_fix"]
__all__ += ["set_present_above"]

_NO_MAPS = "**{}** cannot show where a pixel looks; methods of the DCAMA family can."
_HIDDEN = {"visible": False}


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
    """Search all pictures; doubtful supports are marked in their gallery."""
    session.method = method
    session.find(method, lambda done, total, what: progress((done, total), desc=what, unit="steps"))
    gallery, *_, status = support_view(session)
    return *query_view(session, method, threshold), gallery, status


def set_present_above(session: Session, method: str, threshold: float, limit: float) -> tuple[Any, ...]:
    """Another limit was chosen for what counts as present."""
    session.present_above = limit
    return query_view(session, method, threshold)


def choose_query(session: Session, method: str, threshold: float, event: gr.SelectData) -> tuple[Any, ...]:
    """A searched picture was clicked."""
    session.choose(event.index)
    return query_view(session, method, threshold)


def move(step: int, session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """Go to the next picture (1) or the one before (-1)."""
    if session.queries:
        session.choose((session.chosen + step) % len(session.queries))
    return query_view(session, method, threshold)


def accept(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """The masks of the picture are right; the next one that is not accepted opens."""
    session.accept(method, threshold, session.chosen)
    session.choose_open()
    return query_view(session, method, threshold)


def redo(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """Search the picture again, with the present supports."""
    session.redo(method, session.chosen)
    return query_view(session, method, threshold)


def fix(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """Open the painter with the mask of the picture: values of its panel, of the classes and the painter."""
    names = session.classes_to_fix(method, threshold, session.chosen)
    session.fixing = session.chosen
    classes = gr.update(choices=list(names), value=names[0], visible=len(names) > 1)
    return gr.update(visible=True), classes, _painter(session, method, threshold, names[0])


def fix_class(session: Session, method: str, threshold: float, class_name: str) -> Any:
    """Another class of the picture shall be fixed."""
    return _painter(session, method, threshold, class_name)


def save_fix(
    as_support: bool,
    session: Session,
    method: str,
    threshold: float,
    class_name: str,
    drawn: dict[str, Any] | None,
) -> tuple[Any, ...]:
    """The painted mask counts; the panel closes, and the next picture that is not accepted opens."""
    layers = drawn["layers"] if drawn else []
    session.fix(method, threshold, session.fixing, class_name, layers, as_support=as_support)
    if as_support:
        session.supports.select_next()
    session.choose_open()
    return *query_view(session, method, threshold), *support_view(session)


def cancel_fix() -> Any:
    """Close the painter."""
    return gr.update(**_HIDDEN)


def attend(session: Session, method: str, event: gr.SelectData) -> tuple[Any, Any]:
    """A pixel was clicked: show its attention to the supports, or say that the method has none."""
    if not session.pool.has_attention(method):
        return gr.update(**_HIDDEN), gr.update(value=_NO_MAPS.format(plain(method)), visible=True)
    height, width = session.query(session.chosen).pixels.shape[:2]
    drawn = session.attention(method, session.chosen, to_picture(tuple(event.index), height, width))
    return gr.update(value=session.files.picture(drawn), visible=True), gr.update(**_HIDDEN)


def pack(session: Session, method: str, threshold: float) -> Any:
    """Offer the zip file."""
    content = session.zip_file(method, threshold)
    return gr.update(value=session.files.file(content, "/masks.zip"), visible=True)


def query_view(session: Session, method: str, threshold: float) -> tuple[Any, ...]:
    """Values of gallery, table, large picture, attention, its message, zip file, comparison, state, painter.

    Attention, its message, the zip file and the painter are hidden.
    """
    session.method = method
    findings = session.findings(method, threshold)
    pictures = [(session.files.picture(finding.picture), _caption(finding)) for finding in findings]
    selected = session.chosen if pictures else None
    gallery = gr.update(value=pictures, selected_index=selected)
    chosen = pictures[session.chosen][0] if pictures else None
    pair = session.compared(method, threshold, session.chosen) if pictures else None
    compared = tuple(map(session.files.picture, pair)) if pair else None
    hidden = [gr.update(**_HIDDEN)] * 3
    table, state = findings_table(findings), _state(session, findings)
    return gallery, table, chosen, *hidden, compared, state, gr.update(**_HIDDEN)


def findings_table(findings: Sequence[Finding]) -> str:
    """HTML with a row for each class of each picture: its presence, share of the picture, expected IoU."""
    rows = []
    for finding in findings:
        for name, area in (finding.areas or {}).items():
            color = class_css((finding.numbers or {}).get(name, 0))
            named = f'<i style="background: {color}"></i>{escape(name)}'
            share = f"{100 * area / finding.pixels:.1f} %"
            measures = _presence(finding, name), share, _quality(finding, name)
            cells = (escape(finding.name), named, *measures, _sign(finding))
            rows.append(f'<tr data-pixels="{area}">{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    if not rows:
        return '<p class="hint">No masks yet.</p>'
    columns = ("Picture", "Object", "Probability that it is there", "Share of picture", QUALITY, "")
    head = "".join(f"<th>{name}</th>" for name in columns)
    return f'<table class="findings"><tr>{head}</tr>{"".join(rows)}</table>'


def _quality(finding: Finding, class_name: str) -> str:
    if finding.corrected:
        return "corrected"
    found = (finding.areas or {})[class_name]
    return f"{(finding.expected or {})[class_name]:.2f}" if found else "not found"


def _presence(finding: Finding, class_name: str) -> str:
    return f"{(finding.presence or {}).get(class_name, 1.0):.2f}"


def _sign(finding: Finding) -> str:
    return "✓ accepted" if finding.accepted else "⚠ look at it" if finding.needs_review else ""


def _caption(finding: Finding) -> str:
    nothing = finding.areas is not None and not any(finding.areas.values())
    sign = _sign(finding)[:1] or ("∅" if nothing else "")
    return f"{sign} {finding.name}" if sign else finding.name


def _state(session: Session, findings: Sequence[Finding]) -> str:
    """What is known of the chosen picture and of all."""
    if not findings:
        return "Add the pictures to search."
    if all(finding.areas is None for finding in findings):
        return "Press **Find the object**."
    one = findings[session.chosen]
    accepted, waiting = (sum(getattr(f, which) for f in findings) for which in ("accepted", "needs_review"))
    known = "not searched yet; press **Find the object**" if one.areas is None else _known(one)
    return f"{plain(one.name)}: {known}. {accepted} of {len(findings)} accepted, {waiting} to look at."


def _known(finding: Finding) -> str:
    if finding.accepted:
        return "corrected and accepted" if finding.corrected else "accepted"
    found = [
        f"{plain(name)} {_quality(finding, name)}" for name, area in (finding.areas or {}).items() if area
    ]
    if found:
        return f"{QUALITY[0].lower()}{QUALITY[1:]} of {', '.join(found)}"
    there = ", ".join(f"{plain(name)} {_presence(finding, name)}" for name in finding.areas or {})
    return f"nothing found; probability that it is there: {there}"


def _painter(session: Session, method: str, threshold: float, class_name: str) -> Any:
    number = session.fixing
    mask = session.mask_to_fix(method, threshold, number, class_name)
    color = session.number_of(class_name)
    layer = session.files.layer(paint_layer(mask, color))
    background = session.files.picture(
        on_canvas(session.background_to_fix(method, threshold, number, class_name))
    )
    value = {"background": background, "layers": [layer], "composite": None}
    return gr.update(value=value, brush=brush_of(color))
