"""Do the work of ``diffclip report``: read results, and write the folder of a report."""

from collections.abc import Sequence
from pathlib import Path

from diffclip_openclip.extras import require
from diffclip_openclip.files import Folder, check_place, staged
from diffclip_openclip.report.comparison import our_entries, paper_entries
from diffclip_openclip.report.curves import checkpoints_of, last_checkpoints
from diffclip_openclip.report.drawing import FIGURE_ENDINGS, save_figures
from diffclip_openclip.report.evaluated_models import EvaluatedModel, group_runs, read_models
from diffclip_openclip.report.figures import EPOCHS_NAME, OTHERS_NAME, make_figures
from diffclip_openclip.report.latex import latex
from diffclip_openclip.report.page import make_page
from diffclip_openclip.report.paper import load_paper
from diffclip_openclip.report.remarks import remarks
from diffclip_openclip.report.table_formats import csv_text, markdown
from diffclip_openclip.report.table_layouts import LAYOUTS, OTHER_NAME
from diffclip_openclip.report.tables import SIZES_NAME, make_tables
from diffclip_openclip.report.training_runs import RUNS_NAME, make_runs_table

_TABLE_FORMATS = {"md": markdown, "csv": csv_text, "tex": latex}
_FIGURE_NAMES = ("figure?", EPOCHS_NAME, OTHERS_NAME)
_FIGURE_FILES = tuple(f"{name}{ending}" for name in _FIGURE_NAMES for ending in FIGURE_ENDINGS)
_TABLE_NAMES = (*(layout.name for layout in LAYOUTS), OTHER_NAME, SIZES_NAME, RUNS_NAME)
_REPORT = Folder(
    "a report",
    (
        *("index.html", "tables", "figures"),
        *(f"figures/{name}" for name in _FIGURE_FILES),
        *(f"tables/{name}.{ending}" for name in _TABLE_NAMES for ending in _TABLE_FORMATS),
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
    group: Sequence[str] = (),
    overwrite: bool = False,
) -> list[str]:
    """Write a report: tables (Markdown, CSV, LaTeX), figures (PNG, SVG, PDF), ``index.html``; return lines to print.

    Args:
        results: the folder that ``diffclip evaluate`` wrote; None with ``paper_only``.
        paper_only: show the paper's own numbers alone.
        match, baseline: as :func:`~diffclip_openclip.report.comparison.our_entries` takes them.
        group: as :func:`~diffclip_openclip.report.evaluated_models.group_runs` takes it.

    Raises:
        ImportError: matplotlib or scipy is not installed.
        FileNotFoundError: ``results`` does not exist.
        FileExistsError, FileNotFoundError: as :func:`~diffclip_openclip.files.check_place`.
        ValueError: there are no results, a file is none, a name is unknown, or options exclude each other.
    """
    check_place(output, overwrite, _REPORT, inputs=[results] if results else [])
    require("diffclip report", "plot", "matplotlib", "scipy")
    all_models = _models(results, paper_only, match, baseline, group)
    named = {text.rpartition("=")[0] for text in match} | {baseline or ""}
    models = group_runs(last_checkpoints(all_models, named), group)
    rows = load_paper()
    paper, ours = paper_entries(rows), our_entries(models, rows, match=match, baseline=baseline)
    runs_table = make_runs_table(ours)
    tables = [*make_tables(paper, ours, models), *([runs_table] if runs_table else [])]
    figures = make_figures(paper, ours, checkpoints_of(all_models, group))
    said = remarks(models, ours)
    with staged(output, overwrite, _REPORT) as new:
        for folder in (new, new / "tables", new / "figures"):
            folder.mkdir()
        for table in tables:
            for ending, text_of in _TABLE_FORMATS.items():
                (new / "tables" / f"{table.name}.{ending}").write_text(text_of(table), encoding="utf-8")
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


def _models(
    results: Path | None, paper_only: bool, match: Sequence[str], baseline: str | None, group: Sequence[str]
) -> list[EvaluatedModel]:
    if not paper_only:
        if results is None:
            raise ValueError("give the folder that `diffclip evaluate` wrote, or --paper-only")
        return read_models(results)
    if results is not None or match or baseline is not None or group:
        raise ValueError("--paper-only shows no results: leave out the folder, --match, --baseline and --group")
    return []
