"""The pictures that an annotation file names: found as other programs and machines write their paths."""

import os
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from fss_d2.data.images import image_header
from fss_d2.io.files import shortened

__all__ = ["PictureFinder", "framed_as"]

_MOST_FOLDERS = 40  # of a path that are compared
_SUBSET = re.compile(r"(?:instances|person_keypoints)_(\w+)")  # names of COCO's and CVAT's files


class PictureFinder:
    """Finds pictures by the names that one annotation file gives them.

    A name is looked for as it stands, relative to the root. Otherwise backslashes, "%20", drives, addresses
    and folders of another machine are undone: the longest end of the path that exists is taken. Where no root
    is given, the folder of the file, the one above, and ``images`` in either are searched.

    Args:
        file: the annotation file.
        root: what names are relative to; None searches near the file.
        option: the program's option for the root, for messages; "" if it has none.
    """

    def __init__(self, file: Path, root: Path | None, option: str) -> None:
        self.file, self.option, self.root = file, option, root
        self.bases = [root, root / "images"] if root else _near(file)
        self._names: dict[Path, str] = {}  # of the pictures that were not found under their name
        self._by_name: dict[str, list[Path]] | None = None

    def find(self, name: str) -> Path | None:
        """The picture of a name, or None; ValueError if several could be meant."""
        plain = self.bases[0] / name.replace("\\", "/")
        for path in (self.bases[0] / name, plain):
            if os.path.isfile(path):
                return path
        tails = _tails(name)
        found = next((b / tail for tail in tails for b in self.bases if os.path.isfile(b / tail)), None)
        if found is None and tails:
            found = self._anywhere(tails[-1])
        if found is not None and self._names.setdefault(found, name) != name:
            names = f"pictures {shortened(self._names[found])!r} and {shortened(name)!r}"
            raise ValueError(f"{self.file}: {names} would both be {found}; {self._fix()}")
        return found

    def require(self, name: str) -> Path:
        """The picture of a name; FileNotFoundError, with the fix, without one."""
        path = self.find(name)
        if path is None:
            raise FileNotFoundError(
                f"{self.file}: image {shortened(self.bases[0] / name)} does not exist; {self._fix()}"
            )
        return path

    def remark(self) -> str:
        """Which pictures were found under another path than the file gives; "" if none."""
        if not self._names:
            return ""
        path, name = next(iter(self._names.items()))
        count = f"{len(self._names)} pictures" if len(self._names) > 1 else "a picture"
        return f"{self.file}: found {count} in another place than it gives: {shortened(name)!r} as {path}"

    def _fix(self) -> str:
        if self.root is not None:
            return f"correct {self.option}"
        fix = "put the pictures next to the JSON file, or into the folder 'images' there"
        return f"{fix}, or give their folder with {self.option}" if self.option else fix

    def _anywhere(self, name: str) -> Path | None:
        """The only file of a name in the root, or in a folder ``images`` near the file, however deep."""
        if self._by_name is None:
            self._by_name = {}
            for base in self.bases[:1] if self.root else self.bases:
                if self.root or base.name == "images":
                    for path in base.rglob("[!.]*"):
                        self._by_name.setdefault(path.name, []).append(path)
        found = self._by_name.get(name, [])
        if len(found) > 1:
            raise ValueError(
                f"{self.file}: image {shortened(name)!r} could be {found[0]} or {found[1]}; {self._fix()}"
            )
        return found[0] if found and found[0].is_file() else None


def framed_as(path: Path, declared: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int] | None, str]:
    """Compare the frame (height, width) that an annotation file declares with the picture.

    Returns:
        the upright frame of the picture, the stored one if its EXIF orientation makes it another, and a
        remark for the log, "" if there is nothing to remark. FileNotFoundError or ValueError if the picture
        does not exist, cannot be read, or has another size than is declared.
    """
    stored, orientation = image_header(path)
    upright = stored[::-1] if orientation >= 5 else stored
    if declared not in (stored, upright):
        raise ValueError(
            f"{path.name} is {_size(upright)}, but annotated as {_size(declared)}: give the picture that was "
            "annotated"
        )
    if orientation == 1:
        return upright, None, ""
    if stored == upright:
        taken = f"the outlines of {path.name} are taken as drawn on the upright picture"
        return upright, None, f"{taken}; its EXIF orientation is {orientation}"
    taken = f"the outlines of {path.name} are taken as drawn on the stored picture ({_size(stored)})"
    remark = f"{taken}; upright it is {_size(upright)}" if declared == stored else ""
    return upright, stored, remark


def _near(file: Path) -> list[Path]:
    """Where exports keep their pictures: next to the file, one above, and in ``images`` or a subset there."""
    folder = file.parent
    above = folder.resolve().parent
    bases = [folder, folder / "images", above, above / "images"]
    if subset := _SUBSET.fullmatch(file.stem):
        bases += [base / subset[1] for base in (above / "images", above, folder)]
    return bases


def _tails(name: str) -> list[str]:
    """The path of a name without what other systems add, then its ever shorter ends."""
    variants = [name, unquote(name)] if "%" in name else [name]
    tails = []
    for variant in variants:
        parts = urlsplit(variant) if "://" in variant or "?" in variant else None
        if parts:  # of Label Studio: /data/local-files/?d=folder/a.jpg
            variant = parse_qs(parts.query).get("d", [parts.path])[0]
        pieces = [p for p in re.split(r"[\\/]+", variant) if p not in ("", ".") and not re.match(r"^\w:$", p)]
        if not variant.startswith(("/", "\\")) and ".." in pieces:
            tails.append("/".join(pieces))
        pieces = pieces[max((i + 1 for i, p in enumerate(pieces) if p == ".."), default=0) :]
        pieces = pieces[-_MOST_FOLDERS:]
        tails += ["/".join(pieces[start:]) for start in range(len(pieces))]
    return list(dict.fromkeys(tails))


def _size(frame: tuple[int, int]) -> str:
    return f"{frame[1]}x{frame[0]}"
