"""Prepared next items, without Ray: sessions cut by leave-one-out, and a run over them."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from rayrec.cache import file_sha256
from rayrec.data import columns as c
from rayrec.data.asked import ASKED_SPLITS, write_asked
from rayrec.data.beside import Beside
from rayrec.data.tokenise import encoded_rows, load_tokenizer, open_encoder, prompt_rows
from rayrec.data.vectors import save_vectors
from rayrec.models.sasrecllm import build
from rayrec.names.tables import tables_read
from rayrec.run import Run
from rayrec.settings import validate, with_values
from rayrec.stages import ENCODERS, EncoderKind, StageName, Task
from rayrec.store import store_folder
from rayrec.training.model import model_shape
from rayrec.training.parts import save_part

ITEMS = 14
SESSIONS = [
    [1, 2, 3, 4, 5, 6],
    [2, 3, 4, 5],
    [3, 4, 5, 6, 7],
    [1, 3, 5, 7, 9, 11],
    [2, 4, 6, 8, 10],
    [9, 8, 7, 6],
    [11, 10, 9, 8, 7, 6, 5],
    [3, 1, 3, 2],  # an item again
    [5, 6, 7, 12],  # 12 is in no training session
    [1, 2, 13, 4, 14],
]
UNNAMED = 6
TUNED = (StageName.PRETRAIN_ENCODER, StageName.TUNE_LORA, StageName.TUNE_HYBRID)
SEEN_FROM_END = {"train": 3, "valid": 2, "test": 1}
TREE: dict[str, Any] = {
    "name": "n",
    "data": {"task": "next_item", "dataset": "synthetic", "split": {"leave_one_out": True}},
    "encoder": {"width": 8, "heads": 2, "max_len": 3},
    "stages": {"pretrain_encoder": {"loss": "softmax", "batch": 2}},
    "evaluation": {"ks": [3, 5], "bootstrap": 50, "encoder_batch": 4},
    "names": {"pooling": "last"},
    "ranking": {"llmseqsim": {"width": 4}},
}


def encoder_of(kind: EncoderKind) -> dict[str, Any]:
    """What puts an encoder of this kind into the run."""
    changes = {"encoder.kind": kind.value, "stages.pretrain_encoder.loss": ENCODERS[kind].losses_of(Task.NEXT_ITEM)[-1]}
    return changes | ({} if "heads" in ENCODERS[kind].reads else {"encoder.heads": 4})  # as by default


def prepared_run(
    folder: Path, changes: Mapping[str, Any] | None = None, *, timed: bool = True, tree: dict[str, Any] = TREE
) -> Run:
    """A run with prepared data and nothing else; ``changes`` are dotted paths."""
    run = Run(validate(with_values(tree, {"storage": str(folder), **(changes or {})}), "test"))
    write_rows(Path(run.data.folder), timed=timed)
    return run


def with_names(run: Run) -> Run:
    """Vectors of names in the store, others in every table, zero for the item that has none."""
    for number, table in enumerate(tables_read(run.config, run.systems)):
        vectors = np.random.default_rng(number).normal(size=(ITEMS, 4)).astype(np.float32)
        vectors[UNNAMED - 1] = 0
        save_vectors(run.data.table_folder(table, store_folder(run.config)), vectors, {})
    return run


def train(run: Run, *stages: StageName) -> Run:
    """The run with parts as if these stages had left them."""
    for number, stage in enumerate(stages):
        with_backbone = stage is not StageName.PRETRAIN_ENCODER
        shape = model_shape(run.config, run.facts, with_backbone=with_backbone)
        torch.manual_seed(number)
        model = build(run.config, shape, parts=run.config.stages.parts(stage), with_backbone=with_backbone)
        for part in run.config.stages.trained(stage):
            weights = {name: weight.detach() for name, weight in model.parts()[part].items()}
            for weight in weights.values():
                nn.init.normal_(weight, std=0.5)
            save_part(run.part_folder(stage, part), part, weights, {})
    return run


def rerank_run(folder: Path, backbone: Path, changes: Mapping[str, Any] | None = None) -> Run:
    """A run with SASRecLLM: what it is asked about lies beside the rows, with its prompts; without Ray."""
    own = {"ranking.sasrecllm": {"candidates": 5}, "backbone.sources": str(backbone), "engine.precision": "fp32"}
    own |= {f"stages.{stage}": {"batch": 4, "micro_batch": 2} for stage in (StageName.TUNE_LORA, StageName.TUNE_HYBRID)}
    run = prepared_run(folder, own | {"evaluation.batch": 3} | dict(changes or {}))
    place, data = run.data.folder, run.config.data
    with tempfile.TemporaryDirectory() as scratch:
        write_asked(place, data.warm_over, Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        encoder = open_encoder(place, data, load_tokenizer(backbone))
        for split in ASKED_SPLITS:
            rows = prompt_rows(place, split, data).fetch(np.arange(2 * len(SESSIONS)))
            pq.write_table(encoded_rows(encoder, rows), f"{scratch}/{split}.parquet")
        Beside.PROMPTS.publish(place, Path(scratch))
    return run


def write_rows(folder: Path, *, timed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    training = Counter(item for session in SESSIONS for item in session[:-2])
    for split, back in SEEN_FROM_END.items():
        places = [len(session) - back for session in SESSIONS]
        targets = [session[place] for session, place in zip(SESSIONS, places, strict=True)]
        columns: dict[str, Any] = {
            c.USER_ID: range(len(SESSIONS)),
            c.ITEM_ID: targets,
            c.RATING: [1.0] * len(SESSIONS),
            c.LABEL: [1] * len(SESSIONS),
            c.TIMESTAMP: range(len(SESSIONS)),
            c.SEEN: places,
            c.IS_WARM: [training[item] > 3 for item in targets],
            c.IS_STRICT_COLD: [training[item] == 0 for item in targets],
        }
        _write(folder / f"{split}.parquet", columns, c.ROWS_SCHEMA)
    sources = [str(user) for user in range(len(SESSIONS))]
    _write(folder / "users.parquet", {c.USER_ID: range(10), c.SOURCE_ID: sources, c.LIKED: SESSIONS}, c.USERS_SCHEMA)
    ids = range(1, ITEMS + 1)
    sources = [f"i{i}" for i in ids]
    titles = [f"Untitled i{i}" if i == UNNAMED else f"The Film {i}, a story" for i in ids]
    _write(folder / "items.parquet", {c.ITEM_ID: ids, c.SOURCE_ID: sources, c.TITLE: titles}, c.ITEMS_SCHEMA)
    manifest = {
        "dataset": "synthetic",
        "timed": timed,
        "steps": [],
        "users": len(SESSIONS),
        "items": ITEMS,
        "mean_liked_per_training_user": np.mean([len(session) - 2 for session in SESSIONS]),
        "splits": {split: {"rows": len(SESSIONS), "users": len(SESSIONS)} for split in SEEN_FROM_END},
        "files": {path.name: file_sha256(path) for path in sorted(folder.glob("*.parquet"))},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _write(path: Path, columns: Mapping[str, Any], schema: pa.Schema) -> None:
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}, schema), path)
