#!/usr/bin/env python
"""Extract from COCO 2017 the slice that the small benchmark and the packaged model use.

    python datasets/prepare_coco_mini.py

Reads <root>/coco/annotations/instances_train2017.json and <root>/coco/train2017, writes
<root>/coco_mini/annotations/instances_train2017.json and copies 421 photographs to
<root>/coco_mini/train2017. coco_mini_ids.txt next to this script lists them.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from preparation_cli import root_parser

from fss_d2.engine.command_line import run_command

ANNOTATIONS = "annotations/instances_train2017.json"
IDS = Path(__file__).with_name("coco_mini_ids.txt")


def cut(content: dict[str, Any], ids: set[int]) -> dict[str, Any]:
    """Return a COCO file's content for some images only; all categories stay."""
    images = [image for image in content["images"] if image["id"] in ids]
    if missing := ids - {image["id"] for image in images}:
        raise ValueError(f"{ANNOTATIONS} lacks image {min(missing)}: take that of COCO 2017, train split")
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return content | {"images": images, "annotations": annotations}


def prepare(root: Path) -> int:
    """Write the slice; return its number of photographs."""
    from fss_d2.io.files import atomic_path, json_text, read_json, write_atomic

    source, target = root / "coco", root / "coco_mini"
    if not (source / ANNOTATIONS).is_file():
        fix = "unpack COCO 2017 there, or set --root"
        raise FileNotFoundError(f"{source / ANNOTATIONS} does not exist: {fix}")
    ids = {int(line) for line in IDS.read_text().split()}
    content = cut(read_json(source / ANNOTATIONS), ids)
    for image in content["images"]:
        file = Path("train2017") / image["file_name"]
        if not (source / file).is_file():
            raise FileNotFoundError(f"{source / file} does not exist: unpack train2017 there")
        if not (target / file).exists():
            with atomic_path(target / file) as temporary:
                shutil.copyfile(source / file, temporary)
    write_atomic(target / ANNOTATIONS, json_text(content).encode())
    return len(content["images"])


def main(argv: list[str] | None = None) -> int:
    """Run the preparation; the exit code is 1 if something is missing."""
    args = root_parser(__doc__).parse_args(argv)
    return run_command(lambda: print(f"coco_mini: {prepare(args.root)} photographs"))


if __name__ == "__main__":
    sys.exit(main())
