"""Vectors of names as systems read them: what decides one, where it lies, and an encoder that starts from it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from left_out import ITEMS, UNNAMED, encoder_of, prepared_run

from rayrec import storage
from rayrec.config.training import ClusterConfig
from rayrec.data.vectors import read_vectors, save_vectors
from rayrec.errors import InputError
from rayrec.models import reductions
from rayrec.models.names import NameEncoder, Vectors
from rayrec.names import embeddings
from rayrec.names.embeddings import NameModel
from rayrec.names.tables import NameTable, initial_table, nearness_table
from rayrec.preparation import prepare_table
from rayrec.run import Run
from rayrec.stages import ENCODERS, EncoderKind, Part, StageName, Task
from rayrec.store import store_folder
from rayrec.training.job import StageJob
from rayrec.training.model import stage_model

INITIAL = {"names": "pca"}
STAGE = StageName.PRETRAIN_ENCODER


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the actors."""

    def computed(texts: Any, model: NameModel, cluster: ClusterConfig) -> Vectors:
        return NameEncoder(model.folder(), model.pooling).encode(texts)

    monkeypatch.setattr(embeddings, "_computed", computed)


def run_of(folder: Path, tiny: Path, changes: dict[str, Any] | None = None) -> Run:
    return prepared_run(folder, {"names.sources": [str(tiny)], **(changes or {})})


def written(run: Run, table: NameTable | None) -> str:
    assert table is not None
    prepare_table(run.config, run.data, table)
    return run.data.table_folder(table, store_folder(run.config))


def job_of(folder: Path, tiny: Path, changes: dict[str, Any]) -> StageJob:
    run = run_of(folder, tiny, changes)
    prepare_table(run.config, run.data, initial_table(run.config))
    return run.stage_jobs()[STAGE]


@pytest.mark.parametrize("reduction", ["pca", "random_projection", "lda", "autoencoder", None])
def test_a_table_is_the_names_reduced(reduction: str | None, tiny: Path, tmp_path: Path) -> None:
    own = {"reduction": reduction} | ({"width": 4} if reduction else {})
    run = run_of(tmp_path, tiny, {"ranking.llmseqsim": own})
    found = read_vectors(written(run, nearness_table(run.config)))
    assert found.shape == (ITEMS, 4 if reduction else 64)
    assert not found[UNNAMED - 1].any() and found[UNNAMED].any()
    if reduction == "pca":
        (names,) = (tmp_path / "store" / "names").iterdir()
        assert np.array_equal(found, reductions.pca(read_vectors(str(names)), 4))


def test_it_is_written_once(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, tiny)
    folder = written(run, nearness_table(run.config))
    before = Path(folder, "embeddings.json").stat().st_mtime_ns
    monkeypatch.setattr(embeddings, "_computed", None)
    assert written(run, nearness_table(run.config)) == folder
    assert Path(folder, "embeddings.json").stat().st_mtime_ns == before


def test_a_width_that_is_not_to_be_had_is_refused(tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny, {"ranking.llmseqsim.width": 40})
    with pytest.raises(InputError, match="PCA: width 40 is not to be had from embeddings of 14 items and width 64"):
        written(run, nearness_table(run.config))


def test_a_damaged_table_is_told(tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny)
    folder = written(run, nearness_table(run.config))
    Path(folder, "embeddings.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="damaged or cut short; delete"):
        read_vectors(folder)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({}, False),
        ({"name": "other"}, False),
        ({"encoder.dropout": 0.3}, False),
        ({"ranking.llmseqsim.width": 5}, False),
        ({"encoder.initial": {"names": "random_projection"}}, True),
        ({"encoder.initial": {"names": "pca", "permuted": True}}, True),
        ({"encoder.width": 4}, True),
        ({"names.pooling": "mean"}, True),
        ({"seed": 1}, True),
    ],
)
def test_its_address_follows_from_what_determines_it(changes: dict[str, Any], moves: bool, tmp_path: Path) -> None:
    plain, other = (
        prepared_run(tmp_path / str(i), {"encoder.initial": INITIAL, **own}) for i, own in enumerate(({}, changes))
    )
    tables = [(run, initial_table(run.config)) for run in (plain, other)]
    first, second = (run.data.table_folder(table, "store") for run, table in tables if table is not None)
    assert (first != second) is moves


# Of an encoder


def test_a_stage_waits_for_its_table(tiny: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, tiny, {"encoder.initial": INITIAL})
    assert STAGE not in run.stage_jobs()
    prepare_table(run.config, run.data, initial_table(run.config))
    assert run.stage_jobs()[STAGE].initial
    assert not run_of(tmp_path / "plain", tiny).stage_jobs()[STAGE].initial


def test_a_stages_address_follows_from_the_content_of_its_table(tiny: Path, tmp_path: Path) -> None:
    plain = run_of(tmp_path / "plain", tiny).stage_jobs()[STAGE]
    first = job_of(tmp_path / "first", tiny, {"encoder.initial": INITIAL})
    same = job_of(tmp_path / "same", tiny, {"encoder.initial": INITIAL, "name": "m"})
    control = job_of(tmp_path / "control", tiny, {"encoder.initial": INITIAL | {"permuted": True}})
    assert first.fingerprint == same.fingerprint
    assert len({plain.fingerprint, first.fingerprint, control.fingerprint}) == 3
    run = run_of(tmp_path / "first", tiny, {"encoder.initial": INITIAL})
    save_vectors(first.initial, read_vectors(first.initial) + 1, {})  # at the same address, as from another model
    assert run.stage_jobs()[STAGE].fingerprint != first.fingerprint


@pytest.mark.parametrize("kind", [kind for kind, spec in ENCODERS.items() if spec.losses_of(Task.NEXT_ITEM)])
def test_an_encoder_starts_from_its_names(kind: EncoderKind, tiny: Path, tmp_path: Path) -> None:
    own = encoder_of(kind)
    plain = stage_model(run_of(tmp_path / "plain", tiny, own).stage_jobs()[STAGE])
    job = job_of(tmp_path / "names", tiny, {**own, "encoder.initial": INITIAL})
    drawn, started = (made.parts()[Part.ENCODER] for made in (plain, stage_model(job)))
    rows = read_vectors(job.initial)
    table = started["item.weight"].detach().numpy()
    named = [item for item in range(1, ITEMS + 1) if item != UNNAMED]
    assert np.array_equal(table[named], rows[[item - 1 for item in named]]) and started["item.weight"].requires_grad
    unnamed = [0, UNNAMED, *range(ITEMS + 1, len(table))]  # padding, and a mask behind the items where there is one
    assert np.array_equal(table[unnamed], drawn["item.weight"].detach().numpy()[unnamed])
    assert all(value.equal(started[name]) for name, value in drawn.items() if name != "item.weight")


def test_the_control_has_the_same_vectors_elsewhere(tiny: Path, tmp_path: Path) -> None:
    plain = job_of(tmp_path / "plain", tiny, {"encoder.initial": INITIAL})
    control = job_of(tmp_path / "control", tiny, {"encoder.initial": INITIAL | {"permuted": True}})
    one, other = (read_vectors(job.initial) for job in (plain, control))
    assert not np.array_equal(one, other)
    assert np.array_equal(np.unique(one, axis=0), np.unique(other, axis=0))
    card = json.loads(storage.read_text(f"{control.initial}/embeddings.json"))
    assert card["permuted"] is True and card["reduction"] == "pca"
