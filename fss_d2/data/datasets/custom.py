"""The user's own data: folders of images and masks, and JSON files in COCO's format."""

from collections.abc import Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from fss_d2.data.mask_files import Frame, read_mask_file
from fss_d2.data.mask_values import MaskRules, MaskValues, parse_mask_values
from fss_d2.data.pairs import check_layout, find_pairs_in_parts
from fss_d2.io.files import expand_user

from .coco_json import CocoSettings, load_coco_json
from .splits import ClassDivision, first_duplicate, ids_of, record_of, register_once

__all__ = ["register_coco_json", "register_folder"]

_MASK_ENCODINGS = ("binary", "trimap")


def register_folder(
    name: str,
    root: str | PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    base_classes: Sequence[str] | None = None,
    novel_classes: Sequence[str] | None = None,
    fold: int | None = None,
    num_folds: int = 4,
    split: str = "all",
    mask_encoding: str = "binary",
    mask_values: MaskValues | None = None,
) -> None:
    """Register a folder of one subfolder per class, `<class>/images/*` and `<class>/masks/<same stem>.png`.

    A mask shows one class only, so a photograph in two class folders gives two records, with the image ids
    "<class>/<stem>". Wrong arguments are refused at once; files are read, and an image without mask or a mask
    without image refused, when the dataset is first used.

    Args:
        name: of the dataset in `cfg.DATASETS.TRAIN` and `.TEST`.
        root: the folder of the class folders.
        classes: the class folders to use, in the order of their ids; None = all, by name.
        base_classes, novel_classes: names of the classes to train on and to hold out; if only one is given,
            the other is the rest.
        fold, num_folds: in place of names: hold out class ids with `id % num_folds == fold`.
        split: the classes to sample: "train" the base classes, "val" the novel ones, "all" every class.
        mask_encoding: "binary", what `fss_d2.data.mask_decoding` recognises, or "trimap", nothing but 0, 1
            and 255 (ignored).
        mask_values: what the values of the mask files mean, for all classes or by class
            (`fss_d2.data.mask_values`); None recognises it.

    Example:
        >>> import pathlib, tempfile
        >>> from PIL import Image
        >>> from fss_d2.data import get_records, register_folder
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> for part in ("images", "masks"):
        ...     (root / "cat" / part).mkdir(parents=True)
        ...     Image.new("L", (8, 6), 255).save(root / "cat" / part / "tom.png")
        >>> register_folder("my_cats", root)
        >>> [(r["image_id"], r["height"], r["width"], r["classes"]) for r in get_records("my_cats")]
        [('cat/tom', 6, 8, [0])]
    """
    root = expand_user(root)
    arguments = dict(locals())
    division = ClassDivision(name, split, fold, num_folds, "interleaved", base_classes, novel_classes)
    if mask_encoding not in _MASK_ENCODINGS:
        raise ValueError(f"{name}: mask_encoding {mask_encoding!r} is not one of {_MASK_ENCODINGS}")
    rules = parse_mask_values(mask_values)
    if mask_encoding != "binary" and any(rule.names_object for rule in rules.rules.values()):
        fault = f"mask_values does not go with mask_encoding {mask_encoding!r}"
        raise ValueError(f"{name}: {fault}; leave one out")
    class_names = _class_folders(name, Path(root), classes)
    rules.check_classes(class_names)
    metadata = division.metadata(class_names)
    drawn = {class_names[c]: c for c in metadata["class_ids"]}
    load = partial(_folder_records, Path(root), drawn, mask_encoding, rules)
    register_once(name, load, arguments, metadata)


def register_coco_json(
    name: str,
    json_file: str | PathLike[str],
    image_root: str | PathLike[str],
    *,
    classes: Sequence[str] | None = None,
    base_classes: Sequence[str] | None = None,
    novel_classes: Sequence[str] | None = None,
    fold: int | None = None,
    num_folds: int = 4,
    fold_rule: str = "interleaved",
    split: str = "all",
    min_area: int = 0,
    exclude_images_with_novel: bool = False,
    val_fraction: float = 0.0,
) -> None:
    """Register instance annotations in COCO's format: polygons, RLE (compressed or not), crowd regions.

    Class ids count the categories by rising category id. The mask of a class in an image is the union of its
    objects; its crowd regions, and boxes without outline, are ignored (255). A picture with an object that
    cannot be read is not used for the class of that object; ``left_out`` of the metadata lists these pictures
    with reasons. Wrong arguments are refused at once. The file is read when the dataset is first used; from
    then on the metadata (class names and ids) are complete.

    Training and validation classes differ, so both splits may share one pool of images; but then training
    images show novel objects, as background: the common protocol with one pool. Training never sees labels of
    novel classes, but it sees their pixels, even in the test images. Against that, alone or together:

    - `exclude_images_with_novel`: "train" drops every image with an object or crowd region of a novel class.
      No image is in both splits and novel classes are unseen; this costs the most training images;
    - `val_fraction`: this share of all images, chosen by a hash of their ids, is for "val" only and the rest
      for "train" only. No image is in both splits; adding images does not move others.

    Args:
        name, base_classes, novel_classes, split: as in `register_folder`.
        json_file: file with "images", "annotations" and "categories".
        image_root: the folder to which the "file_name" of each image is relative. Names of another machine
            (backslashes, "%20", folders that do not exist here) are understood.
        classes: names of the categories to use; None = all. Others are background.
        fold, num_folds, fold_rule: in place of names: hold out the class ids with `id % num_folds == fold`
            ("interleaved") or the fold-th of `num_folds` blocks ("contiguous").
        min_area: least number of pixels of a class for an image to count for it; 0 counts every class that
            has an object, without drawing its mask. COCO-20i uses 2048.
        exclude_images_with_novel, val_fraction: see above; the fraction is in [0, 1).

    Example:
        >>> import json, pathlib, tempfile
        >>> from PIL import Image
        >>> from fss_d2.data import get_records, register_coco_json
        >>> root = pathlib.Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (8, 6)).save(root / "a.jpg")
        >>> square = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
        >>> content = {
        ...     "images": [{"id": 7, "file_name": "a.jpg", "height": 6, "width": 8}],
        ...     "categories": [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}],
        ...     "annotations": [square],
        ... }
        >>> _ = (root / "my.json").write_text(json.dumps(content))
        >>> register_coco_json("my_coco", root / "my.json", root)
        >>> [(r["image_id"], r["classes"]) for r in get_records("my_coco")]
        [(7, [0])]
    """
    json_file, image_root = expand_user(json_file), expand_user(image_root)
    arguments = dict(locals())
    division = ClassDivision(name, split, fold, num_folds, fold_rule, base_classes, novel_classes)
    rules = (classes, min_area, exclude_images_with_novel, val_fraction, division)
    settings = CocoSettings(Path(json_file), Path(image_root), *rules)
    register_once(name, partial(load_coco_json, settings), arguments)


def _class_folders(name: str, root: Path, classes: Sequence[str] | None) -> list[str]:
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: folder {root} does not exist; give the folder of the class folders")
    found = sorted(path.parent.name for path in root.glob("[!.]*/images") if path.is_dir())
    if not found:
        raise FileNotFoundError(f"{name}: {root} has no <class>/images folder; arrange the files so")
    check_layout(root, classes)
    if classes is None:
        return found
    if (twice := first_duplicate(classes)) is not None:
        raise ValueError(f"{name}: class {twice!r} is listed twice in classes; list it once")
    ids_of(classes, found, f"{name}: classes")
    return list(classes)


def _folder_records(
    root: Path, drawn: dict[str, int], mask_encoding: str, rules: MaskRules
) -> list[dict[str, Any]]:
    records = []
    for class_name, class_id in drawn.items():
        rule = rules.of(class_name)
        said = {"mask_values": rule.text} if rule else {}
        pairs = find_pairs_in_parts(root / class_name)
        for image, mask in pairs:
            frame = Frame.of_file(image)
            if (image, mask) == pairs[0] and mask_encoding == "binary":  # so that the log says how it is read
                read_mask_file(mask, frame, rule)
            image_id = f"{class_name}/{image.stem}"
            records.append(record_of(image, image_id, frame.shape, [class_id], mask, mask_encoding) | said)
    return records
