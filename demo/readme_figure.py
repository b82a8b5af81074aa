#!/usr/bin/env python3
"""Draw the figure of the README: support with mask, query and result, once for each class that a query shows.

    python demo/readme_figure.py --config-file configs/mmformer/stage2_glyphs.yaml \\
        --weights output/mmformer/stage2_glyphs/model_final.pth --query 148 352

The support of a class is the first picture of the data set that shows this class and no other held-out class.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fss_d2.engine.command_line import documented_parser, path_option, run_command, start_log

if TYPE_CHECKING:  # imported late, so that --help is quick
    import numpy as np

    from fss_d2.inference.predictor import FewShotPredictor

logger = logging.getLogger("fss_d2.demo")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = documented_parser(__doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of the method")
    parser.add_argument("--weights", default="", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--dataset", default="glyphs_fold0_val", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--query", type=int, nargs="+", required=True, metavar="ID", help="pictures of it")
    parser.add_argument("--height", type=int, default=170, metavar="PIXELS", help="of a picture")
    parser.add_argument("--output", type=path_option, default=Path("docs/images/readme.png"), metavar="FILE")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the figure."""
    args = parse(argv)
    from fss_d2.data import get_records
    from fss_d2.inference.predictor import FewShotPredictor
    from fss_d2.visualization import picture_grid, save_picture
    from fss_d2.visualization.tiles import picture_row

    start_log()
    records = get_records(args.dataset)
    predictor = FewShotPredictor.from_config(args.config_file, weights=args.weights)
    columns = [picture_grid(list(rows(args, predictor, records, query))) for query in args.query]
    save_picture(args.output, picture_row(columns))
    logger.info("Drew %s", args.output)


def rows(
    args: argparse.Namespace, predictor: "FewShotPredictor", records: Sequence[dict[str, Any]], query: int
) -> Iterator["np.ndarray"]:
    """One row for each class that a query shows."""
    from detectron2.data import MetadataCatalog

    from fss_d2.data.masks import load_sample
    from fss_d2.evaluation.metrics import count_areas, iou
    from fss_d2.visualization import PREDICTION_COLOR, SUPPORT_COLOR
    from fss_d2.visualization.tiles import draw_tile, picture_row

    names = MetadataCatalog.get(args.dataset).stuff_classes
    record = _first(records, f"picture {query} in {args.dataset}", image_id=query)
    encoded = predictor.encode_image(record["file_name"])
    for class_id in record["classes"]:
        name = names[class_id]
        shown = _first(records, f"picture of {name} alone in {args.dataset}", classes=[class_id])
        support, mask = load_sample(shown, class_id)
        predictor.set_support(support, mask, name=name)
        found = predictor.predict(encoded).masks[name]
        image, truth = load_sample(record, class_id)
        score = 100 * iou(*count_areas(found, truth))[1]
        logger.info("Query %d, support %s (%s): IoU %.1f", query, shown["image_id"], name, score)
        tiles = [
            draw_tile("support with mask", support, args.height, mask, SUPPORT_COLOR),
            draw_tile("query", image, args.height),
            draw_tile("result", image, args.height, found, PREDICTION_COLOR),
        ]
        yield picture_row(tiles)


def _first(records: Sequence[dict[str, Any]], what: str, **values: Any) -> dict[str, Any]:
    for record in records:
        if all(record[key] == value for key, value in values.items()):
            return record
    raise ValueError(f"there is no {what}: choose another --query")


if __name__ == "__main__":
    sys.exit(run_command(main))
