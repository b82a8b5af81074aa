"""Find picture files in folders; what looks like a picture and cannot be read is listed with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from .images import is_image_name

__all__ = ["FoundPictures", "find_pictures_below", "listed", "pictures_in", "why_left_out"]

_MOST_NAMED = 8  # files in a message
# Endings of pictures that Pillow does not decode, unless a plug-in of the user does.
_NO_DECODER = frozenset(
    (
        *("heic", "heif", "heics", "hif", "avif", "jxl", "jxr", "wdp", "svg", "exr", "xcf", "psb", "dcm"),
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "fff", "gpr", "iiq", "kdc", "mef", "mos"),
        *("mrw", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "PSD")  # known by content
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_TEXTS = frozenset(  # without ending
    (
        *("readme", "license", "licence", "copying", "notice"),
        *("authors", "makefile", "dockerfile", "changelog"),
    )
)


@dataclass
class FoundPictures:
    """The pictures of a folder and its subfolders, and what was left out with the reason.

    Names are paths relative to the folder, with "/", sorted.
    """

    names: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def why_left_out(path: Path) -> str | None:
    """Why a file is no picture to read: "" if it is one, None if it is no picture at all.

    A readable ending makes a picture. A file without ending is recognised by its content.
    """
    ending = path.suffix.lower().removeprefix(".")
    if path.is_symlink() and not path.exists():
        named = not ending or ending in _NO_DECODER or is_image_name(path)
        return "a link to a file that does not exist" if named else None
    if path.name.startswith(".") or not path.is_file():
        return None
    if is_image_name(path):
        return ""
    if ending in _NO_DECODER:
        return f"{ending.upper()} files cannot be decoded here, save it as JPEG or PNG"
    if not ending and path.name.lower() in _TEXTS:
        return None
    try:
        kind = _kind_of(path)
    except OSError as error:
        return None if ending else f"it cannot be opened ({error.strerror})"
    if ending:
        return f"a {kind} picture with the ending .{ending}, rename it" if kind else None
    if kind == "HEIF":
        return "HEIF files cannot be decoded here, save it as JPEG or PNG"
    return "" if kind else "it has no file ending and holds no picture"


def _kind_of(path: Path) -> str:
    """The format of a picture by the first bytes of its file; "" for other files."""
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIF"
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.format or ""
    except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError):
        return ""


def pictures_in(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The pictures of one folder by name, and the files that were left out with the reason."""
    reasons = {path: why_left_out(path) for path in sorted(folder.glob("[!.]*"))}
    pictures = [path for path, reason in reasons.items() if reason == ""]
    return pictures, {path: reason for path, reason in reasons.items() if reason}


def find_pictures_below(folder: Path, leave_out: Path | None = None) -> FoundPictures:
    """Find the pictures of a folder and its subfolders; links to folders are followed, each folder once.

    Names that start with a dot, and the folder ``leave_out``, are skipped.
    """
    found, skip = FoundPictures(), leave_out.resolve() if leave_out else None
    root = folder.resolve()
    seen: set[Path] = set()
    waiting, links = [folder], []
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        name, real = here.relative_to(folder).as_posix(), here.resolve()
        if skip and (real == skip or skip in real.parents):
            continue
        if real in seen or real in root.parents:
            found.left_out[name] = "a link to a folder that is searched already"
            continue
        seen.add(real)
        try:
            entries = sorted(here.iterdir())
        except OSError as error:
            found.left_out[name] = f"the folder cannot be listed ({error.strerror})"
            continue
        for path in entries:
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else waiting).append(path)
            elif not (skip and path.is_symlink() and skip in path.resolve().parents):
                _add(found, path, path.relative_to(folder).as_posix())
    return FoundPictures(sorted(found.names), dict(sorted(found.left_out.items())))


def _add(found: FoundPictures, path: Path, name: str) -> None:
    reason = why_left_out(path)
    if reason == "":
        found.names.append(name)
    elif reason is not None:
        found.left_out[name] = reason


def listed(left_out: Sequence[tuple[str, str]]) -> str:
    """Names with their reasons in a few words: "a.heic (reason), b.dng (reason) and 3 more"."""
    texts = [f"{name} ({reason})" for name, reason in left_out[:_MOST_NAMED]]
    more = len(left_out) - len(texts)
    return ", ".join(texts) + (f" and {more} more" if more else "")
