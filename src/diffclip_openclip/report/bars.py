"""A panel of grouped bars: one group for each column, one bar for each entry, its value and difference above it."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.layouts import Column
from diffclip_openclip.report.render import signed
from diffclip_openclip.report.styles import INK, Style, styles_of

_GAP = 1.0  # between groups, in bars
_INCHES_A_BAR = 0.36  # so that a value of five characters fits above its bar
_VALUES = 7.0  # points
_LETTERS = 60  # in a line of the legend
_INCHES_A_LETTER = 0.075  # at most, in the legend
_HEADROOM = 1.22  # of the highest bar, for two lines of text


def panel_inches(columns: Sequence[Column], entries: Sequence[Entry]) -> float:
    """Width that a panel needs."""
    return _INCHES_A_BAR * len(columns) * (len(entries) + _GAP)


def draw_bars(axis: Any, title: str, columns: Sequence[Column], entries: Sequence[Entry], top: float) -> None:
    """Draw onto a matplotlib axis whose scale ends at ``top`` percent; what an entry lacks is left out."""
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
    _draw_legend(axis, title, [entry.name for entry in entries], handles, panel_inches(columns, entries))


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


def _draw_bar(axis: Any, x: float, entry: Entry, key: str, style: Style) -> None:
    score = entry.scores[key]
    # hatch and outline take one colour in matplotlib, so each has a bar of its own
    axis.bar(x, score.value, 0.9, color=style.color, hatch=style.hatch, edgecolor=style.hatch_color, linewidth=0)
    axis.bar(x, score.value, 0.9, fill=False, edgecolor=INK, linewidth=0.8, linestyle="--" if score.derived else "-")
    difference = entry.difference(key)
    text = f"{'≈' if score.derived else ''}{score.value:.1f}"
    if difference is not None:
        text = f"{signed(difference, 1)}\n{text}"
    axis.annotate(text, (x, score.value), (0, 2), textcoords="offset points", ha="center", fontsize=_VALUES, color=INK)


def _handle(style: Style) -> tuple[Any, Any]:
    from matplotlib.patches import Patch

    fill = Patch(facecolor=style.color, hatch=style.hatch, edgecolor=style.hatch_color, linewidth=0)
    return fill, Patch(fill=False, edgecolor=INK, linewidth=0.8)
