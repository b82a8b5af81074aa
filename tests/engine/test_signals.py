"""Signals that end a program, and those that a program passes on to what it started."""

import os
import signal
import sys
import time

import pytest

from fss_d2.engine.command_line import run_command
from fss_d2.engine.signals import FORWARDED, Commands, Interrupted, StopRequest, forwarding

# Ends with 7 when it gets SIGTERM; the file says that it waits for one.
_CHILD = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1]).write_text(os.environ[{name!r}])
time.sleep(30)
"""


def _kill(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "name", "code"),
    [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGHUP, "SIGHUP", 129), (signal.SIGINT, "Ctrl-C", 130)],
)
def test_a_program_ends_with_one_line(
    number: int, name: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    assert run_command(lambda: _kill(number)) == code
    assert capfd.readouterr().err == f"stopped by {name}\n"
    assert signal.getsignal(number) is before


def test_of_several_processes_one_speaks(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_command(lambda: _kill(signal.SIGTERM)) == 143
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("line", "said"), [("; go on", "stopped by SIGTERM; go on"), ("", "")])
def test_a_command_gets_the_signal_and_is_waited_for(line: str, said: str, tmp_path: os.PathLike) -> None:
    commands, ready = Commands(), os.path.join(tmp_path, "ready")
    child = [sys.executable, "-c", _CHILD.format(name=FORWARDED), ready]
    with (
        pytest.raises(Interrupted) as ended,
        forwarding(commands.send, line),
        commands.start(child) as process,
    ):
        while not os.path.exists(ready):
            time.sleep(0.01)
        _kill(signal.SIGTERM)
    assert process.returncode == 7
    assert (ended.value.exit_code, ended.value.line) == (143, said)


def test_without_a_command_the_signal_ends_the_program() -> None:
    with pytest.raises(Interrupted, match="15"), forwarding(Commands().send):
        _kill(signal.SIGTERM)


def test_an_error_of_the_block_stays_without_a_signal() -> None:
    with pytest.raises(ValueError, match="wrong"), forwarding(Commands().send):
        raise ValueError("wrong")


@pytest.mark.parametrize(("forwarded", "ends"), [(False, True), (True, False)])
def test_a_second_signal_unless_it_is_the_first_passed_on(
    forwarded: bool, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch system signals all processes, and torchrun passes the signal on: that is one, not two."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    if forwarded:
        monkeypatch.setenv(FORWARDED, "1")
    request = StopRequest()
    with request.receiving():
        _kill(signal.SIGTERM)
        _kill(signal.SIGTERM)
        assert codes == ([143] if ends else [])
        later = time.monotonic() + 2
        monkeypatch.setattr(time, "monotonic", lambda: later)
        _kill(signal.SIGTERM)
    assert codes[-1] == 143
    assert request.number == signal.SIGTERM
