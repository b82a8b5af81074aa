"""docs/FORMATS.md: every message that the page quotes comes out of the program, and in that wording."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fss_d2.engine.errors import one_line
from tests.format_cases import CASES, Producer

PAGE = Path(__file__).parents[1] / "docs/FORMATS.md"
COLUMNS = ("message", "log", "reason", "taken for")
INSERTED = {"reason": "<reason>", "taken for": "<meaning>"}  # where texts of these columns stand
SPAN = re.compile(r"``\s?(.+?)\s?``|`(.+?)`")
PLACEHOLDER = re.compile(r"(<[^<>]+>)")


def quoted() -> dict[str, str]:
    """The texts of the page in columns of `COLUMNS`, and their column."""
    found: dict[str, str] = {}
    header: list[str] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = [cell.strip("*") for cell in cells]
        for name, cell in zip(header, cells, strict=True) if line.startswith("|") else ():
            if name in COLUMNS:
                for twice, once in SPAN.findall(cell):
                    found[(twice or once).replace("\\|", "|")] = name
    return found


QUOTED = quoted()


def pattern(template: str, inner: str = "") -> str:
    """A regular expression of a template; <reason> and <meaning> stand for ``inner``, if given."""
    parts = enumerate(PLACEHOLDER.split(template))  # every second one is a placeholder
    inserted = INSERTED.values() if inner else ()
    return "".join(inner if p in inserted else ".+?" if i % 2 else re.escape(p) for i, p in parts)


def patterns(template: str) -> Iterator[str]:
    """What a line must match that has a text of the page: as it stands, or in the texts that hold it."""
    column = QUOTED[template]
    if column not in INSERTED:
        yield pattern(template)
        return
    for outer in QUOTED:
        if INSERTED[column] in outer:
            yield pattern(outer, pattern(template))


def meant(words: str) -> str:
    """The text of the page that a case is about; "" if there is none."""
    return min((text for text in QUOTED if words in text), key=len, default="")


def test_the_page_quotes_what_is_produced_and_nothing_else() -> None:
    assert set(QUOTED) == {meant(words) for words, _ in CASES}


@pytest.mark.parametrize(("words", "produce"), CASES)
def test_messages(
    words: str,
    produce: Producer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message ends the program, in one line; a line of the log does not."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.delenv("FSS_D2_DOWNLOAD", raising=False)
    errors: list[str | None] = []
    with caplog.at_level(logging.INFO):
        try:
            produce(tmp_path)
        except Exception as error:
            errors = [one_line(error)]
    template = meant(words)
    said = {"message": errors, "reason": [*errors, *caplog.messages]}.get(QUOTED[template], caplog.messages)
    assert QUOTED[template] in ("message", "reason") or not errors, errors
    assert any(re.fullmatch(p, line or "") for p in patterns(template) for line in said), said
