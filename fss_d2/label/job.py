"""The run over a folder: it can be interrupted at any time and goes on where it was."""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from tqdm import tqdm

from fss_d2.data.images import read_image
from fss_d2.files import printable, write_atomic

from .contact_sheet import THUMBNAILS, contact_sheet, thumbnail
from .image_folder import file_state, find_images, without_supports
from .interfaces import Predictor
from .leave_one_out import ClassCheck, SupportCheck, check_supports, describe
from .output import OutputFolder
from .records import Journal, record_of
from .supports import Support
from .writers import FORMATS, LabelSet, OutputFile, json_bytes

__all__ = ["Job", "run_job"]

logger = logging.getLogger(__name__)

_CHECK_FILE = "leave_one_out.json"
_MOST_CLASSES = 254  # a class map has 255 for pixels to ignore

Supports = Mapping[str, Sequence[Support]]


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        images: folder of the images to label, with its subfolders.
        output: folder of its own for the results.
        formats: of `FORMATS`. More can be written later by running the job again.
        review_below: confidence under which an image is listed in needs_review.txt.
        min_area: pixels that a connected object must have; None takes a two-thousandth of the image.
        check: label the supports by each other first.

    Raises:
        ValueError: a format that is not known, a number out of its range, or the images lie in the output.
    """

    images: Path
    output: Path
    formats: tuple[str, ...] = tuple(FORMATS)
    review_below: float = 0.6
    min_area: int | None = None
    check: bool = True

    def __post_init__(self) -> None:
        for name in self.formats:
            if name not in FORMATS:
                raise ValueError(f"formats: there is no {name!r}; choose from {', '.join(FORMATS)}")
        if not 0 <= self.review_below <= 1:
            raise ValueError(f"review_below is {self.review_below}; a confidence is from 0 to 1")
        images, output = self.images.resolve(), self.output.resolve()
        if output in (images, *images.parents):
            raise ValueError(f"output {self.output} holds the images to label: give a folder of its own")
        if self.min_area is not None and self.min_area < 0:
            raise ValueError(f"min_area is {self.min_area}; it must be 0 pixels or more")


def run_job(
    job: Job, predictor: Predictor, supports: Supports, model: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Label every image of a folder, and write the labels in all formats asked for.

    ``output`` receives ``records/<image>.json`` and ``thumbnails/<image>.jpg`` as images are finished; when
    all are, the formats, ``needs_review.txt`` and ``.json``, ``report.html`` and ``summary.json``, from the
    records alone. A run that was interrupted goes on with the same call, and ends with the same files.
    Finished records are kept unless their image was changed; files that a person has edited are left as they
    are; labels of images that are gone go too. Images that are supports are skipped, those that cannot be
    read are listed in the summary.

    In several processes (see `fss_d2.engine.launch`) each labels its share of the images.

    Args:
        predictor: gets the supports; several classes compete.
        supports: of each class, as `read_supports` gives them.
        model: names and digests of what the labels depend on besides; a job goes on only with the same.

    Returns:
        The content of ``summary.json``.

    Raises:
        FileNotFoundError: there is no such folder of images.
        ValueError: no image in it, none that can be labelled, too many classes, or an output folder that
            belongs to another job.
    """
    names, skipped = _to_label(job, supports)
    classes = {name: ([s.image for s in many], [s.mask for s in many]) for name, many in supports.items()}
    predictor.set_support_classes(classes)  # first: supports that are refused leave no folder behind
    output, checks = OutputFolder(job.output), []
    if comm.is_main_process():
        if output.claim(_settings(job, supports, model or {})):
            logger.info("Going on with the job in %s", printable(job.output))
        if job.check:
            checks, ran = _checked(job, predictor, supports)
            if ran:
                predictor.set_support_classes(classes)  # the check has put others there
    comm.synchronize()
    states = {name: file_state(job.images / name) for name in names}
    failed = _label(job, predictor, tuple(supports), states)
    if not comm.is_main_process():
        return {}
    journal = Journal(job.output / "records")
    records = [r for name in names if name not in failed and (r := journal.read(name, states[name]))]
    if not records:
        raise ValueError(f"none of {len(names)} images could be labelled; {next(iter(failed.values()))}")
    labels = LabelSet(tuple(supports), tuple(records), job.images, job.output)
    summary = _summary(labels, job.review_below, skipped, failed)
    for name in output.write(_final_files(job, labels, summary, checks)):
        logger.warning(
            "%s was edited since it was written, and is left as it is", printable(job.output / name)
        )
    return summary


def _to_label(job: Job, supports: Supports) -> tuple[list[str], list[str]]:
    """Names of the images to label, and of those that are supports."""
    if len(supports) > _MOST_CLASSES:
        raise ValueError(f"{len(supports)} classes; at most {_MOST_CLASSES} fit into one class map")
    files = {file for of_class in supports.values() for support in of_class for file in support.files}
    names, skipped = without_supports(job.images, find_images(job.images, job.output), files)
    for name in skipped:
        logger.info("Skipped %s: it is a support, or a mask of one", printable(name))
    if not names:
        raise ValueError(f"{job.images} holds no image but the supports; there is nothing to label")
    return names, skipped


def _settings(job: Job, supports: Supports, model: Mapping[str, str]) -> dict[str, Any]:
    """What must stay the same for finished records to be kept."""
    digest = hashlib.sha256()
    for name, of_class in supports.items():
        digest.update(repr((name, len(of_class))).encode("utf-8", "surrogateescape"))
        for support in of_class:
            for array in (support.image, support.mask):
                digest.update(repr(array.shape).encode())
                digest.update(array.tobytes())
    return {
        **model,
        "images": str(job.images.resolve()),
        "supports": digest.hexdigest(),
        "min_area": job.min_area,
        "review_below": job.review_below,
    }


def _checked(job: Job, predictor: Predictor, supports: Supports) -> tuple[list[ClassCheck], bool]:
    """The leave-one-out check, and whether it ran: an earlier run of the job may have got so far."""
    file, ran = job.output / _CHECK_FILE, False
    try:
        content = json.loads(file.read_bytes())
        checks = [
            ClassCheck(c["class_name"], tuple(SupportCheck(**s) for s in c["supports"])) for c in content
        ]
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not there, or damaged
        logger.info("Labelling each support by the others of its class, to see what to expect")
        checks, ran = check_supports(predictor, supports), True
        write_atomic(file, json_bytes([dataclasses.asdict(check) for check in checks]))
    logger.info("Each support labelled by the others of its class:\n%s", printable(describe(checks)))
    return checks, ran


def _label(
    job: Job, predictor: Predictor, class_names: tuple[str, ...], states: Mapping[str, tuple[int, int]]
) -> dict[str, str]:
    """Label what is not finished; return what is wrong with images that cannot be, on the main process."""
    journal = Journal(job.output / "records")
    mine = list(states)[comm.get_rank() :: comm.get_world_size()]
    pending = [name for name in mine if journal.read(name, states[name]) is None]
    failed = {}
    done = len(mine) - len(pending)
    logger.info("Labelling %d images; %d are done already", len(mine), done)
    for name in tqdm(pending, initial=done, total=len(mine), desc="Label", disable=None):
        try:
            image, _ = read_image(job.images / name)
            prediction = predictor.predict(image)
        except (ValueError, OSError) as error:
            failed[name] = " ".join(str(error).split())
            continue
        record = record_of(name, prediction, job.min_area)
        write_atomic(job.output / THUMBNAILS / f"{name}.jpg", thumbnail(image, record, class_names))
        journal.write(record, states[name])
    gathered: list[dict[str, str]] = comm.gather(failed)
    return dict(sorted((name, text) for part in gathered for name, text in part.items()))


def _summary(
    labels: LabelSet, review_below: float, skipped: Sequence[str], failed: Mapping[str, str]
) -> dict[str, Any]:
    found = [name for record in labels.records for name in record.class_names]
    review = [r for r in labels.records if r.confidence < review_below]
    return {
        "labelled": len(labels.records),
        "with_class": {name: found.count(name) for name in labels.class_names},
        "nothing_found": sum(not record.objects for record in labels.records),
        "needs_review": len(review),
        "mean_confidence": round(sum(r.confidence for r in labels.records) / len(labels.records), 6),
        "skipped_supports": list(skipped),
        "unreadable": [{"image": name, "error": text} for name, text in failed.items()],
    }


def _final_files(
    job: Job, labels: LabelSet, summary: Mapping[str, Any], checks: Sequence[ClassCheck]
) -> Iterator[OutputFile]:
    """All that is written at the end."""
    for name in FORMATS:
        if name in job.formats:
            yield from FORMATS[name](labels)
    review = [r for r in labels.records if r.confidence < job.review_below]
    review.sort(key=lambda record: (record.confidence, record.image))
    yield "needs_review.txt", b"".join(os.fsencode(f"{record.image}\n") for record in review)
    rows = [{"image": r.image, "confidence": r.confidence, "classes": list(r.class_names)} for r in review]
    yield "needs_review.json", json_bytes(rows)
    notes = [f"{row['image']} could not be labelled: {row['error']}" for row in summary["unreadable"]]
    yield "report.html", contact_sheet(labels, review_below=job.review_below, checks=checks, notes=notes)
    yield "summary.json", json_bytes(dict(summary))
