"""Write a table in LaTeX, with booktabs' rules and the best values bold, to be ``\\input`` into a paper."""

import re
from itertools import groupby

from diffclip_openclip.report.tables import Cell, Line, Table

_LETTERS = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "≈": r"$\approx$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "†": r"\textdagger{}",
    "§": r"\S{}",
}


def latex(table: Table) -> str:
    """Return a float over both columns of a page, not wider than the text; caption and notes stand below the table."""
    title = re.sub(r"^(Table|Figure) \d\. ", "", table.title)  # LaTeX numbers it
    columns = "l" * len(table.stubs) + "r" * len(table.heads)
    head = " & ".join(map(escape, (*table.stubs, *(title for _, title in table.heads))))
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table*}",
        r"\centering",
        r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *_groups(table),
        rf"{head} \\",
        r"\midrule",
        *(_line(line, first=line is table.lines[0], width=len(columns)) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{escape(' '.join((f'{title}.', table.caption, *table.notes)))}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Return text as LaTeX sets it; it needs no other encoding than UTF-8, the default."""
    return "".join(_LETTERS.get(letter, letter) for letter in text)


def _groups(table: Table) -> list[str]:
    """Return the line of the columns' groups and the rules below them, if there are groups."""
    if not any(group for group, _ in table.heads):
        return []
    cells, rules, at = [""] * len(table.stubs), [], len(table.stubs) + 1
    for group, heads in groupby(table.heads, key=lambda head: head[0]):
        count = len(list(heads))
        cells.append(rf"\multicolumn{{{count}}}{{c}}{{{escape(group)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + count - 1}}}")
        at += count
    return [rf"{' & '.join(cells)} \\", " ".join(rules)]


def _line(line: Line, *, first: bool, width: int) -> str:
    if line.kind == "block":
        rule = "" if first else "\\midrule\n"
        return rf"{rule}\multicolumn{{{width}}}{{l}}{{\textit{{{escape(line.stubs[0])}}}}} \\"
    rows = [[*map(escape, line.stubs), *map(_value, line.cells)]]
    if any(cell.difference for cell in line.cells):  # below the values, as beside them they would make tables too wide
        rows.append([*[""] * len(line.stubs), *map(_difference, line.cells)])
    return "\n".join(rf"{' & '.join(row)} \\" for row in rows)


def _minus(number: str) -> str:
    """Return a number with a minus sign in place of a hyphen; other text as it is."""
    return f"−{number[1:]}" if number.startswith("-") else number


def _value(cell: Cell) -> str:
    value = escape(_minus(cell.value))
    error = rf" {{\scriptsize $\pm${cell.error}}}" if cell.error else ""
    return (rf"\textbf{{{value}}}" if cell.is_best else value) + error + (r"\S" if cell.is_other_size else "")


def _difference(cell: Cell) -> str:
    noise = r"\,ns" if cell.within_noise else ""
    return rf"{{\scriptsize ({escape(_minus(cell.difference))}{noise})}}" if cell.difference else ""
