"""Scores of few-shot segmentation: pure metrics, confidence intervals and the Detectron2 evaluator."""

from .bootstrap import Comparison, compare
from .few_shot_evaluation import FewShotEvaluator
from .proposals import OracleEvaluator, ProposalRecallEvaluator
from .report import format_class_table, format_table
from .rows import EpisodeCounts, read_rows

__all__ = [
    "Comparison",
    "EpisodeCounts",
    "FewShotEvaluator",
    "OracleEvaluator",
    "ProposalRecallEvaluator",
    "compare",
    "format_class_table",
    "format_table",
    "read_rows",
]
