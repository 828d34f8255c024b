"""Write the notes below a table: what its differences are to, what its marks mean, what is missing and why."""

from collections.abc import Iterable, Iterator, Sequence

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.paper import MEANS, Score, paper_key, paper_notes
from diffclip_openclip.report.table_layouts import Block, Column, TableLayout
from diffclip_openclip.report.uncertainty import LEVEL

Row = tuple[Block, Entry]  # an entry that stands in a block of a table


def notes_of(layout: TableLayout, rows: Sequence[Row], ours: Sequence[Entry]) -> list[str]:
    """Return the notes of a table, a sentence or two each."""
    notes = [*_difference_notes(rows), *_uncertainty_notes(rows), *_missing_notes(rows), *_derived_notes(rows)]
    if any(score.is_other_size for score in _scores(rows)):
        notes.append("§ the data are not of the published size: see the table of sizes.")
    notes += paper_notes(layout.keys)
    return [*notes, *_absent_notes(layout, rows, ours)]


def _scores(rows: Iterable[Row]) -> list[Score]:
    found = (entry.scores.get(column.key) for block, entry in rows for column in block.columns)
    return [score for score in found if score is not None]


def _difference_notes(rows: Sequence[Row]) -> Iterator[str]:
    if any(not entry.is_ours and entry.baseline for _, entry in rows):
        yield "In parentheses, the paper's rows: difference to CLIP of the same pretraining."
    pairs = {
        entry.name: entry.baseline.name
        for block, entry in rows
        if entry.is_ours
        and entry.baseline
        and any(entry.difference(column.key) is not None for column in block.columns)
    }
    for base in dict.fromkeys(pairs.values()):
        names = ", ".join(name for name in pairs if pairs[name] == base)
        yield f"In parentheses, {names}: difference to {base}."
    if any(entry.is_ours for _, entry in rows):
        yield "Ours: means and differences are computed before rounding."
    if any(entry.minus_paper(column.key) is not None for block, entry in rows for column in block.columns):
        yield "Ours − paper: the row above less that row of the paper, whose values are rounded."


def _uncertainty_notes(rows: Sequence[Row]) -> Iterator[str]:
    ours = _scores(row for row in rows if row[1].is_ours)
    paper = _scores(row for row in rows if not row[1].is_ours)
    if any(score.interval for score in ours):
        yield "±: half of the 95 % interval over test samples; of few-shot over episodes, which share test images."
    if any(score.interval for score in paper):
        yield (
            "± of the paper's rows: half of the 95 % interval that the size of the test sets alone gives; its "
            "differences are compared as of unrelated samples."
        )
    counts: dict[int, dict[str, None]] = {}
    for _, entry in rows:
        for score in entry.scores.values():
            if score.runs:
                counts.setdefault(len(score.runs), {})[entry.name] = None
    for count, names in counts.items():
        yield f"± of {', '.join(names)}: the standard deviation of {count} training runs, whose mean is shown."
    certainties = [entry.certainty(column.key) for block, entry in rows for column in block.columns]
    if any(found and found.within_noise for found in certainties):
        yield (
            f"ns: the difference is within noise (p ≥ {LEVEL:g}, each on its own, not corrected for their number). "
            "Not tested: differences of values without ±, and of several training runs to a single one."
        )


def _missing_notes(rows: Iterable[Row]) -> Iterator[str]:
    """Yield one note for all entries that lack the same cells of a block."""
    lacking: dict[tuple[bool, str, tuple[Column, ...]], list[str]] = {}
    for block, entry in rows:
        if columns := tuple(column for column in block.columns if column.key not in entry.scores):
            lacking.setdefault((entry.is_ours, block.title, columns), []).append(entry.title)
    for (is_ours, title, columns), names in lacking.items():
        single, means = ([c.full_title for c in columns if (c.key in MEANS) is mean] for mean in (False, True))
        if not is_ours:
            what = [f"not in the paper: {', '.join(column.full_title for column in columns)}"]
        else:
            what = [f"no result of {', '.join(single)}"] if single else []
            what += [f"not all results that are in the mean: {', '.join(means)}"] if means else []
        yield f"– for {', '.join(names)}{f' ({title})' if title else ''}: {'; '.join(what).removesuffix('.')}."


def _derived_notes(rows: Iterable[Row]) -> Iterator[str]:
    scores = [score for block, entry in rows for score in _paper_scores(block, entry)]
    if sources := list(dict.fromkeys(score.source for score in scores if score.derived)):
        yield f"≈ is not printed in the paper and follows from it: {'; '.join(sources)}."


def _paper_scores(block: Block, entry: Entry) -> Iterator[Score]:
    """Yield the paper's scores that stand in a row or are subtracted there."""
    paper = entry.paper if entry.is_ours else entry
    for column in block.columns:
        key = paper_key(column.key)
        if paper is not None and key in paper.scores and column.key in entry.scores:
            yield paper.scores[key]


def _absent_notes(layout: TableLayout, rows: Sequence[Row], ours: Sequence[Entry]) -> Iterator[str]:
    absent: dict[str, list[str]] = {}
    for block in layout.blocks:
        there = {entry.name for other, entry in rows if entry.is_ours and other is block}
        if names := ", ".join(entry.name for entry in ours if entry.name not in there):
            absent.setdefault(names, []).append(block.title)
    for names, blocks in absent.items():
        where = f" ({', '.join(blocks)})" if 0 < len(blocks) < len(layout.blocks) else ""
        yield f"Without results here{where}: {names}."
