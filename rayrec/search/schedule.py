"""The search's scheduler: which of Ray Tune's decides early that a trial is not worth its end."""

import random
from functools import partial
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from rayrec.search.config import Asha, HyperBand, MedianStopping, PopulationBased, Search, longest
from rayrec.search.space import Distribution, Space
from rayrec.search.suggest import OBJECTIVE, TRIAL, VALUES

EVALUATION = "evaluation"  # of a trial's results: counts from 1


def scheduler(search: Search) -> TrialScheduler:
    """Ray Tune's scheduler, with evaluations as its clock."""
    config, most = search.config.scheduler, longest(search.config, search.base)
    common: dict[str, Any] = {"time_attr": EVALUATION, "metric": OBJECTIVE, "mode": search.config.objective.mode}
    if isinstance(config, Asha):
        return ASHAScheduler(**common, max_t=most, grace_period=config.grace, reduction_factor=config.factor)
    if isinstance(config, HyperBand):
        return HyperBandScheduler(**common, max_t=most, reduction_factor=config.factor)
    if isinstance(config, PopulationBased):
        random.seed(search.config.seed)  # Tune draws from the global generators
        np.random.seed(search.config.seed)
        return PopulationBasedTraining(
            **common,
            perturbation_interval=config.every,
            synch=True,  # else who goes on from whom depends on who was quick
            quantile_fraction=config.quantile,
            hyperparam_mutations={TRIAL: {VALUES: {path: _mutation(d) for path, d in search.config.space.items()}}},
            custom_explore_fn=partial(_inside, search.config.space),
        )
    if isinstance(config, MedianStopping):
        return MedianStoppingRule(**common, grace_period=config.grace, min_samples_required=config.at_least)
    return FIFOScheduler()


def _mutation(distribution: Distribution) -> Any:
    """How a value may be drawn anew; else it is scaled by 1.2 or .8, or of a list the neighbour is taken."""
    if distribution.choice is not None:
        return list(distribution.choice)
    low, high = distribution.uniform or distribution.loguniform or distribution.randint or (0.0, 1.0)
    return tune.loguniform(low, high) if distribution.loguniform else tune.uniform(low, high)


def _inside(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """Scaled values stay inside the space."""
    values = config[TRIAL][VALUES]
    kept = {path: space[path].inside(value) for path, value in values.items()}
    return config | {TRIAL: config[TRIAL] | {VALUES: kept}}
