"""Draws figures with matplotlib, as PNG and SVG; the same numbers give the same files."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from diffclip_openclip.report.bars import draw_bars, panel_inches
from diffclip_openclip.report.figures import Figure
from diffclip_openclip.report.radar import draw_radar

_MARGIN = 0.8  # inches, of a panel
_NARROWEST = 8.0  # inches
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib's own, so that figures are the same everywhere
    "font.size": 9,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "diffclip",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a label may hold dollar signs
}


def save_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write each to ``folder`` as ``<name>.png`` and ``<name>.svg``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(_RC):
        for figure in figures:
            canvas = Canvas(layout="constrained")
            (_draw_radars if figure.is_radar else _draw_bars)(canvas, figure)
            canvas.savefig(folder / f"{figure.name}.png", dpi=150)
            canvas.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})


def _draw_bars(canvas: Any, figure: Figure) -> None:
    """The paper's panels beside each other, ours below them."""
    rows = [[panel for panel in figure.panels if panel.is_ours is ours] for ours in (False, True)]
    rows = [row for row in rows if row]
    widths = [sum(_MARGIN + panel_inches(panel.columns, panel.entries) for panel in row) for row in rows]
    width = max(_NARROWEST, *widths)
    canvas.set_size_inches(width, 3.3 * len(rows) + 0.9)
    grid = canvas.add_gridspec(len(rows), 1)
    for place, row in enumerate(rows):
        cells = grid[place].subgridspec(1, len(row))
        for column, panel in enumerate(row):
            axis = canvas.add_subplot(cells[column])
            draw_bars(axis, panel.title, panel.columns, panel.entries, panel.top)
    _label(canvas, figure, width)


def _draw_radars(canvas: Any, figure: Figure) -> None:
    width = 5.8 * len(figure.panels)
    canvas.set_size_inches(width, 6.6)
    axes = canvas.subplots(1, len(figure.panels), squeeze=False, subplot_kw={"projection": "polar"})[0]
    for axis, panel in zip(axes, figure.panels, strict=True):
        draw_radar(axis, panel.columns, panel.entries, min(100.0, 10 * (panel.top // 10 + 1)))
        axis.set_title(panel.title, fontweight="bold", fontsize=9, pad=20)
    _label(canvas, figure, width)


def _label(canvas: Any, figure: Figure, width: float) -> None:
    letters = int(width * 16)  # of the notes' size, in a line
    canvas.suptitle(fill(figure.title, letters), fontsize=12, x=0.01, ha="left")
    canvas.supxlabel("\n".join(fill(note, letters) for note in figure.notes), fontsize=7.5, x=0.01, ha="left")
