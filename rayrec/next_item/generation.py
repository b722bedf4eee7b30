"""Answers in words to many prompts, by actors of Ray Data, finished blocks kept: a killed pass goes on where it was.

``{store}/answers/{fingerprint}/{block}.parquet``, addressed by all that determines them. Deleting the folder costs
generating them again and nothing else.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch
from numpy.typing import NDArray

from rayrec import actors, storage
from rayrec.config import Config, fingerprint, identity
from rayrec.data import columns as c
from rayrec.data.plan import scoring_batches
from rayrec.models.generator import Generator
from rayrec.store import code_version
from rayrec.training.generator import open_generator
from rayrec.training.hardware import the_device
from rayrec.training.job import derive_seed
from rayrec.training.parts import read_card

FOLDER, ANSWERS = "answers", "answers"
_BLOCK, _ROWS = "block", "rows"
_DIGITS = 16  # of a fingerprint, in the name of a folder
_BLOCK_SCHEMA = pa.schema([(c.ROW, pa.int64()), (ANSWERS, pa.list_(pa.string()))])


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are made."""

    longest: int  # tokens of an answer
    batch: int  # prompts of a block, which pass together
    samples: int | None = None  # answers drawn for each prompt; None: the one of likeliest tokens
    temperature: float = 0.25  # of what is drawn


@dataclass(frozen=True, kw_only=True)
class GenerationJob:
    """Who answers, and how. Plain data."""

    config: Config
    lora: str | None  # folder of the part; None: the untouched backbone
    decoding: Decoding

    def answer(self, generator: Generator, prompts: pa.Table, rows: Sequence[int]) -> pa.Table:
        """One block: the answers to some of the prompts. What is drawn follows from the seed and the session alone."""
        how, asked = self.decoding, prompts.take(pa.array(rows))
        tokens = asked[c.TEXT_TOKENS].to_pylist()
        if how.samples is None:
            answers = [[text] for text in generator.likeliest(tokens, how.longest)]
        else:
            seeds = [derive_seed(self.config.seed, "answers", session) for session in asked[c.USER_ID].to_pylist()]
            drawn = partial(generator.samples, count=how.samples, temperature=how.temperature, longest=how.longest)
            answers = [drawn(prompt, seed=seed) for prompt, seed in zip(tokens, seeds, strict=True)]
        return pa.table({c.ROW: list(rows), ANSWERS: answers}, schema=_BLOCK_SCHEMA)


def generated(job: GenerationJob, prompts: pa.Table, store: str) -> list[list[str]]:
    """The answers to each prompt, in their order: so many as are drawn, or one. Ray is connected.

    Blocks are cut beforehand, so that which actor answers one, and whether it was there already, changes no bit.

    Args:
        job: who answers, and how.
        prompts: USER_ID, which is the session, and TEXT_TOKENS, the prompt alone, of each.
        store: where finished blocks are kept, a path or URI that every node sees.

    Raises:
        InputError: the backbone or the LoRA cannot be had.
    """
    lengths = _lengths(prompts)
    blocks = [rows.tolist() for rows in scoring_batches(np.arange(len(prompts)), lengths, job.decoding.batch)]
    folder = storage.join(store, FOLDER, fingerprint(_content(job, prompts, blocks))[:_DIGITS])
    there = set(storage.names(folder))
    missing = [number for number in range(len(blocks)) if _name(number) not in there]
    if missing:
        calls = [{_BLOCK: number, _ROWS: blocks[number]} for number in missing]
        _answer_by_actors(job, prompts, folder, calls)
    tables = [pq.read_table(io.BytesIO(storage.read_bytes(_path(folder, number)))) for number in range(len(blocks))]
    answers = pa.concat_tables([_BLOCK_SCHEMA.empty_table(), *tables]).sort_by(c.ROW)
    assert np.array_equal(answers[c.ROW].to_numpy(), np.arange(len(prompts)))
    texts: list[list[str]] = answers[ANSWERS].to_pylist()
    return texts


def _lengths(prompts: pa.Table) -> NDArray[np.int32]:
    lengths: NDArray[np.int32] = pc.list_value_length(prompts[c.TEXT_TOKENS]).to_numpy()
    return lengths


def _content(job: GenerationJob, prompts: pa.Table, blocks: list[list[int]]) -> dict[str, Any]:
    """All that determines the answers."""
    digest = hashlib.sha256()
    for column in (
        prompts[c.USER_ID].to_numpy(),
        _lengths(prompts),
        pc.list_flatten(prompts[c.TEXT_TOKENS]).to_numpy(),
    ):
        digest.update(column.astype(np.int64).tobytes())
    known = identity(job.config)
    return {
        "prompts": digest.hexdigest(),
        "blocks": blocks,
        "decoding": asdict(job.decoding),
        "seed": job.config.seed,
        "precision": job.config.engine.precision,
        "lora": None if job.lora is None else [known["lora"], read_card(job.lora)["sha256"]],
        "code": code_version(),
        **{key: known[key] for key in ("backbone", "fast")},
    }


def _name(number: int) -> str:
    return f"{number:06}.parquet"


def _path(folder: str, number: int) -> str:
    return storage.join(folder, _name(number))


def _answer_by_actors(job: GenerationJob, prompts: pa.Table, folder: str, calls: list[dict[str, Any]]) -> None:
    """Each actor keeps what it makes and says which block that was."""
    kept = actors.answers(calls, _Answerer, (job, ray.put(prompts), folder), job.config.cluster)
    numbers = [number for table in kept for number in table[_BLOCK].to_pylist()]
    assert numbers == [call[_BLOCK] for call in calls]


class _Answerer:
    """One actor: it keeps each block that it finishes, so that nothing is lost with whoever asked for it."""

    def __init__(self, job: GenerationJob, prompts: "ray.ObjectRef[pa.Table]", folder: str) -> None:
        self._job, self._prompts, self._folder = job, prompts, folder

    @cached_property
    def _generator(self) -> Generator:
        """On first use: an error of an actor's constructor would come back from Ray as text alone, after retries."""
        torch.set_num_threads(self._job.config.cluster.cpus_per_worker)
        return open_generator(self._job.config, self._job.lora, the_device().type)

    def __call__(self, call: pa.Table) -> pa.Table:
        (row,) = call.to_pylist()
        _keep_block(self._job, self._generator, ray.get(self._prompts), self._folder, row)
        return pa.table({_BLOCK: [row[_BLOCK]]})


def _keep_block(
    job: GenerationJob, generator: Generator, prompts: pa.Table, folder: str, call: Mapping[str, Any]
) -> None:
    """Answer one block and write it, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(job.answer(generator, prompts, call[_ROWS]), sink, compression="zstd")
    storage.write_bytes(_path(folder, call[_BLOCK]), sink.getvalue().to_pybytes())
