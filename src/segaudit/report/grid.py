"""A table of strings, written as markdown, LaTeX (booktabs) or CSV with every name escaped."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\u2013": "--",
}  # fmt: skip
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\|<>[]*`&"})


@dataclass(frozen=True, slots=True)
class Grid:
    """title: one line. words: how many leading columns hold words; the others hold numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int


def markdown(grid: Grid) -> str:
    """A GitHub table with padded columns, the title above it."""
    lines = [[_line(cell).translate(MARKDOWN) for cell in row] for row in (grid.header, *grid.rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(grid.header))]

    def joined(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if i < grid.words else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * width if i < grid.words else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    title = _line(grid.title).translate(MARKDOWN)
    return "\n".join([title, "", joined(lines[0]), joined(rule), *map(joined, lines[1:])]) + "\n"


def latex(grid: Grid) -> str:
    r"""A table for `\usepackage{booktabs}`; a rule where the first column changes, which is then not repeated."""

    def escaped(text: str) -> str:
        return "".join(LATEX.get(sign, sign) for sign in _line(text))

    body: list[str] = []
    for i, row in enumerate(grid.rows):
        again = i > 0 and grid.words > 1 and row[0] == grid.rows[i - 1][0]
        if i > 0 and grid.words > 1 and not again:
            body.append(r"\midrule")
        body.append(" & ".join(["" if again else escaped(row[0]), *map(escaped, row[1:])]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(grid.title)}}}",
            rf"\begin{{tabular}}{{{'l' * grid.words}{'r' * (len(grid.header) - grid.words)}}}",
            r"\toprule",
            " & ".join(map(escaped, grid.header)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def comma(grid: Grid) -> str:
    """CSV with one header line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([grid.header, *grid.rows])
    return text.getvalue()


WRITERS: dict[str, Callable[[Grid], str]] = {"markdown": markdown, "latex": latex, "csv": comma}


def _line(text: str) -> str:
    return " ".join(text.split())
