"""Which evaluators a config and a model can have."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from fss_d2.config import get_cfg
from fss_d2.engine.evaluate import EVALUATORS, build_evaluators, check_evaluators
from fss_d2.engine.trainer import Trainer
from fss_d2.evaluation import FewShotEvaluator, OracleEvaluator, ProposalRecallEvaluator
from tests.modeling.episodes import make_model


def _cfg(*evaluators: str) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "Some"
    cfg.TEST.EVALUATORS = evaluators
    return cfg


class _Proposing(nn.Module):
    """A method of both kinds: scores, and a proposal head."""

    def __init__(self) -> None:
        super().__init__()
        self.proposals = nn.Identity()


@pytest.fixture(scope="module")
def dataset() -> str:
    MetadataCatalog.get("evaluators_test_set").set(class_ids=[0], stuff_classes=["ant"])
    return "evaluators_test_set"


def test_evaluators_have_folders_of_their_own(dataset: str, tmp_path: Path) -> None:
    cfg = _cfg("proposal_recall", "few_shot_seg", "oracle")
    kinds = [type(evaluator) for evaluator in build_evaluators(cfg, dataset, tmp_path / "run")]
    assert kinds == [ProposalRecallEvaluator, FewShotEvaluator, OracleEvaluator]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["oracle", "run"]
    assert len(Trainer.build_evaluator(cfg, dataset)._evaluators) == 3


@pytest.mark.parametrize("names", [(), ("oracel",), ("oracle", "oracle"), ("few_shot_seg", "sem_seg")])
def test_wrong_names(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"TEST\.EVALUATORS is .*few_shot_seg, oracle, proposal_recall"):
        check_evaluators(_cfg(*names), _Proposing())


def test_what_a_model_can_be_judged_by() -> None:
    check_evaluators(_cfg(*EVALUATORS), _Proposing())
    prototype = make_model("Prototype")
    check_evaluators(_cfg("few_shot_seg"), prototype)
    with pytest.raises(ValueError, match=r"Some gives nothing for oracle; choose from \('few_shot_seg',\)"):
        check_evaluators(_cfg("few_shot_seg", "oracle"), prototype)
    segmenter = make_model(
        "PotentialObjectsSegmenter", "MODEL.PROPOSALS.DIM", 32, "MODEL.PROPOSALS.NUM_QUERIES", 3
    )
    check_evaluators(_cfg("oracle", "proposal_recall"), segmenter)
    with pytest.raises(ValueError, match=r"nothing for few_shot_seg; choose from \('oracle', 'proposal_r"):
        check_evaluators(_cfg("few_shot_seg"), segmenter)
