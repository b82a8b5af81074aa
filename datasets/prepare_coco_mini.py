#!/usr/bin/env python
"""Cut the slice of COCO that the small benchmark and the shipped model use out of COCO 2017.

    python datasets/prepare_coco_mini.py

Reads <root>/coco/annotations/instances_train2017.json and <root>/coco/train2017, writes
<root>/coco_mini/annotations/instances_train2017.json and copies 421 photographs to
<root>/coco_mini/train2017. coco_mini_ids.txt beside this script names them.
"""

import json
import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from fss_d2.files import atomic_path, write_atomic

ANNOTATIONS = "annotations/instances_train2017.json"
IDS = Path(__file__).with_name("coco_mini_ids.txt")


def parse() -> Namespace:
    """Read the command line."""
    parser = ArgumentParser(description=__doc__.split("\n", 1)[0])
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--root", type=Path, default=root, help="default: $DETECTRON2_DATASETS or datasets")
    return parser.parse_args()


def cut(content: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """A COCO file's content for some images only; all categories stay.

    Raises:
        ValueError: it lacks some of the images.
    """
    images = [image for image in content["images"] if image["id"] in ids]
    if missing := ids - {image["id"] for image in images}:
        raise ValueError(f"{ANNOTATIONS} lacks image {min(missing)}: take that of COCO 2017, train split")
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return content | {"images": images, "annotations": annotations}


def prepare(root: Path) -> int:
    """Write the slice; return its number of photographs.

    Raises:
        FileNotFoundError: COCO, or one of the photographs, is not there.
        ValueError: it is not the train split of 2017.
    """
    source, target = root / "coco", root / "coco_mini"
    if not (source / ANNOTATIONS).is_file():
        raise FileNotFoundError(
            f"{source / ANNOTATIONS} does not exist: unpack COCO 2017 there, or set --root"
        )
    ids = {int(line) for line in IDS.read_text().split()}
    content = cut(json.loads((source / ANNOTATIONS).read_text()), ids)
    for image in content["images"]:
        file = Path("train2017") / image["file_name"]
        if not (source / file).is_file():
            raise FileNotFoundError(f"{source / file} does not exist: unpack train2017 there")
        if not (target / file).exists():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target / file) as temporary:
                shutil.copyfile(source / file, temporary)
    (target / ANNOTATIONS).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target / ANNOTATIONS, json.dumps(content).encode())
    return len(content["images"])


def main() -> int:
    """Run the preparation; the exit code is 1 where something is missing."""
    try:
        count = prepare(parse().root)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"coco_mini: {count} photographs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
