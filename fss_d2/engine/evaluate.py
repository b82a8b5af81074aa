"""Evaluation of a model on every (test set, number of shots) of a config."""

import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fss_d2.data.build import build_few_shot_test_loader
from fss_d2.data.episode import Episode, read_manifest_header, write_manifest
from fss_d2.evaluation import FewShotEvaluator, OracleEvaluator, ProposalRecallEvaluator, format_table
from fss_d2.files import write_atomic
from fss_d2.modeling.meta_arch.proposal_segmenter import PotentialObjectsSegmenter
from fss_d2.modeling.multi_scale import MultiScaleSegmentor
from fss_d2.visualization import episode_panel

__all__ = [
    "EVALUATORS",
    "Results",
    "build_evaluators",
    "check_evaluators",
    "evaluate",
    "evaluate_periodically",
    "evaluation_name",
    "write_summary",
]

logger = logging.getLogger(__name__)

# {"<dataset>/<K>shot": {"few_shot_seg": {"mIoU": percent, ...}, "oracle": ...}}
Results = OrderedDict[str, dict[str, dict[str, float]]]

# Names for TEST.EVALUATORS, the keys of their scores.
EVALUATORS: dict[str, type[FewShotEvaluator] | type[ProposalRecallEvaluator]] = {
    evaluator.task: evaluator for evaluator in (FewShotEvaluator, OracleEvaluator, ProposalRecallEvaluator)
}


def check_evaluators(cfg: CfgNode, model: nn.Module) -> None:
    """Check TEST.EVALUATORS before anything runs.

    Raises:
        ValueError: it is empty, or an evaluator is unknown, repeated, or does not work for this model or for
            several TEST.SCALES.
    """
    names = list(cfg.TEST.EVALUATORS)
    if not names or len(set(names)) < len(names) or not set(names) <= EVALUATORS.keys():
        raise ValueError(
            f"TEST.EVALUATORS is {tuple(names)}; give one or more of {', '.join(EVALUATORS)}, each once"
        )
    method = cfg.MODEL.META_ARCHITECTURE
    lacking = {"oracle", "proposal_recall"} if getattr(model, "proposals", None) is None else set()
    if isinstance(model, PotentialObjectsSegmenter):
        lacking = {"few_shot_seg"}
    wrong = [name for name in names if name in lacking]
    if wrong:
        possible = tuple(name for name in EVALUATORS if name not in lacking)
        raise ValueError(f"TEST.EVALUATORS: {method} gives nothing for {wrong[0]}; choose from {possible}")
    unaveraged = [name for name in names if name != FewShotEvaluator.task]
    if cfg.TEST.SCALES and unaveraged:
        raise ValueError(
            f"TEST.SCALES {tuple(cfg.TEST.SCALES)} averages scores, not the proposals that TEST.EVALUATORS "
            f"{unaveraged[0]!r} needs; set TEST.SCALES to ()"
        )


def build_evaluators(
    cfg: CfgNode, dataset_name: str, output_dir: Path | None = None
) -> list[FewShotEvaluator | ProposalRecallEvaluator]:
    """Build TEST.EVALUATORS; "few_shot_seg" writes into ``output_dir``, others into folders below it."""
    built = []
    for name in cfg.TEST.EVALUATORS:
        below = "" if name == FewShotEvaluator.task else name
        folder = None if output_dir is None else output_dir / below
        built.append(EVALUATORS[name].from_config(cfg, dataset_name, folder))
    return built


def evaluate(cfg: CfgNode, model: nn.Module, *, folder: str = "inference") -> Results:
    """Evaluate on all of DATASETS.TEST with each of FEW_SHOT.TEST.SHOTS supports.

    All processes must call it. ``OUTPUT_DIR/<folder>/<dataset>_<K>shot`` receives the scores, the counts of
    each episode, pictures, and the manifest of the scored episodes. With TEST.SCALES the model runs at each
    of these sizes and its probabilities are averaged.

    Args:
        cfg: the config.
        model: segments episodes or makes proposals, also inside DistributedDataParallel; its mode is kept.
        folder: of the files, under OUTPUT_DIR.

    Returns:
        Scores by "<dataset>/<K>shot"; every process except the main one gets only the names.
    """
    return _evaluate_all(cfg, model, folder)


def evaluate_periodically(cfg: CfgNode, model: nn.Module) -> Results:
    """The small evaluation while training: the first number of shots, TEST.PERIODIC_EPISODES episodes.

    The episodes are the same each time. Pictures go to the event storage of the training (TensorBoard), files
    to ``OUTPUT_DIR/periodic``. There are no confidence intervals.
    """
    small = cfg.clone()
    small.defrost()
    small.FEW_SHOT.TEST.SHOTS = cfg.FEW_SHOT.TEST.SHOTS[:1]
    small.TEST.BOOTSTRAP = 0
    small.TEST.PICTURES = 0
    small.freeze()
    episodes = cfg.TEST.PERIODIC_EPISODES or None
    return _evaluate_all(small, model, "periodic", episodes=episodes, shown=cfg.TEST.PICTURES)


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
    """Put pictures of the first episodes into the event storage, for TensorBoard.

    Args:
        count: the main process draws those of its episodes that have an index below this.
        predict: the mask (h, w) to draw, for an episode and the model's output.
    """

    def __init__(self, count: int, predict: Callable[[dict[str, Any], dict[str, Any]], Tensor]) -> None:
        self._count = count
        self._predict = predict

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        """Draw the chosen episodes of a batch."""
        if not comm.is_main_process():
            return
        for episode, output in zip(inputs, outputs, strict=True):
            if episode["episode_index"] < self._count:
                mask = self._predict(episode, output).cpu().numpy()
                panel = torch.from_numpy(episode_panel(episode, mask))
                name = f"episodes/{episode['episode_index']:04d}"
                get_event_storage().put_image(name, panel.permute(2, 0, 1))


def _evaluate_all(
    cfg: CfgNode,
    model: nn.Module,
    folder: str,
    *,
    episodes: int | None = None,
    shown: int = 0,
) -> Results:
    """Evaluate; the first ``shown`` episodes of each evaluation go to the event storage."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    check_evaluators(cfg, model)
    model = MultiScaleSegmentor(model) if cfg.TEST.SCALES else model
    results: Results = OrderedDict()
    for dataset_name in cfg.DATASETS.TEST:
        for shots in cfg.FEW_SHOT.TEST.SHOTS:
            name = evaluation_name(dataset_name, shots)
            logger.info("Evaluating on %s", name)
            output_dir = Path(cfg.OUTPUT_DIR) / folder / f"{dataset_name}_{shots}shot"
            loader = build_few_shot_test_loader(cfg, dataset_name, shots=shots, episodes=episodes)
            evaluators: list[DatasetEvaluator] = [*build_evaluators(cfg, dataset_name, output_dir)]
            painters = [e for e in evaluators if isinstance(e, FewShotEvaluator)][:1] if shown else []
            evaluators += [EpisodePictures(shown, painter.predict) for painter in painters]
            _record_episodes(cfg, dataset_name, loader.sampler.episodes, output_dir)
            results[name] = inference_on_dataset(model, loader, DatasetEvaluators(evaluators))
    if comm.is_main_process():
        _report(results)
    return results


def _report(results: Results) -> None:
    """Log the scores in CSV form, and for several evaluations one table per task."""
    for name, scores in results.items():
        logger.info("Scores of %s as CSV:", name)
        print_csv_format(OrderedDict((task, _without_classes(s)) for task, s in scores.items()))
    for task in EVALUATORS if len(results) > 1 else ():
        of_task = {name: scores[task] for name, scores in results.items() if task in scores}
        if of_task:
            logger.info("Results of %s:\n%s", task, format_table(of_task))


def _record_episodes(cfg: CfgNode, dataset_name: str, share: Sequence[Episode], output_dir: Path) -> None:
    """Write the manifest of the scored episodes; each process gives its share of them."""
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
