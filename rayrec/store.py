"""Results of stages, addressed by all that determines them: whatever run needs one that is there takes it from here.

``{storage}/store/{stage}/{fingerprint}/``: ``checkpoints/``, ``progress.jsonl`` and, at the end, ``parts/``. A stage
works in that folder whoever asks for it, so an interrupted one is gone on with under any name. Deleting the store
costs training again and nothing else.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rayrec import storage
from rayrec.config import STORE, Config, fingerprint, identity
from rayrec.data.beside import Beside, read_beside
from rayrec.data.prepare import MANIFEST
from rayrec.data.vectors import has_vectors, stated_sha256
from rayrec.errors import InputError
from rayrec.names.tables import NameTable, initial_table
from rayrec.stages import STAGES, History, Part, StageName
from rayrec.training import checkpoint
from rayrec.training.job import DataFacts, StageJob
from rayrec.training.parts import CARD, read_card

_DIGITS = 16  # of a fingerprint, in the name of a folder
_CODE = ("stages.py", "batch.py", "data", "models", "training")  # what decides a stage's numbers, below rayrec/


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data."""

    folder: str

    @property
    def is_complete(self) -> bool:
        return storage.exists(storage.join(self.folder, MANIFEST))

    def has(self, *beside: Beside) -> bool:
        """Whether all of this lies beside the rows."""
        return all(storage.exists(each.mark(self.folder)) for each in beside)

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Raises ``InputError`` where nothing is prepared yet."""
        path = storage.join(self.folder, MANIFEST)
        if not storage.exists(path):
            raise InputError(f"{path}: the data is not prepared yet; run jobs/prepare.py with this configuration first")
        manifest: dict[str, Any] = json.loads(storage.read_text(path))
        return manifest

    def facts(self, config: Config) -> DataFacts:
        """Sizes, and the longest history that ``config`` lets the encoder read."""
        wanted = config.encoder.max_len
        if config.encoder.history is History.RATED:
            train = self.manifest["splits"]["train"]
            mean = train["rows"] / train["users"]
        else:
            mean = float(self.manifest["mean_liked_per_training_user"])
        return DataFacts(
            users=self.manifest["users"],
            items=self.manifest["items"],
            max_len=max(1, round(mean)) if wanted == "auto" else wanted,
            rows={split: counts["rows"] for split, counts in self.manifest["splits"].items()},
        )

    def table_folder(self, table: NameTable, store: str) -> str:
        """Where a table of its items' names lies."""
        return table.folder(self.manifest["files"]["items.parquet"], store)

    def content(self, beside: Iterable[Beside]) -> dict[str, Any]:
        """Hashes of the files that a stage reads."""
        marks = {each.value: json.loads(storage.read_text(each.mark(self.folder))) for each in beside}
        return {"rows": self.manifest["files"], **{name: mark["files"] for name, mark in marks.items()}}


def store_folder(config: Config) -> str:
    """The store of a configuration's storage."""
    return storage.join(storage.absolute(config.storage), STORE)


def stage_jobs(config: Config, data: Prepared, store: str, kept: str | None = None) -> dict[StageName, StageJob]:
    """Every stage that the prepared data allows, ready to train; ``kept`` holds parts that a run has already.

    Raises:
        InputError: a part that the configuration names is not there.
    """
    jobs: dict[StageName, StageJob] = {}
    for stage in config.stages.written:
        spec = STAGES[stage]
        parts = config.stages.parents(stage)
        if not data.has(*read_beside(config, spec.reads)) or not jobs.keys() >= set(parts.values()):
            continue
        origins: dict[Part, str] = {}
        parents: dict[str, str] = {}
        for part, source in parts.items():
            origins[part], parents[part.value] = _origin(part, jobs[source], kept)
        for part, folder in config.stages.folders(stage).items():
            origins[part], parents[part.value] = folder, read_card(folder)["sha256"]
        job = StageJob(config=config, stage=stage, facts=data.facts(config), data=data.folder, origins=origins)
        table = initial_table(config) if Part.ENCODER in job.parts else None
        if table is not None:
            job = replace(job, initial=data.table_folder(table, store))
            if not has_vectors(job.initial):
                continue
        mark = fingerprint(_content(job, data, parents))
        folder = storage.join(store, stage.value, mark[:_DIGITS])
        jobs[stage] = replace(job, folder=folder, fingerprint=mark)
    return jobs


def _origin(part: Part, source: StageJob, kept: str | None) -> tuple[str, str]:
    """Folder and identity of an inherited part: the run's own if it is there, else the store's, there or to come."""
    if kept is not None:
        folder = storage.join(kept, source.stage.value, part.value)
        if storage.exists(storage.join(folder, CARD)):
            card = read_card(folder)
            known = card.get("fingerprint") == source.fingerprint
            return folder, source.fingerprint if known else card["sha256"]
    return source.part_folder(part), source.fingerprint


def _content(job: StageJob, data: Prepared, parents: Mapping[str, str]) -> dict[str, Any]:
    """All that determines a stage's result. How often it is saved does not."""
    config, reads_text = job.config, job.spec.reads.uses_backbone
    known = identity(config)
    content = {
        "stage": job.stage.value,
        "settings": job.settings.model_dump(mode="json", exclude={"checkpoint_every", "starts_from", "resume_from"}),
        "seed": config.seed,
        "parents": dict(parents),
        "data": data.content(read_beside(config, job.spec.reads)),
        "engine": known["engine"] | {"precision": job.precision},
        "scoring_batch": job.scoring_batch,
        "code": code_version(),
    }
    if job.initial:
        content["initial"] = stated_sha256(job.initial)
    if job.settings.resume_from is not None:
        content["resumed"] = checkpoint.check_given(job.settings.resume_from)
    if Part.ENCODER in job.parts:
        content["encoder"] = known["encoder"] | {"max_len": job.facts.max_len}
    if Part.MAPPER in job.parts:
        content["mapper"] = known["mapper"]
    if reads_text:
        content |= {key: known[key] for key in ("backbone", "fast")}
    if Part.LORA in job.parts:
        content["lora"] = known["lora"]
    return content


@lru_cache(maxsize=1)
def code_version() -> str:
    """Digest of the code that decides a stage's numbers; comments and layout do not count."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for name in _CODE:
        for path in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()
