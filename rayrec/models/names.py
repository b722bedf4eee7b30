"""Item names -> vectors of unit length, by a sentence encoder or any language model of transformers.

What LLMSeqSim and LLM2Sequential start from: Boz et al. 2024, https://arxiv.org/abs/2402.01339. For a checkpoint of
sentence-transformers that consists of a transformer, a pooling (mean or last token) and a normalisation, the vectors
are those of ``SentenceTransformer.encode``, to rounding; no prompt is put before a name.

Shapes: N names, B names of a forward pass, T tokens, D width.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from rayrec.errors import InputError
from rayrec.stages import Name

NAME, VECTOR = "name", "vector"  # columns of a batch, in and out
_PASS_TOKENS = 4096  # of a forward pass, padding and all: its memory does not grow with the catalogue

Vectors = NDArray[np.float32]


class Pooling(Name):
    """What of the last hidden states is the name's vector."""

    MEAN = "mean"  # over all tokens but padding: what most sentence encoders were trained with
    LAST = "last"  # of the last token: the only one that has seen the whole name in a causal model


# How sentence-transformers writes them, before version 6 and since.
_STATED = {"mean_tokens": Pooling.MEAN, "mean": Pooling.MEAN, "lasttoken": Pooling.LAST}


class NameEncoder:
    """A frozen language model that reads names; as an actor of Ray Data it turns batches of them into vectors."""

    def __init__(self, folder: Path, pooling: Pooling, device: str | torch.device = "cpu") -> None:
        """``folder`` holds a model in fp32 and its tokenizer in the layout of transformers or sentence-transformers.

        Raises:
            InputError: transformers cannot load it, or it says that it makes vectors in another way.
        """
        self._layout, self._pooling, self._device = _layout(folder, pooling), pooling, torch.device(device)
        self._tokenizer, self._model = _load(self._layout.folder)
        self._model.to(self._device)
        shape = self._model.config.get_text_config()
        self.width: int = shape.hidden_size
        limits = (self._layout.limit, self._tokenizer.model_max_length, getattr(shape, "max_position_embeddings", None))
        self.limit: int = min(limit for limit in limits if limit)  # tokens of a name that are read, from its beginning

    def encode(self, names: Sequence[str | None]) -> Vectors:
        """Shape (N, D). A name that is missing or blank says nothing: its vector is zero, as in the paper's code."""
        texts = [name or "" for name in names]
        tokens = self._tokens([text.lower() if self._layout.lower else text for text in texts])
        named = np.array([bool(text.strip() and ids) for text, ids in zip(texts, tokens, strict=True)], bool)
        spoken = list(compress(tokens, named))
        spoken_MD = np.zeros((len(spoken), self.width), np.float32)
        for rows in _passes([len(ids) for ids in spoken]):
            spoken_MD[rows] = self._pass([spoken[row] for row in rows])
        vectors_ND = np.zeros((len(texts), self.width), np.float32)
        vectors_ND[named] = spoken_MD
        return vectors_ND

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The column NAME -> the column VECTOR, row by row."""
        vectors_ND = self.encode(batch[NAME].to_pylist())
        return pa.table({VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.ravel()), self.width)})

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        if not texts:  # which tokenizers refuse
            return []
        ids: list[list[int]] = self._tokenizer(texts, truncation=True, max_length=self.limit)["input_ids"]
        return ids

    @torch.inference_mode()
    def _pass(self, tokens: list[list[int]]) -> Vectors:
        """Shape (B, D). Padding is on the right: there causal models need no positions of their own."""
        padding = self._tokenizer.pad_token_id or 0  # some architectures count positions by it, so not any number
        ids_BT = pad_sequence([torch.tensor(ids) for ids in tokens], batch_first=True, padding_value=padding)
        length_B = torch.tensor([len(ids) for ids in tokens])
        mask_BT = (torch.arange(ids_BT.shape[1]) < length_B[:, None]).to(self._device)
        output = self._model(input_ids=ids_BT.to(self._device), attention_mask=mask_BT.long())
        vectors: Vectors = F.normalize(pool(output.last_hidden_state, mask_BT, self._pooling)).cpu().numpy()
        return vectors


def pool(states_BTD: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """Shapes (B, T, D), (B, T) -> (B, D); the mask is True for tokens, which come before the padding."""
    length_B = mask_BT.sum(1)
    if pooling is Pooling.LAST:
        return states_BTD[torch.arange(len(states_BTD), device=states_BTD.device), length_B - 1]
    return (states_BTD * mask_BT[..., None]).sum(1) / length_B[:, None]


def _passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of each forward pass: of like length, so that little is padding, and never more than _PASS_TOKENS.

    A single longer name is a pass of its own.
    """
    rows: list[int] = []
    for row in np.argsort(lengths, kind="stable").tolist():  # the longest comes last
        if rows and (len(rows) + 1) * lengths[row] > _PASS_TOKENS:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


@dataclass(frozen=True)
class _Layout:
    """Where the model lies, and what a sentence encoder says of its names."""

    folder: Path
    limit: int | None = None
    lower: bool = False


def _layout(folder: Path, pooling: Pooling) -> _Layout:
    """A plain folder of transformers, or one of sentence-transformers, which lists its modules."""
    if not (folder / "modules.json").is_file():
        return _Layout(folder)
    modules = {module["type"].rpartition(".")[2]: folder / module["path"] for module in _json(folder / "modules.json")}
    if unknown := sorted(modules.keys() - {"Transformer", "Pooling", "Normalize"}):
        raise InputError(f"{folder}: its vectors go through a module {unknown[0]}; name a checkpoint without one")
    if "Pooling" in modules:
        _check_pooling(modules["Pooling"] / "config.json", pooling)
    inner = modules.get("Transformer", folder)
    settings_path = inner / "sentence_bert_config.json"
    settings = _json(settings_path) if settings_path.is_file() else {}
    return _Layout(inner, settings.get("max_seq_length"), bool(settings.get("do_lower_case")))


def _check_pooling(path: Path, pooling: Pooling) -> None:
    settings = _json(path)
    flags = [key for key, value in settings.items() if value is True and key.startswith("pooling_mode_")]
    stated = settings.get("pooling_mode", [flag.removeprefix("pooling_mode_") for flag in flags])
    modes = [stated] if isinstance(stated, str) else stated
    if [_STATED.get(mode) for mode in modes] != [pooling]:
        raise InputError(
            f"{path}: vectors of this checkpoint are {', '.join(modes) or 'of no pooling'}, asked for is {pooling};"
            f" ask for its own if it is {' or '.join(Pooling)}, else name another checkpoint"
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}; fetch the checkpoint again") from None


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415  (seconds to import)

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(f"{folder}: not a language model that transformers can load: {error}") from None
    if model.config.is_encoder_decoder:
        raise InputError(f"{folder}: has an encoder and a decoder; name a model that is one of them")
    model.config.use_cache = False
    return tokenizer, model.eval()
