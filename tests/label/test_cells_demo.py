"""The real pictures of `fss-d2 demo`: labelled, compared with their masks, shown on a page."""

import re
import webbrowser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fss_d2.label import cells_demo, demo_command
from fss_d2.label.cells_demo import Labelled, label_cells, show_page
from fss_d2.label.supports import read_supports
from fss_d2.model_zoo import CELLS
from tests.inference.predictors import make_predictor


def test_the_pictures_are_small_and_have_masks() -> None:
    kinds = read_supports(CELLS)
    assert {kind: len(pictures) for kind, pictures in kinds.items()} == {"dark": 5, "purple": 5}
    assert sum(path.stat().st_size for path in CELLS.rglob("*.png")) < 1_000_000
    for pictures in kinds.values():
        assert all(0.02 < np.mean(picture.mask == 1) < 0.6 for picture in pictures)


def test_a_page_and_a_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        page = label_cells(tmp_path, make_predictor("Prototype"))
    text = page.read_text()
    assert '<img src="cells.png"' in text and "purple cells" in text
    assert Image.open(tmp_path / "cells.png").size > (800, 600)
    rows = re.findall(r"^\| (\w+) cells +\|(.*)\|$", caplog.text, re.MULTILINE)
    assert [kind for kind, _ in rows] == ["purple", "dark"]
    for _, cells in rows:
        *scores, mean = map(float, cells.split("|"))
        assert len(scores) == 4 and mean == pytest.approx(np.mean(scores), abs=0.1)
        assert 0 < mean < 100


def test_iou_of_a_picture() -> None:
    picture = read_supports(CELLS)["dark"][0]
    assert Labelled(picture, picture.mask == 1).iou == 100
    assert Labelled(picture, picture.mask != 1).iou == 0


@pytest.mark.parametrize(
    ("terminal", "display", "opened"), [(True, ":0", 1), (True, "", 0), (False, ":0", 0)]
)
def test_the_page_is_opened_at_a_screen_only(
    terminal: bool,
    display: str,
    opened: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: pages.append(page) or True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setenv("WAYLAND_DISPLAY", "")
    with caplog.at_level("INFO"):
        show_page(tmp_path / "cells.html")
    assert len(pages) == opened
    assert str(tmp_path / "cells.html") in caplog.text
    assert ("open in the browser" in caplog.text) == bool(opened)


@pytest.mark.parametrize("only", [True, False])
def test_training_comes_after_the_pictures(
    only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    monkeypatch.setattr(cells_demo, "label_cells", lambda output: steps.append("cells") or output)
    monkeypatch.setattr(cells_demo, "show_page", lambda page: steps.append("page"))
    monkeypatch.setattr("fss_d2.engine.glyphs_demo.train_on_glyphs", lambda args: steps.append("glyphs"))
    demo_command.main(["--output", str(tmp_path), *(["--only-pictures"] if only else [])])
    assert steps == ["cells", "page", *([] if only else ["glyphs"])]
