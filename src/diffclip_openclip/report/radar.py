"""A radar: one spoke for each column, one outline for each entry."""

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.layouts import Column
from diffclip_openclip.report.styles import INK, styles_of


def draw_radar(axis: Any, columns: Sequence[Column], entries: Sequence[Entry], top: float) -> None:
    """Draw onto a matplotlib axis with polar projection whose scale ends at ``top`` percent.

    Every entry must have a score for each column; the legend gives their mean.
    """
    from matplotlib.patheffects import withStroke

    angles = [2 * math.pi * place / len(columns) for place in range(len(columns))]
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
            markeredgecolor=INK,
            markeredgewidth=0.8,
            linewidth=2.2,
            clip_on=False,  # markers at the edge stay whole
            path_effects=[withStroke(linewidth=3.4, foreground=INK)],  # light colours are no line on white paper
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
