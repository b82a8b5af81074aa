"""Which runs a cross-validation consists of: methods, folds, seeds, and stages that build on each other."""

import argparse
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from fss_d2.config import load_config
from fss_d2.evaluation.report import TASK
from fss_d2.modeling.meta_arch.image_model import ImageModel

__all__ = ["Run", "of_fold", "plan_runs", "without_fold"]

STAGE_SEPARATOR = "+"
_SETS = ("DATASETS.FOLDERS", "DATASETS.COCO_JSON")
# What all methods take from the first, so that they answer the same questions on the same pixels.
_SHARED_KEYS = (
    "DATASETS.TEST",
    *_SETS,
    "FEW_SHOT.REPEAT_SUPPORTS",
    "FEW_SHOT.TEST.EPISODES",
    "FEW_SHOT.TEST.QUERY_RULE",
    "FEW_SHOT.TEST.SUPPORT_ANNOTATION",
    "FEW_SHOT.TEST.MANIFEST",
    "INPUT.FEW_SHOT_SIZE",
    "INPUT.TEST_RESIZE",
    "TEST.FRAME",
    "TEST.SCALES",
    "TEST.COUNTING",
    "TEST.ABSENT_CLASSES",
)


@dataclass(frozen=True)
class Run:
    """One fold and seed of one method, or of a stage before it.

    Attributes:
        method: its name in the report.
        config_file: of the method or the stage.
        opts: config keys and values of this run, OUTPUT_DIR among them.
        eval_only: whether nothing is trained.
        after: the folder of the run whose weights this one starts from.
        scored: whether it is in the report; else it is trained and not evaluated.
    """

    method: str
    fold: int
    seed: int
    config_file: str
    opts: tuple[str, ...]
    folder: Path
    eval_only: bool = False
    after: Path | None = None
    scored: bool = True

    def config(self, num_gpus: int | None) -> CfgNode:
        """The config as train_net.py will see it."""
        return load_config(self.config_file, self.opts, num_gpus=num_gpus)

    def finished(self, num_gpus: int | None) -> bool:
        """Whether the results, or of a stage the weights, are there.

        Raises:
            ValueError: the folder holds a run with other settings.
        """
        recorded = self.folder / "config.yaml"
        if recorded.is_file() and recorded.read_text() != self.config(num_gpus).dump():
            raise ValueError(
                f"{self.folder} holds a run with other settings; remove it, or give another --output"
            )
        last = "results.json" if self.scored else "model_final.pth"
        return recorded.is_file() and (self.folder / last).is_file()

    def scores(self) -> dict[Path, dict[str, float]]:
        """All scores of each evaluation, by the folder where its episodes lie ("<set>_<K>shot")."""
        results = json.loads((self.folder / "results.json").read_text())["results"]
        inference = self.folder / "inference"
        return {inference / name.replace("/", "_"): tasks[TASK] for name, tasks in results.items()}


@dataclass(frozen=True)
class _Method:
    """A row of the report: the configs of its stages, the last of which is scored."""

    name: str
    files: tuple[str, ...]
    configs: tuple[CfgNode, ...]


def of_fold(value: Any, fold: int) -> Any:
    """Put a fold into every "fold<N>" of a name, or of the names in a list or dict; "fold": N as well."""
    if isinstance(value, str):
        return re.sub(r"fold\d+", f"fold{fold}", value)
    if isinstance(value, dict):
        return {key: fold if key == "fold" else of_fold(item, fold) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(of_fold(item, fold) for item in value)
    return value


def without_fold(name: str) -> str:
    """The name of a test set, whichever fold: "glyphs_val" for "glyphs_fold2_val"."""
    return re.sub(r"fold\d+_?", "", name)


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All runs that the arguments ask for, fold by fold, seed by seed, stages before what builds on them.

    A stage that several methods share is one run.

    Raises:
        ValueError: several folds of a config whose data sets carry no fold in their names; a number that
            is out of range; a config that does not score episodes; methods that would share a folder.
    """
    if min(args.seeds) < 0 or min(args.shots or [1]) < 1 or args.jobs < 1:
        raise ValueError(
            f"--seeds {args.seeds} must not be negative, --shots {args.shots} and --jobs {args.jobs} "
            "be 1 or more"
        )
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
                        raise ValueError(
                            f"{run.folder} would hold two different runs; rename one of their config files"
                        )
    return list(runs.values())


def _read_methods(args: argparse.Namespace) -> list[_Method]:
    chains = [tuple(entry.split(STAGE_SEPARATOR)) for entry in args.config_file]
    configs = [
        tuple(load_config(file, args.opts, num_gpus=args.num_gpus) for file in files) for files in chains
    ]
    for files, stages in zip(chains, configs, strict=True):
        if TASK not in stages[-1].TEST.EVALUATORS:
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
    """The runs of a method; with --eval-only just its last stage."""
    after: Path | None = None
    last = len(method.files) - 1
    for number, (file, cfg) in enumerate(zip(method.files, method.configs, strict=True)):
        if args.eval_only and number < last:
            continue
        architecture = cfg.MODEL.META_ARCHITECTURE
        trains = not args.eval_only and _method(architecture).learns(cfg)
        folder = output / f"{architecture}_{_stem(method.files[: number + 1])}" / f"fold{fold}_seed{seed}"
        opts = [*args.opts, *_pairs(cfg, ("DATASETS.TRAIN", *_SETS), fold)]
        opts += ["SEED", str(seed), "FEW_SHOT.SEED", str(seed)]
        opts += shared if number == last else ["DATASETS.TEST", "()"]
        if after is not None:
            opts += ["MODEL.WEIGHTS", str(after / "model_final.pth")]
        elif args.weights and _method(architecture).trainable:
            opts += ["MODEL.WEIGHTS", _weights(args.weights, architecture, fold, seed)]
        opts += ["OUTPUT_DIR", str(folder)]
        name = method.name if number == last else architecture
        yield Run(name, fold, seed, file, tuple(opts), folder, not trains, after, number == last)
        after = folder


def _method(name: str) -> type[ImageModel]:
    """The class of a method; of a name that does not exist, which is train_net.py's to report, the base."""
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else ImageModel


def _weights(pattern: str, method: str, fold: int, seed: int) -> str:
    try:
        return pattern.format(method=method, fold=fold, seed=seed)
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"--weights {pattern}: only {{method}}, {{fold}} and {{seed}} are filled in"
        ) from error


def _pairs(cfg: CfgNode, keys: Iterable[str], fold: int) -> list[str]:
    opts: list[str] = []
    for key in keys:
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        opts += [key, repr(of_fold(value, fold))]
    return opts
