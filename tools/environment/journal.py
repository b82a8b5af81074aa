"""The journal that makes the set-up resumable.

Every finished step is written down with a hash of what it depends on. So a second run does nothing, a changed
input repeats only the steps from there on, and a run after a network failure goes on where the last one
stopped. A step that was cut off while it wrote files stays marked as running.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.environment.commands import SetupError


@dataclass
class Journal:
    """What is known of an environment.

    path: the journal's file; choices: the settings it was made with; done: hash of each finished step;
    running: name of the step under way, or cut off; adopted: whether the interpreter's own torch is used.
    """

    path: Path
    choices: dict[str, str] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    running: str = ""
    adopted: bool = False

    @classmethod
    def load(cls, path: Path) -> "Journal":
        """Read the journal's file; an absent file gives an empty journal, a damaged one a cut-off step."""
        if not path.exists():
            return cls(path)
        try:
            return cls(path, **json.loads(path.read_text()))
        except (ValueError, TypeError):
            return cls(path, running="unknown")

    def save(self) -> None:
        """Write the file in one move, so that it is never half-written."""
        self.path.parent.mkdir(exist_ok=True)
        state = dataclasses.asdict(self)
        del state["path"]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=1))
        os.replace(temporary, self.path)


@dataclass(frozen=True)
class Step:
    """One part of the set-up. It is done again when `inputs`, or those of a step before it, change."""

    name: str
    title: str
    inputs: str
    action: Callable[[], None]


def pending_steps(steps: list[Step], done: dict[str, str]) -> list[tuple[Step, str]]:
    """The steps still to do, each with its hash: the first whose hash is not in `done`, and all after it."""
    chain = ""
    pending: list[tuple[Step, str]] = []
    for step in steps:
        chain = hashlib.sha256(f"{chain}\n{step.name}\n{step.inputs}".encode()).hexdigest()
        if pending or done.get(step.name) != chain:
            pending.append((step, chain))
    return pending


def perform(steps: list[Step], journal: Journal) -> None:
    """Do the pending steps, one progress line each; the journal says at any moment how far it got."""
    pending = pending_steps(steps, journal.done)
    for number, (step, chain) in enumerate(pending, len(steps) - len(pending) + 1):
        sys.stdout.write(f"setup [{number}/{len(steps)}] {step.title} ... ")
        sys.stdout.flush()
        started = time.monotonic()
        journal.done.pop(step.name, None)
        journal.running = step.name
        journal.save()
        try:
            step.action()
        except SetupError as error:
            if not error.half_done:
                journal.running = ""
                journal.save()
            raise
        journal.done[step.name] = chain
        journal.running = ""
        journal.save()
        sys.stdout.write(f"{time.monotonic() - started:.0f} s\n")
