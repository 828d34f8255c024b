"""Draw bars with their values, differences and whiskers."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.paper import Score
from diffclip_openclip.report.styles import INK, Style, styles_of
from diffclip_openclip.report.table_layouts import Column
from diffclip_openclip.report.tables import signed, spread

_GAP = 1.0  # between groups, in bars; half of it between the paper's bars and ours
_POINTS = 6.0  # size of the values above bars
_LETTER, _LINE = 0.052, 0.105  # inches that a letter and a line of them take
# inches that a bar has at least for: value and difference above each other; both, turned; the value alone, turned
_UPRIGHT, _TURNED, _VALUE = 0.34, 0.17, 0.09
_MEANS = ("Average", "Avg.")  # what stands behind a rule


def draw_bars(
    axis: Any,
    columns: Sequence[Column],
    entries: Sequence[Entry],
    styles: Sequence[Style] | None = None,
    *,
    inches: tuple[float, float],
) -> None:
    """Draw a group of bars for each column, with one bar for each entry that has its score.

    Args:
        axis: of matplotlib.
        styles: of the entries; by default as :func:`~diffclip_openclip.report.styles.styles_of` gives them.
        inches: the axis' width and height, by which the values above bars are set.
    """
    places = _places(entries)
    step = places[-1] + 1 + _GAP
    width = inches[0] / (len(columns) * step)
    longest = 0.0
    for place, entry, style in zip(places, entries, styles or styles_of(entries), strict=True):
        for group, column in enumerate(columns):
            if column.key in entry.scores:
                label = _label(entry, column.key, width)
                _draw_bar(axis, group * step + place, entry.scores[column.key], style)
                _put_label(axis, group * step + place, entry.scores[column.key], label, width)
                longest = max(longest, _label_height(label, width))
    if len(columns) > 1:
        letters = max(9, int(step * width / 0.06))
        titles = [_wrapped(column.title, letters) for column in columns]
        axis.set_xticks([group * step + places[-1] / 2 for group in range(len(columns))], titles)
        axis.tick_params(axis="x", labelsize=6 if inches[0] < 4 else 7)
    else:
        axis.set_xticks([])
    for group, column in enumerate(columns):
        if group and column.title in _MEANS:
            axis.axvline(group * step - (_GAP + 1) / 2, color=INK, linewidth=0.6, linestyle=(0, (4, 3)))
    axis.set_xlim(-_GAP / 2 - 0.5, len(columns) * step - _GAP / 2 - 0.5)
    axis.set_ylim(0, _top(columns, entries) * inches[1] / (inches[1] - longest - 0.05))
    axis.tick_params(axis="x", length=0)
    axis.tick_params(axis="y", width=0.6, length=2)
    axis.grid(axis="y", alpha=0.3, linewidth=0.5)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _wrapped(title: str, letters: int) -> str:
    """Break a title at spaces and behind hyphens, also at that of ImageNet-A, which ``fill`` leaves whole."""
    return fill(title.replace("-", "- "), letters, break_long_words=False).replace("- ", "-")


def _places(entries: Sequence[Entry]) -> list[float]:
    """Return where each entry's bar stands in its group: ours a little apart from the paper's."""
    first = next((at for at, entry in enumerate(entries) if entry.is_ours), 0)
    return [at + (_GAP / 2 if first and at >= first else 0.0) for at in range(len(entries))]


def _top(columns: Sequence[Column], entries: Sequence[Entry]) -> float:
    """Return the highest point that is drawn; 1 where all are lower."""
    scores = [entry.scores[column.key] for entry in entries for column in columns if column.key in entry.scores]
    return max([1.0, *(score.value + whisker(score)[1] for score in scores)])


def whisker(score: Score) -> tuple[float, float]:
    """Return how far a score's whisker reaches below and above it: 95 % interval, or standard deviation of runs."""
    if score.runs or not score.interval:
        half = spread(score) or 0.0
        return min(half, score.value), half
    return max(0.0, score.value - score.interval.low), max(0.0, score.interval.high - score.value)


def _draw_bar(axis: Any, x: float, score: Score, style: Style) -> None:
    # hatch and outline take one colour in matplotlib, so each has a bar of its own
    axis.bar(x, score.value, 0.86, color=style.color, hatch=style.hatch, edgecolor=style.hatch_color, linewidth=0)
    axis.bar(x, score.value, 0.86, fill=False, edgecolor=INK, linewidth=0.6, linestyle="--" if score.derived else "-")
    below, above = whisker(score)
    if below or above:
        axis.errorbar(x, score.value, [[below], [above]], fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)


def _label(entry: Entry, key: str, width: float) -> str:
    """Return the value and, below or above it, the difference to the baseline, as far as a bar has room for them."""
    score, difference, certainty = entry.scores[key], entry.difference(key), entry.certainty(key)
    if width < _VALUE:
        return ""
    value = f"{'≈' if score.derived else ''}{score.value:.1f}"
    if difference is None or width < _TURNED:
        return value
    noise = " ns" if certainty and certainty.within_noise else ""
    return f"{signed(difference, 1)}{noise}\n{value}"


def _label_height(label: str, width: float) -> float:
    lines = label.split("\n")
    return _LINE * len(lines) if width >= _UPRIGHT else _LETTER * max(map(len, lines))


def _put_label(axis: Any, x: float, score: Score, label: str, width: float) -> None:
    above = whisker(score)[1]
    turned = 0 if width >= _UPRIGHT else 90
    place = {"textcoords": "offset points", "ha": "center", "va": "bottom", "rotation": turned}
    axis.annotate(label, (x, score.value + above), (0, 1.5), fontsize=_POINTS, color=INK, linespacing=1.1, **place)
