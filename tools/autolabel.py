#!/usr/bin/env python
"""Label a folder of images like a few annotated ones; ``fss-d2 label`` is the same.

    python tools/autolabel.py --config-file configs/prototype/voc_coseg_efficientnet_lite0.yaml \
        --support annotated --images photos --output labels

Supports: ``annotated/<class>/images/*`` with ``annotated/<class>/masks/<same name>.png``, each image beside
its ``<name>_mask.png`` in ``annotated/<class>``, a COCO JSON file, or a folder of LabelMe JSON files. First
every support is labelled by the others of its class, which tells what IoU to expect and which support hurts.
Then every image is labelled. ``labels`` receives COCO JSON (``coco/annotations.json``), class maps (``png``),
YOLO-seg (``yolo``), LabelMe (``labelme``), the images to look at in ``needs_review.txt``, and ``report.html``
that shows all. An interrupted run goes on with the same command.
"""

import sys

from fss_d2.engine.command_line import run_command
from fss_d2.label.command import main

if __name__ == "__main__":
    sys.exit(run_command(main))
