"""The tables of docs/scale.md follow from its formulas."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
TOKENS, SUFFIX = 256, 64
FLOPS, NETWORK, CARD = 0.3 * 65e12, 5e9 / 8, 15e9
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight, as footprint counts them


@dataclass(frozen=True)
class Model:
    """A decoder's shape; ``N``, ``A`` and ``P`` as the page names them."""

    hidden: int
    inner: int
    layers: int
    kv: int  # width of keys, and of values
    vocabulary: int

    @property
    def linear(self) -> int:
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * self.kv + 3 * self.hidden * self.inner)

    @property
    def every(self) -> int:
        return self.linear + 2 * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def trained(self) -> int:
        return self.layers * 8 * (2 * self.hidden + self.hidden + self.kv)

    @property
    def lora(self) -> float:
        return 4.0 * self.linear * TOKENS

    @property
    def hybrid(self) -> float:
        return 2.0 * self.linear * (TOKENS + SUFFIX)

    @property
    def packed(self) -> float:
        return self.linear * NF4 + 2 * (self.every - self.linear)


def shipped(name: str) -> Model:
    c = json.loads((ROOT / "configs" / "models" / f"{name}.json").read_text())
    kv = c["hidden_size"] // c["num_attention_heads"] * c["num_key_value_heads"]
    return Model(c["hidden_size"], c["intermediate_size"], c["num_hidden_layers"], kv, c["vocab_size"])


MODELS = {
    "1.1B": shipped("tinyllama-1.1b"),
    "8B": shipped("llama-3.1-8b"),
    "70B": Model(8192, 28672, 80, 1024, 128256),  # Llama-3.1-70B, https://arxiv.org/abs/2407.21783, table 3
}


def rows(header: str) -> dict[str, list[str]]:
    """First cells -> the others, of the table whose header holds ``header``."""
    table = next(part for part in TEXT.split("\n\n") if part.startswith("|") and header in part.splitlines()[0])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {" ".join(row[:2]) if "how" in header else row[0]: row[2 if "how" in header else 1 :] for row in cells}


def test_symbols() -> None:
    table = rows("symbol")
    for column, model in enumerate(MODELS.values(), 1):
        assert table["N"][column] == f"{model.linear / 1e9:.2f}" and table["A"][column] == f"{model.every / 1e9:.2f}"
        assert table["P"][column] == f"{model.trained / 1e6:.2f}"
        assert table["T"][column] == str(TOKENS) and table["S"][column] == str(SUFFIX)


@pytest.mark.parametrize("name", MODELS)
def test_one_card(name: str) -> None:
    model = MODELS[name]
    assert rows("TFLOP a row")[name] == [
        f"{model.lora / 1e12:.2f}",
        f"{model.hybrid / 1e12:.2f}",
        f"{FLOPS / model.lora:.1f}",
        f"{FLOPS / model.hybrid:.1f}",
        f"{2 * model.every / 1e9:.1f}",
        f"{model.packed / 1e9:.1f}",
        f"{1e3 * 6 * model.trained / NETWORK:.0f}",
        f"{2 * model.every / NETWORK:.0f}",
        f"{16 * model.trained / 1e6:.0f}",
    ]


@pytest.mark.parametrize(("name", "how"), [("1.1B", "ZeRO-2"), ("8B", "ZeRO-2"), ("8B", "ZeRO-3"), ("70B", "ZeRO-3")])
def test_many_cards(name: str, how: str) -> None:
    model, found = MODELS[name], rows("model | how")
    (row,) = [cells for key, cells in found.items() if key.startswith(name) and key.endswith(how)]
    each = 4 if how == "ZeRO-3" else 2
    for workers, cell in zip((8, 64, 512), row, strict=True):
        computing = each * model.lora / FLOPS
        moved = 2 * model.trained + 2 * 2 * model.every if how == "ZeRO-3" else 6 * model.trained
        seconds = computing + moved * (workers - 1) / workers / NETWORK
        rate = workers * each / seconds
        fits = 2 * model.every / workers < CARD if how == "ZeRO-3" else model.packed < CARD
        shown = f"{rate:,.0f}" if rate > 20 and how == "ZeRO-2" else f"{rate:.1f}"
        assert cell == (f"{shown}, {computing / seconds:.0%}" if fits else "does not fit")


@pytest.mark.parametrize(("workers", "goodput"), [(8, "99%"), (64, "94%"), (512, "53%")])
def test_lost_nodes(workers: int, goodput: str) -> None:
    between = 86_400 / workers
    assert f"{1 - (60 + 40 / 2) / between:.0%}" == goodput
    assert "goodput is 99%, 94% and 53%" in TEXT and "3 hours, of 64 in 23 minutes, of 512 in 2.8 minutes" in TEXT
