"""Evaluation of a model on every (test set, number of shots) of a config, and of its use of supports."""

import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fss_d2.data.augmentations import build_resize, build_view_resizes
from fss_d2.data.build import build_few_shot_test_loader
from fss_d2.data.episode import Episode, read_manifest_header, write_manifest
from fss_d2.evaluation import (
    AggregatedMaskEvaluator,
    FewShotEvaluator,
    OracleEvaluator,
    ProposalRecallEvaluator,
    format_table,
)
from fss_d2.io.files import read_json_object, write_json
from fss_d2.modeling.enlarged import EnlargingSegmentor
from fss_d2.modeling.fusion import MultiScaleSegmentor
from fss_d2.modeling.meta_arch.dcama import DCAMA
from fss_d2.modeling.meta_arch.proposal_segmenter import PotentialObjectsSegmenter
from fss_d2.visualization import episode_panel, save_episode_panel

from .episode_loop import run_loop
from .feature_cache import open_features, with_features
from .resources import resources
from .support_use import SUPPORT_USE, SupportUse

__all__ = ["EVALUATORS", "Results", "build_evaluators", "check_evaluators", "check_support_use", "evaluate"]
__all__ += ["evaluate_periodically", "evaluation_name", "validation_sets", "write_summary"]

logger = logging.getLogger(__name__)

# {"<dataset>/<K>shot": {"few_shot_seg": {"mIoU": percent, ...}, "oracle": ...}}
Results = OrderedDict[str, dict[str, dict[str, float]]]

# Names for TEST.EVALUATORS, the keys of their scores.
Evaluator = FewShotEvaluator | ProposalRecallEvaluator | AggregatedMaskEvaluator
EVALUATORS: dict[str, type[Evaluator]] = {
    evaluator.task: evaluator
    for evaluator in (FewShotEvaluator, OracleEvaluator, ProposalRecallEvaluator, AggregatedMaskEvaluator)
}
_NAMES = (*EVALUATORS, SUPPORT_USE)


def check_evaluators(cfg: CfgNode, model: nn.Module) -> None:
    """Raise ValueError if TEST.EVALUATORS is empty or repeats one, or if one is unknown or does not fit."""
    names = list(cfg.TEST.EVALUATORS)
    if not names or len(set(names)) < len(names) or not set(names) <= set(_NAMES):
        known = ", ".join(_NAMES)
        raise ValueError(f"TEST.EVALUATORS is {tuple(names)}; give one or more of {known}, each once")
    method = cfg.MODEL.META_ARCHITECTURE
    lacking = {"oracle", "proposal_recall"} if getattr(model, "proposals", None) is None else set()
    if isinstance(model, PotentialObjectsSegmenter):
        lacking = {"few_shot_seg", SUPPORT_USE}
    if not isinstance(model, DCAMA):
        lacking.add(AggregatedMaskEvaluator.task)
    if wrong := [name for name in names if name in lacking]:
        possible = tuple(name for name in _NAMES if name not in lacking)
        raise ValueError(f"TEST.EVALUATORS: {method} gives nothing for {wrong[0]}; choose from {possible}")
    if SUPPORT_USE in names and FewShotEvaluator.task not in names:
        raise ValueError(f"TEST.EVALUATORS: {SUPPORT_USE} needs {FewShotEvaluator.task} as well")
    unaveraged = [name for name in names if name not in (FewShotEvaluator.task, SUPPORT_USE)]
    if cfg.TEST.SCALES and unaveraged:
        raise ValueError(
            f"TEST.SCALES {tuple(cfg.TEST.SCALES)} averages scores, not the masks that TEST.EVALUATORS "
            f"{unaveraged[0]!r} needs; set TEST.SCALES to ()"
        )
    if cfg.TEST.ZOOM_TILES and unaveraged:
        raise ValueError(
            f"TEST.ZOOM_TILES {cfg.TEST.ZOOM_TILES} blends scores, not the masks that TEST.EVALUATORS "
            f"{unaveraged[0]!r} needs; set TEST.ZOOM_TILES to 0"
        )


def _segmentor(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model with what TEST.SCALES and TEST.ZOOM_TILES ask for."""
    segmentor = MultiScaleSegmentor(model) if cfg.TEST.SCALES else model
    if not cfg.TEST.ZOOM_TILES:
        return segmentor
    if cfg.TEST.FRAME != "original":
        raise ValueError(
            f"TEST.ZOOM_TILES {cfg.TEST.ZOOM_TILES} needs TEST.FRAME 'original', not {cfg.TEST.FRAME!r}; "
            "set TEST.ZOOM_TILES to 0"
        )
    first = [*build_view_resizes(cfg), build_resize(cfg)][0]
    return EnlargingSegmentor(segmentor, model, first, cfg.TEST.ZOOM_TILES)


def build_evaluators(cfg: CfgNode, dataset_name: str, output_dir: Path | None = None) -> list[Evaluator]:
    """Build TEST.EVALUATORS; "few_shot_seg" writes into ``output_dir``, others into folders below it."""
    built = []
    for name in (name for name in cfg.TEST.EVALUATORS if name in EVALUATORS):
        folder = output_dir and output_dir / ("" if name == FewShotEvaluator.task else name)
        evaluator = EVALUATORS[name]
        draw = {} if evaluator is ProposalRecallEvaluator else {"draw": save_episode_panel}
        built.append(evaluator.from_config(cfg, dataset_name, folder, **draw))
    return built


def evaluate(
    cfg: CfgNode, model: nn.Module, *, folder: str = "inference", episodes: int | None = None, shown: int = 0
) -> Results:
    """Evaluate on all of DATASETS.TEST with each of FEW_SHOT.TEST.SHOTS supports.

    All processes must call it. ``OUTPUT_DIR/<folder>/<dataset>_<K>shot`` receives the scores, the counts of
    each episode, pictures, and the manifest of the scored episodes. With TEST.SCALES the model runs at each
    of these sizes and its probabilities are averaged.

    Args:
        model: segments episodes or makes proposals, also inside DistributedDataParallel; its mode is kept.
        folder: of the files, under OUTPUT_DIR.
        episodes: per evaluation, instead of FEW_SHOT.TEST.EPISODES.
        shown: pictures of so many episodes of each evaluation go to the event storage (TensorBoard).

    Returns:
        Scores by "<dataset>/<K>shot"; every process except the main one gets only the names.
    """
    model = model.module if isinstance(model, DistributedDataParallel) else model
    check_evaluators(cfg, model)
    features = open_features(cfg, model, shown=max(shown, cfg.TEST.PICTURES))
    segmentor = _segmentor(cfg, model)
    results: Results = OrderedDict()
    for dataset_name in cfg.DATASETS.TEST:
        for shots in cfg.FEW_SHOT.TEST.SHOTS:
            name = evaluation_name(dataset_name, shots)
            logger.info("Evaluating on %s", name)
            output_dir = Path(cfg.OUTPUT_DIR) / folder / f"{dataset_name}_{shots}shot"
            options = {"shots": shots, "episodes": episodes, "features": features}
            loader = build_few_shot_test_loader(cfg, dataset_name, **options)
            further = SUPPORT_USE in cfg.TEST.EVALUATORS and SupportUse(cfg, dataset_name, **options)
            evaluators: list[DatasetEvaluator] = [*build_evaluators(cfg, dataset_name, output_dir)]
            painters = [e for e in evaluators if isinstance(e, FewShotEvaluator)][:1] if shown else []
            evaluators += [EpisodePictures(shown, painter.predict) for painter in painters]
            _record_episodes(cfg, dataset_name, loader.sampler.episodes, output_dir)
            with with_features(model, features):
                results[name] = run_loop(segmentor, loader, evaluators)
                if further:
                    results[name][SUPPORT_USE] = further.run(segmentor, output_dir)
    if comm.is_main_process():
        _report(results)
    return results


def evaluate_periodically(cfg: CfgNode, model: nn.Module) -> Results:
    """The small evaluation while training: the first number of shots, TEST.PERIODIC_EPISODES episodes.

    It is on `validation_sets`. The episodes are the same each time. Pictures go to TensorBoard, files to
    ``OUTPUT_DIR/periodic``. There are no confidence intervals.
    """
    small = cfg.clone()
    small.defrost()
    small.DATASETS.TEST = validation_sets(cfg)
    if cfg.DATASETS.VALIDATION:
        small.FEW_SHOT.TEST.MANIFEST = ""  # of a test set
    small.FEW_SHOT.TEST.SHOTS = cfg.FEW_SHOT.TEST.SHOTS[:1]
    small.TEST.BOOTSTRAP = small.TEST.PICTURES = 0
    small.freeze()
    episodes = cfg.TEST.PERIODIC_EPISODES or None
    return evaluate(small, model, folder="periodic", episodes=episodes, shown=cfg.TEST.PICTURES)


def validation_sets(cfg: CfgNode) -> tuple[str, ...]:
    """The data sets that are evaluated while training: DATASETS.VALIDATION, or else DATASETS.TEST."""
    return tuple(cfg.DATASETS.VALIDATION or cfg.DATASETS.TEST)


def evaluation_name(dataset_name: str, shots: int) -> str:
    """The key of one evaluation in the results, "glyphs_fold0_val/1shot"."""
    return f"{dataset_name}/{shots}shot"


def write_summary(cfg: CfgNode, results: Results, *, weights: str, trained: bool = True) -> None:
    """Write ``OUTPUT_DIR/results.json``: the method, its weights, what it used (`resources`), all scores."""
    if comm.is_main_process():
        content = {"method": cfg.MODEL.META_ARCHITECTURE, "weights": weights, "seed": cfg.SEED}
        content |= {"resources": resources(cfg, trained=trained), "results": results}
        write_json(Path(cfg.OUTPUT_DIR) / "results.json", content)


class EpisodePictures(DatasetEvaluator):
    """Put pictures of the episodes with an index below ``count`` into the event storage (main process only).

    ``predict`` gives the mask (h, w) to draw, for an episode and the model's output.
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


def _report(results: Results) -> None:
    """Log the scores in CSV form, and for several evaluations one table per task."""
    for name, scores in results.items():
        logger.info("Scores of %s as CSV:", name)
        without_classes = {task: {k: v for k, v in s.items() if "/" not in k} for task, s in scores.items()}
        print_csv_format(OrderedDict(without_classes))
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
    origin = {"seed": test.SEED, "query_rule": test.QUERY_RULE}
    if test.MANIFEST:
        header = read_manifest_header(test.MANIFEST)
        origin = {name: header[name] for name in origin}
    episodes = sorted(itertools.chain.from_iterable(shares), key=lambda episode: episode.index)
    names = MetadataCatalog.get(dataset_name).stuff_classes
    write_manifest(output_dir / "manifest.jsonl", episodes, dataset=dataset_name, class_names=names, **origin)


def check_support_use(
    cfg: CfgNode, model: nn.Module, dataset: str, shots: int, episodes: int
) -> tuple[dict[str, Any], Path]:
    """Score a model on one data set with its own supports, with foreign ones, and without the object.

    The files go to ``OUTPUT_DIR/support_use/<dataset>_<K>shot``. The model is in eval mode. A data set of a
    single class is a ValueError.

    Returns:
        The content of ``support_use.json``, and that file; see `SupportUse`.
    """
    one = cfg.clone()
    one.defrost()
    one.DATASETS.TEST, one.FEW_SHOT.TEST.SHOTS = (dataset,), (shots,)
    one.TEST.EVALUATORS = (FewShotEvaluator.task, SUPPORT_USE)
    one.freeze()
    evaluate(one, model, folder=SUPPORT_USE, episodes=episodes)
    file = Path(cfg.OUTPUT_DIR) / SUPPORT_USE / f"{dataset}_{shots}shot" / "support_use.json"
    return read_json_object(file, "evaluate again"), file
