"""Draw the figures with matplotlib, as PNG and SVG; the same numbers give the same files.

Series have the paper's colours. They can be told apart without colour too: by lightness, hatch, marker and line.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from diffclip_openclip.report.comparison import OTHER, Entry
from diffclip_openclip.report.figures import Figure
from diffclip_openclip.report.table_layouts import Column
from diffclip_openclip.report.tables import signed

_INK = "#1a1a1a"
_RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib's own, so that figures are the same everywhere
    "font.size": 9,
    "hatch.linewidth": 0.7,
    "svg.hashsalt": "diffclip",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a label may hold dollar signs
}
_MARGIN = 0.8  # inches, of a panel
_NARROWEST = 8.0  # inches, of a figure of bars
_GAP = 1.0  # between groups, in bars
_INCHES_A_BAR = 0.36  # so that a value of five characters fits above its bar
_VALUES = 7.0  # points, of the values above bars
_LETTERS = 60  # in a line of the legend
_INCHES_A_LETTER = 0.075  # at most, in the legend
_HEADROOM = 1.22  # of the highest bar, for two lines of text


def save_figures(figures: Sequence[Figure], folder: Path) -> None:
    """Write each figure to ``folder`` as ``<name>.png`` and ``<name>.svg``."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    with rc_context(_RC):
        for figure in figures:
            canvas = Canvas(layout="constrained")
            (_draw_radars if figure.is_radar else _draw_panels)(canvas, figure)
            canvas.savefig(folder / f"{figure.name}.png", dpi=150)
            canvas.savefig(folder / f"{figure.name}.svg", metadata={"Date": None})


def _draw_panels(canvas: Any, figure: Figure) -> None:
    """Draw panels of bars: the paper's beside each other, ours below them."""
    rows = [[panel for panel in figure.panels if panel.is_ours is ours] for ours in (False, True)]
    rows = [row for row in rows if row]
    widths = [sum(_MARGIN + _panel_inches(panel.columns, panel.entries) for panel in row) for row in rows]
    width = max(_NARROWEST, *widths)
    canvas.set_size_inches(width, 3.3 * len(rows) + 0.9)
    grid = canvas.add_gridspec(len(rows), 1)
    for index, row in enumerate(rows):
        cells = grid[index].subgridspec(1, len(row))
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


# how series look


@dataclass(frozen=True)
class Style:
    """Describe how a series looks, in matplotlib's terms."""

    color: str  # of a bar's fill, and of an outline
    hatch: str  # of a bar
    hatch_color: str
    marker: str  # of an outline
    line: str  # dashes of an outline


# blue, pink, purple and yellow as in the paper's Figures 1, 3, 4 and 5; the shades are ours, each of another lightness
STYLES = {
    "CLIP": Style("#376cb2", "", "white", "o", "-"),
    "DiffCLIP": Style("#f5a7c9", "///", _INK, "s", "--"),
    "DiffCLIP*": Style("#4b1d73", "..", "white", "^", "-."),
    "DiffCLIP†": Style("#fbe48a", "xxx", _INK, "D", ":"),
    OTHER: Style("#8e8e8e", "--", _INK, "v", "-"),
}
_MORE_HATCHES = ("\\\\\\", "++", "oo", "**", "||")
_MORE_MARKERS = ("P", "X", "<", ">", "h")


def styles_of(entries: Sequence[Entry]) -> list[Style]:
    """Return a style for each entry; those of one family share its colour and differ in hatch and marker."""
    styles: list[Style] = []
    for position, entry in enumerate(entries):
        earlier = [other.family for other in entries[:position]].count(entry.family)
        style = STYLES[entry.family]
        if earlier:
            index = (earlier - 1) % len(_MORE_HATCHES)
            style = replace(style, hatch=_MORE_HATCHES[index], marker=_MORE_MARKERS[index])
        styles.append(style)
    return styles


# bars


def _panel_inches(columns: Sequence[Column], entries: Sequence[Entry]) -> float:
    return _INCHES_A_BAR * len(columns) * (len(entries) + _GAP)


def draw_bars(axis: Any, title: str, columns: Sequence[Column], entries: Sequence[Entry], top: float) -> None:
    """Draw a group of bars for each column, with one bar for each entry that has its score.

    Args:
        axis: of matplotlib.
        title: stands above the legend.
        top: highest value of the scale, in percent.
    """
    handles = []
    step = len(entries) + _GAP
    for position, (entry, style) in enumerate(zip(entries, styles_of(entries), strict=True)):
        for group, column in enumerate(columns):
            if column.key in entry.scores:
                _draw_bar(axis, group * step + position, entry, column.key, style)
        handles.append(_handle(style))
    middle = (len(entries) - 1) / 2
    titles = [fill(column.title, 10, break_long_words=False) for column in columns]
    axis.set_xticks([group * step + middle for group in range(len(columns))], titles)
    axis.set_xlim(-1, (len(columns) - 1) * step + len(entries))
    axis.set_ylim(0, top * _HEADROOM)
    axis.set_ylabel("percent")
    axis.tick_params(axis="x", length=0)
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    _draw_legend(axis, title, [entry.name for entry in entries], handles, _panel_inches(columns, entries))


def _draw_bar(axis: Any, x: float, entry: Entry, key: str, style: Style) -> None:
    score = entry.scores[key]
    # hatch and outline take one colour in matplotlib, so each has a bar of its own
    axis.bar(x, score.value, 0.9, color=style.color, hatch=style.hatch, edgecolor=style.hatch_color, linewidth=0)
    axis.bar(x, score.value, 0.9, fill=False, edgecolor=_INK, linewidth=0.8, linestyle="--" if score.derived else "-")
    difference = entry.difference(key)
    text = f"{'≈' if score.derived else ''}{score.value:.1f}"
    if difference is not None:
        text = f"{signed(difference, 1)}\n{text}"
    axis.annotate(text, (x, score.value), (0, 2), textcoords="offset points", ha="center", fontsize=_VALUES, color=_INK)


def _handle(style: Style) -> tuple[Any, Any]:
    """Return fill and outline of a bar, for the legend."""
    from matplotlib.patches import Patch

    body = Patch(facecolor=style.color, hatch=style.hatch, edgecolor=style.hatch_color, linewidth=0)
    return body, Patch(fill=False, edgecolor=_INK, linewidth=0.8)


def _draw_legend(axis: Any, title: str, names: Sequence[str], handles: Sequence[Any], width: float) -> None:
    names = [fill(name, _LETTERS) for name in names]
    longest = max(len(line) for name in names for line in name.splitlines())
    axis.legend(
        handles,
        names,
        title=title,
        title_fontproperties={"weight": "bold"},
        alignment="left",
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, min(len(names), int(width / (_INCHES_A_LETTER * longest + 0.6)))),
        frameon=False,
        borderaxespad=0.2,
    )


# radar


def draw_radar(axis: Any, columns: Sequence[Column], entries: Sequence[Entry], top: float) -> None:
    """Draw a spoke for each column and an outline for each entry, with its mean in the legend.

    Args:
        axis: of matplotlib, with polar projection.
        entries: each with a score for every column.
        top: highest value of the scale, in percent.
    """
    from matplotlib.patheffects import withStroke

    angles = [2 * math.pi * index / len(columns) for index in range(len(columns))]
    axis.set_theta_offset(math.pi / 2)
    axis.set_theta_direction(-1)
    for entry, style in zip(entries, styles_of(entries), strict=True):
        values = [entry.scores[column.key].value for column in columns]
        axis.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=style.color,
            linestyle=style.line,
            marker=style.marker,
            markersize=7,
            markeredgecolor=_INK,
            markeredgewidth=0.8,
            linewidth=2.2,
            clip_on=False,  # markers at the edge stay whole
            path_effects=[withStroke(linewidth=3.4, foreground=_INK)],  # light colours are no line on white paper
            label=fill(f"{entry.name} (average {sum(values) / len(values):.1f} %)", 60),
        )
    axis.set_xticks(angles, [fill(column.title, 14, break_long_words=False) for column in columns])
    for angle, label in zip(angles, axis.get_xticklabels(), strict=True):
        side = round(math.sin(angle), 6)
        label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axis.set_ylim(0, top)
    axis.set_rlabel_position(180 / len(columns))
    axis.grid(alpha=0.4)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
