"""Annotated pictures as supports: read them, and segment each with the others, to see what to expect."""

import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate

from fss_d2.data import register_folder
from fss_d2.data.datasets.coco_json import CocoSettings, read_coco_records
from fss_d2.data.datasets.splits import ClassDivision
from fss_d2.data.images import read_image
from fss_d2.data.mask_values import MaskRules, MaskValues, parse_mask_values
from fss_d2.data.masks import check_shows, load_mask, load_sample, upright_mask
from fss_d2.data.pairs import find_marked_masks
from fss_d2.evaluation.metrics import count_areas, iou
from fss_d2.inference.annotations import find_supports, read_support
from fss_d2.inference.predictor import FewShotPredictor
from fss_d2.io.files import expand_user, printable, read_json_object, shortened
from fss_d2.io.progress import progress

from .labelme import read_labelme

__all__ = ["ClassCheck", "Support", "SupportCheck", "check_supports", "describe", "read_supports"]

_FORMS = (
    "give a folder with <class>/images/* and <class>/masks/<same name>.png or with <class>/<name>.jpg and "
    "<name>_mask.png, a COCO JSON file, or a folder of LabelMe JSON files"
)
_serial = itertools.count()

logger = logging.getLogger(__name__)

_HURTS = 0.05  # mean IoU that the others gain without a support that hurts
_MOST_CHECKED = 24  # supports of a class that are segmented; of more, as many spread evenly
_MOST_PAIRED = 12  # supports of a class up to which pairs are left out, too

Group = tuple[int, ...]  # indices of supports that are left out together


@dataclass(frozen=True)
class Support:
    """One annotated picture of one class."""

    name: str  # of the picture, for messages
    files: tuple[Path, ...]  # of the picture and, if there is one, of the mask
    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    mask: np.ndarray  # (H, W) uint8: 1 object, 0 background, 255 ignored


def read_supports(
    path: str | Path,
    image_root: str | Path | None = None,
    *,
    class_name: str = "",
    mask_values: MaskValues | None = None,
    image_option: str = "image_root",
) -> dict[str, list[Support]]:
    """Read annotated pictures; a picture that shows several classes is a support of each.

    Args:
        path: one of
            a folder with `<class>/images/*` and `<class>/masks/<same stem>.png`, or the folder of one class;
            a folder with each image next to its mask, see `find_supports`;
            a JSON file in COCO's format, or a folder with one such file;
            a LabelMe JSON file, or a folder of them (subfolders too); each names its picture.
        image_root: what file names in a JSON are relative to; None searches near the JSON file.
        class_name: of images next to their masks without class folders; "" takes the folder's name.
        mask_values: what the values of mask files mean, for all classes or by class
            (`fss_d2.data.mask_values`); None recognises it.
        image_option: what the calling program calls `image_root`, for messages; "" if it has no such option.

    Returns:
        The supports of each class that has any, ordered by class name, or by category id of a COCO JSON.

    Raises:
        FileNotFoundError: there is no such path, or a picture or mask is missing.
        ValueError: it has none of these forms, is broken, or annotates nothing; or an object cannot be read.
    """
    path, root = Path(expand_user(path)), Path(expand_user(image_root)) if image_root else None
    if path.is_dir():
        supports = _of_folder(path, root, class_name, mask_values, image_option)
    elif path.is_file():
        _check_no_masks(path, mask_values)
        content = read_json_object(path, _FORMS, any_number=True)
        if not _is_coco(content) and "shapes" not in content:
            raise ValueError(f"{path} is in neither COCO's nor LabelMe's format; {_FORMS}")
        if _is_coco(content):
            supports = _of_coco(path, root, image_option)
        else:
            supports = _of_labelme([(path, content)], root, image_option)
    else:
        raise FileNotFoundError(f"{path} does not exist; {_FORMS}")
    found = {name: of_class for name, of_class in supports.items() if of_class}
    if not found:
        raise ValueError(f"{path} annotates no object; {_FORMS}")
    _check_names(path, list(found))
    return found


def _check_no_masks(path: Path, mask_values: MaskValues | None) -> None:
    if mask_values is not None:
        raise ValueError(f"mask_values says how mask files are read, and {path} has none; leave it out")


def _of_folder(
    path: Path, root: Path | None, class_name: str, mask_values: MaskValues | None, image_option: str
) -> dict[str, list[Support]]:
    class_folders = [folder.parent for folder in path.glob("[!.]*/images")]
    files = sorted(p for p in path.rglob("*.json") if not p.name.startswith("."))
    if (path / "images").is_dir() and (path / "masks").is_dir():
        folder = path.resolve()
        return _registered(path, folder.parent, classes=[folder.name], mask_values=mask_values)
    if any((folder / "masks").is_dir() for folder in class_folders) or (class_folders and not files):
        return _registered(path, path, mask_values=mask_values)
    if not files and not any(path.glob("**/images")):
        return _side_by_side(path, class_name or path.resolve().name, parse_mask_values(mask_values))
    _check_no_masks(path, mask_values)
    if not files:
        raise ValueError(f"{path} holds no annotated pictures; {_FORMS}")
    contents = [(file, read_json_object(file, _FORMS, any_number=True)) for file in files]
    coco = [file for file, content in contents if _is_coco(content)]
    if len(coco) > 1:
        raise ValueError(f"{path} holds {len(coco)} COCO files, {coco[0]} and {coco[1]} among them; give one")
    if not coco:
        named = {file.with_suffix("") for file in files}
        if masks := [p for p in find_marked_masks(path) if p.with_suffix("") not in named]:
            fault = f"{path} has LabelMe files and a mask ({masks[0].name})"
            raise ValueError(f"{fault}: keep one kind, or divide them")
        return _of_labelme(contents, root, image_option)
    if labelme := [file for file, content in contents if "shapes" in content]:
        raise ValueError(f"{path} holds {coco[0]} in COCO's format and {labelme[0]} in LabelMe's; give one")
    logger.info("%s holds the COCO file %s; it is read", printable(path), printable(coco[0]))
    return _of_coco(coco[0], root, image_option)


def _of_labelme(
    files: Sequence[tuple[Path, Mapping[str, Any]]], root: Path | None, image_option: str
) -> dict[str, list[Support]]:
    pictures = read_labelme(files, root, image_option)
    names = _picture_names([picture.picture for picture in pictures])
    supports: dict[str, list[Support]] = {}
    for name, picture in zip(names, pictures, strict=True):
        for label, mask in picture.masks.items():
            support = Support(name, (picture.picture,), picture.image, mask)
            supports.setdefault(label, []).append(support)
    return dict(sorted(supports.items()))


def _is_coco(content: Mapping[str, Any]) -> bool:
    return "annotations" in content and "shapes" not in content


def _of_coco(path: Path, root: Path | None, image_option: str) -> dict[str, list[Support]]:
    division = ClassDivision(f"supports {path}")
    strict = {"is_strict": True, "root_option": image_option}
    records, metadata = read_coco_records(CocoSettings(path, root, None, 0, False, 0.0, division, **strict))
    class_names = metadata["stuff_classes"]
    names = _picture_names([Path(record["file_name"]) for record in records])
    supports: dict[str, list[Support]] = {name: [] for name in class_names}
    for name, record in zip(names, records, strict=True):
        image, orientation = read_image(record["file_name"])
        for class_id in record["classes"]:
            mask = upright_mask(load_mask(record, class_id), image, orientation, record)
            check_shows(mask, record, class_id)
            supports[class_names[class_id]].append(Support(name, (Path(record["file_name"]),), image, mask))
    return supports


def _picture_names(files: Sequence[Path]) -> list[str]:
    """The file names; those of equal names start with the folders in which they differ."""
    count = Counter(file.name for file in files)
    common = os.path.commonpath([file.parent.absolute() for file in files]) if files else ""
    return [
        file.name if count[file.name] == 1 else Path(os.path.relpath(file, common)).as_posix()
        for file in files
    ]


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Raise ValueError for two names that are one with a slip: they differ in case or spaces only."""
    seen: dict[str, str] = {}
    for name in names:
        same = seen.setdefault(" ".join(name.casefold().split()), name)
        if same != name:
            pair = f"{shortened(same)!r} and {shortened(name)!r}"
            raise ValueError(f"{path}: the classes {pair} differ in case or spaces only; give them one name")


def _side_by_side(folder: Path, class_name: str, rules: MaskRules) -> dict[str, list[Support]]:
    found = find_supports(folder, class_name)
    rules.check_classes(found)
    supports: dict[str, list[Support]] = {name: [] for name in found}
    for name, pairs in found.items():
        for image, mask in zip(*pairs, strict=True):
            label = f"{name}/{image.stem}"
            pixels = read_support(image, mask, label, rules.of(name))
            supports[name].append(Support(label, (image, mask), *pixels))
    return supports


def _registered(path: Path, *args: Any, **options: Any) -> dict[str, list[Support]]:
    """Read class folders through Detectron2's catalogs, and remove the entries again."""
    dataset = f"supports {next(_serial)} of {path}"
    register_folder(dataset, *args, **options)
    try:
        records: Iterable[dict[str, Any]] = DatasetCatalog.get(dataset)
        names = list(MetadataCatalog.get(dataset).stuff_classes)
    finally:
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)
    supports: dict[str, list[Support]] = {name: [] for name in names}
    for record in records:
        for class_id in record["classes"]:
            files = (Path(record["file_name"]), Path(record["sem_seg_file_name"]))
            image, mask = load_sample(record, class_id)
            supports[names[class_id]].append(Support(str(record["image_id"]), files, image, mask))
    return supports


@dataclass(frozen=True)
class SupportCheck:
    """One support, by the name of its picture.

    Attributes:
        iou: of its mask with the mask that the other supports of the class give, 0 to 1.
        gain_without: how much the mean IoU of the other supports rises without this one; None for fewer than
            3 supports and for more than 12.
    """

    name: str
    iou: float
    gain_without: float | None

    @property
    def hurts(self) -> bool:
        """Whether the others do clearly better without it, though they are fewer then."""
        return self.gain_without is not None and self.gain_without >= _HURTS


@dataclass(frozen=True)
class ClassCheck:
    """One class: its checked supports, none if it has only one, and how many it has in total."""

    class_name: str
    supports: tuple[SupportCheck, ...]
    total: int

    @property
    def expected_iou(self) -> float | None:
        """Mean IoU, 0 to 1, with one support less than the job has; None if it cannot be checked."""
        return float(np.mean([s.iou for s in self.supports])) if self.supports else None


def check_supports(
    predictor: FewShotPredictor, supports: Mapping[str, Sequence[Support]]
) -> list[ClassCheck]:
    """Segment every support with the others of its class, and again without each one of these.

    Pixels of 255 do not count. Classes are checked one by one: how they compete shows only on images with
    several. A class with K supports costs K passes through the backbone. At most 24 supports are segmented,
    spread evenly over the class. Up to 12 supports, each pair is left out as well, to see which support
    hurts. All processes call this, and each takes its share; the first gets one check per class, the others
    an empty list.
    """
    groups = [(name, out) for name, of_class in supports.items() for out in _left_out(len(of_class))]
    mine: dict[str, list[Group]] = {}
    for name, out in groups[comm.get_rank() :: comm.get_world_size()]:
        mine.setdefault(name, []).append(out)
    scores = {}
    with progress("Check", sum(map(len, mine.values()))) as advance:
        for name, left_out in mine.items():
            for out, ious in _scores(predictor, supports[name], left_out):
                scores[name, out] = ious
                advance()
    gathered: list[dict[tuple[str, Group], list[float]]] = comm.gather(scores)
    if not comm.is_main_process():
        return []
    by_class: dict[str, dict[Group, list[float]]] = {name: {} for name in supports}
    for share in gathered:
        for (name, out), ious in share.items():
            by_class[name][out] = ious
    return [
        ClassCheck(name, _support_checks(supports[name], of_class), len(supports[name]))
        for name, of_class in by_class.items()
    ]


def _left_out(count: int) -> list[Group]:
    """Which supports of a class to leave out together: each of those to check, then each pair."""
    if count < 2:
        return []
    checked = np.linspace(0, count - 1, min(count, _MOST_CHECKED)).round().astype(int).tolist()
    pairs = itertools.combinations(range(count), 2) if 3 <= count <= _MOST_PAIRED else ()
    return [*((i,) for i in checked), *pairs]


def _scores(
    predictor: FewShotPredictor, supports: Sequence[Support], left_out: Sequence[Group]
) -> Iterator[tuple[Group, list[float]]]:
    found = predictor.leave_out([s.image for s in supports], [s.mask for s in supports], left_out)
    for out, masks in zip(left_out, found, strict=True):
        yield out, [_iou(mask, supports[i].mask) for i, mask in zip(out, masks, strict=True)]


def _iou(predicted: np.ndarray, mask: np.ndarray) -> float:
    intersection, union = count_areas(predicted, mask)
    return float(iou(intersection, union)[1])


def _support_checks(
    supports: Sequence[Support], scores: Mapping[Group, Sequence[float]]
) -> tuple[SupportCheck, ...]:
    """The checks of the supports that were left out alone, from the IoU of each group's supports."""
    alone = {out[0]: ious[0] for out, ious in scores.items() if len(out) == 1}
    gains: dict[int, list[float]] = {i: [] for i in alone}  # of the others, without support i
    for out, ious in scores.items():
        if len(out) == 2:
            gains[out[1]].append(ious[0] - alone[out[0]])
            gains[out[0]].append(ious[1] - alone[out[1]])
    return tuple(
        SupportCheck(supports[i].name, alone[i], float(np.mean(gains[i])) if gains[i] else None)
        for i in sorted(alone)
    )


def describe(checks: Sequence[ClassCheck]) -> str:
    """A table of the IoU to expect of each class in percent, and a sentence for each support that hurts."""
    rows, remarks = [], []
    for check in checks:
        if check.expected_iou is None:
            rows.append([check.class_name, check.total, "cannot be checked: add a second support", ""])
            continue
        worst = min(check.supports, key=lambda s: s.iou)
        lowest = f"{100 * worst.iou:.1f} ({worst.name})"
        rows.append([check.class_name, check.total, f"{100 * check.expected_iou:.1f}", lowest])
        remarks += [f"{check.class_name}: {remark}" for remark in _remarks(check)]
    table = tabulate(rows, ["class", "supports", "IoU to expect, %", "lowest"], disable_numparse=True)
    return "\n".join([table, *remarks])


def _remarks(check: ClassCheck) -> Iterator[str]:
    """What the numbers of a class rest on, and which of its supports hurt."""
    if len(check.supports) < check.total:
        yield f"{len(check.supports)} of its {check.total} supports were checked, spread evenly over all"
    if check.total > _MOST_PAIRED:
        yield f"which support hurts is checked for up to {_MOST_PAIRED} supports only"
    compared = [s for s in check.supports if s.gain_without is not None]
    if compared and not any(s.hurts for s in compared):
        yield "none of its supports makes the others worse; keep them all"
    for s in compared:
        if s.hurts:
            others = np.mean([o.iou for o in check.supports if o is not s])
            without = 100 * (others + s.gain_without)
            yield (
                f"{s.name} hurts: without it the others reach {without:.1f} instead of {100 * others:.1f}; "
                "look at its mask, or take it out"
            )
