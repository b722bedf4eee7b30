"""Blocks of answers: cut beforehand, kept as they come, none computed twice. The actors stand still."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.errors import InputError
from rayrec.next_item import generation
from rayrec.next_item.generation import Decoding, GenerationJob, generated

LIKELIEST = Decoding(longest=9, batch=4)
DRAWN = Decoding(longest=9, batch=4, samples=3, temperature=0.5)
JOB = GenerationJob(config=Config(), lora=None, decoding=LIKELIEST)


class Echo:
    """Says what it was asked, and keeps what passed together."""

    def __init__(self) -> None:
        self.passes: list[list[int]] = []

    def likeliest(self, prompts: Sequence[Sequence[int]], longest: int) -> list[str]:
        assert longest == 9
        self.passes.append([len(prompt) for prompt in prompts])
        return [str(list(prompt)) for prompt in prompts]

    def samples(self, prompt: Sequence[int], *, count: int, temperature: float, longest: int, seed: int) -> list[str]:
        assert (temperature, longest) == (0.5, 9)
        self.passes.append([len(prompt)])
        return [f"{list(prompt)} {seed} {number}" for number in range(count)]


class InProcess:
    """In place of the actors; it may stop after some blocks."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.generator, self.stop_after = Echo(), stop_after
        self.calls: list[int] = []

    def __call__(self, job: GenerationJob, prompts: pa.Table, folder: str, calls: list[dict[str, Any]]) -> None:
        for call in calls:
            if len(self.calls) == self.stop_after:
                raise KeyboardInterrupt
            self.calls.append(call["block"])
            generation._keep_block(job, self.generator, prompts, folder, call)  # type: ignore[arg-type]


def prompts(rows: int = 18) -> pa.Table:
    tokens = [list(range(i, i + 1 + (7 * i) % 5)) for i in range(rows)]
    return pa.table({c.TEXT_TOKENS: pa.array(tokens, pa.list_(pa.int32())), c.USER_ID: pa.array(range(50, 50 + rows))})


def answered(
    monkeypatch: pytest.MonkeyPatch, store: Path, job: GenerationJob = JOB, asked: pa.Table | None = None, **stop: int
) -> tuple[list[list[str]], InProcess]:
    actors = InProcess(**stop)
    monkeypatch.setattr(generation, "_answer_by_actors", actors)
    return generated(job, prompts() if asked is None else asked, str(store)), actors


def test_answers_come_in_the_order_of_the_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers, actors = answered(monkeypatch, tmp_path)
    assert answers == [[str(tokens)] for tokens in prompts()[c.TEXT_TOKENS].to_pylist()]
    assert [len(lengths) for lengths in actors.generator.passes] == [4, 4, 4, 4, 2]
    assert [n for lengths in actors.generator.passes for n in lengths] == sorted(1 + (7 * i) % 5 for i in range(18))


def test_what_was_killed_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, _ = answered(monkeypatch, tmp_path / "whole")
    first = InProcess(stop_after=2)
    monkeypatch.setattr(generation, "_answer_by_actors", first)
    with pytest.raises(KeyboardInterrupt):
        generated(JOB, prompts(), str(tmp_path / "killed"))
    (folder,) = (tmp_path / "killed" / "answers").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(kept) == 2
    resumed, second = answered(monkeypatch, tmp_path / "killed")
    assert resumed == whole
    assert first.calls == [0, 1] and second.calls == [2, 3, 4]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    files = [sorted((path.name, path.read_bytes()) for path in at.rglob("*.parquet")) for at in tmp_path.iterdir()]
    assert files[0] == files[1]
    again, third = answered(monkeypatch, tmp_path / "killed")
    assert again == whole and third.calls == []


def test_a_half_written_block_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, _ = answered(monkeypatch, tmp_path)
    block = next(tmp_path.rglob("000001.parquet"))
    block.rename(block.with_name("000001.parquet.0f0f0f0f.partial"))
    resumed, actors = answered(monkeypatch, tmp_path)
    assert resumed == whole and actors.calls == [1]


def test_what_is_drawn_follows_from_seed_and_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the batch, nor the other sessions, nor their order."""
    job = replace(JOB, decoding=DRAWN)
    drawn, _ = answered(monkeypatch, tmp_path, job)
    assert [len(texts) for texts in drawn] == [3] * 18 and len({text for texts in drawn for text in texts}) == 3 * 18
    some = [11, 3, 7]
    larger = replace(job, decoding=replace(DRAWN, batch=2))
    fewer, _ = answered(monkeypatch, tmp_path, larger, prompts().take(pa.array(some)))
    assert fewer == [drawn[row] for row in some]
    other, _ = answered(monkeypatch, tmp_path, replace(job, config=Config(seed=1)))
    assert not {text for texts in other for text in texts} & {text for texts in drawn for text in texts}


@pytest.mark.parametrize(
    "job",
    [
        replace(JOB, config=Config(seed=1)),
        replace(JOB, config=Config.model_validate({"backbone": {"sources": ["tiny"]}})),
        replace(JOB, config=Config.model_validate({"engine": {"precision": "fp32"}})),
        replace(JOB, decoding=replace(LIKELIEST, batch=5)),
    ],
    ids=["seed", "backbone", "precision", "batch"],
)
def test_what_determines_answers_is_in_the_key(
    job: GenerationJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answered(monkeypatch, tmp_path)
    _, actors = answered(monkeypatch, tmp_path, job)
    assert actors.calls == list(range(5 if job.decoding.batch == 4 else 4))
    assert len(list((tmp_path / "answers").iterdir())) == 2


def test_other_prompts_are_other_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answered(monkeypatch, tmp_path)
    moved = prompts().set_column(1, c.USER_ID, pa.array(range(51, 69)))
    assert answered(monkeypatch, tmp_path, asked=moved)[1].calls == list(range(5))
    chunked = pa.concat_tables([prompts().slice(0, 7), prompts().slice(7)])
    assert answered(monkeypatch, tmp_path, asked=chunked)[1].calls == []


def test_no_prompts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert answered(monkeypatch, tmp_path, asked=prompts(0))[0] == []


def test_a_part_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no trained part here"):
        answered(monkeypatch, tmp_path, replace(JOB, lora=str(tmp_path / "lora")))
