"""Write a table as Markdown, CSV or HTML."""

import csv
import io
import re
from html import escape
from itertools import groupby

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.table_layouts import TableLayout
from diffclip_openclip.report.tables import Table, TextLine


def markdown(table: Table) -> str:
    """Return title, caption, table and notes."""
    columns = table.layout.blocks[0].columns
    head = ["Source", "Model", *(column.full_title for column in columns)]
    lines = [f"# {table.layout.title}", "", table.layout.caption, "", _markdown_row(head)]
    lines.append("| --- | --- |" + " ---: |" * len(columns))
    for line in table.lines:
        source = f"**{_plain(line.source)}**" if line.kind == "block" else _plain(line.source)
        lines.append(_markdown_row([source, _plain(line.model), *line.cells]))
    notes = [f"- {_plain(note)}" for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return re.sub(r"([\\|*`<\[\]])", r"\\\1", text)


def csv_text(table: Table) -> str:
    """Return a line for each entry of each block: percent, and differences to the baseline and to the paper's row.

    Numbers have four digits behind the decimal point, more than other formats show.
    """
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
    baseline = entry.baseline.title if entry.baseline else ""
    return [source, entry.pretraining or "", entry.name, baseline, entry.paper.title if entry.paper else ""]


def html(table: Table) -> str:
    """Return a ``section`` with heading, caption, table and notes; each cell's ``title`` names its source."""
    layout = table.layout
    body = "\n".join(_html_line(line) for line in table.lines)
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in table.notes)
    return (
        f'<section id="{layout.name}">\n<h2>{escape(layout.title)}</h2>\n<p>{escape(layout.caption)}</p>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(layout.title)}">'
        f"<table>\n{_html_head(layout)}\n<tbody>\n{body}\n</tbody></table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
        + "</section>\n"
    )


def _html_head(layout: TableLayout) -> str:
    columns = layout.blocks[0].columns
    titles = "".join(f'<th scope="col">{escape(column.title)}</th>' for column in columns)
    if not any(column.group for column in columns):
        return f'<thead><tr><th scope="col">Source</th><th scope="col">Model</th>{titles}</tr></thead>'
    groups = "".join(
        f'<th scope="colgroup" class="group" colspan="{len(list(group))}">{escape(title)}</th>'
        for title, group in groupby(columns, key=lambda column: column.group)
    )
    return (
        '<thead><tr><th scope="col" rowspan="2">Source</th><th scope="col" rowspan="2">Model</th>'
        f"{groups}</tr>\n<tr>{titles}</tr></thead>"
    )


def _html_line(line: TextLine) -> str:
    if line.kind == "block":
        return f'<tr class="block"><th scope="rowgroup" colspan="{len(line.cells) + 2}">{escape(line.source)}</th></tr>'
    cells = "".join(
        f'<td title="{escape(source)}">{escape(text)}</td>' if source else f"<td>{escape(text)}</td>"
        for text, source in zip(line.cells, line.cell_sources, strict=True)
    )
    return (
        f'<tr class="{line.kind}"><td>{escape(line.source)}</td><th scope="row">{escape(line.model)}</th>{cells}</tr>'
    )
