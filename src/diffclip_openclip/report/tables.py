"""Fill the layouts with the paper's rows and ours, and write the notes below each table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.paper import MEANS, Score, paper_notes
from diffclip_openclip.report.table_layouts import LAYOUTS, Block, Column, TableLayout

MISSING = "–"


@dataclass(frozen=True)
class TableRow:
    """Hold an entry that stands in a block of a table."""

    block: Block
    entry: Entry


@dataclass(frozen=True)
class TextLine:
    """Hold a line of a table as it is read."""

    kind: str  # "block" (a block's title), "paper", "ours", or "minus" (ours less the paper's)
    source: str  # first column
    model: str  # second column
    cells: tuple[str, ...]
    cell_sources: tuple[str, ...]  # where each cell's number comes from, or ""


@dataclass(frozen=True)
class Table:
    """Hold a layout with its rows and the notes below it."""

    layout: TableLayout
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]

    @property
    def lines(self) -> Iterator[TextLine]:
        """Yield the lines, with the blocks' titles among them."""
        count = len(self.layout.blocks[0].columns)
        for title, rows in groupby(self.rows, key=lambda row: row.block.title):
            if title:
                yield TextLine("block", title, "", ("",) * count, ("",) * count)
            for row in rows:
                yield from _row_lines(row, self.layout.digits)


def make_tables(paper: Mapping[str, Entry], ours: Sequence[Entry]) -> list[Table]:
    """Return all tables that have a row."""
    tables = [_make_table(layout, paper, ours) for layout in LAYOUTS]
    return [table for table in tables if table.rows]


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; what rounds to zero is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _make_table(layout: TableLayout, paper: Mapping[str, Entry], ours: Sequence[Entry]) -> Table:
    entries = (*paper.values(), *ours)
    rows = tuple(
        TableRow(block, entry) for block in layout.blocks for entry in entries if _stands(entry, block, layout.derived)
    )
    notes = [*_difference_notes(rows), *_missing_notes(rows), *_derived_notes(rows), *paper_notes(layout.keys)]
    if ours:
        notes += _absent_notes(layout, rows, ours)
    return Table(layout, rows, tuple(notes))


def _stands(entry: Entry, block: Block, derived: bool) -> bool:
    scores = [entry.scores[column.key] for column in block.columns if column.key in entry.scores]
    return any(derived or not score.derived for score in scores)


# cells


def _row_lines(row: TableRow, digits: int) -> Iterator[TextLine]:
    entry, keys = row.entry, [column.key for column in row.block.columns]
    cell_sources = tuple(entry.scores[key].source if key in entry.scores else "" for key in keys)
    source = "ours" if entry.is_ours else f"paper, {entry.pretraining}"
    cells = tuple(_cell(entry, key, digits) for key in keys)
    yield TextLine("ours" if entry.is_ours else "paper", source, entry.name, cells, cell_sources)
    minus = tuple(_minus_cell(entry, key, digits) for key in keys)
    if entry.paper is not None and any(text != MISSING for text in minus):
        yield TextLine("minus", "ours − paper", entry.paper.title, minus, ("",) * len(keys))


def _cell(entry: Entry, key: str, digits: int) -> str:
    """Return a value and, in parentheses, its difference to the baseline: ``14.4 (+0.8)``."""
    score = entry.scores.get(key)
    if score is None:
        return MISSING
    difference = entry.difference(key)
    text = f"{'≈' if score.derived else ''}{score.value:.{digits}f}"
    return text if difference is None else f"{text} ({signed(difference, digits)})"


def _minus_cell(entry: Entry, key: str, digits: int) -> str:
    minus = entry.minus_paper(key)
    if minus is None or entry.paper is None:
        return MISSING
    return f"{'≈' if entry.paper.scores[key].derived else ''}{signed(minus, digits)}"


# notes


def _difference_notes(rows: Iterable[TableRow]) -> Iterator[str]:
    rows = list(rows)
    entries = list(dict.fromkeys(row.entry.name for row in rows if row.entry.is_ours))
    if any(not row.entry.is_ours and row.entry.baseline for row in rows):
        yield "In parentheses, the paper's rows: difference to CLIP of the same pretraining."
    pairs = {row.entry.name: row.entry.baseline.name for row in rows if row.entry.is_ours and row.entry.baseline}
    for base in dict.fromkeys(pairs.values()):
        names = ", ".join(name for name in pairs if pairs[name] == base)
        yield f"In parentheses, {names}: difference to {base}."
    if entries:
        yield "Ours: means and differences are computed before rounding."
    if any(row.entry.minus_paper(column.key) is not None for row in rows for column in row.block.columns):
        yield "Ours − paper: the row above less that row of the paper, whose values are rounded."


def _missing_notes(rows: Iterable[TableRow]) -> Iterator[str]:
    """Yield one note for all entries that lack the same cells of a block."""
    lacking: dict[tuple[bool, str, tuple[Column, ...]], list[str]] = {}
    for row in rows:
        if columns := tuple(column for column in row.block.columns if column.key not in row.entry.scores):
            lacking.setdefault((row.entry.is_ours, row.block.title, columns), []).append(row.entry.title)
    for (is_ours, block, columns), names in lacking.items():
        single, means = ([c.full_title for c in columns if (c.key in MEANS) is mean] for mean in (False, True))
        if not is_ours:
            what = [f"not in the paper: {', '.join(column.full_title for column in columns)}"]
        else:
            what = [f"no result of {', '.join(single)}"] if single else []
            what += [f"not all results that are in the mean: {', '.join(means)}"] if means else []
        yield f"– for {', '.join(names)}{f' ({block})' if block else ''}: {'; '.join(what).removesuffix('.')}."


def _derived_notes(rows: Iterable[TableRow]) -> Iterator[str]:
    scores = [score for row in rows for score in _paper_scores(row)]
    if sources := list(dict.fromkeys(score.source for score in scores if score.derived)):
        yield f"≈ is not printed in the paper and follows from it: {'; '.join(sources)}."


def _paper_scores(row: TableRow) -> Iterator[Score]:
    """Yield the paper's scores that stand in a row or are subtracted there."""
    entry = row.entry.paper if row.entry.is_ours else row.entry
    for column in row.block.columns:
        if entry is not None and column.key in entry.scores and column.key in row.entry.scores:
            yield entry.scores[column.key]


def _absent_notes(layout: TableLayout, rows: Sequence[TableRow], ours: Sequence[Entry]) -> Iterator[str]:
    absent: dict[str, list[str]] = {}
    for block in layout.blocks:
        there = {row.entry.name for row in rows if row.entry.is_ours and row.block is block}
        if names := ", ".join(entry.name for entry in ours if entry.name not in there):
            absent.setdefault(names, []).append(block.title)
    for names, blocks in absent.items():
        where = f" ({', '.join(blocks)})" if 0 < len(blocks) < len(layout.blocks) else ""
        yield f"Without results here{where}: {names}."
