"""Log lines where there is no terminal, a bar where there is one."""

import logging
import sys
from collections.abc import Callable

import pytest
from detectron2.utils import comm

from fss_d2.io import progress as module
from fss_d2.io.progress import progress, track

Wait = Callable[[float], None]


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Wait:
    """Let the clock go on by a number of seconds."""
    now = [1000.0]

    def go_on(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    caplog.set_level(logging.INFO, logger="fss_d2")
    return go_on


def test_a_line_after_the_first_item_every_ten_seconds_and_at_the_end(
    wait: Wait, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(160), "Label", 200, done=40):
        wait(0.25)
    assert caplog.messages == [
        "Label: 41 of 200, 4.0 per s, 40 s left",
        "Label: 81 of 200, 4.0 per s, 30 s left",
        "Label: 121 of 200, 4.0 per s, 20 s left",
        "Label: 161 of 200, 4.0 per s, 10 s left",
        "Label: 200 of 200 in 40 s",
    ]
    assert "\r" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (0.001, "Check: 1 of 3000, 1000 per s, 3 s left"),
        (0.75, "Check: 1 of 3000, 1.3 per s, 37 min left"),
        (2.5, "Check: 1 of 3000, 2.5 s each, 2.1 h left"),
        (40, "Check: 1 of 3000, 40 s each, 33.3 h left"),
    ],
)
def test_rates_and_times_have_sensible_units(
    seconds: float, line: str, wait: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    with progress("Check", 3000) as advance:
        wait(seconds)
        advance()
    assert caplog.messages[0] == line


def test_a_loop_that_fails_says_how_far_it_came(wait: Wait, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        for number in track(range(9), "Label", 9):
            wait(60)
            if number == 2:
                raise KeyboardInterrupt
    assert caplog.messages[-1] == "Label: 2 of 9 in 3 min"
    caplog.clear()
    assert list(track((), "Label", 9, done=9)) == []
    assert caplog.messages == []


def test_other_processes_are_silent(
    wait: Wait, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert list(track("abc", "Label", 3)) == ["a", "b", "c"]
    assert caplog.messages == []


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, logger="fss_d2")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(track("abc", "Label", 5, done=2)) == ["a", "b", "c"]
    assert caplog.messages == []
    bar = capsys.readouterr().err
    assert bar.startswith("\rLabel:  40%|") and "5/5" in bar
