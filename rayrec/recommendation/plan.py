"""Which lists are asked for, and which models make them: checked before anything starts."""

import yaml

from rayrec import storage
from rayrec.binding import RUN
from rayrec.config import differences, fingerprint, identity
from rayrec.config.ranking import RerankConfig
from rayrec.errors import InputError
from rayrec.evaluation.scoring import scoring_job
from rayrec.next_item.rankers import RANKERS
from rayrec.recommendation.recommenders import Plan
from rayrec.run import Run
from rayrec.settings import override, validate
from rayrec.stages import History, Stream
from rayrec.systems import SYSTEMS, SystemName


def open_run(folder: str, overrides: list[str]) -> Run:
    """The run in a folder, as the folder itself says; ``overrides`` may change how it runs.

    Raises:
        InputError: there is none, or an override would make it another.
    """
    folder = storage.absolute(folder)
    path = storage.join(folder, RUN)
    if not storage.exists(path):
        raise InputError(f"{folder}: no run here; give --run the folder with its {RUN}, such as runs/ml100k-smollm2")
    held = yaml.safe_load(storage.read_text(path))
    tree = held["config"] | held["run"] | {"storage": folder.rpartition("/")[0]}
    run = Run(validate(override(tree, overrides), path), place=folder)
    if fingerprint(identity(run.config)) != held["fingerprint"]:
        changed = "; ".join(differences(held["config"], identity(run.config)))
        raise InputError(f"{folder}: the run is of another configuration ({changed}); --set may change cluster alone")
    return run


def make_plan(run: Run, system: SystemName, k: int, candidates: int | None) -> Plan:
    """What ``system`` needs for lists of ``k``; ``candidates`` None: the default, where it puts some in order.

    Raises:
        InputError: the run has no such system or has not trained it, or no lists can be made of it.
    """
    _check_system(run, system)
    spec, ranks, reranks = SYSTEMS[system], None, None
    if spec.reads is not None:
        ranks = scoring_job(run, SYSTEMS[SystemName.SASREC])
        reranks = scoring_job(run, spec) if spec.reads.uses_backbone else None
    if reranks is None and candidates is not None:
        raise InputError(f"--candidates: {system} ranks the whole catalogue; leave it out")
    candidates = candidates or (run.config.ranking.sasrecllm or RerankConfig()).candidates
    if reranks is not None and k > candidates:
        raise InputError(f"--k {k}: {system} puts {candidates} candidates in order; add --candidates {k}, or more")
    return Plan(run=run, system=system, k=k, ranks=ranks, reranks=reranks, candidates=candidates)


def _check_system(run: Run, system: SystemName) -> None:
    able = [each for each in run.systems if _makes_lists(run, each)]
    if system not in able:
        why = "no lists are made of it for new sessions" if system in run.systems else "the run has none"
        raise InputError(f"--system {system}: {why}; choose {' or '.join(able)}")
    reads, config = SYSTEMS[system].reads, run.config
    if reads is None:
        return
    asked: list[tuple[str, object]] = [
        ("encoder.history", config.encoder.history is History.RATED),
        ("encoder.offset", config.encoder.offset),
    ]
    if reads is Stream.HYBRID_PROMPTS:
        asked.append(("mapper.offset", config.mapper.offset == "feature_floor"))  # else it is the encoder's
        asked.append(("mapper.features", config.mapper.features))
    for key, is_asked in asked:
        if is_asked:
            raise InputError(f"--system {system}: this run's {key} reads ratings, which sessions of liked items lack")


def _makes_lists(run: Run, system: SystemName) -> bool:
    """The encoder, what has a ranker, and each language model that says Yes or No, behind the encoder."""
    reads = SYSTEMS[system].reads
    if reads is None:
        return system in RANKERS
    return system is SystemName.SASREC or (
        reads.uses_backbone and not reads.answers and SystemName.SASREC in run.systems
    )
