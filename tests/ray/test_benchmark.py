"""The benchmark in its smallest form: every subject runs, and what it leaves can be read."""

import json
import re
from pathlib import Path

import pandas as pd
import processes
import yaml

SMALL = {
    "name": "small",
    "base": str(processes.ROOT / "configs" / "smoke.yaml"),
    "set": {"cluster.workers": 1, "stages.tune_lora.micro_batch": 16, "stages.tune_hybrid.micro_batch": 16},
    "rounds": 1,
    "steps": 2,
    "candidates": 20,
    "metric_rows": 20_000,
    "metric_users": 200,
    "groups_steps": 4,
}


OF_NEXT_ITEMS = {
    "name": "small",
    "base": str(processes.ROOT / "configs" / "smoke_next_item.yaml"),
    "set": {"cluster.workers": 1},
    "subjects": ["encoder", "ranking"],
    "rounds": 1,
    "ranked_sessions": 500,
    "ranked_items": 300,
}


def test_lists_of_next_items_are_measured(job_env: dict[str, str], tmp_path: Path) -> None:
    tree = OF_NEXT_ITEMS | {"set": {**OF_NEXT_ITEMS["set"], "storage": str(tmp_path)}}  # type: ignore[dict-item]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    command = processes.job("benchmark", "--config", str(tmp_path / "small.yaml"))
    finished = processes.run(command, job_env, tmp_path / "log").checked()
    print(f"benchmark of next items: {finished.seconds:.0f} s")
    assert "encoder stage: left out" in finished.out  # without RecTools
    assert not (tmp_path / "small" / "data" / "prompts").exists()  # of which no subject reads any
    table = pd.read_csv(tmp_path / "small" / "benchmark.csv")
    assert len(table) == 2 and table["name"][0] == "ranking 500 sessions, 300 items"
    assert re.fullmatch(r"evaluation of 1\d\d sessions, 150 items", table["name"][1])
    assert (table["ours"] > 0).all() and (table["theirs"] > 0).all()


def test_every_subject_is_measured(job_env: dict[str, str], tmp_path: Path) -> None:
    tree = SMALL | {"set": {**SMALL["set"], "storage": str(tmp_path)}}  # type: ignore[dict-item]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(tree))
    command = processes.job("benchmark", "--config", str(tmp_path / "small.yaml"))
    finished = processes.run(command, job_env, tmp_path / "log").checked()
    print(f"benchmark: {finished.seconds:.0f} s")
    folder = tmp_path / "small"
    table = pd.read_csv(folder / "benchmark.csv")
    assert list(table["name"]) == [
        "LoRA stage, two workers",
        "LoRA stage",
        "LoRA stage",
        "hybrid stage",
        "re-ranking 20 candidates",
        "re-ranking 20 candidates",
        "AUC and UAUC of 20,000 rows",
    ]
    assert (table["ratio"] > 0).all() and (table["ours"] / table["theirs"] > 0).all()
    content = json.loads((folder / "benchmark.json").read_text())
    assert len(content["comparisons"]) == 7 and content["machine"]["matmul GFLOP/s, fp32"] > 0
    shares = table.loc[table["name"].isin(["LoRA stage", "hybrid stage"]), "our share of matmul peak"]
    assert len(shares) == 3 and shares.between(0.0001, 1).all()
    assert content["machine"]["checkpoint"].endswith(" s") and content["machine"]["input wait, share of a step"]
    page = (folder / "report" / "index.html").read_text()
    assert "re-ranking 20 candidates" in page and "://" not in page  # nothing is loaded from anywhere
