"""``--plan`` of a search: all that can be known before the first trial."""

from rich.console import Console

from rayrec import storage
from rayrec.search.config import Search, longest
from rayrec.search.space import data_variants
from rayrec.training.cluster import capacity, check_fits, local_limit


def print_search_plan(search: Search) -> None:
    """Check what can be checked; print space, trials, how many at once, and places.

    Raises:
        InputError: one of the checks fails.
    """
    config, cluster = search.config, search.base.cluster
    root = storage.absolute(search.base.storage)
    storage.check_writable(root)
    console = Console(width=100, highlight=False)
    console.print(f"{config.name}: {config.algorithm} search of {search.stage}, {search.trials} trials")
    console.print(f"objective  best {config.objective.metric} of a trial ({config.objective.mode})")
    for path, distribution in config.space.items():
        console.print(f"  {path}  {distribution.describe()}", soft_wrap=True)
    console.print(
        f"scheduler  {config.scheduler.kind}, up to {longest(config, search.base)} evaluations a trial;"
        f" {len(data_variants(config.space, config.name))} variant(s) of the prepared data"
    )
    limit = local_limit()
    at_once = "as many as the cluster holds"
    if limit is not None:
        check_fits(cluster, limit)
        at_once = str(min(capacity(cluster, limit), config.concurrent or search.trials, search.trials))
    console.print(f"workers    {cluster.most} a trial; trials at once: {at_once}")
    console.print(f"output     {storage.join(root, config.name)}", soft_wrap=True)
