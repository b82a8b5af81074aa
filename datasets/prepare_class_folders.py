#!/usr/bin/env python
"""Turn pictures with class maps into folders <class>/images and <class>/masks.

    python datasets/prepare_class_folders.py --images JPEGImages --maps SegmentationClassAug \\
        --names aeroplane bicycle ... tvmonitor --list train.txt --output voc_folders

A class map is a single-channel PNG: 0 background, i the i-th name, 255 neither. A picture stands in the
folder of each class that covers enough of it; its mask there is 255 for the class and 0 for the rest, what is
neither included. Pictures are linked, not copied.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fss_d2.engine.command_line import documented_parser, run_command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="FOLDER")
    add("--maps", type=Path, required=True, metavar="FOLDER", help="<same stem>.png")
    names = "in the order of their numbers, from 1; or a JSON file {number: name}"
    add("--names", nargs="+", required=True, metavar="NAME", help=names)
    add("--list", type=Path, nargs="+", metavar="FILE", help="stems of the pictures to take; default: all")
    add("--without", type=Path, nargs="+", default=[], metavar="FILE", help="stems to leave out")
    add("--least-share", type=float, default=0.02, metavar="P", help="of the picture; default: %(default)s")
    add("--output", type=Path, required=True, metavar="FOLDER")
    return parser.parse_args(argv)


def class_names(names: list[str]) -> dict[int, str]:
    """The names by number."""
    if len(names) == 1 and names[0].endswith(".json"):
        return {int(number): name for number, name in json.loads(Path(names[0]).read_bytes()).items()}
    return dict(enumerate(names, start=1))


def stems(files: list[Path]) -> set[str]:
    """The stems in lists: a stem per line, alone or before "__" (HSNet's lists) or a space."""
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    return {words[0].split("__")[0] for words in lines if words}


def prepare(args: argparse.Namespace) -> int:
    """Write the folders; return the number of masks."""
    names, count = class_names(args.names), 0
    chosen, left_out = stems(args.list or []), stems(args.without)
    for image in sorted(args.images.iterdir()):
        file = args.maps / f"{image.stem}.png"
        if image.stem in left_out or (args.list and image.stem not in chosen) or not file.is_file():
            continue
        class_map = np.asarray(Image.open(file))
        for label in np.unique(class_map).tolist():
            shown = class_map == label
            if label in {0, 255} or label not in names or shown.mean() < args.least_share:
                continue
            write(args.output / names[label], image, shown)
            count += 1
    return count


def write(folder: Path, image: Path, shown: np.ndarray) -> None:
    """Link a picture and write its mask."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    link = folder / "images" / image.name
    if not link.exists():
        os.symlink(image.resolve(), link)
    Image.fromarray(shown.astype(np.uint8) * 255).save(folder / "masks" / f"{image.stem}.png")


def main(argv: list[str] | None = None) -> int:
    """Run the preparation; the exit code is 1 if something is wrong."""
    args = parse(argv)
    return run_command(lambda: print(f"{args.output}: {prepare(args)} masks"))


if __name__ == "__main__":
    sys.exit(main())
