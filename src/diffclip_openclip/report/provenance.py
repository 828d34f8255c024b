"""Where each number comes from: result files with their checkpoint, data, versions and device; places in the paper."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.models import Model
from diffclip_openclip.report.results import Result
from diffclip_openclip.report.tables import title_of

# titles of columns, and the fields of a result file that they show
_COLUMNS = {
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


def provenance_html(models: Sequence[Model], paper: Mapping[str, Entry]) -> str:
    """A ``section`` with one folded list for each model and each row of the paper."""
    parts = [_model(model) for model in models] + [_paper_row(entry) for entry in paper.values()]
    return '<section id="provenance">\n<h2>Where the numbers come from</h2>\n' + "\n".join(parts) + "\n</section>\n"


def _model(model: Model) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in ("file", *_COLUMNS))
    rows = "\n".join(_row(result) for result in model.results)
    facts = {
        "open_clip model": model.results[0].content["model"],
        "architecture": model.architecture,
        "weights": model.results[0].content.get("pretrained"),
    }
    text = "<br>".join(f"{name}: <code>{escape(_text(value))}</code>" for name, value in facts.items())
    return (
        f"<details><summary>{escape(model.name)}: {len(model.results)} result files</summary>\n<p>{text}</p>\n"
        f'<div class="wide"><table class="provenance"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n'
        "</tbody></table></div></details>"
    )


def _row(result: Result) -> str:
    reported = "" if result.scores else " (in no table: not among the paper's data sets)"
    cells = [result.path + reported, *(_text(result.content.get(field)) for field in _COLUMNS.values())]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _paper_row(entry: Entry) -> str:
    groups: dict[str, list[str]] = {}
    for key, score in entry.scores.items():
        place = f"{score.source}{' (derived)' if score.derived else ''}"
        difference = "" if score.difference is None else f" ({score.difference:+g})"
        groups.setdefault(place, []).append(f"{key} {score.value:.4g}{difference}")
    items = "\n".join(f"<li>{escape(place)}: {escape(', '.join(texts))}</li>" for place, texts in groups.items())
    return f"<details><summary>The paper, {escape(title_of(entry))}</summary>\n<ul>\n{items}\n</ul></details>"
