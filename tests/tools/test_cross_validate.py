"""Cross validation: what is run, what is skipped, and the numbers of the report."""

import argparse
import importlib.util
import json
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from fss_d2.engine.cross_validation import Run, of_fold, plan_runs, run_all
from fss_d2.evaluation.bootstrap import EpisodeCounts, write_rows

_TOOL = Path(__file__).parents[2] / "tools" / "cross_validate.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cross_validate", _TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = _load()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A trained method; beside it a training-free one, one with other test settings, and two stages."""
    sets = 'DATASETS:\n  TRAIN: ("toy_fold0_train",)\n  TEST: ("toy_fold0_val",)\n'
    for name, rest in {
        "method": "MODEL:\n  META_ARCHITECTURE: DCAMA\nFEW_SHOT:\n  TEST:\n    EPISODES: 7\n"
        "    SUPPORT_VIEWS: ('whole', 'flip')\nTEST:\n  REFINEMENT: grabcut\n",
        "free": "MODEL:\n  META_ARCHITECTURE: Prototype\n",
        "other": "MODEL:\n  META_ARCHITECTURE: PFENet\nTEST:\n  COUNTING: hsnet\n  FRAME: original\n",
        "stage1": "MODEL:\n  META_ARCHITECTURE: PotentialObjectsSegmenter\n"
        'TEST:\n  EVALUATORS: ("oracle",)\n',
        "stage2": "MODEL:\n  META_ARCHITECTURE: MMFormer\n  WEIGHTS: elsewhere.pth\n",
        "stage2b": "MODEL:\n  META_ARCHITECTURE: MMFormer\n",
        "chosen": "MODEL:\n  META_ARCHITECTURE: MMFormer\n  MM_FORMER:\n    LEARNABLE_MATCHING: False\n"
        "    CROSS_ALIGNMENT: none\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(f"VERSION: 2\n{sets}{rest}")
    return tmp_path / "method.yaml"


def _arguments(config: Path, *more: str, methods: str = "method") -> argparse.Namespace:
    """``methods``: names of the fixture's configs, separated by spaces, stages by "+"."""
    files = ["+".join(str(config.parent / f"{n}.yaml") for n in each.split("+")) for each in methods.split()]
    output = config.parent / "out"
    return tool.parse_arguments(["--config-file", *files, "--output", str(output), *more])


class _Starter:
    """In place of training: scores of 10 fold + seed + shots, a training-free method's all 1.

    Each evaluation has two episodes of 100 pixels, of which the trained method finds 60, the other 50.
    """

    def __init__(self, spoiled: str = "") -> None:
        self.started: list[str] = []
        self._spoiled = spoiled

    def __call__(self, run: Run, args: argparse.Namespace) -> None:
        self.started.append(f"{run.folder.parent.name.partition('_')[0]} {run.folder.name}")
        cfg = run.config(args.num_gpus)
        run.folder.mkdir(parents=True)
        (run.folder / "config.yaml").write_text(cfg.dump())
        (run.folder / "model_final.pth").touch()
        results = {}
        for shots in cfg.FEW_SHOT.TEST.SHOTS if cfg.DATASETS.TEST else ():
            score = 1.0 if run.eval_only else 10.0 * run.fold + run.seed + shots
            (name,) = cfg.DATASETS.TEST
            scores = {"mIoU": score, "FB_IoU": 2 * score, "mIoU_low": score - 1, "mIoU_high": score + 1}
            results[f"{name}/{shots}shot"] = {cfg.TEST.EVALUATORS[0]: scores}
            self._write_episodes(
                run, run.folder / "inference" / f"{name}_{shots}shot", 50 if run.eval_only else 60
            )
        if run.scored:
            (run.folder / "results.json").write_text(json.dumps({"results": results}))

    def _write_episodes(self, run: Run, folder: Path, found: int) -> None:
        rows = [EpisodeCounts(i, 0, f"q{i}", ("s",), (0, found), (0, 100)) for i in range(2)]
        write_rows(folder / "episodes.jsonl", rows)
        settings = {"counting": "hsnet", "absent_classes": "zero"}
        recorded = {"settings": settings, "per_class": [{"class_id": 0}]}
        (folder / "results.json").write_text(json.dumps(recorded))
        spoiled = self._spoiled == run.method
        (folder / "manifest.jsonl").write_text(f"{run.seed}{'!' * spoiled}")


def test_each_run_has_its_fold_seed_and_folder(config: Path) -> None:
    runs = plan_runs(_arguments(config, "--folds", "0", "2", "--seeds", "4", "5", "SOLVER.MAX_ITER", "9"))
    assert [(run.fold, run.seed) for run in runs] == [(0, 4), (0, 5), (2, 4), (2, 5)]
    cfg = runs[-1].config(None)
    assert cfg.DATASETS.TRAIN == ("toy_fold2_train",)
    assert cfg.DATASETS.TEST == ("toy_fold2_val",)
    assert (cfg.SEED, cfg.FEW_SHOT.SEED, cfg.FEW_SHOT.TEST.SEED, cfg.SOLVER.MAX_ITER) == (5, 5, 5, 9)
    assert len({run.folder for run in runs}) == 4


def test_all_methods_answer_the_questions_of_the_first(config: Path) -> None:
    runs = plan_runs(_arguments(config, "--folds", "3", "--shots", "1", "5", methods="method free other"))
    assert [run.method for run in runs] == ["DCAMA", "Prototype", "PFENet"]
    assert [run.eval_only for run in runs] == [False, True, False]
    first, *others = (run.config(None) for run in runs)
    assert (first.FEW_SHOT.TEST.SHOTS, first.FEW_SHOT.TEST.EPISODES) == ((1, 5), 7)
    assert (first.FEW_SHOT.TEST.SUPPORT_VIEWS, first.TEST.REFINEMENT) == (("whole", "flip"), "grabcut")
    for cfg, name in zip(others, ("Prototype", "PFENet"), strict=True):
        assert name == cfg.MODEL.META_ARCHITECTURE
        assert cfg.FEW_SHOT.TEST == first.FEW_SHOT.TEST
        assert first.TEST == cfg.TEST
        assert cfg.DATASETS.TEST == first.DATASETS.TEST == ("toy_fold3_val",)
        assert cfg.DATASETS.TRAIN == ("toy_fold3_train",)


def test_stages_build_on_each_other(config: Path) -> None:
    """The second starts from the first's weights of its fold and seed; the first is not evaluated."""
    args = _arguments(config, "--folds", "1", "--seeds", "0", "3", methods="stage1+stage2")
    runs = plan_runs(args)
    assert [run.method for run in runs] == ["PotentialObjectsSegmenter", "MMFormer"] * 2
    assert [(run.seed, run.scored) for run in runs] == [(0, False), (0, True), (3, False), (3, True)]
    stage1, stage2 = runs[2].config(None), runs[3].config(None)
    assert stage1.DATASETS.TEST == ()
    assert stage1.DATASETS.TRAIN == ("toy_fold1_train",)
    assert (stage1.SEED, stage1.TEST.EVALUATORS) == (3, ("oracle",))
    assert f"{stage1.OUTPUT_DIR}/model_final.pth" == stage2.MODEL.WEIGHTS
    assert stage2.DATASETS.TEST == ("toy_fold1_val",)


def test_a_stage_that_two_methods_share_is_one_run(config: Path) -> None:
    args = _arguments(config, "--folds", "0", "--jobs", "2", methods="stage1+stage2 stage1+stage2b")
    starter = _Starter()
    text = run_all(args, starter)
    assert starter.started[0] == "PotentialObjectsSegmenter fold0_seed0"
    assert starter.started[1:] == ["MMFormer fold0_seed0"] * 2
    assert "MMFormer (stage1+stage2b)" in text
    assert "PotentialObjectsSegmenter" not in text
    again = _Starter()
    assert run_all(args, again) == text
    assert again.started == []


def test_a_stage_with_nothing_to_learn_is_evaluated_with_the_weights_before_it(config: Path) -> None:
    """MM-Former's heuristic choice: the method can be trained, with these settings it cannot."""
    first, chosen = plan_runs(_arguments(config, "--folds", "0", methods="stage1+chosen"))
    assert (first.eval_only, chosen.eval_only) == (False, True)
    assert str(first.folder / "model_final.pth") == chosen.config(None).MODEL.WEIGHTS
    (alone,) = plan_runs(_arguments(config, "--folds", "0", "--weights", "{method}.pth", methods="chosen"))
    assert alone.eval_only and alone.config(None).MODEL.WEIGHTS == "MMFormer.pth"


def test_with_eval_only_the_last_stage_is_alone(config: Path) -> None:
    (run,) = plan_runs(_arguments(config, "--folds", "0", "--eval-only", methods="stage1+stage2"))
    assert run.eval_only
    assert run.config(None).MODEL.WEIGHTS == "elsewhere.pth"


def test_weights_follow_method_fold_and_seed(config: Path) -> None:
    given = ["--eval-only", "--weights", "{method}/{fold}_{seed}.pth"]
    trained, free = plan_runs(_arguments(config, "--folds", "1", *given, methods="method free"))
    assert trained.config(None).MODEL.WEIGHTS == "DCAMA/1_0.pth"
    assert free.config(None).MODEL.WEIGHTS == ""
    assert trained.eval_only


def test_folds_reach_into_the_users_own_sets() -> None:
    entry = {"name": "mine_fold0_val", "fold": 0, "root": "a/b"}
    assert of_fold([entry], 2) == [{"name": "mine_fold2_val", "fold": 2, "root": "a/b"}]


def test_folds_need_names_with_folds(config: Path) -> None:
    with pytest.raises(ValueError, match='no "fold<N>"'):
        plan_runs(_arguments(config, "DATASETS.TRAIN", "('a',)", "DATASETS.TEST", "('b',)"))


def test_two_methods_in_one_folder_are_refused(config: Path) -> None:
    """The stage alone is evaluated, as a stage it is not."""
    with pytest.raises(ValueError, match="would hold two different runs"):
        plan_runs(_arguments(config, "--folds", "0", methods="method method+stage2"))


def test_mean_and_deviations_by_hand(config: Path) -> None:
    """Folds 0 and 1, seeds 0 and 2, 1 shot: 1, 3, 11, 13. Fold means 2, 12; seed means 6, 8."""
    args = _arguments(config, "--folds", "0", "1", "--seeds", "0", "2")
    text = run_all(args, _Starter())
    report = json.loads((config.parent / "out" / "cross_validation.json").read_text())
    (entry,) = [e for e in report["summary"] if e["metric"] == "mIoU"]
    assert entry["folds"] == {"0": 2.0, "1": 12.0}
    assert entry["mean"] == 7.0
    assert entry["deviation_seeds"] == pytest.approx(2**0.5)
    assert entry["deviation_folds"] == pytest.approx(50**0.5)
    assert entry["interval"] is None
    assert [(r["fold"], r["seed"]) for r in report["runs"]] == [(0, 0), (0, 2), (1, 0), (1, 2)]
    assert [r["mIoU"] for r in report["runs"]] == [1.0, 3.0, 11.0, 13.0]
    assert "| DCAMA    | 7.00 ± 1.41   | 14.00 ± 2.83    |" in text
    assert (
        "| DCAMA    | toy_val    | 1       | 2.00     | 12.00    | 7.00   | 1.41      | 7.07      |" in text
    )
    assert (config.parent / "out" / "cross_validation.md").read_text() == text


def test_one_row_per_method_with_the_difference_to_the_first(config: Path) -> None:
    """50 against 60 of 100 pixels in every episode: -10 points, whichever episodes are drawn."""
    text = run_all(_arguments(config, "--folds", "0", "--shots", "1", "5", methods="method free"), _Starter())
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert cells[0][1:] == [f"{k}-shot {name}" for k in (1, 5) for name in ("mIoU", "FB_IoU", "Δ")]
    assert cells[2] == ["DCAMA", "1.00 [0.00, 2.00]", "2.00", "-", "5.00 [4.00, 6.00]", "10.00", "-"]
    difference = "-10.00 [-10.00, -10.00]"
    assert cells[3][0::3] == ["Prototype", difference, difference]
    assert len(cells) == 4  # one run each: no table by fold
    assert "minus that of DCAMA" in text


def test_other_episodes_are_refused(config: Path) -> None:
    args = _arguments(config, "--folds", "0", methods="method free")
    with pytest.raises(ValueError, match=r"manifest.jsonl hold different episodes"):
        run_all(args, _Starter(spoiled="Prototype"))


def test_finished_runs_are_skipped(config: Path) -> None:
    args = _arguments(config, "--folds", "0", "1", "--seeds", "0")
    first, second = _Starter(), _Starter()
    text = run_all(args, first)
    assert first.started == ["DCAMA fold0_seed0", "DCAMA fold1_seed0"]
    assert run_all(args, second) == text
    assert second.started == []
    more = _arguments(config, "--folds", "0", "1", "2", "--seeds", "0", methods="method free")
    run_all(more, second)
    assert second.started == [
        "Prototype fold0_seed0",
        "Prototype fold1_seed0",
        "DCAMA fold2_seed0",
        "Prototype fold2_seed0",
    ]


def test_other_settings_in_the_same_folder(config: Path) -> None:
    run_all(_arguments(config, "--folds", "0"), _Starter())
    with pytest.raises(ValueError, match="other settings; remove it, or give another --output"):
        run_all(_arguments(config, "--folds", "0", "SOLVER.MAX_ITER", "9"), _Starter())


def test_the_report_of_a_part(config: Path) -> None:
    """What is finished is shown when a later run fails; a fold not reached yet has no column."""
    starter = _Starter()

    def fail_at_third(run: Run, args: argparse.Namespace) -> None:
        if len(starter.started) == 2:
            raise ValueError("the run failed")
        starter(run, args)

    with pytest.raises(ValueError, match="the run failed"):
        run_all(_arguments(config, "--folds", "0", "1", "--seeds", "0", "1"), fail_at_third)
    text = (config.parent / "out" / "cross_validation.md").read_text()
    assert text.startswith("2 of 4 runs.")
    assert "| DCAMA    | toy_val    | 1       | 1.50     | 1.50   | 0.71      | -         |" in text


def test_jobs_run_at_once(config: Path) -> None:
    """Two that wait for each other: one after the other they would never meet."""
    meeting = threading.Barrier(2, timeout=20)
    starter = _Starter()

    def meet(run: Run, args: argparse.Namespace) -> None:
        meeting.wait()
        starter(run, args)

    run_all(_arguments(config, "--folds", "0", "1", "--jobs", "2"), meet)
    assert sorted(starter.started) == ["DCAMA fold0_seed0", "DCAMA fold1_seed0"]


def test_a_stage_of_proposals_alone_has_the_scores_of_its_oracle(config: Path) -> None:
    text = run_all(_arguments(config, "--folds", "0", "1", "--seeds", "2", methods="stage1"), _Starter())
    assert "| PotentialObjectsSegmenter | 8.00 ± 7.07" in text


def test_a_config_that_scores_no_episodes_is_refused(config: Path) -> None:
    with pytest.raises(ValueError, match=r"TEST.EVALUATORS .* lacks 'few_shot_seg'"):
        plan_runs(_arguments(config, methods="method stage1"))


def test_the_process_and_its_log(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With several jobs a run's words lie in its folder; this program reports its error."""
    program = config.parent / "program.py"
    program.write_text(
        "import sys\nprint('hello', sys.argv[1])\nsys.stderr.write('note\\nerror: wrong\\n')\nexit(3)"
    )
    monkeypatch.setattr(tool, "_PROGRAM", program)
    args = _arguments(config, "--folds", "0", "--jobs", "2")
    (run,) = plan_runs(args)
    with pytest.raises(ValueError, match=r"fold0_seed0: wrong \(exit code 3\)"):
        tool.start(run, args)
    lines = (run.folder / "console.txt").read_text().splitlines()
    assert sorted(lines) == ["hello --config-file", "note"]
