"""Bad input ends a job with exit code 2 and one line that names what is wrong and the mend; nothing half-written stays.

``ROWS`` lists every kind of bad input and the tests that cover it, here or beside the code that refuses it.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import ray

from rayrec import cli, pipeline, storage
from rayrec.run import Run
from rayrec.settings import load

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "configs" / "smoke.yaml"
HERE = "tests/unit/test_bad_input.py::test_a_job_refuses_in_one_line"
PLAN = "tests/unit/test_bad_input.py::test_a_plan_refuses_in_one_line"
DATASETS = "tests/unit/test_datasets.py::test_wrong_input_is_one_line"
PREPARE = "tests/ray/test_prepare.py::test_an_error_is_one_line_and_leaves_nothing"
COLLM = "tests/unit/test_collm.py::"

ROWS: dict[str, list[str]] = {
    "an unknown or misspelt key": [
        f"{HERE}[unknown key]",
        "tests/unit/test_bad_input.py::test_the_real_job_ends_with_2",
        "tests/unit/test_config_mistakes.py::test_an_unknown_key_is_named_with_the_nearest",
    ],
    "a wrong type": [f"{HERE}[wrong type]", "tests/unit/test_config_mistakes.py::test_a_wrong_value_is_named"],
    "a batch that does not divide": [
        f"{HERE}[indivisible batch]",
        "tests/unit/test_config_mistakes.py::test_a_batch_that_does_not_divide_says_what_would",
    ],
    "an unknown dataset": [f"{HERE}[unknown dataset]"],
    "a missing configuration file": [
        "tests/unit/test_bad_input.py::test_a_missing_configuration",
        "tests/unit/test_config.py::test_a_missing_file_or_a_folder_is_named",
    ],
    "a missing data file": [
        f"{HERE}[missing data file]",
        f"{DATASETS}[no table file]",
        "tests/unit/test_sources.py::test_a_missing_path_fails",
    ],
    "a wrong hash": [
        f"{HERE}[wrong hash]",
        "tests/unit/test_downloads.py::test_a_wrong_hash_fails_and_nothing_is_kept",
        "tests/unit/test_sources.py::test_a_path_with_another_hash_fails",
    ],
    "a truncated archive": [f"{HERE}[truncated archive]", "tests/unit/test_archives.py::test_a_cut_archive_fails"],
    "an archive member that points outside": [
        f"{HERE}[member outside]",
        "tests/unit/test_archives.py::test_a_bad_archive_fails_and_leaves_nothing",
    ],
    "a wrong encoding": [
        f"{PLAN}[wrong encoding]",
        f"{DATASETS}[encoding of a table]",
        f"{DATASETS}[encoding of recbole]",
        f"{DATASETS}[utf-16]",
    ],
    "a missing column": [f"{PLAN}[missing column]", f"{DATASETS}[missing column]", f"{PREPARE}[a missing column]"],
    "a rating that is no number": [f"{PLAN}[rating in words]", f"{DATASETS}[text rating]", f"{PREPARE}[a wrong value]"],
    "a rating out of range": [f"{PLAN}[rating too high]", f"{DATASETS}[high rating]", f"{DATASETS}[low rating]"],
    "a negative or absurd time": [
        f"{PLAN}[negative time]",
        f"{PLAN}[milliseconds]",
        f"{DATASETS}[negative time]",
        f"{DATASETS}[milliseconds mended]",
        f"{DATASETS}[time in words]",
    ],
    "an empty file": [f"{HERE}[empty file]", f"{DATASETS}[empty file]", f"{DATASETS}[only a header]"],
    "a pickle that asks for more than a table": [
        f"{PLAN}[harmful pickle]",
        "tests/unit/test_pickles.py::test_what_no_table_needs_is_refused_by_name[a call]",
        "tests/unit/test_pickles.py::test_damage_is_refused_or_harmless",
        f"{COLLM}test_a_list_that_rows_share_does_not_grow",
    ],
    "a set without a file": [f"{COLLM}test_another_file_stands_in"],
    "settings that a dataset brings itself": [f"{COLLM}test_contradictions_are_refused"],
    "a split without both classes": [
        f"{PREPARE}[only likes]",
        f"{PREPARE}[one class in a later set]",
        f"{PREPARE}[no time passes]",
    ],
    "nothing left after cleaning": [f"{PREPARE}[nothing left]"],
    "a title that is empty, huge or full of special tokens": [
        "tests/ray/test_prepare.py::test_hostile_titles_are_inert",
        "tests/unit/test_prompts.py::test_a_hostile_title_changes_nothing_but_itself",
        "tests/unit/test_prompts.py::test_no_title_smuggles_in_a_special_token",
        "tests/unit/test_report.py::test_hostile_titles_are_text",
    ],
    "a backbone without single, distinct answers": [
        f"{PLAN}[split answers]",
        "tests/unit/test_prompts.py::test_answers_that_are_not_single_and_distinct_are_refused",
    ],
    "a checkpoint cut short": [
        "tests/unit/test_checkpoints.py::test_a_damaged_checkpoint_is_refused",
        "tests/unit/test_job_ends.py::test_what_a_worker_refuses_is_told_and_not_tried_again",
    ],
    "a part of the wrong shape": [
        "tests/unit/test_parts.py::test_a_part_of_another_configuration_is_refused",
        "tests/unit/test_parts.py::test_a_part_that_cannot_be_used_is_refused",
        "tests/unit/test_job_ends.py::test_what_a_worker_refuses_is_told_and_not_tried_again",
    ],
    "a name that holds another configuration": [
        f"{HERE}[name taken]",
        "tests/unit/test_runs.py::test_a_name_stands_for_one_configuration",
    ],
    "a storage that cannot be written": [
        f"{HERE}[file in the way]",
        f"{HERE}[unknown storage]",
        "tests/unit/test_storage.py::test_a_place_that_cannot_be_written_is_named",
    ],
    "sessions that no lists can be made for": [
        "tests/unit/test_requests.py::test_what_is_wrong_is_told_in_one_line",
        "tests/unit/test_requests.py::test_files_are_told_apart_by_what_is_wrong_with_them",
        "tests/unit/test_requests.py::test_two_sessions_of_one_id_are_refused",
        "tests/unit/test_requests.py::test_a_damaged_file_is_named",
    ],
    "a run or system that makes no such lists": [
        "tests/unit/test_recommenders.py::test_an_order_that_cannot_be_met_is_refused",
        "tests/unit/test_recommenders.py::test_what_reads_ratings_is_refused",
    ],
    "more workers than the cluster has": [
        f"{HERE}[too many workers]",
        "tests/unit/test_bad_input.py::test_the_real_job_ends_with_2",
    ],
}


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_tests_that_exist(row: str) -> None:
    assert ROWS[row]
    for reference in ROWS[row]:
        file, _, name = reference.partition("::")
        function, _, case = name.partition("[")
        functions, words = named_in(file)
        assert function in functions, reference
        assert not case or case.removesuffix("]") in words, reference


@lru_cache
def named_in(file: str) -> tuple[set[str], set[Any]]:
    """Functions and constants of a test file, among these the names of its cases."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return functions, {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}


# The jobs themselves, up to where Ray would start

Setting = tuple[list[str], str]  # overrides; what the one line must say
GOOD = "user_id,item_id,rating,timestamp,title\nu,1,4,10,a\nu,2,1,11,b\n"


def table(source: object) -> list[str]:
    return ["data.dataset=table", f"data.sources={json.dumps([str(source)])}", "data.columns.title=title"]


def written(folder: Path, content: bytes | str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv(folder: Path, line: str, header: str = "user_id,item_id,rating,timestamp,title") -> list[str]:
    return table(written(folder, f"{header}\nu,1,4,10,a\n{line}\n"))


def zipped(folder: Path, member: str) -> Path:
    with zipfile.ZipFile(folder / "t.zip", "w") as archive:
        archive.writestr(member, GOOD * 100)
    return folder / "t.zip"


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-200])
    return path


def harmful(folder: Path) -> list[str]:
    """CoLLM's files, the first of which would leave a file behind if it were unpickled."""
    for split in ("train", "valid", "test"):
        written(folder, f"cposix\nsystem\n(Vtouch {folder}/harm\ntR.", f"{split}_ood2.pkl")
    return ["data.dataset=collm", f"data.sources=[{folder}]"]


def taken(folder: Path) -> list[str]:
    """A run with data, of another seed."""
    run = Run(load(SMOKE, [f"storage={folder}/runs", "seed=9"]))
    run.bind()
    storage.write_text(run.path("data", "manifest.json"), "{}")
    return ["seed=8", "backbone.sources=tiny"]


def splitting(folder: Path, tiny: Path) -> list[str]:
    """The tiny backbone with a tokenizer that knows single bytes only."""
    shutil.copytree(tiny, folder / "bytes")
    path = folder / "bytes" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = []
    path.write_text(json.dumps(content), encoding="utf-8")
    return [f"backbone.sources={folder}/bytes"]


MANY = ["cluster.workers=4096", *(f"stages.{s}.batch=16384" for s in ("pretrain_encoder", "tune_lora", "tune_hybrid"))]

JOBS: dict[str, Callable[[Path], Setting]] = {
    "unknown key": lambda p: (["data.histroy=3"], "smoke.yaml: unknown key 'data.histroy'; did you mean 'history'?"),
    "wrong type": lambda p: (["encoder.width=wide"], "encoder.width: Input should be a valid integer"),
    "indivisible batch": lambda p: (["stages.tune_lora.batch=9"], "stages.tune_lora.batch 9 is not divisible"),
    "unknown dataset": lambda p: (["data.dataset=ml-2m"], "data.dataset: Input should be 'ml-100k', 'ml-1m', 'table'"),
    "missing data file": lambda p: (
        table(p / "none.csv"),
        f"dataset table: no source delivers: {p}/none.csv: no such file",
    ),
    "wrong hash": lambda p: (table(f"{written(p, GOOD)}#sha256={'0' * 64}"), f"{p}/t.csv"),
    "truncated archive": lambda p: (table(cut(zipped(p, "t.csv"))), "the archive is damaged or cut short"),
    "member outside": lambda p: (table(zipped(p, "../evil.csv")), "member '../evil.csv' leads out of it"),
    "empty file": lambda p: (table(written(p, b"")), "t.csv: the file is empty; fetch or export it again"),
    "name taken": lambda p: (taken(p), "the name 'smoke' already holds another configuration (seed: 9 -> 8)"),
    "file in the way": lambda p: ([f"storage={written(p, 'x', 'runs')}"], f"storage {p}/runs/smoke: cannot be written"),
    "unknown storage": lambda p: (["storage=nosuch://bucket"], "storage nosuch://bucket/smoke: cannot be written"),
    "too many workers": lambda p: (MANY, "cluster.workers: 4096 workers x 1 CPU need 4096, the cluster has"),
}

PLANS: dict[str, Callable[[Path, Path], Setting]] = {
    "wrong encoding": lambda p, _: (table(written(p, GOOD.encode() + b"u,3,4,12,\xe9\n")), "t.csv, line 4: byte 0xe9"),
    "missing column": lambda p, _: (
        csv(p, "", "user,item_id,rating,timestamp,title"),
        "no column 'user_id'; did you mean",
    ),
    "rating in words": lambda p, _: (csv(p, "u,2,good,11,b"), "t.csv, line 3: rating 'good' is not a number"),
    "rating too high": lambda p, _: (csv(p, "u,2,6,11,b"), "t.csv, line 3: rating 6 lies outside data.rating_range"),
    "negative time": lambda p, _: (csv(p, "u,2,4,-11,b"), "t.csv, line 3: timestamp -11 is before 1970"),
    "milliseconds": lambda p, _: (csv(p, "u,2,4,978300760000,b"), "divide milliseconds by 1000"),
    "harmful pickle": lambda p, _: (
        harmful(p),
        f"{p}/train_ood2.pkl: refused, and nothing of it was run: this pickle asks",
    ),
    "split answers": lambda p, tiny: (splitting(p, tiny), 'backbone: "Yes" is 4 tokens behind the prompt'),
}


@pytest.fixture
def refusal(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a job that must refuse its input before it needs Ray; returns its one line without ``error: ``."""

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAYREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "RAY_idle_worker_killing_time_threshold_ms"):
        monkeypatch.setenv(name, "1")  # which a job sets for good

    def refused(overrides: list[str], *options: str, config: Path = SMOKE) -> str:
        settings = [f"storage={tmp_path}/runs", f"backbone.sources={tiny}", *overrides]
        arguments = ["--config", str(config), *options, *(a for s in settings for a in ("--set", s))]
        with pytest.raises(SystemExit) as ended:
            cli.main("", SMOKE, pipeline.full_pipeline, arguments)
        stderr = capfd.readouterr().err
        assert ended.value.code == 2, stderr
        (line,) = stderr.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return refused


def leftovers(folder: Path) -> set[str]:
    """Files in the storage, beside the configuration that the run was started with."""
    return {path.name for path in (folder / "runs").rglob("*") if path.is_file()} - {"config.yaml"}


@pytest.mark.parametrize("case", JOBS)
def test_a_job_refuses_in_one_line(case: str, refusal: Callable[..., str], tmp_path: Path) -> None:
    overrides, message = JOBS[case](tmp_path)
    assert message in refusal(overrides)
    assert leftovers(tmp_path) == ({"manifest.json"} if case == "name taken" else set())
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize("case", PLANS)
def test_a_plan_refuses_in_one_line(case: str, refusal: Callable[..., str], tmp_path: Path, tiny: Path) -> None:
    """What needs the rows or the backbone is found by --plan already, without Ray."""
    overrides, message = PLANS[case](tmp_path, tiny)
    assert message in refusal(overrides, "--plan")
    assert not [path for path in tmp_path.rglob("runs/**/*") if path.is_file()]


def test_a_missing_configuration(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refusal([], config=path) == f"{path}: no such file; give --config an existing YAML file"
    assert leftovers(tmp_path) == set()


def test_a_mended_mistake_needs_no_other_name(refusal: Callable[..., str], tmp_path: Path) -> None:
    refusal(table(tmp_path / "typo.csv"))
    assert "the file is empty" in refusal(table(written(tmp_path, b"")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.tune_lora.epoch=3"], "unknown key 'stages.tune_lora.epoch'; did you mean 'epochs'?"),
        (MANY, "set cluster.workers to "),
    ],
    ids=["configuration", "workers"],
)
def test_the_real_job_ends_with_2(overrides: list[str], message: str, tmp_path: Path) -> None:
    settings = [a for s in [f"storage={tmp_path}/runs", *overrides] for a in ("--set", s)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / "full_pipeline.py", "--config", SMOKE, *settings],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"RAYREC_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert leftovers(tmp_path) == set()
