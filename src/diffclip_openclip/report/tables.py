"""Fills layouts with the paper's rows and ours, and says in notes what is missing, derived or off."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffclip_openclip.report.checks import paper_notes
from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.layouts import LAYOUTS, Block, Column, Layout
from diffclip_openclip.report.scores import MEANS, Score


@dataclass(frozen=True)
class Row:
    """An entry in a block of a table."""

    block: Block
    entry: Entry


@dataclass(frozen=True)
class Table:
    """A layout, its rows, and the notes below it."""

    layout: Layout
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def make_tables(paper: Mapping[str, Entry], ours: Sequence[Entry]) -> list[Table]:
    """All tables that have a row."""
    tables = [_make_table(layout, paper, ours) for layout in LAYOUTS]
    return [table for table in tables if table.rows]


def _make_table(layout: Layout, paper: Mapping[str, Entry], ours: Sequence[Entry]) -> Table:
    entries = (*paper.values(), *ours)
    rows = tuple(
        Row(block, entry) for block in layout.blocks for entry in entries if _stands(entry, block, layout.derived)
    )
    notes = [*_difference_notes(rows), *_missing_notes(rows), *_derived_notes(rows)]
    notes += paper_notes(paper, layout.keys)
    if ours:
        notes += _absent_notes(layout, rows, ours)
    return Table(layout, rows, tuple(notes))


def _stands(entry: Entry, block: Block, derived: bool) -> bool:
    scores = [entry.scores[column.key] for column in block.columns if column.key in entry.scores]
    return any(derived or not score.derived for score in scores)


def _difference_notes(rows: Iterable[Row]) -> Iterator[str]:
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


def _missing_notes(rows: Iterable[Row]) -> Iterator[str]:
    """One note for the entries that lack the same cells of a block."""
    lacking: dict[tuple[bool, str, tuple[Column, ...]], list[str]] = {}
    for row in rows:
        if columns := tuple(column for column in row.block.columns if column.key not in row.entry.scores):
            lacking.setdefault((row.entry.is_ours, row.block.title, columns), []).append(title_of(row.entry))
    for (is_ours, block, columns), names in lacking.items():
        single, means = ([c.full_title for c in columns if (c.key in MEANS) is mean] for mean in (False, True))
        if not is_ours:
            what = [f"not in the paper: {', '.join(column.full_title for column in columns)}"]
        else:
            what = [f"no result of {', '.join(single)}"] if single else []
            what += [f"not all results that are in the mean: {', '.join(means)}"] if means else []
        yield f"– for {', '.join(names)}{f' ({block})' if block else ''}: {'; '.join(what).removesuffix('.')}."


def _derived_notes(rows: Iterable[Row]) -> Iterator[str]:
    scores = [score for row in rows for score in _paper_scores(row)]
    if sources := list(dict.fromkeys(score.source for score in scores if score.derived)):
        yield f"≈ is not printed in the paper and follows from it: {'; '.join(sources)}."


def _paper_scores(row: Row) -> Iterator[Score]:
    """What of the paper stands in a row, or is subtracted there."""
    entry = row.entry.paper if row.entry.is_ours else row.entry
    for column in row.block.columns:
        if entry is not None and column.key in entry.scores and column.key in row.entry.scores:
            yield entry.scores[column.key]


def _absent_notes(layout: Layout, rows: Sequence[Row], ours: Sequence[Entry]) -> Iterator[str]:
    absent: dict[str, list[str]] = {}
    for block in layout.blocks:
        there = {row.entry.name for row in rows if row.entry.is_ours and row.block is block}
        if names := ", ".join(entry.name for entry in ours if entry.name not in there):
            absent.setdefault(names, []).append(block.title)
    for names, blocks in absent.items():
        where = f" ({', '.join(blocks)})" if 0 < len(blocks) < len(layout.blocks) else ""
        yield f"Without results here{where}: {names}."


def title_of(entry: Entry) -> str:
    """A row's name in running text."""
    return f"{entry.pretraining} {entry.name}" if not entry.is_ours else entry.name
