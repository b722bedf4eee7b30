"""From a configuration's sources to a folder of prepared rows and what is read besides them, in any storage."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from rayrec import storage
from rayrec.config import Config
from rayrec.data.beside import Beside
from rayrec.data.datasets import open_dataset
from rayrec.data.prepare import MANIFEST, prepare
from rayrec.data.rated import write_rated
from rayrec.data.tokenise import load_tokenizer, write_prompts
from rayrec.floors import write_floor
from rayrec.models.checkpoints import local_backbone
from rayrec.name_tables import NameTable, write_table
from rayrec.sources import fetch
from rayrec.store import Prepared, store_folder


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


def prepare_beside(config: Config, data: Prepared, wanted: Iterable[Beside]) -> None:
    """Write what is wanted beside the rows and is not there yet. Ray is connected.

    Raises:
        InputError: the backbone's tokenizer or the feature floor cannot be had.
    """
    for beside in sorted(wanted):
        if data.has(beside):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            if beside is Beside.PROMPTS:
                tokenizer = load_tokenizer(local_backbone(config.backbone.sources))
                write_prompts(data.folder, config.data, tokenizer, Path(scratch))
            elif beside is Beside.RATED:
                write_rated(data.folder, Path(scratch))
            else:
                write_floor(data.folder, Path(scratch))


def prepare_table(config: Config, data: Prepared, table: NameTable | None) -> None:
    """Write a table of the items' names, where one is wanted and is not there yet. Ray is connected.

    Raises:
        InputError: the names' model cannot be had, or the table's width not with these items.
    """
    if table is not None:
        store = store_folder(config)
        write_table(data.table_folder(table, store), table, data.folder, store, config.cluster)


def _upload(local: Path, folder: str) -> None:
    """Everything first, the manifest last: it says that the data is complete."""
    manifest = local / MANIFEST
    content = manifest.read_bytes()
    manifest.unlink()
    storage.upload(local, folder)
    storage.write_bytes(storage.join(folder, manifest.name), content)
