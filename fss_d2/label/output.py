"""The record of each labelled image, and the output folder, whose edited files are never overwritten."""

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask

from fss_d2.inference.prediction import Instance, Prediction, expected_ious
from fss_d2.inference.quality import shifted
from fss_d2.io.files import (
    check_writable,
    is_half_written,
    json_text,
    parse_json,
    read_json,
    read_json_object,
    write_atomic,
)

__all__ = ["ImageRecord", "Journal", "LabelledObject", "OutputFile", "OutputFolder", "json_bytes"]
__all__ += ["record_of"]

_VERSION = 3  # of job.json
_MOST_NAMED = 6  # settings that an error lists
_FIX = "give another output folder"

OutputFile = tuple[str, bytes]  # name relative to the output folder, with "/"; content


def json_bytes(content: Any) -> bytes:
    """JSON in ASCII, so that any file name survives any reader."""
    return (json_text(content, indent=1) + "\n").encode("ascii")


@dataclass(frozen=True)
class LabelledObject:
    """One connected object."""

    class_name: str
    counts: str  # of COCO's compressed run-length encoding
    area: int  # pixels
    bbox: tuple[int, int, int, int]  # x, y, width, height in pixels
    score: float  # mean probability of the class over the object's pixels


@dataclass(frozen=True)
class ImageRecord:
    """The labels of one image, upright."""

    image: str  # path relative to the folder of images, with "/"
    height: int
    width: int
    mask_iou: Mapping[str, float]  # of the classes, see `Prediction`
    presence: Mapping[str, float]  # of all classes, at least one
    objects: tuple[LabelledObject, ...]

    @property
    def expected_iou(self) -> dict[str, float]:
        """The IoU to expect of each class, see `expected_ious`; one without an object was not found."""
        values = expected_ious(self.presence, self.class_names, self.mask_iou, self.presence)
        return {name: round(value, 6) for name, value in values.items()}

    @property
    def lowest_iou(self) -> float:
        """The expected IoU of the worst class, by which images are ordered and chosen for review."""
        return min(self.expected_iou.values())

    def shifted(self, shifts: Mapping[str, float]) -> "ImageRecord":
        """The record with the expected IoUs of masks shifted; see `class_shift`."""
        values = {n: round(shifted(v, shifts.get(n, 0.0)), 6) for n, v in self.mask_iou.items()}
        return dataclasses.replace(self, mask_iou=values)

    def rle(self, item: LabelledObject) -> dict[str, Any]:
        """COCO's compressed RLE of an object, ready for JSON."""
        return {"size": [self.height, self.width], "counts": item.counts}

    def mask(self, item: LabelledObject) -> np.ndarray:
        """(H, W) bool."""
        return coco_mask.decode(self.rle(item)).astype(bool)

    def class_map(self, class_names: Sequence[str]) -> np.ndarray:
        """(H, W) uint8: 0 background, i + 1 the i-th class."""
        labels = np.zeros((self.height, self.width), np.uint8)
        for item in self.objects:
            labels[self.mask(item)] = class_names.index(item.class_name) + 1
        return labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that were found, sorted."""
        return tuple(sorted({item.class_name for item in self.objects}))


def record_of(image: str, prediction: Prediction, min_area: int | None) -> ImageRecord:
    """Make the record of a prediction, without parts below ``min_area`` (as `Prediction.iter_instances`)."""
    objects = tuple(map(_labelled, prediction.iter_instances(min_area)))
    presence = {name: prediction.presence.get(name, 1.0) for name in prediction.names}
    rounded = ({name: round(v, 6) for name, v in of.items()} for of in (prediction.iou_if_present, presence))
    return ImageRecord(image, *prediction.labels.shape, *rounded, objects)


def _labelled(instance: Instance) -> LabelledObject:
    rle = coco_mask.encode(np.asfortranarray(instance.mask, dtype=np.uint8))
    box, area = tuple(int(v) for v in coco_mask.toBbox(rle)), int(coco_mask.area(rle))
    return LabelledObject(instance.name, rle["counts"].decode("ascii"), area, box, round(instance.score, 6))


class Journal:
    """One JSON file per finished image, in a folder with the same subfolders as the images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, record: ImageRecord, state: Sequence[int]) -> None:
        """Record an image as finished; `read` compares ``state``, size and time of the image file."""
        content = {"state": list(state), **dataclasses.asdict(record)}
        write_atomic(self._file(record.image), json_bytes(content))

    def read(self, image: str, state: Sequence[int]) -> ImageRecord | None:
        """The record of an image; None if there is none, it is damaged, or the image file has changed."""
        try:
            content = read_json(self._file(image))
            return _parsed(content) if content["state"] == list(state) else None
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def knows_any(self, images: Iterable[str]) -> bool:
        """Whether one of the images has a record, or the journal is still empty."""
        return any(self._file(image).is_file() for image in images) or not any(self.folder.rglob("*.json"))

    def _file(self, image: str) -> Path:
        return self.folder / f"{image}.json"


def _parsed(content: Mapping[str, Any]) -> ImageRecord:
    objects = tuple(LabelledObject(**{**o, "bbox": tuple(o["bbox"])}) for o in content["objects"])
    fields = {k: content[k] for k in ("image", "height", "width")}
    for key in ("mask_iou", "presence"):
        fields[key] = {str(name): float(value) for name, value in content[key].items()}
    min(fields["presence"].values())
    return ImageRecord(**fields, objects=objects)


class OutputFolder:
    """The output folder of one job.

    ``job.json`` has the job's settings and ``written.json`` the digest of each file that was written, so that
    a file that somebody has edited since is never overwritten. While files are written, ``writing.jsonl``
    gets the digest of each before the file itself appears, so that a later run recognises the files of a
    killed one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._manifest = root / "written.json"
        self._log = root / "writing.jsonl"

    def claim(self, settings: Mapping[str, Any], model: Mapping[str, str] | None = None) -> bool:
        """Start a job in the folder or resume it, and return whether it was started before.

        What a killed run left half-written is deleted. A folder with another job, with other files or without
        write permission raises ValueError.

        Args:
            settings: what the labels depend on, as JSON values; the same for every version of this package.
            model: config keys and values that they depend on, too. A key that only one of the two runs knows
                comes from another version of this package, and does not count.
        """
        file, settings, model = self.root / "job.json", dict(settings), dict(model or {})
        started = file.is_file()
        if started:
            self._compare(read_json_object(file, _FIX), settings, model)
        elif self.root.exists() and (
            not self.root.is_dir() or any(not is_half_written(path) for path in self.root.iterdir())
        ):
            raise ValueError(f"{self.root} is in use for something else: {_FIX}")
        check_writable(self.root)
        for path in filter(is_half_written, self.root.rglob(".*.tmp")):
            path.unlink(missing_ok=True)
        if not started:
            write_atomic(file, json_bytes({"version": _VERSION, "settings": settings, "model": model}))
        return started

    def _compare(self, job: Mapping[str, Any], settings: Mapping[str, Any], model: Mapping[str, str]) -> None:
        before, model_before = job.get("settings"), job.get("model")
        whole = isinstance(before, dict) and isinstance(model_before, dict)
        if job.get("version") != _VERSION or not whole:
            raise ValueError(f"{self.root} holds a job of another version of this program: {_FIX}")
        differ = sorted(k for k in {*before, *settings} if before.get(k) != settings.get(k))
        differ += sorted(k for k in model_before.keys() & model.keys() if model_before[k] != model[k])
        if differ:
            more = [f"and {len(differ) - _MOST_NAMED} more"] if len(differ) > _MOST_NAMED else []
            raise ValueError(
                f"{self.root} holds a job with other settings ({', '.join(differ[:_MOST_NAMED] + more)}): "
                "give the same again to go on, or another output folder"
            )

    def write(self, files: Iterable[OutputFile], outdated: Iterable[str] = ()) -> list[str]:
        """Write files, replacing only what this job wrote; return the names of edited files, which are kept.

        In the subfolders of the new files, and in ``outdated`` subfolders, files of an earlier run that are
        not among the new ones are deleted.
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
                    log.write("\n" + json_text([name, digest]))  # ends a line that was cut off
                    log.flush()
                    write_atomic(self.root / name, content)
                written[name] = digest
        folders = {*outdated, *(name.split("/")[0] for name in come if "/" in name)}
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
        """The digests of each file when the job wrote it; several after a killed run."""
        own: dict[str, set[str]] = defaultdict(set)
        if self._manifest.is_file():
            for name, digest in read_json_object(self._manifest, _FIX).items():
                own[name].add(digest)
        for line in self._log.read_bytes().splitlines() if self._log.is_file() else ():
            try:
                name, digest = parse_json(line)
            except ValueError:
                continue  # empty, or cut off
            own[name].add(digest)
        return own

    def _digest(self, name: str) -> str | None:
        path = self.root / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
