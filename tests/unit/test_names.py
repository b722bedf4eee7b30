"""Vectors of names against the slow way: one name at a time, no padding, sums in Python."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rayrec.errors import InputError
from rayrec.models import names
from rayrec.models.names import NAME, VECTOR, NameEncoder, Pooling, pool

NAMES = [
    "A Story (1994)",
    "Film",
    "The Film 12 (1987), Additionally " * 3,
    "preferences are encoded",
    "Ünïcode 映画",
    " x",
    "user",
]


@pytest.fixture(scope="session")
def bert(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random encoder: attention in both directions, learned positions, the tiny LLaMA's tokenizer."""
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("names") / "bert"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    torch.manual_seed(3)
    BertModel(config).save_pretrained(folder)
    return folder


def slow(folder: Path, name: str, pooling: Pooling, limit: int = 10**6) -> list[float]:
    """The vector of one name, the obvious way."""
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer(name)["input_ids"][:limit]
    with torch.no_grad():
        states: list[list[float]] = model.eval()(input_ids=torch.tensor([ids])).last_hidden_state[0].tolist()
    chosen = states if pooling is Pooling.MEAN else states[-1:]
    mean = [sum(state[d] for state in chosen) / len(chosen) for d in range(len(chosen[0]))]
    length = math.sqrt(sum(value * value for value in mean))
    return [value / length for value in mean]


@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("kind", ["tiny", "bert"])
def test_equals_one_name_at_a_time(kind: str, pooling: Pooling, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(kind)
    vectors = NameEncoder(folder, pooling).encode(NAMES)
    expected = np.array([slow(folder, name, pooling, limit=64 if kind == "bert" else 10**6) for name in NAMES])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert np.abs(expected[0] - expected[3]).max() > 0.05  # names are told apart


def test_mean_and_last_are_those_of_real_tokens() -> None:
    """By hand; what stands in the padding is never read."""
    states = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [5.0, 100.0]], [[8.0, 0.0], [99.0, 99.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert pool(states, mask, Pooling.MEAN).tolist() == [[3.0, 36.0], [8.0, 0.0]]
    assert pool(states, mask, Pooling.LAST).tolist() == [[5.0, 100.0], [8.0, 0.0]]


def test_a_missing_or_blank_name_is_zero(tiny: Path) -> None:
    encoder = NameEncoder(tiny, Pooling.MEAN)
    vectors = encoder.encode([None, "Film", "", "  \n"])
    assert (vectors != 0).any(axis=1).tolist() == [False, True, False, False]
    assert encoder.encode([]).shape == (0, encoder.width)
    assert not encoder.encode([None]).any()


def test_every_vector_has_unit_length_and_repeats_its_bits(tiny: Path) -> None:
    encoder = NameEncoder(tiny, Pooling.MEAN)
    vectors = encoder.encode(NAMES)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors, NameEncoder(tiny, Pooling.MEAN).encode(NAMES))
    order = np.random.default_rng(0).permutation(len(NAMES))
    np.testing.assert_allclose(encoder.encode([NAMES[i] for i in order]), vectors[order], atol=1e-6)


def test_a_pass_is_bounded_and_its_rows_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_PASS_TOKENS", 12)
    assert list(names._passes([3, 1, 13, 2, 6, 1, 6])) == [[1, 5, 3, 0], [4, 6], [2]]
    assert list(names._passes([])) == []


def test_passes_do_not_move_a_vector(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = NameEncoder(tiny, Pooling.LAST)
    at_once = encoder.encode(NAMES)
    monkeypatch.setattr(names, "_PASS_TOKENS", 1)
    np.testing.assert_allclose(encoder.encode(NAMES), at_once, atol=1e-6)


def test_as_an_actor_it_turns_batches_into_vectors(bert: Path) -> None:
    encoder = NameEncoder(bert, Pooling.MEAN)
    batch = encoder(pa.table({NAME: ["Film", None, "user"]}))
    assert batch.column_names == [VECTOR]
    assert np.array_equal(np.array(batch[VECTOR].to_pylist(), np.float32), encoder.encode(["Film", None, "user"]))


# Checkpoints of sentence-transformers


def sentence_checkpoint(model: Path, folder: Path, modules: Sequence[str], stated: str, **settings: Any) -> Path:
    shutil.copytree(model, folder)
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize", "Dense": "2_Dense"}
    listed = [{"type": f"sentence_transformers.models.{name}", "path": paths[name]} for name in modules]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    stating = {"pooling_mode_cls_token": False, f"pooling_mode_{stated}": True, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(stating))
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


WHOLE = ["Transformer", "Pooling", "Normalize"]


def test_a_sentence_encoder_says_how_much_it_reads(bert: Path, tmp_path: Path) -> None:
    folder = sentence_checkpoint(bert, tmp_path / "m", WHOLE, "mean_tokens", max_seq_length=5, do_lower_case=True)
    encoder = NameEncoder(folder, Pooling.MEAN)
    assert encoder.limit == 5
    expected = [slow(bert, name.lower(), Pooling.MEAN, limit=5) for name in NAMES]
    np.testing.assert_allclose(encoder.encode(NAMES), expected, atol=2e-6)


@pytest.mark.parametrize("since_6", [False, True])
def test_it_may_state_the_last_token(since_6: bool, bert: Path, tmp_path: Path) -> None:
    folder = sentence_checkpoint(bert, tmp_path / "m", WHOLE[:2], "lasttoken")
    if since_6:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    np.testing.assert_allclose(
        NameEncoder(folder, Pooling.LAST).encode(NAMES[:1]), [slow(bert, NAMES[0], Pooling.LAST)], atol=2e-6
    )


@pytest.mark.parametrize(
    ("modules", "stated", "message"),
    [
        (WHOLE, "cls_token", "are cls_token, asked for is mean"),
        (WHOLE, "lasttoken", "are lasttoken, asked for is mean"),
        ([*WHOLE[:2], "Dense"], "mean_tokens", "go through a module Dense"),
    ],
)
def test_one_that_makes_other_vectors_is_refused(
    modules: list[str], stated: str, message: str, bert: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        NameEncoder(sentence_checkpoint(bert, tmp_path / "m", modules, stated), Pooling.MEAN)


def test_what_is_no_model_is_refused(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a language model that transformers can load"):
        NameEncoder(tmp_path, Pooling.MEAN)
    shutil.copytree(bert, tmp_path / "cut")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"not a language model that transformers can load: .* header too small"):
        NameEncoder(tmp_path / "cut", Pooling.MEAN)
    folder = sentence_checkpoint(bert, tmp_path / "m", WHOLE, "mean_tokens")
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"1_Pooling/config.json: cannot be read"):
        NameEncoder(folder, Pooling.MEAN)


def test_an_encoder_with_a_decoder_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import T5Config, T5Model  # noqa: PLC0415

    folder = tmp_path / "t5"
    shutil.copytree(tiny, folder)
    (folder / "model.safetensors").unlink()
    T5Model(T5Config(vocab_size=400, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(folder)
    with pytest.raises(InputError, match="an encoder and a decoder"):
        NameEncoder(folder, Pooling.MEAN)
