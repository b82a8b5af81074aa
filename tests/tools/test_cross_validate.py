"""Cross validation: what is run, what is skipped, and the numbers of the report."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

_TOOL = Path(__file__).parents[2] / "tools" / "cross_validate.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cross_validate", _TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


tool = _load()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "method.yaml"
    path.write_text(
        "VERSION: 2\nMODEL:\n  META_ARCHITECTURE: DCAMA\n"
        'DATASETS:\n  TRAIN: ("toy_fold0_train",)\n  TEST: ("toy_fold0_val",)\n'
        "FEW_SHOT:\n  TEST:\n    EPISODES: 7\n"
    )
    (tmp_path / "baseline.yaml").write_text("VERSION: 2\nMODEL:\n  META_ARCHITECTURE: Prototype\n")
    return path


def _arguments(config: Path, *more: str) -> argparse.Namespace:
    output = config.parent / "out"
    return tool.parse_arguments(["--config-file", str(config), "--output", str(output), *more])


class _Starter:
    """In place of training: scores of 10 fold + seed + shots, the baseline's all 1."""

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, run: "tool.Run", args: argparse.Namespace) -> None:
        self.started.append(run.folder.name)
        cfg = run.config(args.num_gpus)
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(cfg.dump())
        results = {}
        for shots in cfg.FEW_SHOT.TEST.SHOTS:
            score = 1.0 if run.eval_only else 10.0 * run.fold + run.seed + shots
            (name,) = cfg.DATASETS.TEST
            results[f"{name}/{shots}shot"] = {"few_shot_seg": {"mIoU": score, "FB_IoU": 2 * score}}
        (run.folder / "results.json").write_text(json.dumps({"results": results}))


def test_each_run_has_its_fold_seed_and_folder(config: Path) -> None:
    runs = tool.plan_runs(
        _arguments(config, "--folds", "0", "2", "--seeds", "4", "5", "SOLVER.MAX_ITER", "9")
    )
    assert [(run.fold, run.seed) for run in runs] == [(0, 4), (0, 5), (2, 4), (2, 5)]
    cfg = runs[-1].config(None)
    assert cfg.DATASETS.TRAIN == ("toy_fold2_train",)
    assert cfg.DATASETS.TEST == ("toy_fold2_val",)
    assert (cfg.SEED, cfg.FEW_SHOT.SEED, cfg.FEW_SHOT.TEST.SEED, cfg.SOLVER.MAX_ITER) == (5, 5, 5, 9)
    assert len({run.folder for run in runs}) == 4


def test_the_baseline_answers_the_same_questions(config: Path) -> None:
    baseline = str(config.parent / "baseline.yaml")
    first, second = tool.plan_runs(
        _arguments(config, "--folds", "3", "--shots", "1", "5", "--baseline", baseline)
    )
    assert (first.method, first.eval_only, second.eval_only) == ("Prototype (baseline)", True, False)
    ours, theirs = second.config(None), first.config(None)
    assert theirs.MODEL.META_ARCHITECTURE == "Prototype"
    assert theirs.FEW_SHOT.TEST == ours.FEW_SHOT.TEST
    assert theirs.FEW_SHOT.TEST.SHOTS == (1, 5)
    assert theirs.DATASETS.TEST == ours.DATASETS.TEST == ("toy_fold3_val",)


def test_weights_follow_fold_and_seed(config: Path) -> None:
    (run,) = tool.plan_runs(
        _arguments(config, "--folds", "1", "--eval-only", "--weights", "w/{fold}_{seed}.pth")
    )
    assert run.config(None).MODEL.WEIGHTS == "w/1_0.pth"
    assert run.eval_only


def test_folds_reach_into_the_users_own_sets() -> None:
    entry = {"name": "mine_fold0_val", "fold": 0, "root": "a/b"}
    assert tool.of_fold([entry], 2) == [{"name": "mine_fold2_val", "fold": 2, "root": "a/b"}]


def test_folds_need_names_with_folds(config: Path) -> None:
    with pytest.raises(ValueError, match='no "fold<N>"'):
        tool.plan_runs(_arguments(config, "DATASETS.TRAIN", "('a',)", "DATASETS.TEST", "('b',)"))


def test_mean_and_deviations_by_hand(config: Path) -> None:
    """Folds 0 and 1, seeds 0 and 2, 1 shot: 1, 3, 11, 13. Fold means 2, 12; seed means 6, 8."""
    args = _arguments(config, "--folds", "0", "1", "--seeds", "0", "2")
    text = tool.run_all(args, _Starter())
    report = json.loads((config.parent / "out" / "cross_validation.json").read_text())
    (entry,) = [e for e in report["summary"] if e["metric"] == "mIoU"]
    assert entry["folds"] == {"0": 2.0, "1": 12.0}
    assert entry["mean"] == 7.0
    assert entry["deviation_seeds"] == pytest.approx(2**0.5)
    assert entry["deviation_folds"] == pytest.approx(50**0.5)
    assert [(r["fold"], r["seed"], r["mIoU"]) for r in report["runs"]] == [
        (0, 0, 1.0),
        (0, 2, 3.0),
        (1, 0, 11.0),
        (1, 2, 13.0),
    ]
    assert (
        "| DCAMA    | toy_val    | 1       | 2.00     | 12.00    | 7.00   | 1.41      | 7.07      |" in text
    )
    assert (config.parent / "out" / "cross_validation.md").read_text() == text


def test_finished_runs_are_skipped(config: Path) -> None:
    args = _arguments(config, "--folds", "0", "1", "--seeds", "0")
    first, second = _Starter(), _Starter()
    text = tool.run_all(args, first)
    assert first.started == ["fold0_seed0", "fold1_seed0"]
    assert tool.run_all(args, second) == text
    assert second.started == []
    more = _arguments(config, "--folds", "0", "1", "2", "--seeds", "0")
    tool.run_all(more, second)
    assert second.started == ["fold2_seed0"]


def test_other_settings_in_the_same_folder(config: Path) -> None:
    tool.run_all(_arguments(config, "--folds", "0"), _Starter())
    with pytest.raises(ValueError, match="other settings; remove it, or give another --output"):
        tool.run_all(_arguments(config, "--folds", "0", "SOLVER.MAX_ITER", "9"), _Starter())


def test_the_report_of_a_part(config: Path) -> None:
    """One seed has no deviation; a fold not reached yet has no column."""
    starter = _Starter()

    def fail_at_second(run: "tool.Run", args: argparse.Namespace) -> None:
        if starter.started:
            raise ValueError("the run failed")
        starter(run, args)

    with pytest.raises(ValueError, match="the run failed"):
        tool.run_all(_arguments(config, "--folds", "0", "1"), fail_at_second)
    text = (config.parent / "out" / "cross_validation.md").read_text()
    assert text.startswith("1 of 2 runs.")
    assert "| DCAMA    | toy_val    | 1       | 1.00     | 1.00   | -         | -         |" in text


def test_a_config_that_scores_no_episodes_is_refused(config: Path) -> None:
    with config.open("a") as file:
        file.write('TEST:\n  EVALUATORS: ("oracle",)\n')
    with pytest.raises(ValueError, match=r"TEST.EVALUATORS .* lacks 'few_shot_seg'"):
        tool.plan_runs(_arguments(config))
