"""Scores of few-shot segmentation: pure metrics, confidence intervals and the Detectron2 evaluator."""

from .aggregated import AggregatedMaskEvaluator
from .bootstrap import EpisodeCounts, read_rows
from .comparison import Comparison, compare
from .few_shot_evaluation import FewShotEvaluator
from .presence import presence_scores
from .proposals import OracleEvaluator, ProposalRecallEvaluator
from .report import format_class_table, format_table

__all__ = ["AggregatedMaskEvaluator", "Comparison", "EpisodeCounts", "FewShotEvaluator", "OracleEvaluator"]
__all__ += ["ProposalRecallEvaluator"]
__all__ += ["compare", "format_class_table", "format_table", "presence_scores", "read_rows"]
