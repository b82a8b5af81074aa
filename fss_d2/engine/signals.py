"""SIGTERM, SIGHUP and Ctrl-C: what they do to a program, to a training, and to the processes it started.

A signal that was ignored when the program started stays ignored, as SIGHUP is under nohup. Needs no torch.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["FORWARDED", "Commands", "Interrupted", "StopRequest", "forwarding", "raising", "signal_name"]

# Set in the environment of processes to which another process forwards its signals.
FORWARDED = "FSS_D2_SIGNALS_FORWARDED"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_SAME = 1.0  # seconds in which a process to which signals are forwarded may get one signal twice

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """A signal ends the program; its exit code is 128 and the signal's number, 143 for SIGTERM.

    Args:
        number: of the signal.
        line: what the program says last; None says which signal it was, "" nothing.
    """

    def __init__(self, number: int, line: str | None = None) -> None:
        super().__init__(number, line)
        self.number = number
        self.line = f"stopped by {signal_name(number)}" if line is None else line

    @property
    def exit_code(self) -> int:
        """What shells give for a program that this signal killed."""
        return 128 + self.number


class StopRequest:
    """The signal that asked a training to stop, if any."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._time = 0.0
        self._at_once = False

    @contextmanager
    def receiving(self) -> Iterator[None]:
        """Signals in this block are kept in ``number``; a second one ends the process at once."""
        self.number = None
        with _handled(self._handle):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A signal in this block, or one kept before it, raises `Interrupted`."""
        if self.number is not None:
            raise Interrupted(self.number)
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            if self._is_another():
                os._exit(128 + number)  # nothing is closed or saved
            return
        self.number, self._time = number, time.monotonic()
        if self._at_once:
            raise Interrupted(number)
        _say(f"{signal_name(number)}: the training stops after this iteration; a second signal ends it now")

    def _is_another(self) -> bool:
        """Whether it is a second signal, and not the first one that came on two ways."""
        twice = FORWARDED in os.environ or "RANK" in os.environ
        return not twice or time.monotonic() - self._time > _SAME


@contextmanager
def raising() -> Iterator[None]:
    """Signals raise `Interrupted` in the block; what follows within a second is the same signal again."""
    last = -_SAME

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last > _SAME:
            last = time.monotonic()
            raise Interrupted(number)

    with _handled(handle):
        yield


class Commands:
    """Commands that are running, each of which gets the signals of this process."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()

    @contextmanager
    def start(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Run a command in the block, which ends with it; the options are those of `subprocess.Popen`."""
        environment = {**(options.pop("env", None) or os.environ), FORWARDED: "1"}
        with subprocess.Popen(command, env=environment, text=True, **options) as process:
            self._running.add(process)
            try:
                yield process
                process.wait()
            finally:
                self._running.discard(process)

    def send(self, number: int) -> bool:
        """Send them a signal; returns whether any is running."""
        for process in (running := list(self._running)):
            process.send_signal(number)
        return bool(running)


@contextmanager
def forwarding(send: Callable[[int], bool], line: str = "") -> Iterator[None]:
    """Signals go to other processes, and raise `Interrupted` when the block ends, as it does with these.

    Args:
        send: sends a signal to them, and returns whether there were any. If not, `Interrupted` is raised now.
        line: what follows "stopped by SIGTERM" in the last line; "" if they have said enough.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not send(number):
            raise Interrupted(number)

    with _handled(handle):
        try:
            yield
        except Interrupted:
            raise
        except Exception:
            if not received:
                raise
        if received:
            raise Interrupted(received[0], line and f"stopped by {signal_name(received[0])}{line}")


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Handle the signals that are not ignored in the block; outside the main thread change nothing."""
    main = threading.current_thread() is threading.main_thread()
    taken = [n for n in _SIGNALS if main and signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = [(number, signal.signal(number, handler)) for number in taken]
    try:
        yield
    finally:
        for number, previous in before:
            signal.signal(number, previous)


def signal_name(number: int) -> str:
    """How people know it: "Ctrl-C", "SIGTERM"."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _say(line: str) -> None:
    """Write a line from within a signal handler, where streams and logs must not be used."""
    if int(os.environ.get("RANK", "0")) == 0:
        os.write(2, f"{line}\n".encode())
