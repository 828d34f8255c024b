"""Tables as Markdown, CSV and HTML."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby

from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.layouts import Layout
from diffclip_openclip.report.tables import Row, Table, title_of

MISSING = "–"


@dataclass(frozen=True)
class _Line:
    """A line of a table as it is read; ``kind`` is "block", "paper", "ours" or "minus", ``sources`` are the cells'."""

    kind: str
    source: str
    model: str
    cells: tuple[str, ...]
    sources: tuple[str, ...]


def signed(value: float, digits: int) -> str:
    """With its sign; what rounds to zero is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def cell(entry: Entry, key: str, digits: int) -> str:
    """A value and, in parentheses, its difference to the baseline: ``14.4 (+0.8)``."""
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


def _lines(table: Table) -> Iterator[_Line]:
    count = len(table.layout.blocks[0].columns)
    for title, rows in groupby(table.rows, key=lambda row: row.block.title):
        if title:
            yield _Line("block", title, "", ("",) * count, ("",) * count)
        for row in rows:
            yield from _row_lines(row, table.layout.digits)


def _row_lines(row: Row, digits: int) -> Iterator[_Line]:
    entry, keys = row.entry, [column.key for column in row.block.columns]
    sources = tuple(entry.scores[key].source if key in entry.scores else "" for key in keys)
    source = "ours" if entry.is_ours else f"paper, {entry.pretraining}"
    cells = tuple(cell(entry, key, digits) for key in keys)
    yield _Line("ours" if entry.is_ours else "paper", source, entry.name, cells, sources)
    minus = tuple(_minus_cell(entry, key, digits) for key in keys)
    if entry.paper is not None and any(text != MISSING for text in minus):
        yield _Line("minus", "ours − paper", title_of(entry.paper), minus, ("",) * len(keys))


def markdown(table: Table) -> str:
    """Title, caption, table and notes."""
    columns = table.layout.blocks[0].columns
    head = ["Source", "Model", *(column.full_title for column in columns)]
    lines = [f"# {table.layout.title}", "", table.layout.caption, "", _markdown_row(head)]
    lines.append("| --- | --- |" + " ---: |" * len(columns))
    for line in _lines(table):
        source = f"**{_plain(line.source)}**" if line.kind == "block" else _plain(line.source)
        lines.append(_markdown_row([source, _plain(line.model), *line.cells]))
    notes = [f"- {_plain(note)}" for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return re.sub(r"([\\|*`<\[\]])", r"\\\1", text)


def csv_text(table: Table) -> str:
    """A row for each model: values unrounded in percent, differences to the baseline and to the paper's row."""
    columns = table.layout.blocks[0].columns
    head = ["block", "source", "pretraining", "model", "baseline", "paper_row"]
    for column in columns:
        head += [column.full_title, f"{column.full_title} - baseline", f"{column.full_title} - paper"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in table.rows:
        entry = row.entry
        numbers: list[str] = []
        for column in row.block.columns:
            score = entry.scores.get(column.key)
            values = (score.value if score else None, entry.difference(column.key), entry.minus_paper(column.key))
            numbers += ["" if value is None else str(round(value, 4)) for value in values]
        writer.writerow([row.block.title, *_csv_names(entry), *numbers])
    return out.getvalue()


def _csv_names(entry: Entry) -> list[str]:
    source = "ours" if entry.is_ours else "paper"
    baseline = title_of(entry.baseline) if entry.baseline else ""
    return [source, entry.pretraining or "", entry.name, baseline, title_of(entry.paper) if entry.paper else ""]


def html(table: Table) -> str:
    """A ``section`` with heading, caption, table (each cell's source in its ``title``) and notes."""
    layout = table.layout
    body = "\n".join(_html_line(line) for line in _lines(table))
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in table.notes)
    return (
        f'<section id="{layout.name}">\n<h2>{escape(layout.title)}</h2>\n<p>{escape(layout.caption)}</p>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(layout.title)}">'
        f"<table>\n{_html_head(layout)}\n<tbody>\n{body}\n</tbody></table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
        + "</section>\n"
    )


def _html_head(layout: Layout) -> str:
    columns = layout.blocks[0].columns
    if not any(column.group for column in columns):
        titles = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
        return f'<thead><tr><th scope="col">Source</th><th scope="col">Model</th>{titles}</tr></thead>'
    groups = "".join(
        f'<th scope="colgroup" class="group" colspan="{len(list(group))}">{escape(title)}</th>'
        for title, group in groupby(columns, key=lambda column: column.group)
    )
    titles = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
    return (
        '<thead><tr><th scope="col" rowspan="2">Source</th><th scope="col" rowspan="2">Model</th>'
        f"{groups}</tr>\n<tr>{titles}</tr></thead>"
    )


def _html_line(line: _Line) -> str:
    if line.kind == "block":
        return f'<tr class="block"><th scope="rowgroup" colspan="{len(line.cells) + 2}">{escape(line.source)}</th></tr>'
    cells = "".join(
        f'<td title="{escape(source)}">{escape(text)}</td>' if source else f"<td>{escape(text)}</td>"
        for text, source in zip(line.cells, line.sources, strict=True)
    )
    return (
        f'<tr class="{line.kind}"><td>{escape(line.source)}</td><th scope="row">{escape(line.model)}</th>{cells}</tr>'
    )
