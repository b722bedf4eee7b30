"""A table of the report as Markdown and as LaTeX, for other people's documents. Titles are text, whatever they hold."""

import re
from collections.abc import Iterable
from typing import Final

from rayrec.report.tables import Cell, Table

_MARKDOWN: Final = re.compile(r"([\\`*_{}\[\]<>|~&$])")  # CommonMark, section 2.4; `|` is the table's own
# What TeX reads as more than itself: its special characters, the openings of optional arguments and the stars that
# may follow \\, and characters that join with their neighbours into another.
_LATEX: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\textquotedbl}",
    "`": r"{\textasciigrave}",
    "'": "{'}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "-": "{-}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "Δ": r"$\Delta$",
    "“": r"{\textquotedblleft}",
    "”": r"{\textquotedblright}",
}


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, also in a cell of a table."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is; other characters than ASCII are left to its input encoding, UTF-8."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def markdown_table(table: Table) -> str:
    """GitHub's tables, with the caption above; what is small type on the page follows in brackets."""
    numbers = _numbers(table)
    lines = [markdown_text(table.caption), ""]
    lines.append(_row(markdown_text(name) for name in table.header))
    lines.append(_row("---:" if number else "---" for number in numbers))
    for row in table.rows:
        lines.append(_row(_emphasised(cell, markdown_text(_text(cell)), "**", "**") for cell in row))
    return "\n".join(lines) + "\n"


def latex_table(table: Table) -> str:
    """A ``table`` environment with the rules of the package booktabs."""
    columns = "".join("r" if number else "l" for number in _numbers(table))
    lines = [
        r"% \usepackage{booktabs} \usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex_text(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(latex_text(name) for name in table.header) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = (_emphasised(cell, latex_text(_text(cell)), r"\textbf{", "}") for cell in row)
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    """Line breaks and control characters have no place in a cell."""
    return "".join(character if character.isprintable() else " " for character in " ".join(text.split()))


def _numbers(table: Table) -> list[bool]:
    """Whether each column holds numbers, as the page aligns it."""
    return [table.rows[0][column].number if table.rows else True for column in range(len(table.header))]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    return f"{cell.text} ({cell.detail})" if cell.detail else cell.text


def _emphasised(cell: Cell, text: str, before: str, after: str) -> str:
    return f"{before}{text}{after}" if cell.best else text
