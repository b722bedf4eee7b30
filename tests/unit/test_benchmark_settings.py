"""What a benchmark's file may say, and how a comparison is counted."""

import sys
from pathlib import Path

import pytest
import yaml

from rayrec.benchmark.encoders import rectools
from rayrec.benchmark.settings import load_benchmark
from rayrec.benchmark.timing import Comparison, compare
from rayrec.errors import InputError
from rayrec.stages import Loss

ROOT = Path(__file__).resolve().parents[2]
NEXT = str(ROOT / "configs" / "smoke_next_item.yaml")
BERT = {"encoder.kind": "bert4rec", "stages.pretrain_encoder.loss": "cloze"}


def test_the_shipped_one_loads() -> None:
    found = load_benchmark(ROOT / "configs" / "benchmark" / "default.yaml", ["rounds=5"])
    assert found.config.rounds == 5 and found.base.data.history == 10 and found.base.cluster.workers == 1


def test_the_one_of_next_items_has_the_sizes_of_movielens_1m() -> None:
    found = load_benchmark(ROOT / "configs" / "benchmark" / "next_items.yaml")
    size, encoder = found.base.data.synthetic, found.base.encoder
    assert (size.users, size.items, size.rows) == (6040, 3706, 1_000_209)
    assert (encoder.width, encoder.blocks, encoder.heads, encoder.max_len) == (64, 2, 4, 50)
    assert found.base.stages.pretrain_encoder.batch == 128 and found.base.data.core is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subjects": ["ranking"]}, "ranking is of data.task next_item, and the base of click"),
        ({"base": NEXT, "subjects": ["lora"]}, "lora is of data.task click, and the base of next_item"),
        ({"base": NEXT, "subjects": ["ranking"], "set": BERT}, "forwards, and bert4rec does not"),
        ({"round": 3}, "round"),
        ({"rounds": 0}, "rounds"),
        ({"subjects": ["lora", "fame"]}, "subjects"),
        ({"set": {"data.histroy": 3}}, "histroy"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such file"),
    ],
)
def test_a_bad_one_is_one_line(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"base": str(ROOT / "configs" / "smoke.yaml")} | changes))
    with pytest.raises(InputError, match=message) as refused:
        load_benchmark(tmp_path / "b.yaml")
    assert "\n" not in str(refused.value)


def test_rounds_are_taken_in_turn_and_the_first_does_not_count() -> None:
    asked: list[tuple[str, int]] = []

    def ours(number: int) -> int:
        asked.append(("ours", number))
        return 10

    def theirs(number: int) -> int:
        asked.append(("theirs", number))
        return 10

    found = compare(name="n", reference="r", unit="u", ours=ours, theirs=theirs, rounds=2)
    assert asked == [(who, number) for number in (-1, 0, 1) for who in ("ours", "theirs")]
    assert len(found.ours) == len(found.theirs) == 2


def test_the_ratio_is_the_median_of_the_rounds() -> None:
    found = Comparison(name="n", reference="r", unit="u", ours=(2.0, 9.0, 8.0), theirs=(1.0, 3.0, 1.0))
    assert found.ratios == (2.0, 3.0, 8.0) and found.ratio == 3.0


def test_an_environment_without_rectools_is_refused(tmp_path: Path) -> None:
    base = load_benchmark(ROOT / "configs" / "benchmark" / "default.yaml").base
    for python, reason in ((sys.executable, "No module named 'rectools'"), ("/nowhere/python", "No such file")):
        with pytest.raises(InputError, match=f"rectools: {python} does not import it .*{reason}") as refused:
            rectools(python, base, str(tmp_path), Loss.SOFTMAX, tmp_path).__enter__()
        assert "\n" not in str(refused.value)
