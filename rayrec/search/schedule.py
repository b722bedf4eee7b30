"""The search's scheduler: which of Ray Tune's decides early that a trial is not worth its end."""

from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from rayrec.search.config import Asha, HyperBand, MedianStopping, Search, longest
from rayrec.search.suggest import OBJECTIVE

EVALUATION = "evaluation"  # of a trial's results: counts from 1


def scheduler(search: Search) -> TrialScheduler:
    """Ray Tune's scheduler, with evaluations as its clock."""
    config, most = search.config.scheduler, longest(search.config, search.base)
    common: dict[str, Any] = {"time_attr": EVALUATION, "metric": OBJECTIVE, "mode": search.config.objective.mode}
    if isinstance(config, Asha):
        return ASHAScheduler(**common, max_t=most, grace_period=config.grace, reduction_factor=config.factor)
    if isinstance(config, HyperBand):
        return HyperBandScheduler(**common, max_t=most, reduction_factor=config.factor)
    if isinstance(config, MedianStopping):
        return MedianStoppingRule(**common, grace_period=config.grace, min_samples_required=config.at_least)
    return FIFOScheduler()
