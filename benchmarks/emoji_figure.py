"""Draw the records of the emoji comparisons: a panel of curves for each, and the differences of all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emoji_tables import MAIN_SCORE, Record, entries_of

from diffclip_openclip.report.comparison import OTHER
from diffclip_openclip.report.styles import RC, outline, styles_of

_GREYS = "#8e8e8e", "#c8c8c8", "#404040"  # of models that the paper does not have
_APART = 0.3  # rows, between the differences of one model


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the main score over training, the most epochs last, and beside it the differences to the baseline."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = sorted(records, key=lambda record: int(record["epochs"]))
    by_record = [[name for own in record["comparisons"] for name in own["models"]] for record in records]
    names = list(dict.fromkeys(name for own in sorted(by_record, key=len, reverse=True) for name in own))
    with_curves = [record for record in shown if _has_curves(record)]
    with matplotlib.rc_context(RC):
        size = 2.6 + 2.2 * len(with_curves), 0.9 + 0.2 * len(names)
        figure, axes = plt.subplots(1, 1 + len(with_curves), figsize=size, layout="constrained", squeeze=False)
        *left, right = axes[0]
        for axis, record in zip(left, with_curves, strict=True):
            _draw_curves(axis, record)
            axis.set_title(f"{record['epochs']} epochs")
            axis.set_xlabel("epochs, those of the start included")
        if left:
            left[0].set_ylabel("unseen vendor, top-1, percent")
        for place, record in enumerate(shown):
            _draw_differences(right, record, names, (place - (len(shown) - 1) / 2) * _APART, place == len(shown) - 1)
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.axvline(0, color="black", linewidth=0.6)
        right.set_xlabel("points above the baseline; 95 %")
        if len(shown) > 1:
            right.set_title(", ".join(f"{r['epochs']} ({'filled' if r is shown[-1] else 'open'})" for r in shown))
        for axis in (*left, right):
            axis.grid(alpha=0.3, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=220)
        plt.close(figure)


def _has_curves(record: Record) -> bool:
    return any(len(curve) > 1 for own in record["comparisons"] for curve in own["curves"].values())


def _draw_curves(axis: Any, record: Record) -> None:
    looks = _looks(record)
    for place, own in enumerate(record["comparisons"]):
        start = record["epochs"] if place else 0
        for name, curve in own["curves"].items():
            epochs = [start + int(epoch) for epoch in curve]
            axis.plot(epochs, [statistics.mean(values) for values in curve.values()], **looks[name], linewidth=1.1)


def _draw_differences(axis: Any, record: Record, names: Sequence[str], shift: float, is_filled: bool) -> None:
    looks = _looks(record)
    for own in record["comparisons"]:
        for entry in entries_of(own, record["seeds"]):
            look = looks[entry.name] | ({} if is_filled else {"markerfacecolor": "white"})
            difference, certainty = entry.difference(MAIN_SCORE) or 0.0, entry.certainty(MAIN_SCORE)
            error = [certainty.half] if certainty else None
            row = [names.index(entry.name) + shift]
            axis.errorbar([difference], row, xerr=error, ecolor="black", elinewidth=0.7, capsize=1.5, **look)


def _looks(record: Record) -> dict[str, dict[str, Any]]:
    """Return matplotlib's arguments for each model; a continued one looks like the model that it continues."""
    looks: dict[str, dict[str, Any]] = {}
    by_model: dict[str, dict[str, Any]] = {}
    greys = iter(_GREYS)
    for place, own in enumerate(record["comparisons"]):
        entries = entries_of(own, record["seeds"])
        for entry, style in zip(entries, styles_of(entries), strict=True):
            look = outline(style) | {"markersize": 3.5, "markeredgewidth": 0.5}
            model = own["models"][entry.name]
            if entry.family == OTHER and model not in by_model:
                look["color"] = next(greys)
            looks[entry.name] = dict(by_model.setdefault(model, look))
            if place and entry.baseline is None:  # is not to look like the model that it goes on from
                looks[entry.name]["linestyle"] = ":"
    return looks
