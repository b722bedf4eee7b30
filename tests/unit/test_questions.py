"""LLMSeqPrompt's questions beside prepared rows: read by the stage, learned from, and judged by their answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from answering import asked_run
from groups import by_any_group
from left_out import ITEMS, SESSIONS

from rayrec.batch import Prompt
from rayrec.errors import InputError
from rayrec.models.loading import load_causal_lm
from rayrec.models.objectives import Objective
from rayrec.models.sasrecllm import trainable
from rayrec.questions import next_prompt_encoder
from rayrec.run import Run
from rayrec.stages import Form, Metric, Part, StageName
from rayrec.training import evaluate
from rayrec.training.job import StageJob
from rayrec.training.model import stage_model

BACK = {"train": 3, "valid": 2, "test": 1}
CPU = torch.device("cpu")


def job_of(run: Run) -> StageJob:
    return StageJob(config=run.config, stage=StageName.TUNE_ANSWERS, facts=run.facts, data=run.data.folder)


def written(run: Run, split: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(f"{run.data.folder}/answers/{split}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("split", BACK)
@pytest.mark.parametrize("form", Form)
def test_every_row_has_its_question_and_its_answer(
    form: Form, split: str, tiny: Path, byte_level: Any, tmp_path: Path
) -> None:
    run = asked_run(tmp_path, tiny, form, **({"clusters": 5} if form is Form.CLASS else {}))
    encoder = next_prompt_encoder(run.config, run.data.folder, byte_level)
    rows = written(run, split)
    assert len(rows) == len(SESSIONS)
    for session, row in zip(SESSIONS, rows, strict=True):
        target, prompt, offered = session[-BACK[split]], session[: -BACK[split]], row["offered"] or []
        at, tokens = row["answer_at"], row["text_tokens"]
        assert tokens[:at] == encoder.encode(prompt, (), offered).tokens
        assert bool(offered) == (form in {Form.CLASS, Form.RANK}) and len(set(offered)) == len(offered)
        if form is Form.CLASS:
            assert offered == rows[0]["offered"] and len(offered) == 5
        if split == "test":
            assert at == len(tokens)
            continue
        text = byte_level.decode(tokens[at:-1], clean_up_tokenization_spaces=False)
        answer = [encoder.names.index(name) + 1 for name in encoder.said([text])]
        assert tokens == encoder.encode(prompt, answer, offered).tokens
        if form is Form.CLASS:
            assert len(answer) == 3 and set(answer) <= set(offered)
            continue
        assert answer[0] == target and not set(answer[1:]) & {*prompt, target}
        assert len(answer) == (1 if form is Form.GENITEM else 3)
        assert form is not Form.RANK or sorted(answer) == sorted(offered)


def test_what_is_offered_of_a_test_row_does_not_follow_from_its_target(tiny: Path, tmp_path: Path) -> None:
    run = asked_run(tmp_path, tiny, Form.RANK)
    hits = [session[-1] in row["offered"] for session, row in zip(SESSIONS, written(run, "test"), strict=True)]
    assert not all(hits)
    assert all(
        not {*session[:-1]} & {*row["offered"]} for session, row in zip(SESSIONS, written(run, "test"), strict=True)
    )


def test_blocks_of_rows_are_written_in_order(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = asked_run(tmp_path / "whole", tiny, Form.GENLIST)
    monkeypatch.setattr("rayrec.questions._BLOCK_ROWS", 3)
    assert written(asked_run(tmp_path / "parts", tiny, Form.GENLIST), "train") == written(whole, "train")


def test_more_clusters_than_names_are_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="clusters"):
        asked_run(tmp_path, tiny, Form.CLASS, clusters=ITEMS)


def test_the_stage_reads_them(tiny: Path, tmp_path: Path) -> None:
    run = asked_run(tmp_path, tiny)
    job = job_of(run)
    rows, expected = job.rows("train").open(), written(run, "train")
    assert rows.lengths.tolist() == [len(row["text_tokens"]) for row in expected]
    ids = np.array([3, 0, 7, 1])
    batches = job.on(1).micro_batches(rows.fetch(ids))
    found = []
    for batch in batches:
        assert (
            isinstance(batch.prompt, Prompt)
            and batch.prompt.answer_at_B is not None
            and batch.prompt.soft_at_B2K is None
        )
        for tokens, length, at in zip(
            batch.prompt.tokens_BT, batch.prompt.length_B, batch.prompt.answer_at_B, strict=True
        ):
            found.append({"text_tokens": tokens[:length].tolist(), "answer_at": int(at), "offered": None})
    assert found == [expected[i] for i in ids] and len(batches) == 2


def test_its_model_learns_by_its_lora_alone(tiny: Path, tmp_path: Path) -> None:
    job = job_of(asked_run(tmp_path, tiny)).on(1)
    model = stage_model(job)
    model.freeze_all_but(job.trains)
    objective = Objective(model, job.settings.loss, job.settings.of_loss)
    (batch, _) = job.micro_batches(job.rows("train").open().fetch(np.arange(4)))
    objective(batch).backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {f"backbone.decoder.{name}" for name in model.parts()[Part.LORA]}
    assert [*trainable(model, job.trains)] == [f"lora.{name}" for name in model.parts()[Part.LORA]]
    assert model.encoder is None and model.mapper is None


def test_validation_is_the_mean_log_probability_of_answers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row by row, with transformers' own logits; the same for any number of workers. A fresh LoRA changes nothing."""
    run = asked_run(tmp_path, tiny, Form.GENLIST)
    job = job_of(run)
    model, validator = stage_model(job), evaluate.open_validator(job)
    found = by_any_group(lambda: validator.evaluate(model, CPU), monkeypatch)
    whole, told = load_causal_lm(tiny, dtype=torch.float32).eval(), []
    for row in written(run, "valid"):
        tokens = torch.tensor(row["text_tokens"])
        with torch.no_grad():
            log_p = whole(input_ids=tokens[None]).logits[0].log_softmax(-1)
        told += [float(log_p[at - 1, tokens[at]]) for at in range(row["answer_at"], len(tokens))]
    assert found == pytest.approx({Metric.ANSWERS.value: sum(told) / len(told)}, rel=1e-5)
    assert job.judged_by.value in found
