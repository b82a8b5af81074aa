"""Addresses in configs are fetched from a network only where the user asks for it."""

import os

from fss_d2.io.files import shortened

__all__ = ["DOWNLOAD_VARIABLE", "check_address", "is_address"]

# Anything but "" or "0" lets configs name files by address: `_BASE_`, MODEL.WEIGHTS and the like.
DOWNLOAD_VARIABLE = "FSS_D2_DOWNLOAD"
_LOCAL = ("fss_d2", "file")  # schemes of files on this machine


def is_address(path: str) -> bool:
    """Whether a path has a scheme that needs a network: https://, s3://, catalog://, ..."""
    scheme, separator, _ = path.partition("://")
    return bool(separator) and scheme.isidentifier() and scheme.lower() not in _LOCAL


def check_address(path: str, where: str) -> None:
    """Raise ValueError if a path needs a network and nobody allowed that; a cached file needs none.

    Args:
        where: the file and key that name it, for the message.
    """
    if is_address(path) and os.environ.get(DOWNLOAD_VARIABLE, "") in ("", "0") and not _is_cached(path):
        raise ValueError(
            f"{where} {shortened(path)} is an address, and nothing is fetched from a network unasked: "
            f"download the file and give its path, or set the environment variable {DOWNLOAD_VARIABLE}=1"
        )


def _is_cached(path: str) -> bool:
    """Whether Detectron2 has downloaded a file of its own before, as it names it: detectron2://NAME."""
    scheme, _, name = path.partition("://")
    cache = os.path.expanduser(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache"))
    return scheme == "detectron2" and os.path.isfile(os.path.join(cache, scheme, name))
