"""Write what a benchmark measured of groups of models: a JSON file that says where it is from, a figure and a table."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from group_looks import looks_of
from model_groups import Estimate, Groups
from provenance import origin

from diffclip_openclip.files import staged
from diffclip_openclip.report.drawing import WIDE
from diffclip_openclip.report.styles import INK, RC

_PANEL_HEIGHT = 1.6  # inches
_BAND = 0.15  # opacity of an interval


def write_results(path: Path, content: Mapping[str, Any], *, groups: Groups, device: str, overwrite: bool) -> None:
    """Write what was measured, with command, machine, versions, commit and models.

    Raises:
        FileExistsError: the file exists, and ``overwrite`` is not given.
    """
    models = {group: [str(loaded.spec) for loaded in models] for group, models in groups.items()}
    everything = origin(device) | {"models": models} | dict(content)
    with staged(path, overwrite) as new:
        new.write_text(json.dumps(_finite(everything), indent=1) + "\n", encoding="utf-8")


def write_outputs(
    args: argparse.Namespace, content: Mapping[str, Any], panels: Sequence[Panel], groups: Groups, *, columns: int
) -> None:
    """Write a benchmark's results, and its figure beside them, where its command line says.

    Args:
        args: parsed, with what :func:`model_groups.add_arguments` adds.
    """
    write_results(args.output, content, groups=groups, device=args.device, overwrite=args.overwrite)
    figure = args.output.with_suffix(".png")
    save_figure(panels, models_of(groups), figure, columns=columns, overwrite=args.overwrite)


def make_row(estimate: Estimate, difference: Estimate | None = None, **what: Any) -> dict[str, Any]:
    """Return a row of results: what was measured, its estimate, and the paired difference to the first group."""
    return what | asdict(estimate) | {"difference": None if difference is None else asdict(difference)}


def estimate_of(row: Mapping[str, Any]) -> Estimate:
    """Return the estimate of a row of results, in which NaN may be null."""
    seeds = [math.nan if value is None else value for value in row["seeds"]]
    return Estimate(math.nan if row["mean"] is None else row["mean"], row["low"], row["high"], seeds)


def models_of(groups: Groups) -> dict[str, str | None]:
    """Return open_clip's name for the model of each group; None of a checkpoint that has none."""
    return {group: models[0].architecture for group, models in groups.items()}


def names_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the groups that rows of results are about, in their order."""
    return list(dict.fromkeys(row["group"] for row in rows))


def _finite(content: Any) -> Any:
    """Write NaN as null, which is JSON."""
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


# figures


@dataclass(frozen=True)
class Curve:
    """Describe a line: estimates by a quantity, a layer say."""

    group: str
    x: Sequence[float]
    estimates: Sequence[Estimate]
    dashed: bool = False  # a control, beside the group's own line


@dataclass(frozen=True)
class Panel:
    """Describe a panel of a figure."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log: bool = False
    names: Sequence[str] = ()  # of x = 0, 1, ..., where it is no quantity: then there is no line


def save_figure(
    panels: Sequence[Panel], models: Mapping[str, str | None], path: Path, *, columns: int, overwrite: bool
) -> None:
    """Draw curves with their intervals as bands, in the report's styles, and write them as PNG.

    Args:
        models: open_clip's name for the model of each group; see :func:`models_of`.

    Raises:
        ImportError: matplotlib is not installed.
        FileExistsError: the file exists, and ``overwrite`` is not given.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    looks = looks_of(models)
    rows = math.ceil(len(panels) / columns)
    with rc_context(RC):
        canvas = Figure(figsize=(WIDE, rows * _PANEL_HEIGHT + 0.3), layout="constrained")
        axes = list(canvas.subplots(rows, columns, squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=False):
            for place, curve in enumerate(panel.curves):
                look = looks[curve.group] | {"linewidth": 1}
                if panel.names:
                    beside = (place - (len(panel.curves) - 1) / 2) * 0.6 / len(panel.curves)
                    _draw_points(axis, curve, look | {"linestyle": ""}, beside)
                else:
                    _draw_line(axis, curve, look)
            axis.set_title(panel.title, pad=3)
            axis.set_xlabel(panel.x_label)
            axis.set_ylabel(panel.y_label)
            axis.set_xticks(sorted({x for curve in panel.curves for x in curve.x}), panel.names or None)
            if panel.log:
                axis.set_yscale("log")
                for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
                    ticks(lambda value, _: f"{value:g}")
            axis.grid(axis="y", alpha=0.3, linewidth=0.4)
        for axis in axes[len(panels) :]:
            axis.axis("off")
        handles = [Line2D([], [], **look, linewidth=1) for look in looks.values()]
        canvas.legend(
            handles, list(looks), loc="outside lower center", ncols=min(5, len(looks)), frameon=False, fontsize=6.5
        )
        with staged(path, overwrite) as new:
            canvas.savefig(new, dpi=220)


def _draw_line(axis: Any, curve: Curve, look: dict[str, Any]) -> None:
    """Draw a line with the interval as a band; a control is dotted, and has no band."""
    if curve.dashed:
        look = look | {"linestyle": (0, (1, 2)), "marker": "", "linewidth": 0.8}
    axis.plot(curve.x, [estimate.mean for estimate in curve.estimates], **look)
    bounded = [
        (x, estimate.low, estimate.high)
        for x, estimate in zip(curve.x, curve.estimates, strict=True)
        if estimate.low is not None
    ]
    if bounded and not curve.dashed:
        axis.fill_between(*zip(*bounded, strict=True), color=look["color"], alpha=_BAND, linewidth=0)


def _draw_points(axis: Any, curve: Curve, look: dict[str, Any], beside: float) -> None:
    """Draw points with whiskers, moved sideways so that groups do not hide each other."""
    for x, estimate in zip(curve.x, curve.estimates, strict=True):
        whiskers = None
        if estimate.low is not None and estimate.high is not None:
            whiskers = [[estimate.mean - estimate.low], [estimate.high - estimate.mean]]
        axis.errorbar([x + beside], [estimate.mean], whiskers, ecolor=INK, elinewidth=0.6, capsize=1.5, **look)


# tables


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, the first column as text and the others as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("*", r"\*")


def cell(estimate: Estimate | None, digits: int = 1, scale: float = 1.0, *, signed: bool = False) -> str:
    """Return an estimate with half its interval over seeds, or with its interval over images in brackets.

    Args:
        signed: whether it is a difference. It is marked ns where its interval has 0.
    """
    if estimate is None:
        return "–"

    def number(value: float) -> str:
        return f"{scale * value:{'+' if signed else ''}.{digits}f}"

    if estimate.low is None or estimate.high is None:
        return number(estimate.mean)
    if len(estimate.seeds) < 2:
        return f"{number(estimate.mean)} [{number(estimate.low)}, {number(estimate.high)}]"
    noise = " ns" if signed and estimate.low <= 0 <= estimate.high else ""
    return f"{number(estimate.mean)} ±{scale * (estimate.high - estimate.mean):.{digits}f}{noise}"
