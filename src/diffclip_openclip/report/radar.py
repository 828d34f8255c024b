"""Draw a radar as the paper's Figure 4: first spoke to the east, counter-clockwise, filled, with the ring of chance."""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.styles import INK, outline, styles_of
from diffclip_openclip.report.table_layouts import Column

CHANCE = 25.0  # percent of pairs, by guessing
CHANCE_LINE: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (3, 2))}
RADAR_MARKERS: dict[str, Any] = {"markersize": 4, "markeredgewidth": 0.6}


def draw_radar(axis: Any, columns: Sequence[Column], entries: Sequence[Entry], top: float) -> None:
    """Draw a spoke for each column and a filled outline for each entry.

    Args:
        axis: of matplotlib, with polar projection.
        entries: each with a score for every column.
        top: the end of the scale, in percent.
    """
    from matplotlib.patheffects import withStroke

    angles = [2 * math.pi * index / len(columns) for index in range(len(columns))]
    around = [2 * math.pi * step / 180 for step in range(181)]
    axis.plot(around, [CHANCE] * len(around), **CHANCE_LINE)
    for entry, style in zip(entries, styles_of(entries), strict=True):
        values = [entry.scores[column.key].value for column in columns]
        closed = [*angles, angles[0]], [*values, values[0]]
        axis.fill(*closed, color=style.color, alpha=0.25, linewidth=0)
        axis.plot(
            *closed,
            **outline(style),
            **RADAR_MARKERS,
            linewidth=1.4,
            clip_on=False,  # markers at the edge stay whole
            path_effects=[withStroke(linewidth=2.2, foreground=INK)],  # light colours are no line on white paper
        )
    axis.set_xticks(angles, [fill(column.title, 12, break_long_words=False) for column in columns])
    for angle, label in zip(angles, axis.get_xticklabels(), strict=True):
        side, height = round(math.cos(angle), 6), round(math.sin(angle), 6)
        label.set_horizontalalignment("left" if side > 0.1 else "right" if side < -0.1 else "center")
        label.set_verticalalignment("bottom" if height > 0.5 else "top" if height < -0.5 else "center")
    axis.tick_params(axis="x", pad=-3)
    axis.set_ylim(0, top)
    axis.set_yticks([20.0 * step for step in range(1, int(top / 20) + 1)])
    axis.tick_params(axis="y", labelsize=5.5)
    axis.set_rlabel_position(180 / len(columns))
    axis.grid(alpha=0.4, linewidth=0.5)
    axis.spines["polar"].set_linewidth(0.6)
