"""LLMSeqPrompt's answers by actors: resumed, by one worker or two, the same; then items of the catalogue."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.config import Config
from rayrec.data import columns as c
from rayrec.data.next_prompts import NextPromptEncoder
from rayrec.data.tokenise import load_tokenizer
from rayrec.errors import InputError
from rayrec.models.ranking import Decay, LLMSeqSim
from rayrec.models.ranking.asking import Groups, ask
from rayrec.models.tiny import write_tiny_llama
from rayrec.names.embeddings import NameModel, name_embeddings
from rayrec.next_item import generation
from rayrec.next_item.generation import Decoding, GenerationJob, generated
from rayrec.next_item.seqprompt import Catalogue, recommended
from rayrec.sessions import Sessions
from rayrec.stages import Form
from rayrec.training.generator import open_generator

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("ray_local")]

NAMES = [f"The Film {i} ({1960 + i})" for i in range(1, 31)]
SESSIONS = Sessions.of([[1 + (7 * i + j) % 30 for j in range(1 + i % 4)] for i in range(22)])
DRAWN = Decoding(longest=8, batch=4, samples=3, temperature=0.7)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_tiny_llama(tmp_path / "model")
    return tmp_path / "model"


def job(model: Path, workers: int, decoding: Decoding = DRAWN) -> GenerationJob:
    tree = {
        "backbone": {"sources": [str(model)]},
        "engine": {"precision": "fp32"},
        "cluster": {"workers": workers, "cpus_per_worker": 1},
    }
    return GenerationJob(config=Config.model_validate(tree), lora=None, decoding=decoding)


def encoder(model: Path, form: Form) -> NextPromptEncoder:
    return NextPromptEncoder(load_tokenizer(model), NAMES, form, k=3, shown=10, chars=80)


def prompts(model: Path) -> pa.Table:
    asked = encoder(model, Form.GENITEM).table(SESSIONS, None, None)
    return asked.append_column(c.USER_ID, pa.array(range(100, 122)))


def test_a_killed_pass_goes_on_where_it_was(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generated(job(model, workers=2), prompts(model), str(tmp_path / "whole"))
    assert len(whole) == 22 and all(len(texts) == 3 for texts in whole)
    by_actors = generation._answer_by_actors
    told: list[dict[str, Any]] = []

    def killed(of: GenerationJob, asked: pa.Table, folder: str, calls: list[dict[str, Any]]) -> None:
        by_actors(of, asked, folder, calls[:2])
        raise KeyboardInterrupt

    def counted(of: GenerationJob, asked: pa.Table, folder: str, calls: list[dict[str, Any]]) -> None:
        told.extend(calls)
        by_actors(of, asked, folder, calls)

    monkeypatch.setattr(generation, "_answer_by_actors", killed)
    with pytest.raises(KeyboardInterrupt):
        generated(job(model, workers=2), prompts(model), str(tmp_path / "killed"))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*.parquet")}
    assert len(kept) == 2
    monkeypatch.setattr(generation, "_answer_by_actors", counted)
    assert generated(job(model, workers=1), prompts(model), str(tmp_path / "killed")) == whole
    assert len(told) == 4  # of six blocks
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    files = [
        sorted((path.name, path.read_bytes()) for path in (tmp_path / name).rglob("*.parquet"))
        for name in ("whole", "killed")
    ]
    assert files[0] == files[1]


def test_actors_say_what_one_process_says(model: Path, tmp_path: Path) -> None:
    alone = job(model, workers=2)
    here = alone.answer(open_generator(alone.config, None, "cpu"), prompts(model), list(range(22)))
    assert generated(alone, prompts(model), str(tmp_path)) == here[generation.ANSWERS].to_pylist()


def test_an_actor_that_fails_is_told_in_one_line(model: Path, tmp_path: Path) -> None:
    asked = prompts(model)
    (model / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="not a causal language model that transformers can load") as error:
        generated(job(model, workers=1), asked, str(tmp_path / "store"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", list(Form))
def test_every_form_recommends_items(form: Form, model: Path, tmp_path: Path) -> None:
    """An untrained model says next to nothing that is a name: all of it is mapped."""
    store, names = str(tmp_path / "store"), NameModel((str(model),))
    decoding = Decoding(longest=16, batch=4, samples=3 if form is Form.GENITEM else None)
    made = job(model, workers=2, decoding=decoding)
    rows = name_embeddings(NAMES, names, store, made.config.cluster)
    groups = Groups(rows, SESSIONS, 5, seed=0)
    asked = ask(form, SESSIONS, None, 3, similar=LLMSeqSim(rows, Decay.HARMONIC), groups=groups)
    catalogue = Catalogue(encoder(model, form), rows, names)
    found = recommended(made, catalogue, SESSIONS, np.arange(22), store, offered=asked.offered)
    assert found.lists_SK.shape == (22, 3) and 0 < found.unknown_S.sum() <= found.said_S.sum()
    offered = asked.offered.each() if asked.offered else [np.arange(1, 31)] * 22
    for row, own, choice in zip(found.lists_SK.tolist(), SESSIONS.each(), offered, strict=True):
        items = [item for item in row if item]
        assert len(set(items)) == len(items) and set(items) <= set(choice.tolist()) - set(own.tolist())
