"""LLMSeqPrompt as a system: some test sessions are asked, and every answer is an item. The actors stand still."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from answering import asked_run
from left_out import ITEMS, SESSIONS

from rayrec.data import columns as c
from rayrec.errors import InputError
from rayrec.evaluation import predictions, sample, scoring
from rayrec.models.reductions import Rows, unit_length
from rayrec.next_item import generation, seqprompt
from rayrec.next_item.generation import GenerationJob
from rayrec.run import Run
from rayrec.stages import Form, Part, StageName
from rayrec.systems import SystemName
from rayrec.training.parts import save_part

PROMPT = SystemName.LLMSEQPROMPT
SAID = ["The Film 3, a story", 'no "film" #Answer:', "The Film 3, a story", "The Film 9, a story"]


class Speaker:
    """Says the same to everyone."""

    def __init__(self) -> None:
        self.asked = 0

    def likeliest(self, prompts: Sequence[Sequence[int]], longest: int) -> list[str]:
        assert longest == 4 * 40
        self.asked += len(prompts)
        return ["".join(f"\n- {name}" for name in SAID)] * len(prompts)

    def samples(self, prompt: Sequence[int], *, count: int, temperature: float, longest: int, seed: int) -> list[str]:
        assert (count, temperature, longest) == (4, 0.5, 40)
        self.asked += 1
        return [f"\n- {name}\nand more" for name in SAID]


@pytest.fixture
def speaker(monkeypatch: pytest.MonkeyPatch) -> Speaker:
    speaker = Speaker()

    def here(job: GenerationJob, prompts: pa.Table, folder: str, calls: list[dict[str, Any]]) -> None:
        for call in calls:
            generation._keep_block(job, speaker, prompts, folder, call)  # type: ignore[arg-type]

    monkeypatch.setattr(generation, "_answer_by_actors", here)
    monkeypatch.setattr(seqprompt, "name_embeddings", lambda texts, *_: np.stack([vector(text) for text in texts]))
    return speaker


def vector(text: str | None) -> Rows:
    if text is None:
        return np.zeros(8, np.float32)
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    row: Rows = unit_length(np.random.default_rng(seed).normal(size=(1, 8)).astype(np.float32))[0]
    return row


def trained(run: Run) -> Run:
    save_part(run.part_folder(StageName.TUNE_ANSWERS, Part.LORA), Part.LORA, {"a": torch.zeros(1)}, {})
    return run


def score(run: Run) -> dict[int, dict[str, Any]]:
    scoring.score_systems(run, [PROMPT])
    table = pq.read_table(predictions.predictions_path(run, PROMPT))
    assert table.schema == c.ANSWERS_SCHEMA
    return {row["user_id"]: row for row in table.to_pylist()}


@pytest.mark.parametrize(
    ("form", "own"),
    [(Form.GENITEM, {"temperature": 0.5}), (Form.GENLIST, {}), (Form.RANK, {}), (Form.CLASS, {"clusters": 6})],
)
def test_what_is_said_becomes_items(
    form: Form, own: dict[str, Any], speaker: Speaker, tiny: Path, tmp_path: Path
) -> None:
    run = trained(asked_run(tmp_path, tiny, form, **own | {"k": 4}))
    found = score(run)
    assert [*found] == [*range(len(SESSIONS))] and speaker.asked == len(SESSIONS)
    offered = pq.read_table(f"{run.data.folder}/answers/test.parquet")["offered"].to_pylist()
    for session, (row, choice) in zip(SESSIONS, zip(found.values(), offered, strict=True), strict=True):
        free = {*range(1, ITEMS + 1)} - {*session[:-1]} if choice is None else {*choice} - {*session[:-1]}
        assert row["held_out"] == [session[-1]] and row["scores"] is None
        assert {*row["ranked"]} <= free and len({*row["ranked"]}) == len(row["ranked"])
        assert len(row["ranked"]) == min(4, len(free - {6}))  # item 6 has no name
        named = [item for item in (3, 9) if item in free]
        assert (row["said"], row["unknown"], row["barred"]) == (4, 1, 3 - len(named))
        if form is Form.GENITEM:
            assert row["ranked"][: len(named)] == named  # what was named comes before what stands for something else
    again = score(run)
    assert again == found and speaker.asked == len(SESSIONS)


def test_a_killed_pass_asks_nobody_twice(speaker: Speaker, tiny: Path, tmp_path: Path) -> None:
    run = trained(asked_run(tmp_path, tiny, Form.GENLIST, k=4))
    found = score(run)
    Path(predictions.predictions_path(run, PROMPT)).unlink()
    blocks = sorted((tmp_path / "store" / "answers").rglob("*.parquet"))
    assert len(blocks) == 4  # ten sessions, three at a time
    blocks[1].unlink()
    assert score(run) == found and speaker.asked == len(SESSIONS) + 3


def test_some_sessions_are_asked(speaker: Speaker, tiny: Path, tmp_path: Path) -> None:
    rows = {}
    for sessions in (3, 6, None):
        run = trained(asked_run(tmp_path / str(sessions), tiny, Form.GENLIST, k=4, sessions=sessions))
        rows[sessions] = score(run)
        assert sample.judged_rows(run, SystemName.SASREC, np.arange(10)).tolist() == [*range(10)]
        assert sample.judged_rows(run, PROMPT, sample.test_sample(run)).tolist() == [*rows[sessions]]
        exception = f" but LLMSeqPrompt ({sessions} of them)" if sessions else ""
        everyone = "all 10 of 10 test sessions; the same for every system"
        assert sample.describe_judged(run) == f"{everyone}{exception}"
        assert sample.describe_sample(run) == everyone  # an experiment's own systems are not the run's
    assert [*map(len, rows.values())] == [3, 6, 10]
    for few, more in ((3, 6), (6, None)):  # the answers of a session do not depend on who else is asked
        assert rows[few].items() <= rows[more].items()


def test_an_untrained_model_is_not_asked(speaker: Speaker, tiny: Path, tmp_path: Path) -> None:
    run = asked_run(tmp_path, tiny)
    with pytest.raises(
        InputError, match=r"stage tune_answers has not run; run jobs/train_stage\.py tune_answers first"
    ):
        scoring.score_systems(run, [PROMPT])
    assert speaker.asked == 0
