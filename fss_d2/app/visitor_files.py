"""Files for a visitor's browser: pictures and the zip file."""

import hashlib
import io
import os
import secrets
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from fss_d2.files import write_atomic

__all__ = ["VisitorFiles"]


class VisitorFiles:
    """A folder of one visitor, under a name that nobody can guess.

    Files are named by what is in them and never change, so that one can be fetched while it is made again.
    """

    def __init__(self, parent: str | os.PathLike[str]) -> None:
        """
        Args:
            parent: takes the visitor's folder, which is made with the first file.
        """
        self.parent = Path(parent)
        self.folder = self.parent / secrets.token_hex(16)

    def picture(self, pixels: np.ndarray) -> str:
        """The path of a picture (H, W, 3) uint8 as JPEG."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="JPEG", quality=92, subsampling=0)
        return self.file(buffer.getvalue(), ".jpg")

    def file(self, content: bytes, ending: str) -> str:
        """The path of a file; ``ending`` may have a name before it: "/masks.zip"."""
        path = Path(f"{self.folder / hashlib.sha256(content).hexdigest()}{ending}")
        if path.exists():
            os.utime(path)  # it is deleted a while after its last use
        else:
            write_atomic(path, content)
        return str(path)

    def clear(self) -> None:
        """Delete all."""
        shutil.rmtree(self.folder, ignore_errors=True)
