"""The folder of a job: which job it belongs to, and files in it that nobody else has changed."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fss_d2.files import write_atomic

from .writers import OutputFile, json_bytes

__all__ = ["OutputFolder"]

_VERSION = 1
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.tmp")  # of `fss_d2.files.atomic_path`, in a run that was killed


class OutputFolder:
    """A folder that one job of one kind of settings owns.

    ``job.json`` says which settings, ``written.json`` what was written (a digest of each file), so that what
    a person has edited since is never written over.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def claim(self, settings: Mapping[str, Any]) -> bool:
        """Make the folder a job's, or go on with that job, rid of what a killed run left half-written.

        Args:
            settings: everything that the labels depend on, as JSON values.

        Returns:
            Whether the job was begun before.

        Raises:
            ValueError: the folder holds a job of other settings, or other things.
        """
        file = self.root / "job.json"
        if file.is_file():
            before = self._read(file).get("settings", {})
            differ = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
            if differ:
                raise ValueError(
                    f"{self.root} holds a job with other settings ({', '.join(differ)}): "
                    "give the same again to go on, or another output folder"
                )
            for path in self.root.rglob(".*.tmp"):
                if _HALF_WRITTEN.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            return True
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise ValueError(f"{self.root} is in use for something else: give an output folder of its own")
        digest = hashlib.sha256(json_bytes(dict(settings))).hexdigest()
        write_atomic(file, json_bytes({"version": _VERSION, "settings": dict(settings), "hash": digest}))
        return False

    def write(self, files: Iterable[OutputFile]) -> list[str]:
        """Write files, replacing only what this job wrote before.

        Returns:
            The names of those that were left alone, because they have been edited.
        """
        manifest = self.root / "written.json"
        written = self._read(manifest) if manifest.is_file() else {}
        kept = []
        for name, content in files:
            path, digest = self.root / name, hashlib.sha256(content).hexdigest()
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            if found not in (None, digest, written.get(name)):
                kept.append(name)
                continue
            if found != digest:
                write_atomic(path, content)
            written[name] = digest
        write_atomic(manifest, json_bytes(dict(sorted(written.items()))))
        return kept

    @staticmethod
    def _read(file: Path) -> dict[str, Any]:
        try:
            content = json.loads(file.read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}): give another output folder") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} is damaged: give another output folder")
        return content
