"""The masks that DCAMA aggregates at each scale, scored by hand (its Fig. 6)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from fss_d2.config import get_cfg
from fss_d2.evaluation import AggregatedMaskEvaluator


def _evaluator(folder: Path | None = None) -> AggregatedMaskEvaluator:
    MetadataCatalog.get("aggregated_test_set").set(class_ids=[0], stuff_classes=["ant"])
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DCAMA"
    cfg.MODEL.DCAMA.ATTENTION_LEVELS = ("res3", "res5")
    cfg.TEST.BOOTSTRAP = cfg.TEST.PICTURES = 0
    return AggregatedMaskEvaluator.from_config(cfg, "aggregated_test_set", folder)


def _episode(**extra: Any) -> dict[str, Any]:
    """A target of 8x16 whose right half is the object, one column of it not counted."""
    target = np.zeros((8, 16), np.uint8)
    target[:, 8:], target[:, 15] = 1, 255
    names = {"class_id": 0, "image_id": 1, "support_ids": [2], "episode_index": 0}
    return {"image": torch.zeros(3, 32, 64), "target": target, "height": 8, "width": 16, **names, **extra}


def _output() -> dict[str, Any]:
    """At res3 the sum of two layers parts the columns 6 to 15 from the others; neither layer alone does."""
    fine = torch.zeros(2, 8, 16)
    fine[0, :, 6:12], fine[1, :, 12:] = 0.4, 0.4
    fine[:, 0] += 0.05  # noise below the threshold
    coarse = torch.zeros(1, 2, 4)
    coarse[0, 0, 2:] = 0.9  # the upper right quarter
    return {"aux": {"aggregated_res3": fine, "aggregated_res5": coarse}}


def test_scores_of_each_scale(tmp_path: Path) -> None:
    evaluator = _evaluator(tmp_path)
    evaluator.process([_episode()], [_output()])
    results = evaluator.evaluate()
    assert list(results) == ["aggregated_res3", "aggregated_res5"]
    # 7 of the object's 7 counted columns, and 2 columns too many; then half of the object.
    assert results["aggregated_res3"]["mIoU"] == pytest.approx(100 * 7 / 9)
    assert results["aggregated_res3"]["FB_IoU"] == pytest.approx(100 * (7 / 9 + 6 / 8) / 2)
    assert results["aggregated_res5"]["mIoU"] == pytest.approx(50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["res3", "res5"]
    assert json.loads((tmp_path / "res5" / "results.json").read_text())["summary"]["mIoU"] == pytest.approx(
        50
    )
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_padding_is_cut_off() -> None:
    """The query fills the left half of the network's image; the map's left half is what is scored."""
    maps = torch.zeros(1, 8, 16)
    maps[:, :, 4:8] = 1
    output = {"aux": {"aggregated_res3": maps, "aggregated_res5": maps}}
    evaluator = _evaluator()
    evaluator.process([_episode(valid_size=(32, 32))], [output])
    assert evaluator.evaluate()["aggregated_res3"]["mIoU"] == pytest.approx(100)


def test_other_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="DCAMA aggregates no mask at res3"):
        _evaluator().process([_episode()], [{"aux": {}}])
