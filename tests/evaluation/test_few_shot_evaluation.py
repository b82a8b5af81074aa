"""The evaluator: counting, joining over processes, files."""

import json
import logging
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from fss_d2.config import get_cfg
from fss_d2.evaluation import FewShotEvaluator, OracleEvaluator, read_rows
from fss_d2.visualization import save_episode_panel

WORKER = Path(__file__).with_name("evaluation_worker.py")
_worker = runpy.run_path(str(WORKER))
EPISODES, evaluate, make_episode = _worker["EPISODES"], _worker["evaluate"], _worker["make_episode"]
ROOT = Path(__file__).resolve().parents[2]


def _one(pred: list[list[int]], target: list[list[int]], **options: Any) -> dict[str, float]:
    """Scores of a single episode of class 1 of two; each prediction is the sign of a foreground margin."""
    evaluator = FewShotEvaluator("unregistered", class_ids=[0, 1], class_names=["ant", "bee"], **options)
    margin = torch.tensor(pred, dtype=torch.float32)
    inputs, _ = make_episode(0)
    inputs |= {"target": torch.tensor(target, dtype=torch.uint8), "class_id": 1}
    evaluator.process([inputs], [{"sem_seg": torch.stack([torch.zeros_like(margin), margin])}])
    return evaluator.evaluate()["few_shot_seg"]


def test_scores_of_one_episode_by_hand() -> None:
    scores = _one([[1, 1, -1], [-1, 1, 1]], [[1, 0, 0], [1, 1, 255]])
    assert scores["IoU/bee"] == scores["episode_IoU"] == 100 * 2 / 4
    assert scores["FB_IoU"] == 100 * (2 / 4 + 1 / 3) / 2
    assert scores["IoU/ant"] == 0
    assert scores["mIoU"] == 25
    assert "ROM" not in scores


def test_absent_classes_can_be_skipped() -> None:
    scores = _one([[1, -1]], [[1, 0]], absent_classes="skip")
    assert scores["mIoU"] == 100
    assert "IoU/ant" not in scores


def test_ties_are_background() -> None:
    scores = _one([[0, 0]], [[1, 0]])
    assert scores["IoU/bee"] == 0
    assert scores["FB_IoU"] == 25  # background 1/2, foreground 0/1


def test_a_target_of_ignored_pixels_says_nothing() -> None:
    scores = _one([[1, -1]], [[255, 255]])
    assert scores["mIoU"] == scores["FB_IoU"] == scores["episode_IoU"] == 0


def test_intervals_are_there_unless_switched_off() -> None:
    scores = evaluate(list(range(EPISODES)))["few_shot_seg"]
    for name in ("mIoU", "episode_IoU"):
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]
    assert all("-" not in name for name in scores)  # print_csv_format would drop them
    plain = evaluate(list(range(EPISODES)), bootstrap=0)["few_shot_seg"]
    assert not [name for name in plain if name.endswith(("_low", "_high"))]
    assert plain["mIoU"] == scores["mIoU"]


def test_order_and_repeats_of_episodes_change_nothing() -> None:
    order = list(range(EPISODES))
    expected = evaluate(order)
    assert evaluate([*order[::-1], 3, 3]) == expected
    assert evaluate(order[:-1]) != expected


def test_reset_forgets() -> None:
    evaluator = FewShotEvaluator("unregistered", class_ids=[1, 3, 4])
    inputs, output = make_episode(0)
    evaluator.process([inputs], [output])
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    evaluate(list(range(EPISODES)), tmp_path / "one", region_wise=True)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER)]
    tail = ["2", str(tmp_path / "store"), str(tmp_path / "two")]
    processes = [subprocess.Popen([*command, str(rank), *tail], env=env) for rank in range(2)]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:  # where one fails, the other would wait for it
        for process in processes:
            process.kill()
    for name in ("results.json", "episodes.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_files(tmp_path: Path) -> None:
    scores = evaluate([2, 0, 1], tmp_path / "run", settings={"frame": "network"})["few_shot_seg"]
    rows = read_rows(tmp_path / "run" / "episodes.jsonl")
    assert [(r.episode_index, r.class_id, r.query, r.supports) for r in rows] == [
        (0, 1, "query0", (0,)),
        (1, 3, "query1", (1,)),
        (2, 1, "query2", (2,)),
    ]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    settings = results["settings"]
    assert (settings["episodes"], settings["shots"], settings["frame"]) == (3, 1, "network")
    assert results["summary"]["mIoU"] == scores["mIoU"]
    bee, dog, eel = results["per_class"]
    assert (bee["name"], bee["episodes"], dog["episodes"], eel["episodes"]) == ("bee", 2, 1, 0)
    assert bee["IoU"] == pytest.approx(100 * bee["intersection"][1] / bee["union"][1])
    assert bee["intersection"] == np.sum([rows[0].intersection, rows[2].intersection], axis=0).tolist()


def test_supports_are_counted_once_however_many_views_show_them(tmp_path: Path) -> None:
    """Two supports, shown in four and three views, then in four and two."""
    evaluator = FewShotEvaluator("unregistered", tmp_path, class_ids=[1, 3, 4])
    for index in range(2):
        inputs, output = make_episode(index)
        views = [inputs["support"][0] | {"image_id": name} for name in "aaaabbb"[: 7 - index]]
        evaluator.process([inputs | {"support": views, "support_ids": ("a", "b")}], [output])
    evaluator.evaluate()
    assert [row.supports for row in read_rows(tmp_path / "episodes.jsonl")] == [("a", "b"), ("a", "b")]
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["shots"] == 2


class _Waits(TorchDispatchMode):
    """Counts the values that are fetched from a tensor one by one; on a GPU each one waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [FewShotEvaluator, OracleEvaluator])
def test_a_batch_is_counted_without_waiting_for_single_values(kind: type[FewShotEvaluator]) -> None:
    evaluator = kind("unregistered", class_ids=[1, 3, 4])
    pairs = [make_episode(index) for index in range(4)]
    outputs = [{**output, "aux": {"proposals": output["sem_seg"].sigmoid()}} for _, output in pairs]
    with _Waits() as waits:
        evaluator.process([inputs for inputs, _ in pairs], outputs)
    assert waits.count == 0
    assert evaluator.evaluate()


def test_the_first_episodes_are_drawn(tmp_path: Path) -> None:
    evaluate([0, 1, 2], tmp_path, pictures=2, draw=save_episode_panel)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["0000.png", "0001.png"]
    assert Image.open(tmp_path / "pictures" / "0000.png").width > 4 * 190  # support, query, two masks


def test_nothing_processed_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="fss_d2"):
        assert evaluate([]) == {}
    assert "No episode of evaluation_worker was evaluated" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counting": "voc"}, r"TEST\.COUNTING is 'voc'"),
        ({"bootstrap": -1}, r"TEST\.BOOTSTRAP is -1"),
        ({"absent_classes": "drop"}, r"TEST\.ABSENT_CLASSES is 'drop'"),
        ({"class_ids": None}, "'unregistered' has no class_ids"),
        ({"output_dir": str(Path(__file__) / "below")}, "cannot write to the output folder"),
    ],
)
def test_bad_settings_fail_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewShotEvaluator("unregistered", **({"class_ids": [0]} | options))


def test_bad_scores_name_the_episode() -> None:
    evaluator = FewShotEvaluator("unregistered", class_ids=[1, 3, 4])
    inputs, output = make_episode(5)
    with pytest.raises(ValueError, match=r"episode 5: scores \(2, 6, 11\) do not fit the target \(6, 12\)"):
        evaluator.process([inputs], [{"sem_seg": output["sem_seg"][..., 1:]}])
    output["sem_seg"][0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="episode 5: the model's scores hold NaN"):
        evaluator.process([inputs], [output])
    del inputs["support_ids"]
    with pytest.raises(ValueError, match=r"episode 5 has no 'support_ids'; add the image ids of its K supp"):
        evaluator.process([inputs], [make_episode(5)[1]])


def test_from_config(tmp_path: Path) -> None:
    MetadataCatalog.get("evaluator_test_set").set(
        class_ids=[1, 3, 4], stuff_classes=["a", "b", "c", "d", "e"]
    )
    cfg = get_cfg()
    cfg.TEST.COUNTING, cfg.TEST.ABSENT_CLASSES, cfg.TEST.BOOTSTRAP = "pfenet", "skip", 10
    cfg.TEST.REGION_WISE, cfg.TEST.PICTURES = True, 0
    cfg.FEW_SHOT.TEST.SUPPORT_VIEWS, cfg.TEST.REFINEMENT = ("whole", "object"), "grabcut"
    evaluator = FewShotEvaluator.from_config(cfg, "evaluator_test_set", tmp_path)
    inputs, output = make_episode(0)
    evaluator.process([inputs], [output])
    scores = evaluator.evaluate()["few_shot_seg"]
    assert {"ROM", "RUM", "mIoU_low", "IoU/b"} <= set(scores)
    assert "IoU/d" not in scores
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert (settings["counting"], settings["bootstrap"], settings["query_rule"]) == ("pfenet", 10, "class")
    assert (settings["support_views"], settings["refinement"]) == (["whole", "object"], "grabcut")
