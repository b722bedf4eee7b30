"""A catalogue of a million items, ranked for a hundred thousand sessions in bounded memory."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray

from rayrec.cache import file_sha256
from rayrec.data import columns as c
from rayrec.models.encoder import SequenceEncoder
from rayrec.models.sasrecllm import build
from rayrec.run import Run
from rayrec.settings import load
from rayrec.stages import Part, StageName
from rayrec.systems import SystemName
from rayrec.training.model import model_shape
from rayrec.training.parts import save_part

Items = NDArray[np.int32]

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]
ITEMS, SESSIONS, LENGTH, K = 1_000_000, 100_000, 14, 20
LIMIT = 8e9  # bytes of all processes together
TREE = {
    "name": "large",
    "data": {"task": "next_item", "dataset": "synthetic", "split": {"leave_one_out": True}},
    "encoder": {"max_len": 20},
    "stages": {"pretrain_encoder": {"loss": "sampled_softmax"}},
    "evaluation": {"ks": [K]},
    "cluster": {"workers": 2},
}
SYSTEMS = (SystemName.SASREC, SystemName.MOST_POPULAR, SystemName.SKNN, SystemName.V_SKNN)
RANK = """
import sys
from pathlib import Path
from rayrec.run import Run
from rayrec.evaluation.scoring import score_systems
from rayrec.settings import load
from rayrec.systems import SystemName
from rayrec.training.cluster import connected

run = Run(load(Path(sys.argv[1])))
with connected(run.config.cluster):
    score_systems(run, [SystemName(name) for name in sys.argv[2:]])
"""


def draw_sessions() -> Items:
    """Items of each session; every item is in one that trains, and some are in many; shape (SESSIONS, LENGTH)."""
    draw = np.random.default_rng(0)
    items = (1 + ITEMS * draw.random((SESSIONS, LENGTH)) ** 3).astype(np.int32)
    every = 1 + draw.permutation(ITEMS).astype(np.int32)
    items[:, : ITEMS // SESSIONS] = every.reshape(SESSIONS, -1)
    return items


def write_prepared(folder: Path, items: Items) -> None:
    """As preparation by leave-one-out leaves it."""
    folder.mkdir(parents=True)
    users, ids = np.arange(SESSIONS), np.arange(1, ITEMS + 1)
    for split, back in (("train", 3), ("valid", 2), ("test", 1)):
        same = {c.RATING: 1.0, c.LABEL: 1, c.TIMESTAMP: 0, c.SEEN: LENGTH - back, c.IS_WARM: True}
        columns = {name: np.full(SESSIONS, value) for name, value in (same | {c.IS_STRICT_COLD: False}).items()}
        columns |= {c.USER_ID: users, c.ITEM_ID: items[:, LENGTH - back]}
        write(folder / f"{split}.parquet", columns, c.ROWS_SCHEMA)
    liked = pa.ListArray.from_arrays(np.arange(0, items.size + 1, LENGTH, dtype=np.int32), items.ravel())
    write(folder / "users.parquet", {c.USER_ID: users, c.SOURCE_ID: users.astype(str), c.LIKED: liked}, c.USERS_SCHEMA)
    names = np.char.add("Item ", ids.astype(str))
    write(folder / "items.parquet", {c.ITEM_ID: ids, c.SOURCE_ID: ids.astype(str), c.TITLE: names}, c.ITEMS_SCHEMA)
    manifest = {
        "timed": False,
        "users": SESSIONS,
        "items": ITEMS,
        "mean_liked_per_training_user": LENGTH - 2,
        "splits": {split: {"rows": SESSIONS, "users": SESSIONS} for split in c.SPLITS},
        "files": {path.name: file_sha256(path) for path in sorted(folder.glob("*.parquet"))},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write(path: Path, columns: dict[str, Any], schema: pa.Schema) -> None:
    pq.write_table(pa.table({name: columns[name] for name in schema.names}).cast(schema), path)


def save_encoder(run: Run) -> SequenceEncoder:
    """An encoder as it is drawn, where a stage would leave it."""
    torch.manual_seed(0)
    shape = model_shape(run.config, run.facts, with_backbone=False)
    model = build(run.config, shape, parts=[Part.ENCODER], with_backbone=False)
    model.set_mode(())
    weights = model.parts()[Part.ENCODER]
    save_part(run.part_folder(StageName.PRETRAIN_ENCODER, Part.ENCODER), Part.ENCODER, weights, {})
    assert isinstance(model.encoder, SequenceEncoder)
    return model.encoder


@torch.no_grad()
def assert_best(encoder: SequenceEncoder, prompts: Items, lists: Items) -> None:
    """No item scores more than those in the lists, but what the prompts hold."""
    held, listed = (torch.tensor(ids).long() - 1 for ids in (prompts, lists))
    users = encoder.encode(held + 1)[:, -1].double()
    scores = users @ encoder.item_vectors(torch.arange(1, ITEMS + 1)).double().T
    scores.scatter_(1, held, -torch.inf)
    assert scores.gather(1, listed).numpy() == pytest.approx(scores.topk(K).values.numpy(), rel=1e-4)


def test_a_million_items_for_a_hundred_thousand_sessions(job_env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(TREE | {"storage": str(tmp_path)}))
    run, items = Run(load(tmp_path / "large.yaml")), draw_sessions()
    write_prepared(Path(run.data.folder), items)
    encoder = save_encoder(run)
    command = [sys.executable, "-c", RANK, str(tmp_path / "large.yaml"), *SYSTEMS]
    seconds, peak = processes.measured(command, job_env, tmp_path / "log")
    print(f"{SESSIONS:,} sessions, {ITEMS:,} items: {seconds:.0f} s, {peak / 1e9:.2f} GB at most")
    assert peak < LIMIT
    for system in SYSTEMS:
        table = pq.read_table(run.path("predictions", f"{system}.parquet"))
        held_out, ranked = (table[name].combine_chunks() for name in (c.HELD_OUT, c.RANKED))
        assert np.array_equal(held_out.flatten(), items[:, -1])
        owners = np.repeat(np.arange(SESSIONS), np.diff(ranked.offsets))
        assert not (ranked.flatten().to_numpy()[:, None] == items[owners, :-1]).any()
        assert (np.bincount(owners, minlength=SESSIONS) <= K).all() and len(owners) > SESSIONS
        if system is SystemName.SASREC:
            lists = ranked.flatten().to_numpy().reshape(SESSIONS, K)
            assert_best(encoder, items[::5000, :-1], lists[::5000])
