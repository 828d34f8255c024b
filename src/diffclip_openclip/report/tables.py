"""Fill the layouts with the paper's rows and ours: the cells of each table as they are read, and its numbers as CSV."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.evaluated_models import EvaluatedModel
from diffclip_openclip.report.paper import Score, paper_key
from diffclip_openclip.report.remarks import other_sizes
from diffclip_openclip.report.table_layouts import LAYOUTS, Block, Column, TableLayout, other_layout
from diffclip_openclip.report.table_notes import Row, notes_of

MISSING = "–"
SIZES_NAME = "data_sizes"


@dataclass(frozen=True)
class Cell:
    """Hold what stands in a cell, in parts that each format sets in its own way."""

    value: str = MISSING
    error: str = ""  # behind ±
    difference: str = ""  # in parentheses, with its sign
    within_noise: bool = False  # the difference
    is_other_size: bool = False  # of data that are not of the published size
    is_best: bool = False  # of its column, among the rows that are compared with each other
    source: str = ""  # where the number comes from

    @property
    def text(self) -> str:
        """Return the cell as plain text: ``14.4 ±0.3 (+0.8 ns) §``."""
        difference = f"({self.difference}{' ns' if self.within_noise else ''})" if self.difference else ""
        error = f"±{self.error}" if self.error else ""
        return " ".join(filter(None, (self.value, error, difference, "§" if self.is_other_size else "")))


@dataclass(frozen=True)
class Line:
    """Hold a line of a table."""

    kind: str  # "block" (a block's title, without cells), "paper", "ours", or "minus" (ours less the paper's)
    stubs: tuple[str, ...]  # what stands before the cells
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Hold a table as it is read."""

    name: str  # of its files
    title: str
    caption: str
    stubs: tuple[str, ...]  # titles of the columns before the cells
    heads: tuple[tuple[str, str], ...]  # of each column of cells, its group's title, or "", and its own
    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()
    records: tuple[tuple[str, ...], ...] = ()  # the same numbers for programs, a line for each entry of a block


def make_tables(paper: Mapping[str, Entry], ours: Sequence[Entry], models: Sequence[EvaluatedModel]) -> list[Table]:
    """Return all tables that have a line."""
    layouts = (*LAYOUTS, other_layout(key for entry in ours for key in entry.scores))
    tables = [table for layout in layouts if (table := _make_table(layout, paper, ours))]
    sizes = _sizes_table(models)
    return [*tables, sizes] if sizes else tables


def signed(value: float, digits: int) -> str:
    """Return a number with its sign; what rounds to zero is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _make_table(layout: TableLayout, paper: Mapping[str, Entry], ours: Sequence[Entry]) -> Table | None:
    entries = (*paper.values(), *ours)
    rows = [(block, entry) for block in layout.blocks for entry in entries if _stands(entry, block, layout.derived)]
    if not rows:
        return None
    columns = layout.blocks[0].columns
    stubs: tuple[str, ...] = ("Source", "Model")
    heads = tuple((column.group, column.title) for column in columns)
    lines = tuple(_lines(layout, rows))
    if layout.stub:
        stubs, heads, lines = _beside_each_other(layout, rows)
    notes = tuple(notes_of(layout, rows, ours))
    return Table(layout.name, layout.title, layout.caption, stubs, heads, lines, notes, tuple(_records(layout, rows)))


def _stands(entry: Entry, block: Block, derived: bool) -> bool:
    scores = [entry.scores[column.key] for column in block.columns if column.key in entry.scores]
    return any(derived or not score.derived for score in scores)


def _lines(layout: TableLayout, rows: Sequence[Row]) -> Iterator[Line]:
    """Yield a line for each entry and its difference to the paper, with the blocks' titles among them."""
    for block in layout.blocks:
        own = [entry for other, entry in rows if other is block]
        if block.title and own:
            yield Line("block", (block.title, ""), ())
        for entry in own:
            source = "ours" if entry.is_ours else f"paper, {entry.pretraining}"
            yield Line("ours" if entry.is_ours else "paper", (source, entry.name), _cells(layout, block, entry, own))
            minus = _minus_cells(layout, block, entry)
            if entry.paper is not None and any(cell.value != MISSING for cell in minus):
                yield Line("minus", ("ours − paper", entry.paper.title), minus)


def _beside_each_other(
    layout: TableLayout, rows: Sequence[Row]
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...], tuple[Line, ...]]:
    """Return the stubs, heads and lines of a table with a line for each block and a group of columns for each entry."""
    entries = list(dict.fromkeys(entry.title for _, entry in rows))
    heads: list[tuple[str, str]] = []
    by_block: dict[str, list[Cell]] = {block.title: [] for block in layout.blocks}
    titles = [column.title for column in layout.blocks[0].columns]
    for name in entries:
        (entry, *_) = (entry for _, entry in rows if entry.title == name)
        minus = {block.title: _minus_cells(layout, block, entry) for block in layout.blocks}
        has_minus = any(cell.value != MISSING for cells in minus.values() for cell in cells)
        head = f"{name} − paper" if has_minus else ""
        heads += [(name, title) if title else ("", name) for title in titles]
        heads += [(head, title) if title else ("", head) for title in titles if has_minus]
        for block in layout.blocks:
            own = [other for at, other in rows if at is block]
            by_block[block.title] += _cells(layout, block, entry, own)
            by_block[block.title] += minus[block.title] if has_minus else ()
    lines = tuple(Line("paper", (title,), tuple(cells)) for title, cells in by_block.items())
    return (layout.stub,), tuple(heads), lines


# cells


def _cells(layout: TableLayout, block: Block, entry: Entry, others: Sequence[Entry]) -> tuple[Cell, ...]:
    """Return an entry's cells; ``others`` are all entries of the block."""
    rivals = [other for other in others if (other.is_ours, other.pretraining) == (entry.is_ours, entry.pretraining)]
    rivals = [other for other in others if other.is_ours] if entry.is_ours else rivals
    return tuple(_cell(layout.digits, column, entry, rivals) for column in block.columns)


def _cell(digits: int, column: Column, entry: Entry, rivals: Sequence[Entry]) -> Cell:
    score = entry.scores.get(column.key)
    if score is None:
        return Cell()
    difference, certainty = entry.difference(column.key), entry.certainty(column.key)
    error = spread(score)
    values = [round(other.scores[column.key].value, digits) for other in rivals if column.key in other.scores]
    is_best = (
        len(set(values)) > 1 and round(score.value, digits) == max(values) and not column.key.endswith("yes_ratio")
    )
    return Cell(
        f"{'≈' if score.derived else ''}{score.value:.{digits}f}",
        "" if error is None else f"{error:.{digits}f}",
        "" if difference is None else signed(difference, digits),
        certainty is not None and certainty.within_noise,
        score.is_other_size,
        is_best,
        score.source,
    )


def spread(score: Score) -> float | None:
    """Return what stands behind ±: the standard deviation of runs, or half of the 95 % interval; None if unknown."""
    if len(score.runs) > 1:
        return statistics.stdev(score.runs)
    return score.interval.half if score.interval else None


def _minus_cells(layout: TableLayout, block: Block, entry: Entry) -> tuple[Cell, ...]:
    cells = []
    for column in block.columns:
        minus = entry.minus_paper(column.key)
        if minus is None or entry.paper is None:
            cells.append(Cell())
        else:
            derived = entry.paper.scores[paper_key(column.key)].derived
            cells.append(Cell(f"{'≈' if derived else ''}{signed(minus, layout.digits)}"))
    return tuple(cells)


# for programs


def _records(layout: TableLayout, rows: Iterable[Row]) -> Iterator[tuple[str, ...]]:
    """Yield the titles, then the numbers of each row, with four digits behind the decimal point."""
    head = ["block", "source", "pretraining", "model", "baseline", "paper_row", "± is"]
    for column in layout.blocks[0].columns:
        name = column.full_title or "value"
        head += [name, f"{name} ±", f"{name} - baseline", f"{name} - baseline ±", f"{name} - baseline p"]
        head += [f"{name} - paper"]
    yield tuple(head)
    for block, entry in rows:
        baseline, paper = (other.title if other else "" for other in (entry.baseline, entry.paper))
        names = ["ours" if entry.is_ours else "paper", entry.pretraining or "", entry.name, baseline, paper]
        has_runs = any(score.runs for score in entry.scores.values())
        kind = "standard deviation of training runs" if has_runs else "half of the 95 % interval"
        numbers = [number for column in block.columns for number in _numbers(entry, column.key)]
        yield (block.title, *names, kind, *("" if number is None else str(round(number, 4)) for number in numbers))


def _numbers(entry: Entry, key: str) -> list[float | None]:
    score, certainty = entry.scores.get(key), entry.certainty(key)
    own = [score.value, spread(score)] if score else [None, None]
    sure = [certainty.half, certainty.p] if certainty else [None, None]
    return [*own, entry.difference(key), *sure, entry.minus_paper(key)]


# data of another size


def _sizes_table(models: Sequence[EvaluatedModel]) -> Table | None:
    """Return the table of the data that the mark § stands for."""
    found = other_sizes(models)
    if not found:
        return None
    heads = ("Here", "Published", "Models")
    records = [(*row[:4], ", ".join(row[4])) for row in found]
    return Table(
        SIZES_NAME,
        "§ Data of another size than the published",
        "As evaluated and as published. Do not compare these scores with others'.",
        ("Data set", "Split"),
        tuple(("", head) for head in heads),
        tuple(Line("ours", record[:2], tuple(map(Cell, record[2:]))) for record in records),
        records=(("data_set", "split", *(head.lower() for head in heads)), *records),
    )
