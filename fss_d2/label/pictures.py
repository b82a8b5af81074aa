"""Segment the pictures in files and folders, and write masks, overlays, attention or COCO annotations."""

import glob
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from fss_d2.inference.annotations import read_picture
from fss_d2.inference.negatives import Negatives
from fss_d2.inference.predictor import FewShotPredictor, Prediction
from fss_d2.io.files import check_writable, expand_user, printable, write_atomic
from fss_d2.io.progress import track
from fss_d2.visualization import picture_grid, save_picture
from fss_d2.visualization.panels import attention_panel, class_map_png, prediction_panel

from .job import find_images
from .output import ImageRecord, record_of
from .writers import FORMATS, LabelSet, class_list, file_stems

__all__ = ["PictureJob", "Supports", "find_pictures", "plan_pictures", "segment_pictures"]

COCO_FILE, CLASSES_FILE = "coco/annotations.json", "mask/classes.txt"

logger = logging.getLogger(__name__)

Supports = Mapping[str, tuple[Sequence[Any], Sequence[Any]]]  # images and annotations by class


@dataclass(frozen=True)
class PictureJob:
    """What to segment and what to write."""

    output: Path
    save: tuple[str, ...]  # some of "mask" (class maps), "overlay" (pictures), "coco" and "attention"
    folder: Path  # contains all pictures, also in subfolders
    work: Mapping[Path, tuple[str, str]]  # by picture: name relative to `folder`, stem of the output files

    def output_files(self) -> list[str]:
        """Names, relative to the output folder, of all files that will be written."""
        stems = [stem for _, stem in self.work.values()]
        pictures = [f"{kind}/{stem}.png" for kind in self.save if kind != "coco" for stem in stems]
        return pictures + [COCO_FILE] * ("coco" in self.save) + [CLASSES_FILE] * ("mask" in self.save)


def plan_pictures(
    patterns: Sequence[str], output: Path, save: Sequence[str], *, overwrite: bool
) -> PictureJob:
    """Find the pictures and check the output folder; all processes must call it.

    ``patterns`` are files, folders, or patterns such as "photos/*.jpg"; ``overwrite`` replaces files of an
    earlier run. FileNotFoundError or ValueError: no picture, a read-only folder, or an existing file.
    """
    files = find_pictures(patterns, output)
    absolute = [Path(os.path.abspath(file)) for file in files]
    folder = Path(os.path.commonpath([file.parent for file in absolute]))
    names = [file.relative_to(folder).as_posix() for file in absolute]
    stems = file_stems(names)
    work = {file: (name, stems[name]) for file, name in zip(files, names, strict=True)}
    job = PictureJob(output, tuple(save), folder, work)
    check_writable(output)
    there = [name for name in job.output_files() if (output / name).exists()]
    comm.synchronize()  # no process writes before all have looked
    if there and not overwrite:
        raise ValueError(f"{output / there[0]} exists: take another --output, or add --overwrite")
    return job


def find_pictures(patterns: Sequence[str], output: Path) -> list[Path]:
    """The files that are named, lie in named folders (except ``output``), or match a pattern; each once."""
    files: dict[str, Path] = {}  # by absolute path
    for pattern in patterns:
        pattern = expand_user(pattern)
        path = Path(pattern)
        if path.is_dir():
            found = [path / name for name in find_images(path, leave_out=output).names]
        else:
            matches = [path] if path.is_file() else map(Path, sorted(glob.glob(pattern, recursive=True)))
            found = [file for file in matches if file.is_file()]
        if not found:
            raise FileNotFoundError(f"--input {pattern}: there is no such file; give images or a folder")
        for file in found:
            files.setdefault(os.path.abspath(file), file)
    return list(files.values())


def segment_pictures(
    job: PictureJob, predictor: FewShotPredictor, supports: Supports, negatives: Negatives | None = None
) -> None:
    """Segment all pictures, each process its share, and write the results; all processes must call it.

    A method without "attention" and, at the end, pictures that cannot be read raise ValueError.
    """
    if "attention" in job.save:
        predictor.check_attention()
    predictor.set_support_classes(supports, negatives=negatives)
    rank, world = comm.get_rank(), comm.get_world_size()
    share = list(job.work)[rank::world]
    gathered = comm.gather(list(_segment(job, share, predictor, supports)))
    if not comm.is_main_process():
        return
    done = [item for part in gathered for item in part]
    _finish(job, predictor.names, [item for item in done if isinstance(item, ImageRecord)])
    if wrong := [item for item in done if isinstance(item, str)]:
        raise ValueError(f"{len(wrong)} of {len(done)} images were left out; {wrong[0]}")


def _segment(
    job: PictureJob, files: Sequence[Path], predictor: FewShotPredictor, supports: Supports
) -> Iterator[ImageRecord | str]:
    """Write the results of each picture; yield its record, or the error if it cannot be read."""
    for file in track(files, "Segment", len(files)):
        name, stem = job.work[file]
        try:
            image, _ = read_picture(file)
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        prediction = predictor.predict(image)
        for kind in job.save:
            path = job.output / kind / f"{stem}.png"
            if kind == "mask":
                write_atomic(path, class_map_png(prediction.labels))
            elif kind == "overlay":
                save_picture(path, prediction_panel(image, prediction.masks, prediction.expected_iou))
            elif kind == "attention":
                save_picture(path, _attention(predictor, image, prediction, supports))
        yield record_of(name, prediction, 1)


def _attention(
    predictor: FewShotPredictor, image: np.ndarray, prediction: Prediction, supports: Supports
) -> np.ndarray:
    """For each class the pixel with the highest probability, and the support pixels that it attends to."""
    rows = []
    for name, probability in zip(prediction.names, prediction.probability, strict=True):
        y, x = np.unravel_index(int(probability.argmax()), probability.shape)
        point = (int(x), int(y))
        maps = predictor.attention(image, point, name=name)
        pictures = [read_picture(picture)[0] for picture in supports[name][0]]
        rows.append(attention_panel(image, point, pictures, maps, title=name))
    return picture_grid(rows)


def _finish(job: PictureJob, class_names: tuple[str, ...], records: list[ImageRecord]) -> None:
    """Write the files that cover all pictures."""
    if "coco" in job.save:
        ordered = tuple(sorted(records, key=lambda record: record.image))
        for name, content in FORMATS["coco"](LabelSet(class_names, ordered, job.folder, job.output)):
            write_atomic(job.output / name, content)
    if "mask" in job.save:
        write_atomic(job.output / CLASSES_FILE, class_list(class_names))
    found = sum(bool(record.objects) for record in records)
    names, output = printable(", ".join(class_names)), printable(job.output)
    logger.info("%s found in %d of %d images; see %s", names, found, len(records), output)
