"""Numbers with intervals: exact sampling metrics, bootstrap intervals, paired comparisons. Needs no torch."""

from stepalign.evaluation.metrics import GradedCompletion, Metric, avg_at_k, compute_metrics, maj_at_k, pass_at_k
from stepalign.evaluation.statistics import (
    Interval,
    PairedDifference,
    bootstrap,
    bootstrap_mean,
    hierarchical_bootstrap,
    minimum_detectable_difference,
    paired_difference,
    sign_flip_p_value,
)

__all__ = [
    "GradedCompletion",
    "Interval",
    "Metric",
    "PairedDifference",
    "avg_at_k",
    "bootstrap",
    "bootstrap_mean",
    "compute_metrics",
    "hierarchical_bootstrap",
    "maj_at_k",
    "minimum_detectable_difference",
    "paired_difference",
    "pass_at_k",
    "sign_flip_p_value",
]
