"""The report as one HTML file, with nothing to load from elsewhere."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from diffclip_openclip import __version__
from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.figures import Figure
from diffclip_openclip.report.models import Model
from diffclip_openclip.report.provenance import provenance_html
from diffclip_openclip.report.render import html
from diffclip_openclip.report.tables import Table, title_of

# figures and tables by name, in the order of the page
_ORDER = (
    "figure1",
    "figure5",
    "tasks",
    "table1",
    "table2",
    "recall",
    "figure3",
    "zero_shot",
    "figure4",
    "mmvp",
    "table3",
    "pope",
)


def make_page(
    figures: Sequence[Figure],
    tables: Sequence[Table],
    models: Sequence[Model],
    entries: Sequence[Entry],
    paper: Mapping[str, Entry],
    remarks: Sequence[str],
    folder: Path,
) -> str:
    """The page; ``folder`` holds the figures' SVG files, ``entries`` are the models' rows."""
    titles = {figure.name: figure.title for figure in figures}
    titles |= {table.layout.name: table.layout.title for table in tables}
    parts = {figure.name: _figure(figure, folder) for figure in figures}
    parts |= {table.layout.name: html(table) for table in tables}
    names = [name for name in _ORDER if name in parts]
    contents = [f'<li><a href="#{name}">{escape(titles[name])}</a></li>' for name in names]
    contents.append('<li><a href="#provenance">Where the numbers come from</a></li>')
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title="DiffCLIP: results beside the paper's" if entries else "DiffCLIP: the paper's results",
        intro=_intro(entries, remarks),
        contents="\n".join(contents),
        sections="\n".join(parts[name] for name in names) + provenance_html(models, paper),
        footer=f"Made by diffclip_openclip {escape(__version__)}.",
    )


def _figure(figure: Figure, folder: Path) -> str:
    data = base64.b64encode((folder / f"{figure.name}.svg").read_bytes()).decode("ascii")
    text = escape(" ".join((figure.title + ".", *figure.notes)))
    return (
        f'<figure id="{figure.name}"><div class="wide" tabindex="0" role="region" aria-label="{escape(figure.title)}">'
        f'<img alt="{text} Its numbers stand in the tables." src="data:image/svg+xml;base64,{data}"></div></figure>\n'
    )


def _intro(entries: Sequence[Entry], remarks: Sequence[str]) -> str:
    lines = [
        "<p>DiffCLIP (arXiv 2503.06626) puts differential attention into CLIP. The rows named "
        "<em>paper</em> are what the paper reports; where each number stands there is shown when the pointer rests on "
        "it, and at the end.</p>"
    ]
    if not entries:
        return lines[0]
    lines.append(
        "<p>Rows named <em>ours</em> come from the result files listed at the end, with hashes of weights and data; "
        "that the data are the paper's is not checked.</p>"
    )
    models = []
    for entry in entries:
        against = [f"differences to {entry.baseline.name}"] if entry.baseline else []
        against += [f"held against the paper's {title_of(entry.paper)}"] if entry.paper else []
        models.append("; ".join([entry.name, *against]))
    items = "\n".join(f"<li>{escape(text)}</li>" for text in (*models, *remarks))
    return "\n".join([*lines, f"<ul>\n{items}\n</ul>"])
