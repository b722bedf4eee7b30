"""From a configuration's sources to a folder of prepared rows and what is read besides them, in any storage."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rayrec import storage
from rayrec.config import Config
from rayrec.data.asked import write_asked
from rayrec.data.beside import Beside
from rayrec.data.datasets import open_dataset
from rayrec.data.prepare import MANIFEST, prepare
from rayrec.data.rated import write_rated
from rayrec.data.tokenise import load_tokenizer, write_prompts
from rayrec.data.vectors import read_vectors
from rayrec.floors import write_features, write_floor
from rayrec.models.checkpoints import local_backbone
from rayrec.names.tables import NameTable, nearness_table, write_table
from rayrec.questions import write_questions
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
        InputError: the backbone's tokenizer, the feature floor or the names' model cannot be had.
    """
    missing = {beside for beside in wanted if not data.has(beside)}
    for beside in (one for one in Beside if one in missing):  # in this order, since one reads another
        with tempfile.TemporaryDirectory() as scratch:
            if beside is Beside.ASKED:
                write_asked(data.folder, config.data.warm_over, Path(scratch))
            elif beside is Beside.PROMPTS:
                tokenizer = load_tokenizer(local_backbone(config.backbone.sources))
                write_prompts(data.folder, config.data, tokenizer, Path(scratch))
            elif beside is Beside.RATED:
                write_rated(data.folder, Path(scratch))
            elif beside is Beside.ANSWERS:
                _write_answers(config, data, Path(scratch))
            elif beside is Beside.FEATURES:
                write_features(data.folder, Path(scratch))
            else:
                write_floor(data.folder, Path(scratch))


def _write_answers(config: Config, data: Prepared, scratch: Path) -> None:
    table = nearness_table(config)
    prepare_table(config, data, table)
    vectors = read_vectors(data.table_folder(table, store_folder(config)))
    tokenizer = load_tokenizer(local_backbone(config.backbone.sources))
    write_questions(config, data.folder, tokenizer, vectors, scratch)


def answer_settings(config: Config) -> dict[str, Any]:
    """What decides the questions and answers beside the rows, as plain data; empty where there are none."""
    if config.stages.tune_answers is None:
        return {}
    ranking = config.ranking.model_dump(mode="json", include={"llmseqsim", "llmseqprompt"})
    return {"answers": ranking | {"names": config.names.model_dump(mode="json")}}


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
