"""Which systems go through a pass together, and that what they share changes no score. No actors."""

import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from left_out import SESSIONS, TUNED, prepared_run, train
from test_kept import tokens_read
from test_split import HISTORIES, SOFT, STARTS, built, table

from rayrec import storage
from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.beside import Beside
from rayrec.data.collate import common_start
from rayrec.data.tokenise import encoded_rows, load_tokenizer, open_encoder, prompt_rows
from rayrec.errors import InputError
from rayrec.evaluation import predictions, scoring
from rayrec.evaluation.scorer import ASKED, BATCHES
from rayrec.models.sasrecllm import SASRecLLM
from rayrec.run import Run
from rayrec.systems import SystemName
from rayrec.training.evaluate import score_rows, score_rows_twice

BIAS, ICL, TALLREC, SASREC, SASRECLLM = (
    SystemName.BIAS,
    SystemName.ICL,
    SystemName.TALLREC,
    SystemName.SASREC,
    SystemName.SASRECLLM,
)
BOTH = [TALLREC.value, SASRECLLM.value]
CPU = torch.device("cpu")
Calls = list[tuple[list[str], list[int]]]
TREE: dict[str, Any] = {
    "name": "n",
    "data": {"dataset": "synthetic"},
    "engine": {"precision": "fp32"},
    "encoder": {"width": 8, "heads": 2, "max_len": 3},
    "evaluation": {"batch": 3, "bootstrap": 50},
}


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Systems and batches' sizes of every actor call."""
    made: Calls = []

    def answered(calls: Sequence[dict[str, Any]], kind: Any, arguments: Any, _: Any) -> Iterator[pa.Table]:
        actor = kind(*arguments)
        for call in calls:
            made.append((call[ASKED], [len(batch) for batch in call[BATCHES]]))
            yield actor(pa.Table.from_pylist([call]))

    monkeypatch.setattr(scoring, "answers", answered)
    return made


def click_run(folder: Path, tiny: Path, changes: dict[str, Any] | None = None) -> Run:
    """Trained as if by the three stages, its prompts beside the rows."""
    run = prepared_run(folder, {"backbone.sources": str(tiny), **(changes or {})}, tree=TREE)
    place, data = run.data.folder, run.config.data
    encoder = open_encoder(place, data, load_tokenizer(tiny))
    with tempfile.TemporaryDirectory() as scratch:
        for split in ("train", "valid", "test"):
            rows = prompt_rows(place, split, data).fetch(np.arange(len(SESSIONS)))
            pq.write_table(encoded_rows(encoder, rows), f"{scratch}/{split}.parquet")
        Beside.PROMPTS.publish(place, Path(scratch))
    return train(run, *TUNED)


def scores_of(run: Run, *systems: SystemName) -> dict[SystemName, np.ndarray]:
    scoring.score_systems(run, systems)
    return {system: predictions.read_predictions(run, system)[c.SCORE].to_numpy() for system in systems}


@pytest.fixture
def model(tiny: Path) -> SASRecLLM:
    made = built(tiny)
    made.set_mode(())
    return made


# One forward pass


def rows(*, hybrid: bool) -> Any:
    return SimpleNamespace(fetch=lambda ids: table(hybrid=hybrid).take(ids))


def test_scores_are_those_of_passes_of_their_own(model: SASRecLLM) -> None:
    config, ids = Config.model_validate({"mapper": {"tokens": SOFT}}), np.arange(6)
    alone = SASRecLLM(None, None, model.backbone)
    expected = [score_rows(one, rows(hybrid=one is model), ids, config, CPU) for one in (alone, model)]
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    read = tokens_read(model)
    found = score_rows_twice(model, (rows(hybrid=False), rows(hybrid=True)), ids, config, CPU)
    assert found[0] == pytest.approx(expected[0], abs=1e-6) and found[1] == pytest.approx(expected[1], abs=1e-6)
    longest = max(len(start) - len(start) // 3 for start in STARTS.values())
    assert read[0] == len(HISTORIES) * longest and len(read) == 3  # and two times suffixes


def test_an_attention_of_its_own_reads_all_twice(model: SASRecLLM) -> None:
    config, ids = Config.model_validate({"mapper": {"tokens": SOFT}}), np.arange(6)
    both = rows(hybrid=False), rows(hybrid=True)
    expected = score_rows_twice(model, both, ids, config, CPU)
    assert model.backbone is not None
    model.backbone.parts_suffixes = False
    for found, own in zip(score_rows_twice(model, both, ids, config, CPU), expected, strict=True):
        assert found == pytest.approx(own, abs=1e-6)


def test_prompts_begin_alike_up_to_the_end_of_the_history(tiny: Path, tmp_path: Path) -> None:
    run = click_run(tmp_path, tiny)
    stored = pq.read_table(f"{run.data.folder}/{Beside.PROMPTS}/test.parquet")
    prompts = open_encoder(run.data.folder, run.config.data, load_tokenizer(tiny))
    for row, start in enumerate(common_start(stored, stored)):
        text, hybrid = stored[c.TEXT_TOKENS][row].as_py(), stored[c.HYBRID_TOKENS][row].as_py()
        assert text[:start] == hybrid[:start] and text[start] != hybrid[start]
        shown = run.config.data.history
        other = prompts.encode(SESSIONS[row][:-1][-shown:], 1)  # of another target
        assert other.text[:start] == text[:start] and other.text[start:] != text[start:]
        assert start < stored[c.USER_AT][row].as_py()


def test_a_soft_token_is_never_shared() -> None:
    text, hybrid = table(hybrid=False), table(hybrid=True)  # whose tokens are all the same
    assert common_start(text, hybrid).tolist() == hybrid[c.USER_AT].to_pylist()


# A run's systems


def test_a_language_model_goes_along_with_the_model_it_is_a_part_of(tiny: Path, tmp_path: Path, calls: Calls) -> None:
    run = click_run(tmp_path / "together", tiny)
    found = scores_of(run, ICL, TALLREC, SASREC, SASRECLLM)
    assert [asked for asked, _ in calls] == [["icl"], ["sasrec"], BOTH]
    assert calls[-1] == (BOTH, [1, 3, 3, 3])  # the longest first
    plain = click_run(tmp_path / "plain", tiny, {"fast.split_prompts": False})
    expected = scores_of(plain, ICL, TALLREC, SASREC, SASRECLLM)
    assert [asked for asked, _ in calls[3:]] == [["icl"], ["tallrec"], ["sasrec"], ["sasrecllm"]]
    for system, scores in expected.items():
        assert found[system] == pytest.approx(scores, abs=1e-5)
    assert np.abs(expected[TALLREC] - expected[SASRECLLM]).max() > 1e-3


def test_an_evaluation_that_goes_on_finds_the_same_bits(tiny: Path, tmp_path: Path, calls: Calls) -> None:
    run = click_run(tmp_path, tiny)
    whole = scores_of(run, TALLREC, SASREC, SASRECLLM)
    for system in (TALLREC, SASRECLLM):
        calls.clear()
        written = storage.read_bytes(predictions.predictions_path(run, system))
        Path(predictions.predictions_path(run, system)).unlink()
        again = scores_of(run, TALLREC, SASREC, SASRECLLM)
        assert [asked for asked, _ in calls] == [BOTH]
        assert storage.read_bytes(predictions.predictions_path(run, system)) == written
        assert all(np.array_equal(again[one], whole[one]) for one in whole)
    calls.clear()
    scores_of(run, TALLREC, SASREC, SASRECLLM)
    assert calls == []


def test_floors_are_written_while_the_others_score(
    tiny: Path, tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scored = click_run(tmp_path, tiny), threading.Event()

    def floor(*_: Any) -> np.ndarray:
        assert scored.wait(60)  # for ever, if it came first
        return np.full(len(SESSIONS), 0.3)

    def write(run: Run, split: str, path: str, *given: Any) -> None:
        write_scores(run, split, path, *given)
        if path == predictions.predictions_path(run, SASREC):
            scored.set()

    write_scores = predictions.write_scores
    monkeypatch.setattr(scoring, "floor_scores", floor)
    monkeypatch.setattr(scoring, "write_scores", write)
    assert scores_of(run, BIAS, SASREC)[BIAS].tolist() == [0.3] * len(SESSIONS)
    assert [asked for asked, _ in calls] == [["sasrec"]]


def test_what_a_floor_cannot_do_is_told(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = click_run(tmp_path, tiny)

    def floor(*_: Any) -> np.ndarray:
        raise InputError("no such rows")

    monkeypatch.setattr(scoring, "floor_scores", floor)
    with pytest.raises(InputError, match="no such rows"):
        scores_of(run, BIAS, SASREC)
    assert storage.exists(predictions.predictions_path(run, SASREC))
    assert not storage.exists(predictions.predictions_path(run, BIAS))


def test_a_lora_that_went_on_learning_is_another_model(tiny: Path, tmp_path: Path, calls: Calls) -> None:
    trains = {"stages": {"tune_lora": {"batch": 4}, "tune_hybrid": {"batch": 4, "trains": ["lora", "mapper"]}}}
    scores_of(click_run(tmp_path, tiny, trains), TALLREC, SASRECLLM)
    assert [asked for asked, _ in calls] == [["tallrec"], ["sasrecllm"]]
