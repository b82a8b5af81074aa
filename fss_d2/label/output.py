"""The folder of a job: which job it belongs to, and files in it that nobody else has changed."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fss_d2.files import check_writable, is_half_written, read_json_object, write_atomic

from .writers import OutputFile, json_bytes

__all__ = ["OutputFolder"]

_VERSION = 1
_MEND = "give another output folder"


class OutputFolder:
    """A folder that one job of one kind of settings owns.

    ``job.json`` says which settings, ``written.json`` what was written (a digest of each file), so that what
    a person has edited since is never written over. While files are written, ``writing.jsonl`` has the digest
    of each before the file itself is there: what a killed run wrote is known for the job's own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifest = root / "written.json"
        self._log = root / "writing.jsonl"

    def claim(self, settings: Mapping[str, Any]) -> bool:
        """Make the folder a job's, or go on with that job, rid of what a killed run left half-written.

        Args:
            settings: everything that the labels depend on, as JSON values.

        Returns:
            Whether the job was begun before.

        Raises:
            ValueError: the folder holds a job of other settings, or other things, or cannot be written to.
        """
        file = self.root / "job.json"
        if file.is_file():
            before = read_json_object(file, _MEND).get("settings", {})
            differ = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
            if differ:
                raise ValueError(
                    f"{self.root} holds a job with other settings ({', '.join(differ)}): "
                    "give the same again to go on, or another output folder"
                )
            check_writable(self.root)
            self._tidy()
            return True
        if self.root.exists() and (
            not self.root.is_dir() or any(not is_half_written(path) for path in self.root.iterdir())
        ):
            raise ValueError(f"{self.root} is in use for something else: give an output folder of its own")
        check_writable(self.root)
        self._tidy()
        digest = hashlib.sha256(json_bytes(dict(settings))).hexdigest()
        write_atomic(file, json_bytes({"version": _VERSION, "settings": dict(settings), "hash": digest}))
        return False

    def write(self, files: Iterable[OutputFile]) -> list[str]:
        """Write files, replacing only what this job wrote before.

        In the subfolders that receive files, those that were written before and do not come again go away.

        Returns:
            The names of those that were left alone, because they have been edited.
        """
        own, come, kept = self._own_digests(), set(), []
        written: dict[str, str] = {}
        with self._log.open("a", encoding="ascii") as log:
            for name, content in files:
                come.add(name)
                digest, found = hashlib.sha256(content).hexdigest(), self._digest(name)
                if found not in {None, digest, *own.get(name, ())}:
                    kept.append(name)
                    continue
                if found != digest:
                    log.write("\n" + json.dumps([name, digest]))  # ends a line that was cut off
                    log.flush()
                    write_atomic(self.root / name, content)
                written[name] = digest
        folders = {name.split("/")[0] for name in come if "/" in name}
        for name in own.keys() - written.keys():
            found = self._digest(name)
            if found in own[name] and name not in come and name.split("/")[0] in folders:
                (self.root / name).unlink()
            else:
                written[name] = found if found in own[name] else min(own[name])
        write_atomic(self._manifest, json_bytes(dict(sorted(written.items()))))
        self._log.unlink()
        return kept

    def _own_digests(self) -> dict[str, set[str]]:
        """What each file held when the job wrote it; several where a run was killed meanwhile."""
        own: dict[str, set[str]] = defaultdict(set)
        if self._manifest.is_file():
            for name, digest in read_json_object(self._manifest, _MEND).items():
                own[name].add(digest)
        for line in self._log.read_bytes().splitlines() if self._log.is_file() else ():
            try:
                name, digest = json.loads(line)
            except ValueError:
                continue  # empty, or cut off
            own[name].add(digest)
        return own

    def _digest(self, name: str) -> str | None:
        path = self.root / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

    def _tidy(self) -> None:
        for path in self.root.rglob(".*.tmp"):
            if is_half_written(path):
                path.unlink(missing_ok=True)
