#!/usr/bin/env python
"""Cut out of PASCAL-5i the small part that several configs train and test on.

    python datasets/prepare_pascal_part.py

Needs PASCAL-5i as prepare_pascal5i.py leaves it, with the lists of HSNet. Writes 1849 photographs, those of
pascal_part_ids.txt next to this script, at most 400 pixels large, to <root>/pascal_part/JPEGImages, their
class maps to SegmentationClassAug, and the lines of the lists that name one of them to lists.
"""

import sys
from pathlib import Path

from preparation_cli import root_parser

from fss_d2.engine.command_line import run_command

IDS = Path(__file__).with_name("pascal_part_ids.txt")
SIDE = 400  # pixels of the longer side, at most
LISTS = [f"{split}_fold{fold}.txt" for split in ("trn", "val") for fold in range(4)]


def prepare(root: Path) -> int:
    """Write the part; return its number of photographs. Files that exist stay."""
    from PIL import Image

    from fss_d2.data.datasets.pascal5i import PREPARE, VOC_FIX
    from fss_d2.data.datasets.preparation import list_path, prepared_dir, read_ids, require
    from fss_d2.io.files import atomic_path, write_atomic

    ids, target = read_ids(IDS), root / "pascal_part"
    folders = {
        "JPEGImages/{}.jpg": (root / "VOCdevkit/VOC2012", VOC_FIX, Image.Resampling.LANCZOS),
        "SegmentationClassAug/{}.png": (prepared_dir(root, "pascal5i"), PREPARE, Image.Resampling.NEAREST),
    }
    lists = {name: read_ids(require(list_path(root, "pascal5i", f"hsnet/{name}"), PREPARE)) for name in LISTS}
    for file, (source, fix, resampling) in folders.items():
        for path in (Path(file.format(image_id)) for image_id in ids):
            if not (target / path).exists():
                with (
                    Image.open(require(source / path, fix)) as image,
                    atomic_path(target / path) as temporary,
                ):
                    image.thumbnail((SIDE, SIDE), resampling)
                    image.save(temporary, format=image.format, quality=90)
    for name, lines in lists.items():
        kept = [line for line in lines if line.rpartition("__")[0] in set(ids)]
        write_atomic(target / "lists" / name, "".join(f"{line}\n" for line in kept).encode())
    return len(ids)


def main(argv: list[str] | None = None) -> int:
    """Run the preparation; the exit code is 1 if something is missing."""
    args = root_parser(__doc__).parse_args(argv)
    return run_command(lambda: print(f"pascal_part: {prepare(args.root)} photographs"))


if __name__ == "__main__":
    sys.exit(main())
