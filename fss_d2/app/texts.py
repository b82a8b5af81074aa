"""What the page says, and how it looks."""

from collections.abc import Sequence
from html import escape

from fss_d2.visualization.panels import class_color

from .session import Finding

__all__ = ["CSS", "INTRODUCTION", "STEPS", "findings_table"]

INTRODUCTION = """
# Few-shot segmentation
Show an object in a few pictures, and get its mask in many others. Pictures are not passed on to anybody.
"""

STEPS = (
    "## <b>1</b> Show it the object\nAdd pictures, and paint on the object, draw boxes, or give a mask.",
    "## <b>2</b> Give pictures\nAdd the pictures to look through, then press **Find the object**.",
    "## <b>3</b> Take the masks\nPNG masks and COCO JSON in one zip file, at the size of your pictures.",
)

CSS = """
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


def findings_table(findings: Sequence[Finding]) -> str:
    """HTML: picture, class, share of the picture, confidence; a row for each class of each picture."""
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
        return '<p class="hint">Nothing was looked for yet.</p>'
    head = "".join(f"<th>{name}</th>" for name in ("Picture", "Object", "Share of it", "Confidence"))
    return f'<table class="findings"><tr>{head}</tr>{"".join(rows)}</table>'
