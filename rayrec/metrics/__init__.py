"""How good scored rows are, and how sure that is: arrays in, numbers out. Knows neither torch nor Ray."""

from rayrec.metrics.bins import quantile_bin, reliability
from rayrec.metrics.bootstrap import Difference, Estimate
from rayrec.metrics.folds import mean_of_folds, pooled_deviation
from rayrec.metrics.pointwise import METRICS
from rayrec.metrics.ranking import SESSION_METRICS, answer_shares, catalogue_coverage, session_metrics
from rayrec.metrics.session_bootstrap import session_differences, session_estimates
from rayrec.metrics.significance import (
    SLICES,
    Resampled,
    evaluate,
    evaluate_slices,
    paired_difference,
    pooled_difference,
    relative_change,
    resampled_mean,
)

__all__ = [
    "METRICS",
    "SESSION_METRICS",
    "SLICES",
    "Difference",
    "Estimate",
    "Resampled",
    "answer_shares",
    "catalogue_coverage",
    "evaluate",
    "evaluate_slices",
    "mean_of_folds",
    "paired_difference",
    "pooled_deviation",
    "pooled_difference",
    "quantile_bin",
    "relative_change",
    "reliability",
    "resampled_mean",
    "session_differences",
    "session_estimates",
    "session_metrics",
]
