"""Lay out the figures and save them: as PNG, SVG and PDF at the width of a text, and as PDF at the width of a column.

Titles are left to captions. The same numbers give the same files.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from diffclip_openclip.report.bars import draw_bars
from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.curves import CURVE_MARKERS, draw_curves, runs_of
from diffclip_openclip.report.figures import Figure, Panel
from diffclip_openclip.report.radar import CHANCE, CHANCE_LINE, RADAR_MARKERS, draw_radar
from diffclip_openclip.report.styles import INK, RC, name_of, outline, styles_of

# inches, of a page with two columns of text (CVPR's style has 6.875 and 3.25)
WIDE, COLUMN = 6.875, 3.25
_BESIDE, _ABOVE = 0.35, 0.3  # inches that labels and titles take of a panel
_TASK_HEIGHT = 1.4  # inches of a row of small panels
_GROUPS_HEIGHT = 1.6  # inches of a panel of groups of bars
_RADAR = 1.75, 0.72, 0.38  # inches: a radar's diameter, and what its labels take at the sides, and above and below
_LEGEND_LINE = 0.14  # inches
_LETTER = 0.058  # inches, at most, in the legend


FIGURE_ENDINGS = (".png", ".svg", ".pdf", "_column.pdf")  # of a figure's files


def save_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write each figure to ``folder`` as ``<name>.png``, ``.svg`` and ``.pdf``, and as ``<name>_column.pdf``."""
    from matplotlib import rc_context

    with rc_context(RC):
        for figure in figures:
            wide = draw(figure, WIDE)
            wide.draw_without_rendering()
            wide.set_layout_engine("none")  # it is laid out, once for all files
            wide.savefig(folder / f"{figure.name}.png", dpi=220)
            wide.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})
            wide.savefig(folder / f"{figure.name}.pdf", metadata={"CreationDate": None})
            draw(figure, COLUMN).savefig(folder / f"{figure.name}_column.pdf", metadata={"CreationDate": None})


def draw(figure: Figure, width: float) -> Any:
    """Return matplotlib's figure, ``width`` inches wide."""
    return {"tasks": _draw_tasks, "groups": _draw_groups, "radar": _draw_radars, "curves": _draw_curves}[figure.kind](
        figure, width
    )


def _draw_tasks(figure: Figure, width: float) -> Any:
    """Draw small panels, three beside each other, or two in a column."""
    columns = 3 if width > 5 else 2
    rows = math.ceil(len(figure.panels) / columns)
    canvas, legend = _canvas(width, rows * _TASK_HEIGHT, _legend_of(figure.panels[0].entries), constrained=True)
    axes = canvas.subplots(rows, columns, squeeze=False)
    styles = styles_of(figure.panels[0].entries)
    for axis in axes.flat[len(figure.panels) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        draw_bars(axis, panel.columns, panel.entries, styles, inches=(width / columns - _BESIDE, _TASK_HEIGHT - _ABOVE))
        axis.set_title(_title(panel, width / columns), pad=3)
    for row in axes:
        row[0].set_ylabel("percent")
    _put_legend(canvas, legend)
    return canvas


def _draw_groups(figure: Figure, width: float) -> Any:
    """Draw panels of groups of bars, one below the other."""
    entries = list({name_of(entry): entry for panel in figure.panels for entry in panel.entries}.values())
    styles = {name_of(entry): style for entry, style in zip(entries, styles_of(entries), strict=True)}
    canvas, legend = _canvas(width, len(figure.panels) * _GROUPS_HEIGHT, _legend_of(entries), constrained=True)
    axes = canvas.subplots(len(figure.panels), 1, squeeze=False)
    for (axis,), panel in zip(axes, figure.panels, strict=True):
        own = [styles[name_of(entry)] for entry in panel.entries]
        draw_bars(axis, panel.columns, panel.entries, own, inches=(width - _BESIDE, _GROUPS_HEIGHT - _ABOVE - 0.1))
        axis.set_title(panel.title, pad=3)
        axis.set_ylabel("percent")
    _put_legend(canvas, legend)
    return canvas


def _draw_curves(figure: Figure, width: float) -> Any:
    """Draw a panel for each score, with a line for each training run."""
    from matplotlib.lines import Line2D

    columns = min(len(figure.panels), 3 if width > 5 else 2)
    rows = math.ceil(len(figure.panels) / columns)
    runs = runs_of([entry for panel in figure.panels for entry in panel.entries])
    styles = dict(zip(runs, styles_of([entries[0] for entries in runs.values()]), strict=True))
    legend = [(Line2D([], [], **outline(style), **CURVE_MARKERS), name) for name, style in styles.items()]
    canvas, placed = _canvas(width, rows * _TASK_HEIGHT, legend, constrained=True)
    axes = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, figure.panels, strict=False):
        draw_curves(axis, panel.columns[0].key, runs_of(panel.entries), styles)
        axis.set_title(_title(panel, width / columns), pad=3)
    for axis in axes[len(figure.panels) :]:
        axis.axis("off")
    for axis in axes[::columns]:
        axis.set_ylabel("percent")
    for axis in axes[max(0, len(figure.panels) - columns) : len(figure.panels)]:
        axis.set_xlabel("epoch")
    _put_legend(canvas, placed)
    return canvas


def _draw_radars(figure: Figure, width: float) -> Any:
    """Draw radars of one size, beside each other or in a column below each other, with what is drawn below them."""
    from matplotlib.lines import Line2D

    diameter, side, above = _RADAR
    each = diameter + 2 * above + 0.2, min(width, diameter + 2 * side)  # height with the title, width
    columns = min(len(figure.panels), 2 if width > 5 else 1)
    rows = math.ceil(len(figure.panels) / columns)
    legend = [(Line2D([], [], **CHANCE_LINE), f"chance ({CHANCE:g} %)")]
    for panel in figure.panels:
        for entry, style in zip(panel.entries, styles_of(panel.entries), strict=True):
            values = [entry.scores[column.key].value for column in panel.columns]
            look = Line2D([], [], **outline(style), **RADAR_MARKERS)
            legend.append((look, f"{name_of(entry)}: average {sum(values) / len(values):.1f}\N{NO-BREAK SPACE}%"))
    canvas, legend = _canvas(width, rows * each[0], legend, constrained=False)
    full = canvas.get_figheight()
    drawn = [(entry, column) for panel in figure.panels for entry in panel.entries for column in panel.columns]
    highest = max(entry.scores[column.key].value for entry, column in drawn)
    top = min(100.0, 20 * (max(highest, CHANCE) // 20 + 1))
    for index, panel in enumerate(figure.panels):
        left = width * (index % columns + 0.5) / columns - diameter / 2
        bottom = full - (index // columns + 1) * each[0] + above
        place = left / width, bottom / full, diameter / width, diameter / full
        axis = canvas.add_axes(place, projection="polar")
        draw_radar(axis, panel.columns, panel.entries, top)
        canvas.text(
            (left + diameter / 2) / width,
            (bottom + diameter + above + 0.1) / full,
            panel.title,
            ha="center",
            va="center",
            fontweight="bold",
            fontsize=7.5,
        )
    _put_legend(canvas, legend)
    return canvas


def _title(panel: Panel, width: float) -> str:
    return fill(panel.title, int((width - _BESIDE) / 0.068))


# legends


def _legend_of(entries: Sequence[Entry]) -> list[tuple[Any, str]]:
    from matplotlib.patches import Patch

    legend = []
    for entry, style in zip(entries, styles_of(entries), strict=True):
        body = Patch(facecolor=style.color, hatch=style.hatch, edgecolor=style.hatch_color, linewidth=0)
        legend.append(((body, Patch(fill=False, edgecolor=INK, linewidth=0.6)), name_of(entry)))
    return legend


def _canvas(width: float, height: float, legend: list[tuple[Any, str]], *, constrained: bool) -> tuple[Any, Any]:
    """Return a figure as high as its panels and its legend, and the legend's arguments."""
    from matplotlib.figure import Figure as Canvas

    letters = int((width - 0.5) / _LETTER)
    names = [fill(name, letters) for _, name in legend]
    longest = max(len(line) for name in names for line in name.splitlines())
    columns = max(1, min(len(names), int(width / (_LETTER * longest + 0.45))))
    lines = sum(
        max(name.count("\n") + 1 for name in names[first::rows])
        for rows in [math.ceil(len(names) / columns)]
        for first in range(rows)
    )
    size = width, height + lines * _LEGEND_LINE + 0.08
    canvas = Canvas(figsize=size, layout="constrained" if constrained else None)
    return canvas, {"handles": [handle for handle, _ in legend], "labels": names, "ncols": columns}


def _put_legend(canvas: Any, legend: dict[str, Any]) -> None:
    place = "outside lower center" if canvas.get_layout_engine() else "lower center"
    canvas.legend(**legend, loc=place, frameon=False, borderaxespad=0.1, borderpad=0.1, labelspacing=0.3, fontsize=6.5)
