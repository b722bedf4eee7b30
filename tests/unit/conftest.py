import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from origins import Server

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: these tests are too small for threads


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where sources are fetched to."""
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of this machine, which no proxy stands before."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random LLaMA with its tokenizer."""
    from rayrec.models.checkpoints import quiet_transformers  # noqa: PLC0415
    from rayrec.models.tiny import write_tiny_llama  # noqa: PLC0415

    quiet_transformers()
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    write_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def byte_level(tiny: Path) -> Any:
    """The tiny LLaMA's tokenizer."""
    from rayrec.data.tokenise import load_tokenizer  # noqa: PLC0415

    return load_tokenizer(tiny)


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Made like LLaMA's own: a blank before every text, bytes for what it does not know, BOS in front."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    from rayrec.data import prompts  # noqa: PLC0415
    from rayrec.data.tokenise import load_tokenizer  # noqa: PLC0415

    special, pieces = ["<unk>", "<s>", "</s>"], [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special + pieces, show_progress=False)
    asked = prompts.ITEM_CLAUSE + "?" + prompts.CLOSING
    texts = [prompts.OPENING, prompts.USER_CLAUSE + ".", prompts.TASK, asked + " Yes", prompts.CLOSING + " No"]
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("sentencepiece")
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Of either kind."""
    return request.getfixturevalue(request.param)
