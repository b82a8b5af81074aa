"""Bad inputs: what is run, what the error must name, and ways for an input to get bad."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

__all__ = ["Break", "Case", "Code", "cut", "each", "mask", "remove", "replace", "save", "write"]

Break = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        command: a name of `PROGRAMS` in test_bad_inputs.py, and the words that follow.
        culprit: must be named by the error.
        spoil: makes the input bad, run in the folder of the case; None where the command alone is bad.
    """

    command: str
    culprit: str
    spoil: Break | None = None

    def __str__(self) -> str:
        return f"{self.command} {self.culprit}"[:80]


class Code:
    """Pickles into a call that leaves a file behind."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return open, ("code_was_run", "w")


def write(name: str, content: str | bytes) -> Break:
    def spoil() -> None:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def replace(name: str, old: str, new: str) -> Break:
    return lambda: Path(name).write_text(Path(name).read_text().replace(old, new))


def remove(name: str) -> Break:
    return lambda: Path(name).unlink()


def save(content: object) -> Break:
    return lambda: torch.save(content, "w.pth")


def cut(name: str, size: int) -> Break:
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:size])


def mask(name: str, side: int, value: int) -> Break:
    return lambda: Image.new("L", (side, side), value).save(name)


def each(part: str, spoil: Callable[[str], Break]) -> Break:
    """All images, or all masks: whichever is drawn, it is bad."""
    return lambda: [spoil(str(path))() for path in Path("toy").glob(f"*/{part}/*")]
