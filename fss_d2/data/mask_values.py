"""The grammar in which users say what the values of their mask files mean."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["Color", "MaskRule", "MaskRules", "MaskValues", "UnclearMask", "parse_mask_values"]

Color = tuple[int, int, int]  # RGB, 0 to 255
# What users give: see `parse_mask_values`.
MaskValues = str | int | Sequence[int] | Sequence[str] | Mapping[str, "str | int | Sequence[int]"]

WORDS = ("nonzero", "bright", "dark", "opaque")
_AUTO = "auto"  # as if no values were given
FRAMES = ("upright", "stored")
_FORM = "give [CLASS=]OBJECT [ignore=VALUES] [frame=upright|stored], such as 1,2,3 or 'cup=15 ignore=255'"
_SETTINGS = re.compile(r"(?:^|\s)(ignore|frame)\s*=\s*(\S*)", re.IGNORECASE)
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_COLOR = re.compile(r"#([0-9a-fA-F]{6})")
_MOST_VALUES = 65536


class UnclearMask(ValueError):
    """A mask file whose meaning is not certain.

    Attributes:
        found: what is not certain; names the file.
        example: what to give as `mask_values`, such as "such as 1,2".
    """

    def __init__(self, found: str, rule: str, example: str) -> None:
        super().__init__(f"{found}: {rule} {example}")
        self.found, self.example = found, example

    @classmethod
    def of_values(cls, found: str, example: str) -> "UnclearMask":
        """The error of values that were found, with an example of a rule that would do."""
        rule = "say which are the object with mask_values (--mask-values),"
        return cls(found, rule, f"such as {example}")


@dataclass(frozen=True)
class MaskRule:
    """What the values of the mask files of one class mean; all that are not named are background.

    Attributes:
        word: "nonzero" (every value but 0), "bright" (at least half of the range), "dark" (below half),
            "opaque" (the alpha channel); "" if ``objects`` counts, or nothing was said about values.
        objects, ignored: numbers, or colours, of the object and of pixels to ignore.
        frame: "upright" or "stored", in which a mask without EXIF orientation was drawn; "" if not said.
        text: as the user wrote it.
    """

    word: str = ""
    objects: frozenset[int] | frozenset[Color] = frozenset()
    ignored: frozenset[int] | frozenset[Color] = frozenset()
    frame: str = ""
    text: str = ""

    @property
    def names_object(self) -> bool:
        """Whether it says which values are the object."""
        return bool(self.word or self.objects)


@dataclass(frozen=True)
class MaskRules:
    """The rules by class name; "" is the rule of all other classes."""

    rules: Mapping[str, MaskRule]

    def of(self, class_name: str = "") -> MaskRule | None:
        """The rule of a class; None if nothing was said about it."""
        return self.rules.get(class_name) or self.rules.get("")

    def check_classes(self, class_names: Iterable[str]) -> None:
        """Raise ValueError if a rule is of a class that does not exist."""
        known = list(class_names)
        for name in self.rules:
            if name and name not in known:
                names = ", ".join(known[:8])
                raise ValueError(f"mask_values names the class {name!r}, but the classes are {names}")


def parse_mask_values(given: MaskValues | None) -> MaskRules:
    """Read what a user says about the values of mask files.

    Args:
        given: a text ``[CLASS=]OBJECT [ignore=VALUES] [frame=upright|stored]``, several separated by ";" or
            in a list; or numbers; or {class: text or numbers}. OBJECT is one of the words of `MaskRule`, or
            numbers and ranges ("1,2,5-9"), or colours ("#ff0000,#00ff00"), or "auto" (recognised). None says
            nothing.

    Raises:
        ValueError: it does not have this form.
    """
    if isinstance(given, Mapping):
        entries = [(str(name), _text(values)) for name, values in given.items()]
        return MaskRules({name: _parse_rule(text) for name, text in entries})
    rules: dict[str, MaskRule] = {}
    for entry in _text(given).split(";") if given is not None else ():
        if not entry.strip():
            continue
        words = _SETTINGS.sub("", entry).strip()
        name, _, values = words.rpartition("=")
        name = name.strip()
        if name in rules:
            what = f"the class {name!r}" if name else "a rule for all classes"
            raise ValueError(f"mask_values {entry.strip()!r}: {what} is given twice; {_FORM}")
        settings = " ".join(f"{key}={value}" for key, value in _SETTINGS.findall(entry))
        rules[name] = _parse_rule(f"{values} {settings}".strip())
    return MaskRules(rules)


def _text(given: str | int | Sequence[int] | Sequence[str]) -> str:
    if isinstance(given, str):
        return given
    if isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if isinstance(given, Sequence) and given and all(isinstance(v, int) for v in given):
        return ",".join(map(str, given))
    if isinstance(given, Sequence) and all(isinstance(v, str) for v in given):
        return ";".join(given)
    raise ValueError(f"mask_values {given!r}: {_FORM}")


@lru_cache(maxsize=64)
def _parse_rule(text: str) -> MaskRule:
    pairs = [(key.lower(), value) for key, value in _SETTINGS.findall(text)]
    settings = dict(pairs)
    if len(settings) < len(pairs):
        raise ValueError(f"mask_values {text!r}: {pairs[0][0]} is given twice; {_FORM}")
    words = _SETTINGS.sub("", text).strip()
    word = words.lower() if words.lower() in WORDS else ""
    recognised = words.lower() == _AUTO or (settings and not words)
    objects = frozenset() if word or recognised else _values(words, text)
    ignored = _values(settings["ignore"], text) if "ignore" in settings else frozenset()
    frame = settings.get("frame", "")
    if (frame or "frame" in settings) and frame not in FRAMES:
        raise ValueError(f"mask_values {text!r}: frame {frame!r} is neither upright nor stored; {_FORM}")
    if both := objects & ignored:
        raise ValueError(f"mask_values {text!r}: {_shown(min(both))} is both object and ignored; {_FORM}")
    if len({type(value) for value in objects | ignored}) > 1:
        raise ValueError(f"mask_values {text!r} mixes numbers and colours; {_FORM}")
    if ignored and not (word or objects):
        raise ValueError(f"mask_values {text!r} names no object; {_FORM}")
    return MaskRule(word, objects, ignored, frame, text)


def _values(words: str, text: str) -> frozenset:
    """The numbers or colours of a list with commas."""
    values: set[int | Color] = set()
    for part in words.split(","):
        if color := _COLOR.fullmatch(part.strip()):
            values.add(tuple(bytes.fromhex(color[1])))
        elif numbers := _RANGE.fullmatch(part.strip()):
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if not 0 <= last - first < _MOST_VALUES:
                raise ValueError(
                    f"mask_values {text!r}: the range {part.strip()} is empty or too long; {_FORM}"
                )
            values.update(range(first, last + 1))
        else:
            fault = f"{part.strip()!r} is no number or colour (#rrggbb), and none of {', '.join(WORDS)}"
            raise ValueError(f"mask_values {text!r}: {fault}; {_FORM}")
    return frozenset(values)


def _shown(value: int | Color) -> str:
    return f"#{bytes(value).hex()}" if isinstance(value, tuple) else str(value)
