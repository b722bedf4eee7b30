"""Tables as Markdown and LaTeX: whatever a title holds, it is read back as it is."""

import re

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from pandas.io.formats.style_render import _escape_latex

from rayrec.report.tables import Cell, Table
from rayrec.report.text_tables import latex_table, latex_text, markdown_table, markdown_text

HOSTILE = [
    r"a|b \ c",
    r"\| \\| `x` ``y``",
    "*bold* _it_ __x__ ~~no~~",
    "[link](http://x.y) ![i](j) <b>&amp;</b>",
    "# not a heading",
    "{x}$y$^2_3%~&",
    "[opt]",
    "*star",
    "-- ?` ''quoted\" `",
    "two\nlines\tand\x07more",
    "☃ ± − – Δ “x”",
]


def table(title: str) -> Table:
    return Table(
        name="results",
        caption=f"Of {title}",
        header=("System", "AUC"),
        rows=(
            (Cell("first", number=False), Cell("0.5")),
            (Cell(title, number=False, best=True), Cell("0.7 ± 0.1", "−0.1 to 0.2", best=True)),
        ),
        csv=pd.DataFrame(),
    )


def shown(title: str) -> str:
    return " ".join(title.replace("\x07", " ").split())


def read_markdown(text: str) -> list[list[str]]:
    """The cells of a table as CommonMark's reference implementation in Python reads them, markup left out."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    rows: list[list[str]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            assert {child.type for child in token.children or []} <= {
                "text",
                "text_special",
                "strong_open",
                "strong_close",
            }
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


@pytest.mark.parametrize("title", HOSTILE)
def test_markdown_reads_back_as_it_was(title: str) -> None:
    rows = read_markdown(markdown_table(table(title)))
    assert rows == [["System", "AUC"], ["first", "0.5"], [shown(title), "0.7 ± 0.1 (−0.1 to 0.2)"]]


def test_markdown_leaves_ordinary_text_alone() -> None:
    assert markdown_text("SASRecLLM, mapper-only (0.5)") == "SASRecLLM, mapper-only (0.5)"
    assert "| **Mine** | **0.7 ± 0.1 (−0.1 to 0.2)** |" in markdown_table(table("Mine"))


@pytest.mark.parametrize("character", "&%$#_{}~^\\")
def test_latex_escapes_as_pandas_does(character: str) -> None:
    theirs = _escape_latex(f"a{character}b")
    assert latex_text(f"a{character}b").replace("{}", "") == theirs.replace("{}", "").replace(" ", "")


@pytest.mark.parametrize("title", HOSTILE)
def test_latex_has_no_special_character_of_a_title(title: str) -> None:
    row = latex_table(table(title)).splitlines()[-4]
    assert row.startswith(r"\textbf{") and row.endswith(r" \\")
    cells = re.split(r"(?<!\\) & ", row.removesuffix(r" \\"))
    assert len(cells) == 2
    commands = re.sub(
        r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar)\{\}", "", cells[0]
    )
    commands = re.sub(
        r"\\(textquotedbl(left|right)?|textasciigrave)(?=\})|\$\\pm\$|\$-\$|\$\\Delta\$|\\[{}$&#%_]", "", commands
    )
    commands = re.sub(r"\{['\[\]*-]?\}", "", commands).removeprefix(r"\textbf{").removesuffix("}")
    assert not set(commands) & set("\\{}$&#%_^~<>|\"`'[]*\n\t\x07"), commands


def test_latex_by_hand() -> None:
    lines = latex_table(table(r"50% of A&B_1")).splitlines()
    assert lines[1:] == [
        r"\begin{table}",
        r"\centering",
        r"\caption{Of 50\% of A\&B\_1}",
        r"\label{tab:results}",
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"System & AUC \\",
        r"\midrule",
        r"first & 0.5 \\",
        r"\textbf{50\% of A\&B\_1} & \textbf{0.7 $\pm$ 0.1 ($-$0.1 to 0.2)} \\",
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
