"""--plan: what it prints is exact where it says so, and it leaves nothing behind."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from clicks import STAGES

from rayrec import planning
from rayrec.config import Config
from rayrec.errors import InputError
from rayrec.models.sasrecllm import ModelShape, build, trainable
from rayrec.settings import load
from rayrec.stages import Part, StageName
from rayrec.training.job import DataFacts, StageJob

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "smoke.yaml"
BATCHES = ("stages.pretrain_encoder.batch=128", "stages.tune_lora.batch=256", "stages.tune_hybrid.batch=256")
OF_A_CARD = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if "plan_from" in path.read_text())


def smoke(tmp_path: Path, *overrides: str) -> Config:
    return load(SMOKE, [f"storage={tmp_path}/runs", *overrides])


def test_trainable_parameters_steps_and_rows_are_those_of_the_real_stages(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda sources, config_only: tiny)
    config = smoke(tmp_path)
    planning.print_plan(config)
    printed = capsys.readouterr().out
    facts = DataFacts(users=60, items=80, max_len=12, rows={"train": 3200})
    shape = ModelShape(users=60, items=80, max_len=12, backbone=tiny, answers=(1, 2))
    for stage, spec in STAGES.items():
        job = StageJob(config=config, stage=stage, facts=facts, data="")
        torch.manual_seed(0)
        model = build(config, shape, parts=job.parts, with_backbone=spec.reads.uses_backbone)
        count = sum(parameter.numel() for parameter in trainable(model, job.trains).values())
        line, _memory = (line for line in printed.splitlines() if line.startswith(stage.value))
        assert f" {count:,} " in line
        assert f" {job.total_steps} " in line and line.endswith(f" {job.total_steps * job.settings.batch:,}")
    assert f"{tmp_path}/runs/smoke" in printed
    assert max(len(line) for line in printed.splitlines() if "output" not in line) <= 100


def test_a_stage_that_answers_in_words_is_planned(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda *_, **__: tiny)
    next_items = ROOT / "configs" / "smoke_next_item.yaml"
    config = load(next_items, [f"storage={tmp_path}/runs", "stages.tune_answers={epochs: 2, steps_per_epoch: 3}"])
    planning.print_plan(config)
    printed = capsys.readouterr().out
    shape = ModelShape(users=200, items=150, max_len=30, backbone=tiny, answers=(1, 2))
    model = build(config, shape, parts=[Part.LORA], with_backbone=True, speaks=True)
    count = sum(parameter.numel() for parameter in trainable(model, [Part.LORA]).values())
    line, memory = (line.split() for line in printed.splitlines() if line.startswith("tune_answers"))
    assert line[1:] == ["lora", "answer_prompts", "answer_words", f"{count:,}", "6", "96"]
    assert float(memory[4]) > 0 and "Yes" not in printed


def test_rows_that_are_asked_about_are_planned(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every session of training twice, in whole batches of 16."""
    monkeypatch.setattr(planning, "local_backbone", lambda *_, **__: tiny)
    whole = {f"stages.{stage}={{epochs: 1, steps_per_epoch: null}}" for stage in ("tune_lora", "tune_hybrid")}
    asked = ["ranking.sasrecllm={}", f"storage={tmp_path}/runs", *whole]
    planning.print_plan(load(ROOT / "configs" / "smoke_next_item.yaml", asked))
    printed = capsys.readouterr().out
    sessions = int(printed.partition(" training rows")[0].rpartition(" ")[2])
    for stage in ("tune_lora", "tune_hybrid"):
        (*_, steps, rows), _memory = (line.split() for line in printed.splitlines() if line.startswith(stage))
        assert (int(steps), int(rows)) == (2 * sessions // 16, 2 * sessions // 16 * 16) and sessions > 150
    assert '"Yes" is token' in printed


PLANNED = {
    "stages.tune_hybrid={trains: [encoder, mapper, lora], starts_from: {encoder: fresh, lora: fresh}}": {
        "tune_hybrid": "encoder+lora+mapper"
    },
    "stages.tune_hybrid.starts_from.encoder=fresh": {"tune_lora": "lora", "tune_hybrid": "encoder+mapper"},
    "stages.tune_hybrid.starts_from.lora=none": {"pretrain_encoder": "encoder", "tune_hybrid": "encoder+mapper"},
}


@pytest.mark.parametrize("override", PLANNED)
def test_stages_that_are_not_needed_are_not_planned(
    override: str, tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = PLANNED[override]
    monkeypatch.setattr(planning, "local_backbone", lambda sources, config_only: tiny)
    planning.print_plan(smoke(tmp_path, override))
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    table = [line for line in lines if line[0] in set(StageName)]
    assert [(line[0], line[1]) for line in table[: len(stages)]] == list(stages.items())
    assert [line[0] for line in table[len(stages) :]] == list(stages)  # the memory's table


def test_users_are_counted_before_they_are_prepared(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda sources, config_only: tiny)
    for override, users in (("seed=0", 60), ("data.max_users=20", 20)):
        planning.print_plan(smoke(tmp_path, "encoder.kind=mf", "encoder.width=16", override))
        assert f" {(users + 1) * 17 + 81 * 17 + 1:,} " in capsys.readouterr().out


def test_a_dataset_that_comes_split_is_planned_with_its_own_sets(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda sources, config_only: tiny)
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    for split, rows in (("train", 5), ("valid", 2), ("test", 33)):
        columns = {name: range(1, rows + 1) for name in ("uid", "iid", "timestamp")}
        lists = {"his": [[0]] * rows, "his_title": [[""]] * rows, "title": ["x"] * rows}
        pd.DataFrame({**columns, "label": 1, **lists}).to_pickle(tmp_path / f"{split}_ood2.pkl")
    planning.print_plan(smoke(tmp_path, "data.dataset=collm", f"data.sources=[{tmp_path}]"))
    assert "data (expected)  5 training rows" in capsys.readouterr().out


def test_nothing_is_left_behind(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "local_backbone", lambda sources, config_only: tiny)
    planning.print_plan(smoke(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.workers=64", "cluster.workers: 64 workers"),
        ("backbone.sources=/no/such/model", "no such file"),
        ("storage=nosuch://bucket", "cannot be written"),
    ],
)
def test_what_would_fail_later_fails_now(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        planning.print_plan(smoke(tmp_path, *BATCHES, override))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No source delivers; the cluster is elsewhere."""

    def fail(sources: object, *, what: str) -> None:
        raise InputError(f"{what}: no source delivers")

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(planning, "fetch", fail)
    monkeypatch.setattr(planning, "local_limit", lambda: None)


@pytest.mark.parametrize("path", OF_A_CARD, ids=lambda path: path.stem)
@pytest.mark.usefixtures("offline")
def test_a_plan_needs_no_more_than_the_models_config(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stops the run here comes last, in one line."""
    with pytest.raises(InputError) as caught:
        planning.print_plan(load(path, [f"storage={tmp_path}"]))
    assert str(caught.value) == "dataset ml-1m: no source delivers"
    printed = capsys.readouterr().out
    assert "data (published)  800,167 training rows, 3,883 items" in printed
    assert "every stage fits a card of 15 GB" in printed
    assert max(len(line) for line in printed.splitlines() if "output" not in line) <= 100


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (4.4, "tune_lora does not fit a card of 4.4 GB; it would with --set engine.gradient_checkpointing=true"),
        (2.6, "--set backbone.quantised=nf4"),
        (0.7, "tune_lora does not fit a card of 0.7 GB; nothing here would make it"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_what_does_not_fit_is_told_with_the_mend(
    card: float, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "configs" / "ml1m_tinyllama_t4.yaml"
    with pytest.raises(InputError, match="no source"):
        planning.print_plan(load(path, [f"storage={tmp_path}", f"cluster.card_gb={card}"]))
    assert expected in capsys.readouterr().out


@pytest.mark.usefixtures("offline")
def test_a_card_that_no_worker_has_is_not_planned_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "configs" / "ml1m_tinyllama_t4.yaml"
    on_cpu = ["engine.precision=bf16", "cluster.gpus_per_worker=0", "cluster.card_gb=0.1", f"storage={tmp_path}"]
    with pytest.raises(InputError, match="no source"):
        planning.print_plan(load(path, on_cpu))
    assert "tune_lora" in (printed := capsys.readouterr().out) and "a card of" not in printed


def test_all_that_would_stop_a_run_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"storage .*cannot be written.* \| cluster\.workers: 64 workers"):
        planning.print_plan(smoke(tmp_path, "cluster.workers=64", "storage=nosuch://bucket", *BATCHES))


def test_a_shape_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"backbone\.plan_from: /no/config\.json: no such file"):
        planning.print_plan(smoke(tmp_path, "backbone.plan_from=/no/config.json"))
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(InputError, match="not the configuration of a causal language model"):
        planning.print_plan(smoke(tmp_path, f"backbone.plan_from={tmp_path}/config.json"))
