"""Write a table as Markdown, CSV or HTML."""

import csv
import io
import re
from html import escape
from itertools import groupby

from diffclip_openclip.report.tables import Cell, Line, Table


def markdown(table: Table) -> str:
    """Return title, caption, table and notes."""
    head = [*table.stubs, *(f"{group}: {title}" if group else title for group, title in table.heads)]
    lines = [f"# {table.title}", "", table.caption, "", _markdown_row([_plain(text) for text in head])]
    lines.append("|" + " --- |" * len(table.stubs) + " ---: |" * len(table.heads))
    for line in table.lines:
        first, *others = map(_plain, line.stubs)
        cells = [_plain(cell.text) for cell in line.cells] or [""] * len(table.heads)
        lines.append(_markdown_row([f"**{first}**" if line.kind == "block" else first, *others, *cells]))
    notes = [f"- {_plain(note)}" for note in table.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return re.sub(r"([\\|*`<\[\]])", r"\\\1", text)


def csv_text(table: Table) -> str:
    """Return the records of a table; text that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([_no_formula(field) for field in record] for record in table.records)
    return out.getvalue()


def _no_formula(field: str) -> str:
    is_number = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", field)
    return f"'{field}" if field[:1] in ("=", "+", "-", "@", "\t", "\r") and not is_number else field


def html(table: Table) -> str:
    """Return a ``section`` with heading, caption, table and notes; each cell's ``title`` names its source."""
    body = "\n".join(_html_line(line, len(table.stubs) + len(table.heads)) for line in table.lines)
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in table.notes)
    return (
        f'<section id="{table.name}">\n<h2>{escape(table.title)}</h2>\n<p>{escape(table.caption)}</p>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f"<table>\n{_html_head(table)}\n<tbody>\n{body}\n</tbody></table></div>\n"
        + (f'<ul class="notes">\n{notes}</ul>\n' if notes else "")
        + "</section>\n"
    )


def _html_head(table: Table) -> str:
    has_groups = any(group for group, _ in table.heads)
    span = ' rowspan="2"' if has_groups else ""
    stubs = "".join(f'<th scope="col" class="stub"{span}>{escape(title)}</th>' for title in table.stubs)
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for _, title in table.heads)
    if not has_groups:
        return f"<thead><tr>{stubs}{titles}</tr></thead>"
    groups = "".join(
        f'<th scope="colgroup" class="group" colspan="{len(list(heads))}">{escape(group)}</th>'
        for group, heads in groupby(table.heads, key=lambda head: head[0])
    )
    return f"<thead><tr>{stubs}{groups}</tr>\n<tr>{titles}</tr></thead>"


def _html_line(line: Line, width: int) -> str:
    if line.kind == "block":
        return f'<tr class="block"><th scope="rowgroup" colspan="{width}">{escape(line.stubs[0])}</th></tr>'
    *before, name = line.stubs
    stubs = "".join(f'<td class="stub">{escape(text)}</td>' for text in before)
    cells = "".join(map(_html_cell, line.cells))
    return f'<tr class="{line.kind}">{stubs}<th scope="row" class="stub">{escape(name)}</th>{cells}</tr>'


def _html_cell(cell: Cell) -> str:
    title = f' title="{escape(cell.source)}"' if cell.source else ""
    value = f"<b>{escape(cell.value)}</b>" if cell.is_best else escape(cell.value)
    error = f" <small>±{escape(cell.error)}</small>" if cell.error else ""
    mark = ' <abbr title="not of the published size">§</abbr>' if cell.is_other_size else ""
    noise = ' <abbr title="within noise">ns</abbr>' if cell.within_noise else ""
    difference = f"<br><small>({escape(cell.difference)}{noise})</small>" if cell.difference else ""
    return f"<td{title}>{value}{error}{mark}{difference}</td>"
