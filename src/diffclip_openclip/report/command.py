"""Do the work of ``diffclip report``: read results, and write the folder of a report."""

from collections.abc import Sequence
from pathlib import Path

from diffclip_openclip.extras import require
from diffclip_openclip.files import Folder, check_place, staged
from diffclip_openclip.report.comparison import our_entries, paper_entries, remarks
from diffclip_openclip.report.drawing import save_figures
from diffclip_openclip.report.evaluated_models import EvaluatedModel, read_models
from diffclip_openclip.report.figures import make_figures
from diffclip_openclip.report.page import make_page
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.report.table_formats import csv_text, markdown
from diffclip_openclip.report.table_layouts import LAYOUTS
from diffclip_openclip.report.tables import make_tables

_REPORT = Folder(
    "a report",
    (
        *("index.html", "tables", "figures", "figures/figure?.png", "figures/figure?.svg"),
        *(f"tables/{layout.name}.{ending}" for layout in LAYOUTS for ending in ("md", "csv")),
    ),
    mark="index.html",
)


def report(
    results: Path | None,
    output: Path,
    *,
    paper_only: bool = False,
    match: Sequence[str] = (),
    baseline: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write a report: tables (Markdown, CSV), figures (PNG, SVG) and ``index.html``; return lines to print.

    Args:
        results: the folder that ``diffclip evaluate`` wrote; None with ``paper_only``.
        paper_only: show the paper's own numbers alone.
        match, baseline: as :func:`~diffclip_openclip.report.comparison.our_entries` takes them.

    Raises:
        ImportError: matplotlib is not installed.
        FileNotFoundError: ``results`` does not exist.
        FileExistsError, FileNotFoundError: as :func:`~diffclip_openclip.files.check_place`.
        ValueError: there are no results, a file is none, a name is unknown, or options exclude each other.
    """
    check_place(output, overwrite, _REPORT, inputs=[results] if results else [])
    require("diffclip report", "plot", "matplotlib")
    models = _models(results, paper_only, match, baseline)
    rows = load_paper()
    paper, ours = paper_entries(rows), our_entries(models, rows, match=match, baseline=baseline)
    tables, figures, said = make_tables(paper, ours), make_figures(paper, ours), remarks(models, ours)
    with staged(output, overwrite, _REPORT) as new:
        for folder in (new, new / "tables", new / "figures"):
            folder.mkdir()
        for table in tables:
            (new / "tables" / f"{table.layout.name}.md").write_text(markdown(table), encoding="utf-8")
            (new / "tables" / f"{table.layout.name}.csv").write_text(csv_text(table), encoding="utf-8")
        save_figures(figures, new / "figures")
        page = make_page(
            figures=figures,
            tables=tables,
            models=models,
            ours=ours,
            paper=paper,
            remarks=said,
            folder=new / "figures",
        )
        (new / "index.html").write_text(page, encoding="utf-8")
    written = f"{output / 'index.html'}: {len(tables)} tables, {len(figures)} figures"
    return [*said, written]


def _models(results: Path | None, paper_only: bool, match: Sequence[str], baseline: str | None) -> list[EvaluatedModel]:
    if not paper_only:
        if results is None:
            raise ValueError("give the folder that `diffclip evaluate` wrote, or --paper-only")
        return read_models(results)
    if results is not None or match or baseline is not None:
        raise ValueError("--paper-only shows no results: leave out the folder, --match and --baseline")
    return []
