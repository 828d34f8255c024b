"""Draw the records of the emoji comparisons: a panel of curves for each, and the differences of all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison_records import MAIN_SCORE, Compared, Record, entries_of
from group_looks import looks_of
from model_groups import ARMS

from diffclip_openclip.report.styles import RC

_APART = 0.34  # rows, between the differences of one model

Looks = Mapping[str, dict[str, Any]]  # matplotlib's arguments for each model


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the main score over training, the most epochs last, and beside it the differences to the baseline."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = sorted(records, key=lambda record: int(record["epochs"]))
    recorded = {name for record in records for compared in record["comparisons"] for name in compared["models"]}
    looks = looks_of({arm.title: arm.model for arm in ARMS.values()})  # all, so that a model always looks the same
    names = [name for name in looks if name in recorded]
    with_curves = [record for record in shown if _has_curves(record)]
    with rc_context(RC):
        size = 2.6 + 2.2 * len(with_curves), 0.9 + 0.2 * len(names)
        figure = Figure(figsize=size, layout="constrained")
        *left, right = figure.subplots(1, 1 + len(with_curves), squeeze=False)[0]
        for axis, record in zip(left, with_curves, strict=True):
            _draw_curves(axis, record, looks)
            continued = (
                f" (those behind {record['epochs']} are of continued ones)" if len(record["comparisons"]) > 1 else ""
            )
            axis.set_title(f"trained for {record['epochs']} epochs")
            axis.set_xlabel(f"epoch{continued}")
        if left:
            left[0].set_ylabel("unseen vendor, top-1, percent")
        for place, record in enumerate(shown):
            shift = (place - (len(shown) - 1) / 2) * _APART
            _draw_differences(right, record, looks, names, shift, is_filled=record is shown[-1])
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.axvline(0, color="black", linewidth=0.6)
        right.set_xlabel("points above the baseline; 95 %")
        if len(shown) > 1:
            kinds = [f"{record['epochs']} ({'filled' if record is shown[-1] else 'open'})" for record in shown]
            right.set_title(f"after {', '.join(kinds)}")
        for axis in (*left, right):
            axis.grid(alpha=0.3, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=220)


def _has_curves(record: Record) -> bool:
    return any(len(curve) > 1 for compared in record["comparisons"] for curve in compared["curves"].values())


def _draw_curves(axis: Any, record: Record, looks: Looks) -> None:
    for compared in record["comparisons"]:
        start = record["epochs"] if _is_continued(compared) else 0
        for name, curve in compared["curves"].items():
            epochs = [start + int(epoch) for epoch in curve]
            axis.plot(epochs, [statistics.mean(values) for values in curve.values()], **looks[name], linewidth=1.1)


def _draw_differences(
    axis: Any, record: Record, looks: Looks, names: Sequence[str], shift: float, is_filled: bool
) -> None:
    for compared in record["comparisons"]:
        for entry in entries_of(compared, record["seeds"]):
            look = looks[entry.name]
            if not is_filled:
                look = look | {"markerfacecolor": "white", "markeredgecolor": look["color"], "markeredgewidth": 0.8}
            difference, certainty = entry.difference(MAIN_SCORE) or 0.0, entry.certainty(MAIN_SCORE)
            error = [certainty.half] if certainty else None
            row = [names.index(entry.name) + shift]
            axis.errorbar(
                [difference], row, xerr=error, ecolor="black", elinewidth=0.7, capsize=1.5, capthick=0.7, **look
            )


def _is_continued(compared: Compared) -> bool:
    return any(arm.is_continued and arm.title in compared["models"] for arm in ARMS.values())
