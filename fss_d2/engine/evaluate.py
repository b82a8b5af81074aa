"""Evaluation of a model on every (test set, number of shots) of a config."""

import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fss_d2.data.build import build_few_shot_test_loader
from fss_d2.data.episode import Episode, read_manifest_header, write_manifest
from fss_d2.evaluation import FewShotEvaluator, format_table
from fss_d2.files import write_atomic
from fss_d2.visualization import episode_panel

__all__ = ["Results", "evaluate", "evaluate_periodically", "evaluation_name", "write_summary"]

logger = logging.getLogger(__name__)

# {"<dataset>/<K>shot": {"few_shot_seg": {"mIoU": percent, ...}}}
Results = OrderedDict[str, dict[str, dict[str, float]]]


def evaluate(cfg: CfgNode, model: nn.Module, *, folder: str = "inference") -> Results:
    """Evaluate on all of DATASETS.TEST with each of FEW_SHOT.TEST.SHOTS supports.

    All processes must call it. Under ``OUTPUT_DIR/<folder>/<dataset>_<K>shot`` lie afterwards the scores, the
    counts of each episode, pictures, and the manifest of the episodes that were scored.

    Args:
        cfg: the config.
        model: a few-shot segmentor, also inside DistributedDataParallel; left in the mode it was in.
        folder: of the files, under OUTPUT_DIR.

    Returns:
        Scores by "<dataset>/<K>shot"; empty but for the names on every process except the main one.
    """
    return _evaluate_all(cfg, model, folder)


def evaluate_periodically(cfg: CfgNode, model: nn.Module) -> Results:
    """The small evaluation while training: the first number of shots, TEST.PERIODIC_EPISODES episodes.

    The episodes are the same each time. Pictures go to the event storage of the training (TensorBoard), files
    to ``OUTPUT_DIR/periodic``. Confidence intervals are left out.
    """
    small = cfg.clone()
    small.defrost()
    small.FEW_SHOT.TEST.SHOTS = cfg.FEW_SHOT.TEST.SHOTS[:1]
    small.TEST.BOOTSTRAP = 0
    small.TEST.PICTURES = 0
    small.freeze()
    pictures = [EpisodePictures(cfg.TEST.PICTURES)] if cfg.TEST.PICTURES else []
    episodes = cfg.TEST.PERIODIC_EPISODES or None
    return _evaluate_all(small, model, "periodic", episodes=episodes, extra=pictures)


def evaluation_name(dataset_name: str, shots: int) -> str:
    """The key of one evaluation in the results, "glyphs_fold0_val/1shot"."""
    return f"{dataset_name}/{shots}shot"


def write_summary(cfg: CfgNode, results: Results, *, weights: str) -> None:
    """Write ``OUTPUT_DIR/results.json``: the method, its weights and all scores."""
    if comm.is_main_process():
        content = {
            "method": cfg.MODEL.META_ARCHITECTURE,
            "weights": weights,
            "seed": cfg.SEED,
            "results": results,
        }
        write_atomic(Path(cfg.OUTPUT_DIR) / "results.json", (json.dumps(content, indent=2) + "\n").encode())


class EpisodePictures(DatasetEvaluator):
    """Put pictures of the first episodes into the event storage, from where TensorBoard's writer takes them.

    Args:
        count: episodes with an index below this are drawn, by the main process those that it sees.
    """

    def __init__(self, count: int) -> None:
        self._count = count

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Draw the chosen episodes of a batch."""
        if not comm.is_main_process():
            return
        for episode, output in zip(inputs, outputs, strict=True):
            if episode["episode_index"] < self._count:
                panel = torch.from_numpy(episode_panel(episode, output))
                name = f"episodes/{episode['episode_index']:04d}"
                get_event_storage().put_image(name, panel.permute(2, 0, 1))


def _evaluate_all(
    cfg: CfgNode,
    model: nn.Module,
    folder: str,
    *,
    episodes: int | None = None,
    extra: Sequence[DatasetEvaluator] = (),
) -> Results:
    model = model.module if isinstance(model, DistributedDataParallel) else model
    results: Results = OrderedDict()
    for dataset_name in cfg.DATASETS.TEST:
        for shots in cfg.FEW_SHOT.TEST.SHOTS:
            name = evaluation_name(dataset_name, shots)
            logger.info("Evaluating on %s", name)
            output_dir = Path(cfg.OUTPUT_DIR) / folder / f"{dataset_name}_{shots}shot"
            loader = build_few_shot_test_loader(cfg, dataset_name, shots=shots, episodes=episodes)
            evaluator = FewShotEvaluator.from_config(cfg, dataset_name, output_dir)
            _record_episodes(cfg, dataset_name, loader.sampler.episodes, output_dir)
            results[name] = inference_on_dataset(model, loader, DatasetEvaluators([evaluator, *extra]))
    if comm.is_main_process():
        _report(results)
    return results


def _report(results: Results) -> None:
    """Log the scores for copying, and one table where there are several evaluations."""
    for name, scores in results.items():
        logger.info("Scores of %s for copying:", name)
        print_csv_format(OrderedDict((task, _without_classes(s)) for task, s in scores.items()))
    if len(results) > 1:
        logger.info("Results:\n%s", format_table(results))


def _record_episodes(cfg: CfgNode, dataset_name: str, share: Sequence[Episode], output_dir: Path) -> None:
    """Write the manifest of what is scored; each process gives its share of the episodes."""
    shares = comm.gather(list(share))
    if not comm.is_main_process():
        return
    test = cfg.FEW_SHOT.TEST
    drawn = {"seed": test.SEED, "query_rule": test.QUERY_RULE}
    origin = read_manifest_header(test.MANIFEST) if test.MANIFEST else drawn
    write_manifest(
        output_dir / "manifest.jsonl",
        sorted(itertools.chain.from_iterable(shares), key=lambda episode: episode.index),
        dataset=dataset_name,
        class_names=MetadataCatalog.get(dataset_name).stuff_classes,
        seed=origin["seed"],
        query_rule=origin["query_rule"],
    )


def _without_classes(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: score for name, score in scores.items() if "/" not in name}
