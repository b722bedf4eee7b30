"""LLMSeqPrompt as a person runs it, beside the others: trained, asked for some sessions, killed, gone on with."""

import json
import re
from pathlib import Path

import pandas as pd
import processes
import pytest
from pages import assert_needs_no_network

SESSIONS = 12
ANSWERS = "stages.tune_answers={epochs: 2, steps_per_epoch: 4, batch: 8, lr: 1e-2, valid_users: 20}"
PROMPT = f"ranking.llmseqprompt={{form: genlist, k: 5, name_tokens: 12, sessions: {SESSIONS}}}"
VALUES = [ANSWERS, PROMPT, "backbone.sources=tiny", "evaluation.batch=2", "stages.pretrain_encoder.epochs=1"]

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


def options(storage: Path, *more: str) -> list[str]:
    values = [*VALUES, "engine={precision: fp32, zero_stage: 3}", f"storage={storage}", *more]
    return ["--config", "configs/smoke_next_item.yaml", *(part for value in values for part in ("--set", value))]


def test_it_is_a_row_of_the_table(job_env: dict[str, str], tmp_path: Path) -> None:
    whole = processes.run(processes.job("full_pipeline", *options(tmp_path / "whole")), job_env, tmp_path / "log")
    out = whole.checked().out
    assert re.search(r"^tune_answers  8 steps in .*; best valid log p of answers -\d\.\d{4} at step \d", out, re.M)
    assert re.search(rf"^LLMSeqPrompt +(\d\.\d{{4}} +){{4}}{SESSIONS}$", out, re.M)
    folder = tmp_path / "whole" / "smoke-next-item"
    lines = [json.loads(line) for line in (folder / "stages/tune_answers/progress.jsonl").read_text().splitlines()]
    judged = [line["valid_answers"] for line in lines if "valid_answers" in line]
    assert len(lines) == 8 and len(judged) == 2 and judged[0] < judged[1] < 0
    users = pd.read_parquet(folder / "data" / "users.parquet").set_index("user_id")["liked"]
    frame = pd.read_parquet(folder / "predictions" / "llmseqprompt.parquet")
    assert len(frame) == SESSIONS
    for row in frame.itertuples():
        assert len({*row.ranked}) == len(row.ranked) <= 5 and not {*row.ranked} & {*users[row.user_id][:-1]}
    metrics = json.loads((folder / "metrics.json").read_text())
    told = metrics["llmseqprompt"]["all"]["answers"]
    assert told["names"] == frame["said"].sum() > 0
    assert told["mapped"] == pytest.approx((frame["unknown"].sum() + frame["barred"].sum()) / frame["said"].sum())
    assert {slices["common"]["counts"]["sessions"] for slices in metrics.values()} == {SESSIONS}
    assert_needs_no_network((folder / "report" / "index.html").read_text())
    assert "Answers in words" in (folder / "report" / "index.html").read_text()

    killed = tmp_path / "killed"
    answers = killed / "store" / "answers"
    with processes.running(
        processes.job("full_pipeline", *options(killed)), job_env, tmp_path / "killed-log"
    ) as started:
        processes.wait_until(lambda: started.ended or bool([*answers.glob("*/*.parquet")]), "a block of answers")
        started.kill()
    kept = {path: path.stat().st_mtime_ns for path in answers.glob("*/*.parquet")}
    processes.run(processes.job("full_pipeline", *options(killed)), job_env, tmp_path / "again").checked()
    assert kept and {path: path.stat().st_mtime_ns for path in kept} == kept
    path = "smoke-next-item/predictions/llmseqprompt.parquet"
    assert (killed / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
