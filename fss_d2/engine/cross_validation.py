"""Cross-validation: the runs of all methods, folds and seeds, and their report."""

import argparse
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from operator import getitem
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from fss_d2.config import load_config
from fss_d2.evaluation.comparison import compare_folders
from fss_d2.evaluation.report import DIFFERENCE, FOLD_METRICS, TASK, format_folds, summarise_folds
from fss_d2.io.files import check_writable, read_json, write_atomic, write_json
from fss_d2.modeling.build import build_without_weights

from .support_use import SUPPORT_USE

__all__ = ["Run", "collect_scores", "of_fold", "plan_runs", "run_all"]

logger = logging.getLogger(__name__)

STAGE_SEPARATOR = "+"
_ORACLE = "oracle"  # scores a stage of proposals, which is cross-validated alone
_SETS = ("DATASETS.FOLDERS", "DATASETS.COCO_JSON", "DATASETS.CLASS_MAPS")
# All methods take these from the first, so that they segment the same episodes and are scored alike.
_SHARED_KEYS = (
    *("DATASETS.TEST", *_SETS, "FEW_SHOT.REPEAT_SUPPORTS", "FEW_SHOT.TEST.EPISODES"),
    *("FEW_SHOT.TEST.QUERY_RULE", "FEW_SHOT.TEST.SUPPORT_ANNOTATION", "FEW_SHOT.TEST.SUPPORT_VIEWS"),
    *("FEW_SHOT.TEST.MANIFEST", "INPUT.FEW_SHOT_SIZE", "INPUT.TEST_RESIZE", "TEST.FRAME", "TEST.SCALES"),
    *("TEST.REFINEMENT", "TEST.ZOOM_TILES", "TEST.COUNTING", "TEST.ABSENT_CLASSES"),
)


@dataclass(frozen=True)
class Run:
    """One fold and seed of one method, or of a stage before it."""

    method: str  # its name in the report
    fold: int
    seed: int
    config_file: str
    opts: tuple[str, ...]  # config keys and values, including OUTPUT_DIR
    folder: Path
    eval_only: bool = False
    after: Path | None = None  # folder of the run whose weights this run starts from
    scored: bool = True  # False for a stage that is only trained

    def config(self, num_gpus: int | None) -> CfgNode:
        """The config of train_net.py for this run."""
        return load_config(self.config_file, self.opts, num_gpus=num_gpus)

    def finished(self, num_gpus: int | None) -> bool:
        """Whether the results exist, or a stage's weights; a run with other settings is a ValueError."""
        recorded = self.folder / "config.yaml"
        if recorded.is_file() and recorded.read_text() != self.config(num_gpus).dump():
            fix = "remove it, or give another --output"
            raise ValueError(f"{self.folder} holds a run with other settings; {fix}")
        last = "results.json" if self.scored else "model_final.pth"
        return recorded.is_file() and (self.folder / last).is_file()

    def scores(self) -> dict[Path, dict[str, float]]:
        """All scores of each evaluation, by the folder of its episodes ("<set>_<K>shot")."""
        results = read_json(self.folder / "results.json")["results"]
        inference = self.folder / "inference"
        return {inference / name.replace("/", "_"): _scores(tasks) for name, tasks in results.items()}


def _scores(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The scores of an evaluation's tasks under one name each."""
    if TASK not in tasks:
        return dict(tasks[_ORACLE])
    further = {"oracle": tasks[_ORACLE]["mIoU"]} if _ORACLE in tasks else {}
    return {**tasks.get(SUPPORT_USE, {}), **tasks[TASK], **further}


@dataclass(frozen=True)
class _Method:
    """One row of the report: the configs of its stages; the last one is scored."""

    name: str
    files: tuple[str, ...]
    configs: tuple[CfgNode, ...]

    @cached_property
    def parameters(self) -> tuple[tuple[bool, bool], ...]:
        """For each stage, whether it is trained, and whether it has weights besides its backbone's."""
        models = map(build_without_weights, self.configs)
        return tuple((model.trainable, model.has_weights) for model in models)


def of_fold(value: Any, fold: int) -> Any:
    """Put ``fold`` into every "fold<N>" of a name, a list or a dict, and into the entry "fold" of a dict."""
    if isinstance(value, str):
        return re.sub(r"fold\d+", f"fold{fold}", value)
    if isinstance(value, dict):
        return {key: fold if key == "fold" else of_fold(item, fold) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(of_fold(item, fold) for item in value)
    return value


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All runs for the arguments, by fold and seed; a stage comes before the runs that start from it.

    A stage that several methods share is one run. What does not go together is a ValueError.
    """
    if min(args.seeds) < 0 or min(args.shots or [1]) < 1 or args.jobs < 1:
        counts = f"--shots {args.shots} and --jobs {args.jobs} be 1 or more"
        raise ValueError(f"--seeds {args.seeds} must not be negative, {counts}")
    methods = _read_methods(args)
    main = methods[0].configs[-1]
    output = Path(args.output or Path(main.OUTPUT_DIR) / "cross_validation")
    runs: dict[Path, Run] = {}
    for fold in args.folds:
        for seed in args.seeds:
            shared = ["FEW_SHOT.TEST.SEED", str(seed)]
            shared += ["FEW_SHOT.TEST.SHOTS", repr(tuple(args.shots or main.FEW_SHOT.TEST.SHOTS))]
            shared += _pairs(main, _SHARED_KEYS, fold)
            for method in methods:
                for run in _stages(args, method, fold, seed, output, shared):
                    if runs.setdefault(run.folder, run) != run:
                        fix = "rename one of their config files"
                        raise ValueError(f"{run.folder} would hold two different runs; {fix}")
    return list(runs.values())


def run_all(args: argparse.Namespace, start: Callable[[Run, argparse.Namespace], None]) -> str:
    """Do all unfinished runs, ``args.jobs`` at once; write the report after each run, and return it.

    ``start`` does one run and is called in a thread. After a failure no run is started, those in progress
    end, and the error is raised.
    """
    runs = plan_runs(args)
    output = runs[0].folder.parents[1]
    check_writable(output)
    done = {run.folder for run in runs if run.finished(args.num_gpus)}
    for folder in sorted(done):
        logger.info("%s is finished, skipped", folder)
    text = _report(args, runs, done) if done else ""
    waiting = [run for run in runs if run.folder not in done]
    in_progress: dict[Future[None], Run] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        while waiting or in_progress:
            ready = [run for run in waiting if run.after is None or run.after in done]
            for run in ready[: args.jobs - len(in_progress)]:
                logger.info("Run %d of %d: %s", runs.index(run) + 1, len(runs), run.folder)
                waiting.remove(run)
                in_progress[pool.submit(start, run, args)] = run
            for future in wait(in_progress, return_when=FIRST_COMPLETED).done:
                run = in_progress.pop(future)
                if future.exception() and in_progress:
                    logger.info("%s failed; waiting for %d other runs", run.folder, len(in_progress))
                future.result()
                done.add(run.folder)
                text = _report(args, runs, done)
    logger.info("Report in %s:\n%s", output / "cross_validation.md", text)
    return text


def _report(args: argparse.Namespace, runs: Sequence[Run], done: set[Path]) -> str:
    """Write the table of the finished runs, and return it."""
    scored = [run for run in runs if run.scored]
    first = scored[0].method
    rows = collect_scores((run for run in scored if run.folder in done), first)
    summary = summarise_folds(rows)
    content = {"config_file": args.config_file, "opts": args.opts, "summary": summary, "runs": rows}
    text = f"{len(done)} of {len(runs)} runs.\n\n{format_folds(summary, first)}"
    output = runs[0].folder.parents[1]
    write_json(output / "cross_validation.json", content)
    write_atomic(output / "cross_validation.md", text.encode())
    return text


def collect_scores(runs: Iterable[Run], first: str) -> list[dict[str, Any]]:
    """The rows of `summarise_folds`: one per run, test set and number of shots.

    The runs are finished, scored and in the order of the plan. They are compared with those of the method
    ``first`` of the same fold, seed and evaluation; another manifest is a ValueError.
    """
    rows: list[dict[str, Any]] = []
    references: dict[tuple[Any, ...], Path] = {}
    for run in runs:
        for folder, scores in run.scores().items():
            name, _, shots = folder.name.rpartition("_")
            row: dict[str, Any] = {"method": run.method, "fold": run.fold, "seed": run.seed}
            row["test_set"] = re.sub(r"fold\d+_?", "", name)  # "glyphs_val" for "glyphs_fold2_val"
            row["shots"] = int(shots.removesuffix("shot"))
            row["folder"] = str(folder)
            row |= {m: scores[m] for m in (*FOLD_METRICS, "mIoU_low", "mIoU_high") if m in scores}
            question = (run.fold, run.seed, folder.name)
            if run.method == first:
                references[question] = folder
            elif question in references:
                paired = _compare(folder, references[question])
                row[DIFFERENCE] = paired.difference
                row |= {f"{DIFFERENCE}_low": paired.low, f"{DIFFERENCE}_high": paired.high}
            rows.append(row)
    return rows


_compare = cache(compare_folders)  # the report is written after each run


def _read_methods(args: argparse.Namespace) -> list[_Method]:
    chains = [tuple(entry.split(STAGE_SEPARATOR)) for entry in args.config_file]
    configs = [tuple(load_config(f, args.opts, num_gpus=args.num_gpus) for f in files) for files in chains]
    for files, stages in zip(chains, configs, strict=True):
        known = {TASK, _ORACLE} if len(chains) == 1 else {TASK}
        if not known & {*stages[-1].TEST.EVALUATORS}:
            raise ValueError(
                f"{files[-1]}: TEST.EVALUATORS {tuple(stages[-1].TEST.EVALUATORS)} lacks {TASK!r}, whose "
                "scores the table shows; cross-validate a config that segments episodes"
            )
        for file, cfg in zip(files, stages, strict=True):
            names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
            if len(args.folds) > 1 and not any(re.search(r"fold\d", name) for name in names):
                raise ValueError(f'{file}: no "fold<N>" in the names of {names}; give one --folds only')
    names = [stages[-1].MODEL.META_ARCHITECTURE for stages in configs]
    return [
        _Method(name if names.count(name) == 1 else f"{name} ({_stem(files)})", files, stages)
        for name, files, stages in zip(names, chains, configs, strict=True)
    ]


def _stem(files: Sequence[str]) -> str:
    return STAGE_SEPARATOR.join(Path(file).stem for file in files)


def _stages(
    args: argparse.Namespace, method: _Method, fold: int, seed: int, output: Path, shared: Sequence[str]
) -> Iterator[Run]:
    """The runs of a method; with --eval-only only its last stage."""
    after: Path | None = None
    last = len(method.files) - 1
    for number, (file, cfg) in enumerate(zip(method.files, method.configs, strict=True)):
        if args.eval_only and number < last:
            continue
        architecture = cfg.MODEL.META_ARCHITECTURE
        trainable, weighted = method.parameters[number]
        trains = not args.eval_only and trainable
        folder = output / f"{architecture}_{_stem(method.files[: number + 1])}" / f"fold{fold}_seed{seed}"
        opts = [*args.opts, *_pairs(cfg, ("DATASETS.TRAIN", "DATASETS.VALIDATION", *_SETS), fold)]
        opts += ["SEED", str(seed), "FEW_SHOT.SEED", str(seed)]
        opts += shared if number == last else ["DATASETS.TEST", "()"]
        if after is not None:
            opts += ["MODEL.WEIGHTS", str(after / "model_final.pth")]
        elif args.weights and weighted:
            opts += ["MODEL.WEIGHTS", _weights(args.weights, architecture, fold, seed)]
        opts += ["OUTPUT_DIR", str(folder)]
        name = method.name if number == last else architecture
        yield Run(name, fold, seed, file, tuple(opts), folder, not trains, after, number == last)
        after = folder


def _weights(pattern: str, method: str, fold: int, seed: int) -> str:
    try:
        return pattern.format(method=method, fold=fold, seed=seed)
    except (ValueError, KeyError, IndexError) as error:
        names = "{method}, {fold} and {seed}"
        raise ValueError(f"--weights {pattern}: only {names} are replaced") from error


def _pairs(cfg: CfgNode, keys: Iterable[str], fold: int) -> list[str]:
    values = ((key, reduce(getitem, key.split("."), cfg)) for key in keys)
    return [word for key, value in values for word in (key, repr(of_fold(value, fold)))]
