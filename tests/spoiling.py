"""Bad inputs: the command, what its error must name, and ways to spoil an input."""

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
        culprit: text that the error must contain.
        spoil: makes the input bad, in the working folder; None where the command line itself is bad.
    """

    command: str
    culprit: str
    spoil: Break | None = None

    def __str__(self) -> str:
        return f"{self.command} {self.culprit}"[:80]


class Code:
    """Pickled code: unpickling it writes a file."""

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
    """Spoil all images or all masks, so that it does not matter which one is drawn."""
    return lambda: [spoil(str(path))() for path in Path("toy").glob(f"*/{part}/*")]
