"""Write the report as one HTML file with nothing to load from elsewhere: figures, tables, and where numbers come from.

Numbers come from result files, shown with their checkpoint, data, versions and device, and from places in the paper.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from diffclip_openclip import __version__
from diffclip_openclip.data.catalog import POPE
from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.evaluated_models import EvaluatedModel, Result
from diffclip_openclip.report.figures import Figure
from diffclip_openclip.report.paper import paper_version
from diffclip_openclip.report.table_formats import html
from diffclip_openclip.report.tables import MISSING, Table

# figures and tables by name, in the order of the page
_ORDER = (
    "figure1",
    "figure5",
    "tasks",
    "epochs",
    "table1",
    "table2",
    "recall",
    "figure3",
    "zero_shot",
    "zero_shot_probed",
    "figure4",
    "mmvp",
    "sugar_crepe",
    "winoground",
    "table3",
    "pope",
    "other_data",
    "other",
    "data_sizes",
)
# title of a column of the list of result files -> field of a result file
_PROVENANCE = {
    "metrics (fractions)": "metrics",
    "templates": "templates",
    "date": "date",
    "device": "device",
    "precision": "precision",
    "seed": "seed",
    "images": "images",
    "checkpoint sha256 (POPE: of the answers)": "checkpoint_sha256",
    "data set sha256": "dataset_sha256",
    "versions": "versions",
}


def make_page(
    *,
    figures: Sequence[Figure],
    tables: Sequence[Table],
    models: Sequence[EvaluatedModel],
    ours: Sequence[Entry],
    paper: Mapping[str, Entry],
    remarks: Sequence[str],
    folder: Path,
) -> str:
    """Return the page.

    Args:
        ours: the models' entries.
        paper: the paper's rows by name.
        folder: holds the figures' SVG files.
    """
    titles = {figure.name: figure.title for figure in figures}
    titles |= {table.name: table.title for table in tables}
    parts = {figure.name: _figure_html(figure, folder) for figure in figures}
    parts |= {table.name: html(table) for table in tables}
    names = [name for name in _ORDER if name in parts]
    contents = [f'<li><a href="#{name}">{escape(titles[name])}</a></li>' for name in names]
    contents.append('<li><a href="#provenance">Where the numbers come from</a></li>')
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title="DiffCLIP: results beside the paper's" if ours else "DiffCLIP: the paper's results",
        intro=_intro(models, ours, remarks),
        contents="\n".join(contents),
        sections="\n".join(parts[name] for name in names) + _provenance(models, paper),
        footer=f"Made by diffclip_openclip {escape(__version__)}.",
    )


def _figure_html(figure: Figure, folder: Path) -> str:
    data = base64.b64encode((folder / f"{figure.name}.svg").read_bytes()).decode("ascii")
    notes = escape(" ".join(figure.notes))
    return (
        f'<figure id="{figure.name}"><h2>{escape(figure.title)}</h2>\n'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(figure.title)}">'
        f'<img alt="{escape(figure.caption)} Its numbers stand in the tables." '
        f'src="data:image/svg+xml;base64,{data}"></div>\n<figcaption>{notes}</figcaption></figure>\n'
    )


def _intro(models: Sequence[EvaluatedModel], ours: Sequence[Entry], remarks: Sequence[str]) -> str:
    lines = [
        "<p>DiffCLIP (arXiv 2503.06626) puts differential attention into CLIP. The rows named "
        "<em>paper</em> are what the paper reports; where each number stands there is shown when the pointer rests on "
        "it, and at the end. "
        f"{escape(paper_version())}</p>"
    ]
    if not ours:
        return lines[0]
    lines.append(
        "<p>Rows named <em>ours</em> come from the result files listed at the end, with hashes of weights and data; "
        "that the data are the paper's is not checked.</p>"
    )
    runs = {model.name: model.runs for model in models}
    items = []
    for entry in ours:
        against = [f"mean of {len(runs[entry.name])} training runs"] if runs[entry.name] else []
        against += [f"differences to {entry.baseline.name}"] if entry.baseline else []
        against += [f"held against the paper's {entry.paper.title}"] if entry.paper else []
        items.append("; ".join([entry.name, *against]))
    listed = "\n".join(f"<li>{escape(text)}</li>" for text in (*items, *remarks))
    return "\n".join([*lines, f"<ul>\n{listed}\n</ul>"])


# where the numbers come from


def _provenance(models: Sequence[EvaluatedModel], paper: Mapping[str, Entry]) -> str:
    """Return a ``section`` with one folded list for each model and each row of the paper."""
    parts = [_result_files(model) for model in models] + [_places_in_the_paper(entry) for entry in paper.values()]
    return '<section id="provenance">\n<h2>Where the numbers come from</h2>\n' + "\n".join(parts) + "\n</section>\n"


def _result_files(model: EvaluatedModel) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in ("file", *_PROVENANCE))
    rows = "\n".join(_result_file(result) for result in model.results)
    facts = {
        "open_clip model": _of_all(model, "model"),
        "architecture": model.architecture,
        "weights": _of_all(model, "pretrained"),
    }
    text = "<br>".join(f"{name}: <code>{escape(_text(value))}</code>" for name, value in facts.items())
    return (
        f"<details><summary>{escape(model.name)}: {len(model.results)} result files</summary>\n<p>{text}</p>\n"
        f'<div class="wide"><table class="provenance"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n'
        "</tbody></table></div></details>"
    )


def _of_all(model: EvaluatedModel, field: str) -> str:
    """Return what a field says in a model's results, of several training runs each; POPE's are of another model."""
    own = [result for result in model.results if result.task != POPE] or model.results
    return ", ".join(dict.fromkeys(_text(result.content.get(field)) for result in own))


def _result_file(result: Result) -> str:
    reported = "" if result.scores else " (in no table)"
    cells = [result.path + reported, *(_text(result.content.get(field)) for field in _PROVENANCE.values())]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _places_in_the_paper(entry: Entry) -> str:
    groups: dict[str, list[str]] = {}
    for key, score in entry.scores.items():
        source = f"{score.source}{' (derived)' if score.derived else ''}"
        difference = "" if score.difference is None else f" ({score.difference:+g})"
        groups.setdefault(source, []).append(f"{key} {score.value:.4g}{difference}")
    items = "\n".join(f"<li>{escape(source)}: {escape(', '.join(texts))}</li>" for source, texts in groups.items())
    return f"<details><summary>The paper, {escape(entry.title)}</summary>\n<ul>\n{items}\n</ul></details>"
