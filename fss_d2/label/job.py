"""Label a folder; a job can be interrupted at any time and resumed."""

import dataclasses
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

from detectron2.utils import comm

from fss_d2.data.images import read_image
from fss_d2.data.picture_files import FoundPictures, find_pictures_below, listed
from fss_d2.engine.command_line import suggestion
from fss_d2.inference.negatives import Negatives
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.io.files import expand_user, ignores_case, printable, read_json, shortened, write_atomic
from fss_d2.io.progress import track

from . import REVIEW_BELOW
from .check import MOST_CHECKED, ClassCheck, SupportCheck, check_steps, check_supports, describe, left_out
from .negatives import as_pairs
from .output import Journal, OutputFolder, json_bytes, record_of
from .report import THUMBNAILS, report_files, summarize, thumbnail
from .supports import Support
from .writers import FORMATS, LabelSet, check_class_names, first_alike, format_problem, one_stem

__all__ = ["Job", "find_images", "run_job"]

logger = logging.getLogger(__name__)

_CHECK_FILE = "leave_one_out.json"
_MOST_CLASSES = 254  # a class map has 255 for ignored pixels
_LONGEST_NAME = 250  # bytes of an image's name; a file may have 255, and labels add an ending

Supports = Mapping[str, Sequence[Support]]
State = tuple[int, int]  # of a file: size in bytes, time of the last change in nanoseconds


@dataclass(frozen=True)
class Job:
    """What to do; values that cannot be used raise ValueError."""

    images: Path  # folder of the images to label, with its subfolders
    output: Path  # folder for the results and nothing else
    # Run the job again to write more formats later. None: all, without those that the images do not allow.
    formats: tuple[str, ...] | None = None
    review_below: float = REVIEW_BELOW  # images of less expected IoU are listed in needs_review.txt
    min_area: int | None = None  # pixels that a connected object must have; None takes 1/2000 of the image
    check: int = MOST_CHECKED  # supports of each class that are segmented with the others first; 0: none

    def __post_init__(self) -> None:
        for folder in ("images", "output"):
            object.__setattr__(self, folder, Path(expand_user(getattr(self, folder))))
        for name in self.formats or ():
            if name not in FORMATS:
                raise ValueError(f"formats: there is no {shortened(name)!r}; {suggestion(name, FORMATS)}")
        if not 0 <= self.review_below <= 1:
            raise ValueError(f"review_below is {self.review_below}; an IoU is from 0 to 1")
        if self.check < 0:
            raise ValueError(f"check is {self.check}; it must be 0 supports or more")
        images, output = self.images.resolve(), self.output.resolve()
        if output in (images, *images.parents):
            raise ValueError(f"output {self.output} holds the images to label: give a folder of its own")
        if self.min_area is not None and self.min_area < 0:
            raise ValueError(f"min_area is {self.min_area}; it must be 0 pixels or more")


def run_job(
    job: Job,
    predictor: FewShotPredictor,
    supports: Supports,
    model: Mapping[str, str] | None = None,
    negatives: Supports | None = None,
) -> dict[str, Any]:
    """Label every image of a folder, write the labels in all formats, and return the content of summary.json.

    Where all images are supports, a warning says that there is nothing to label, and {} is returned.

    ``output`` gets ``records/<image>.json`` and ``thumbnails/<image>.jpg`` as images are finished; at the end
    the formats, ``needs_review.txt`` and ``.json``, ``report.html`` and ``summary.json``, from the records
    alone. After an interruption the same call resumes and ends with the same files.

    ``negatives`` are pictures that do not show the object, by class or under "" for all (`read_negatives`).
    A class of a presence below the predictor's ``present_above`` gets no label.

    A finished record is kept while its image file, the supports, negatives, ``min_area``, ``present_above``
    and ``model`` (config keys and digests that the predictions depend on) stay the same; everything else may
    change, also the paths of both folders. Edited files are kept; labels of images that are gone are deleted.
    Images that are supports are skipped. The log, the summary and the report list images that cannot be read,
    files that look like images but are of no format that is decoded here (``left_out``), and formats that the
    images do not allow. In several processes (`fss_d2.engine.launch`) each labels its share.

    Raises:
        FileNotFoundError, ValueError: no folder, no image, or none that can be labelled; too many classes; or
            an output folder that belongs to another job.
    """
    every, skipped, left_out = _to_label(job, supports)
    if not every:
        fix = "give other images with --images (--support-images is for the pictures of the supports)"
        logger.warning("%s holds no image but the supports, so nothing was labelled: %s", job.images, fix)
        return {}
    too_long = f"its name has more than {_LONGEST_NAME} bytes, too many for its labels; shorten it"
    failed = {name: too_long for name in every if len(os.fsencode(PurePath(name).name)) > _LONGEST_NAME}
    names = [name for name in every if name not in failed]
    formats, formats_left_out = _formats(job, names)
    classes = {name: ([s.image for s in many], [s.mask for s in many]) for name, many in supports.items()}
    start = time.monotonic()
    against = as_pairs(negatives or {})
    # First: supports that are refused leave no folder behind.
    predictor.set_support_classes(classes, negatives=against)
    encoding = (time.monotonic() - start) / sum(map(len, supports.values()))
    output, journal = OutputFolder(job.output), Journal(job.output / "records")
    if comm.is_main_process():
        for name, problem in formats_left_out.items():
            logger.warning("The format %s is left out: %s", name, problem)
        _check_names(job, names)
        if output.claim(_settings(job, predictor, supports, negatives or {}), model):
            logger.info("Going on with the job in %s", printable(job.output))
        if not journal.knows_any(names):
            raise ValueError(
                f"{job.output} holds the labels of other images than {job.images}: give the folder of those, "
                "or another output folder"
            )
    comm.synchronize()
    checks = _checks(job, predictor, supports, against, encoding) if job.check else []
    states = {name: _state(job.images / name) for name in names}
    failed |= _label(job, predictor, tuple(supports), states)
    if not comm.is_main_process():
        return {}
    shifts = {check.class_name: check.shift for check in checks}
    finished = (journal.read(name, states[name]) for name in names if name not in failed)
    records = [record.shifted(shifts) for record in finished if record]
    if not records:
        raise ValueError(f"none of {len(every)} images could be labelled; {next(iter(failed.values()))}")
    labels = LabelSet(tuple(supports), tuple(records), job.images, job.output)
    summary = summarize(labels, job.review_below, skipped, failed, left_out, formats_left_out)
    files = [FORMATS[name](labels) for name in formats]
    report = report_files(labels, job.review_below, checks, summary, predictor.quality.origin)
    with _resumable():
        edited = output.write(chain(*files, report), outdated=formats_left_out)
    for name in edited:
        logger.warning("%s was edited after it was written; it stays as it is", printable(job.output / name))
    return summary


def find_images(folder: Path, leave_out: Path) -> FoundPictures:
    """The images in a folder and its subfolders (`find_pictures_below`), at least one.

    What looks like an image and was left out is named in the log. Without a folder or an image,
    FileNotFoundError or ValueError is raised.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give the folder of the images to label")
    found = find_pictures_below(folder, leave_out)
    lost = listed(list(found.left_out.items()))
    if not found.names:
        held = f" that can be read, {lost}" if lost else ""
        raise ValueError(f"{folder} holds no image{held}; give the folder of the images to label")
    if lost:
        logger.warning("Left out in %s: %s", printable(folder), printable(lost))
    return found


def _to_label(job: Job, supports: Supports) -> tuple[list[str], list[str], dict[str, str]]:
    """The names of the images to label, of those that are supports, and what is left out with the reason."""
    if len(supports) > _MOST_CLASSES:
        raise ValueError(f"{len(supports)} classes; at most {_MOST_CLASSES} fit into one class map")
    check_class_names(tuple(supports))
    files = {file for of_class in supports.values() for support in of_class for file in support.files}
    found = find_images(job.images, job.output)
    names, skipped = _without_supports(job.images, found.names, files)
    for name in skipped:
        logger.info("Skipped %s: it is a support, or the mask of one", printable(name))
    return names, skipped, found.left_out


def _formats(job: Job, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The formats to write, and those that the images do not allow, with the reason.

    One of these that the job names is a ValueError, before anything is labelled.
    """
    asked = [name for name in FORMATS if job.formats is None or name in job.formats]
    problems = {name: text for name in asked if (text := format_problem(name, names))}
    for name, problem in problems.items() if job.formats is not None else ():
        raise ValueError(f"--formats {name}: {problem}, or leave {name} out of --formats")
    return [name for name in asked if name not in problems], problems


def _check_names(job: Job, names: Sequence[str]) -> None:
    """Say which images' label files keep their ending, and which would share one where case does not count.

    ValueError if the output folder is in such a place.
    """
    if pair := one_stem(names):
        both = (*map(shortened, pair), shortened(pair[0]))
        logger.warning("%s and %s differ only in their ending: label files keep it (%s.png)", *both)
    if (alike := first_alike(names)) is None:
        return
    pair = " and ".join(map(shortened, alike))
    if ignores_case(job.output):
        raise ValueError(
            f"{pair} differ in case only, and the file system of {job.output} does not distinguish that: "
            "rename one of them, or give an output folder elsewhere"
        )
    logger.warning("%s differ in case only: on Windows and macOS the labels of one replace the other's", pair)


@contextmanager
def _resumable() -> Iterator[None]:
    """Add to an error of the disk (full, read-only) that nothing is lost."""
    try:
        yield
    except OSError as error:
        what = f"{error.strerror}; finished images are kept: the same command goes on when that is solved"
        raise OSError(error.errno, what, error.filename) from error


def _without_supports(
    folder: Path, names: Sequence[str], files: Iterable[Path]
) -> tuple[list[str], list[str]]:
    """Divide images into those to label, and the files of supports (masks, too) and copies of them."""
    by_size: dict[int, list[Path]] = {}
    for file in files:
        by_size.setdefault(file.stat().st_size, []).append(file)

    @cache
    def digest(path: Path) -> bytes:
        return hashlib.sha256(path.read_bytes()).digest()

    to_label, supports = [], []
    for name in names:
        path = folder / name
        of_same_size = by_size.get(path.stat().st_size, [])
        found = any(path.samefile(file) or digest(path) == digest(file) for file in of_same_size)
        (supports if found else to_label).append(name)
    return to_label, supports


def _settings(
    job: Job, predictor: FewShotPredictor, supports: Supports, negatives: Supports
) -> dict[str, Any]:
    """What the labels depend on besides the model."""
    pictures = {"supports": _digest(supports), "negatives": _digest(negatives)}
    return {**pictures, "min_area": job.min_area, "present_above": predictor.present_above}


def _digest(supports: Supports) -> str:
    digest = hashlib.sha256()
    for name, of_class in supports.items():
        digest.update(repr((name, len(of_class))).encode("utf-8", "surrogateescape"))
        for support in of_class:
            for array in (support.image, support.mask):
                digest.update(repr(array.shape).encode())
                digest.update(array.tobytes())
    return digest.hexdigest()


def _checks(
    job: Job, predictor: FewShotPredictor, supports: Supports, negatives: Negatives, encoding: float
) -> list[ClassCheck]:
    """The leave-one-out check, from the file of an earlier run if there is one; [] on other processes.

    ``encoding`` is how many seconds a support took to encode.
    """
    file, main = job.output / _CHECK_FILE, comm.is_main_process()
    found = _read_checks(file, supports, job.check) if main else None
    checks: list[ClassCheck] | None = comm.all_gather(found)[0]
    if checks is None:
        steps = check_steps(supports, job.check)
        seconds = max(1, round(steps * encoding / comm.get_world_size()))
        count = sum(min(len(of_class), job.check) for of_class in supports.values() if len(of_class) > 1)
        logger.info("Checking %d supports, each with the others of its class: about %d s", count, seconds)
        checks = check_supports(predictor, supports, job.check, negatives=negatives)
        if main:
            write_atomic(file, json_bytes([dataclasses.asdict(check) for check in checks]))
    if main:
        logger.info("Each support segmented with the others of its class:\n%s", printable(describe(checks)))
    return checks


def _read_checks(file: Path, supports: Supports, most: int) -> list[ClassCheck] | None:
    """None if the file does not exist, is damaged, or is of another number of supports."""
    try:
        checks = [
            ClassCheck(**{**content, "supports": tuple(SupportCheck(**s) for s in content["supports"])})
            for content in read_json(file)
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    alone = {
        name: sum(len(out) == 1 for out in left_out(len(of_class), most))
        for name, of_class in supports.items()
    }
    return checks if {check.class_name: len(check.supports) for check in checks} == alone else None


def _state(path: Path) -> State:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _label(
    job: Job, predictor: FewShotPredictor, class_names: tuple[str, ...], states: Mapping[str, State]
) -> dict[str, str]:
    """Label what is not finished; on the main process, return the images that failed and why."""
    journal = Journal(job.output / "records")
    mine = list(states)[comm.get_rank() :: comm.get_world_size()]
    pending = [name for name in mine if journal.read(name, states[name]) is None]
    failed = {}
    done = len(mine) - len(pending)
    logger.info("Labelling %d images, %d of them done before", len(mine), done)
    for name in track(pending, "Label", len(mine), done=done):
        try:
            image, _ = read_image(job.images / name)
            prediction = predictor.predict(image)
        except (ValueError, OSError) as error:
            failed[name] = " ".join(str(error).split())
            continue
        record = record_of(name, prediction, job.min_area)
        with _resumable():
            write_atomic(job.output / THUMBNAILS / f"{name}.jpg", thumbnail(image, record, class_names))
            journal.write(record, states[name])
    gathered: list[dict[str, str]] = comm.gather(failed)
    return dict(sorted((name, text) for part in gathered for name, text in part.items()))
