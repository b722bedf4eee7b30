"""A backbone's sources -> a local folder in transformers' layout, converted once and cached."""

import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from rayrec.errors import InputError
from rayrec.models.tiny import SOURCE, write_tiny_llama
from rayrec.sources import cache_folder, fetch, file_sha256


def local_backbone(sources: Sequence[str], *, what: str = "backbone", config_only: bool = False) -> Path:
    """The folder of the first source that works; with ``config_only`` a hub's holds its config.json alone.

    ``what`` names it in messages.

    A GGUF file is dequantised, saved as safetensors in the cache and read from there ever after.

    Raises:
        InputError: no source works, or what it gives is neither a folder with a config.json nor a GGUF file.
    """
    quiet_transformers()
    cache = cache_folder() / "backbones"
    if list(sources) == [SOURCE]:
        return _once(cache / "tiny-llama", write_tiny_llama)
    path = fetch(sources, what=what, config_only=config_only)
    if path.is_file() and path.suffix == ".gguf":
        return _once(cache / f"{path.stem}-{file_sha256(path)[:16]}", lambda folder: _convert_gguf(path, folder))
    if not (path / "config.json").is_file():
        raise InputError(f"{path}: neither a folder with a config.json nor a .gguf file; mend {what}.sources")
    return path


def quiet_transformers() -> None:
    """No progress bars and no advice: a run has one progress line of its own."""
    import transformers  # noqa: PLC0415  (seconds to import)

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    """Write ``folder`` beside its place and rename it there: it is whole or absent, also with two writers at once."""
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        write(partial)
        try:
            partial.replace(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig  # noqa: PLC0415  (seconds to import)

    where = {"gguf_file": path.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
    )
    model.save_pretrained(folder)  # fp32: the dequantised values, exactly
    AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(folder)
