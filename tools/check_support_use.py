#!/usr/bin/env python3
"""Does a model use its supports? Score it with its own supports, and with those of another class.

    python tools/check_support_use.py --config-file configs/mmformer/stage2_glyphs.yaml \\
        --weights output/mmformer/stage2_glyphs/model_final.pth --episodes 200

Both runs have the same queries and the same truth. In the second one each episode takes the supports, with
their masks, of the next episode of another class. A model that segments what its supports show loses nearly
all of its score; one that finds whatever stands out keeps it. The episodes follow from FEW_SHOT.TEST
(SEED, QUERY_RULE, MANIFEST), so the numbers are the same each time.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fss_d2.engine.command_line import parse_command_line, run_command

if TYPE_CHECKING:  # imported late, so that --help is quick
    from detectron2.config import CfgNode
    from torch import nn
    from torch.utils.data import DataLoader

    from fss_d2.evaluation import Comparison, EpisodeCounts
    from fss_d2.modeling import FewShotSegmentor

    Loader = DataLoader[list[dict[str, Any]]]

logger = logging.getLogger("fss_d2.check_support_use")


def load_few_shot_model(cfg: CfgNode) -> FewShotSegmentor:
    """As `load_model`.

    Raises:
        ValueError: a method that reads no supports.
    """
    from fss_d2.engine.loading import load_model
    from fss_d2.modeling import FewShotSegmentor

    model = load_model(cfg)
    if not isinstance(model, FewShotSegmentor):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} reads no supports; choose a config of a "
            "few-shot method"
        )
    return model


def build_loaders(cfg: CfgNode, dataset: str, shots: int, episodes: int) -> dict[str, Loader]:
    """The loaders of the episodes as they are ("own") and with supports of another class ("foreign").

    Raises:
        ValueError: as `build_few_shot_test_loader`, or an episode for which there are no foreign supports.
    """
    from fss_d2.data import build_few_shot_test_loader
    from fss_d2.data.foreign_supports import ForeignSupports

    own, foreign = (
        build_few_shot_test_loader(cfg, dataset, shots=shots, episodes=episodes) for _ in range(2)
    )
    try:
        foreign.dataset.mapper = ForeignSupports(foreign.dataset.mapper, foreign.sampler.episodes)
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}") from error
    return {"own": own, "foreign": foreign}


def score(cfg: CfgNode, model: nn.Module, dataset: str, loader: Loader, folder: Path) -> list[EpisodeCounts]:
    """Evaluate, with the files of `FewShotEvaluator` in ``folder``; return the counts of each episode."""
    from detectron2.evaluation import inference_on_dataset

    from fss_d2.evaluation import FewShotEvaluator, read_rows

    evaluator = FewShotEvaluator.from_config(cfg, dataset, folder)
    inference_on_dataset(model, loader, evaluator)
    return read_rows(folder / "episodes.jsonl")


def check(cfg: CfgNode, dataset: str, shots: int, episodes: int) -> tuple[Comparison, Path]:
    """Score both runs and write what came out to ``OUTPUT_DIR/support_use/<dataset>_<K>shot``.

    Returns:
        own (a) against foreign (b) supports, with the bootstrap interval of the difference over episodes;
        the file ``support_use.json`` that holds the same.

    Raises:
        ValueError: a method without supports, a data set of one class, or an OUTPUT_DIR not to be written to.
        FileNotFoundError: no such weights, or a data set that has not been prepared.
    """
    from detectron2.data import MetadataCatalog
    from detectron2.utils.env import seed_all_rng

    from fss_d2.evaluation import compare
    from fss_d2.evaluation.rows import check_writable
    from fss_d2.files import write_atomic
    from fss_d2.modeling.multi_scale import MultiScaleSegmentor

    loaders = build_loaders(cfg, dataset, shots, episodes)
    seed_all_rng(max(cfg.SEED, 0))  # also of the initial weights of a model without a checkpoint
    model: nn.Module = load_few_shot_model(cfg)
    model = MultiScaleSegmentor(model) if cfg.TEST.SCALES else model
    folder = Path(cfg.OUTPUT_DIR) / "support_use" / f"{dataset}_{shots}shot"
    check_writable(folder)
    rows = {}
    for name, loader in loaders.items():
        logger.info("Scoring %s with %s supports", dataset, name)
        rows[name] = score(cfg, model, dataset, loader, folder / name)
    result = compare(
        rows["own"],
        rows["foreign"],
        same_supports=False,
        classes=MetadataCatalog.get(dataset).class_ids,
        counting=cfg.TEST.COUNTING,
        absent=cfg.TEST.ABSENT_CLASSES,
    )
    content = numbers(cfg, dataset, shots, result)
    write_atomic(folder / "support_use.json", (json.dumps(content, indent=2) + "\n").encode())
    return result, folder / "support_use.json"


def numbers(cfg: CfgNode, dataset: str, shots: int, result: Comparison) -> dict[str, Any]:
    """What was asked and what came out, for ``support_use.json``; mIoU in percent."""
    return {
        "method": cfg.MODEL.META_ARCHITECTURE,
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": dataset,
        "shots": shots,
        "episodes": result.episodes,
        "seed": cfg.FEW_SHOT.TEST.SEED,
        "query_rule": cfg.FEW_SHOT.TEST.QUERY_RULE,
        "manifest": cfg.FEW_SHOT.TEST.MANIFEST,
        "mIoU_own": result.mean_iou_a,
        "mIoU_foreign": result.mean_iou_b,
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
    }


def table(method: str, result: Comparison) -> str:
    """Markdown: mIoU in percent with either kind of supports, their difference, and what to make of it."""
    from tabulate import tabulate

    cells = [f"{result.mean_iou_a:.2f}", f"{result.mean_iou_b:.2f}"]
    cells.append(f"{result.difference:+.2f} [{result.low:+.2f}, {result.high:+.2f}]")
    headers = ["mIoU, %", "own supports", "of another class", "difference [95 % interval]"]
    lines = tabulate([[method, *cells]], headers=headers, tablefmt="pipe", disable_numparse=True)
    if result.low <= 0:
        return f"{lines}\n\nNo use of the supports can be seen in these {result.episodes} episodes."
    kept = result.mean_iou_b / result.mean_iou_a
    return f"{lines}\n\nWith supports of another class {kept:.0%} of the score is still there."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; None takes that of the process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="of a few-shot method")
    parser.add_argument("--weights", metavar="FILE", help="default: MODEL.WEIGHTS")
    parser.add_argument("--dataset", metavar="NAME", help="default: the first of DATASETS.TEST")
    parser.add_argument("--shots", type=int, metavar="K", help="default: the first of FEW_SHOT.TEST.SHOTS")
    parser.add_argument("--episodes", type=int, default=200, metavar="N", help="default: 200")
    args = parse_command_line(parser, arguments)
    if args.episodes < 2 or (args.shots is not None and args.shots < 1):
        parser.error("--episodes must be at least 2, --shots at least 1")
    if args.weights:
        args.opts += ["MODEL.WEIGHTS", args.weights]
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the tool.

    Raises:
        ValueError, FileNotFoundError: as `check`, or a config that names no test set or no number of shots.
    """
    args = parse_arguments(arguments)
    from fss_d2.config import load_config
    from fss_d2.data import register_datasets_from_cfg
    from fss_d2.engine.setup import start_log

    start_log()
    cfg = load_config(args.config_file, args.opts)
    register_datasets_from_cfg(cfg)
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("DATASETS.TEST names no test set; name one there or by --dataset")
    if not (args.shots or cfg.FEW_SHOT.TEST.SHOTS):
        raise ValueError("FEW_SHOT.TEST.SHOTS is empty; give the number of supports there or by --shots")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    result, file = check(cfg, dataset, args.shots or cfg.FEW_SHOT.TEST.SHOTS[0], args.episodes)
    print(table(cfg.MODEL.META_ARCHITECTURE, result))
    logger.info("The numbers are in %s, the counts of each episode beside it", file)


if __name__ == "__main__":
    sys.exit(run_command(main))
