"""From a configuration's sources to a folder of prepared rows and prompts, in any storage."""

import tempfile
from pathlib import Path

from rayrec import storage
from rayrec.config import Config
from rayrec.data.datasets import open_dataset
from rayrec.data.prepare import MANIFEST, prepare
from rayrec.data.tokenise import load_tokenizer, write_prompts
from rayrec.models.checkpoints import local_backbone
from rayrec.sources import fetch
from rayrec.store import Prepared


def prepare_rows(config: Config, data: Prepared) -> bool:
    """Write the rows into the folder; False where they were there. Ray is connected."""
    if data.is_complete:
        return False
    settings = config.data
    sources = (
        [fetch(settings.resolved_sources, what=f"dataset {settings.dataset}")] if settings.resolved_sources else []
    )
    titles = [fetch(settings.item_sources, what="item titles")] if settings.item_sources else []
    raw = open_dataset(settings, config.seed, sources, titles)
    if storage.is_local(data.folder):
        prepare(settings, raw, Path(data.folder))
        return True
    with tempfile.TemporaryDirectory() as scratch:
        prepare(settings, raw, Path(scratch) / "data")
        _upload(Path(scratch) / "data", data.folder)
    return True


def prepare_prompts(config: Config, data: Prepared) -> None:
    """Tokenise the rows' prompts for the backbone, once."""
    if not data.has_prompts:
        tokenizer = load_tokenizer(local_backbone(config.backbone.sources))
        with tempfile.TemporaryDirectory() as scratch:
            write_prompts(data.folder, config.data, tokenizer, Path(scratch))


def _upload(local: Path, folder: str) -> None:
    """Everything first, the manifest last: it says that the data is complete."""
    manifest = local / MANIFEST
    content = manifest.read_bytes()
    manifest.unlink()
    storage.upload(local, folder)
    storage.write_bytes(storage.join(folder, manifest.name), content)
