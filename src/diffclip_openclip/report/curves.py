"""Follow scores over the epochs of training runs of which several checkpoints were evaluated."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from diffclip_openclip.report.bars import whisker
from diffclip_openclip.report.comparison import Entry, family_of
from diffclip_openclip.report.evaluated_models import EvaluatedModel, mean_of_runs, members
from diffclip_openclip.report.styles import INK, Style, outline

CURVE_MARKERS: dict[str, Any] = {"markersize": 3.5, "markeredgewidth": 0.5}


def checkpoints_of(models: Sequence[EvaluatedModel], groups: Sequence[str] = ()) -> list[Entry]:
    """Return the checkpoints of all runs of which several were evaluated, by run and epoch.

    Args:
        groups: as :func:`~diffclip_openclip.report.evaluated_models.group_runs` takes them. A group has one curve: its
            runs' means at each epoch that is there of all of them.
    """
    several = [model for run in _runs(models).values() if len(run) > 1 for model in run]
    grouped = members([model for model in models if model.checkpoint], groups)
    taken = {model.name for runs in grouped.values() for model in runs}
    single = [(model, model.checkpoint[1]) for model in several if model.checkpoint and model.name not in taken]
    return [
        Entry(model.name, family_of(model), model.scores, is_ours=True, epoch=epoch)
        for model, epoch in (*single, *(mean for name, runs in grouped.items() for mean in _means(name, runs)))
    ]


def _means(name: str, runs: Sequence[EvaluatedModel]) -> list[tuple[EvaluatedModel, int]]:
    by_epoch: dict[int, list[EvaluatedModel]] = {}
    for model in runs:
        if model.checkpoint:
            by_epoch.setdefault(model.checkpoint[1], []).append(model)
    count = len(_runs(runs))
    complete = {epoch: own for epoch, own in sorted(by_epoch.items()) if len(own) == count > 1}
    if len(complete) < 2:  # which is no curve
        return []
    return [(mean_of_runs(f"{name} epoch_{epoch}", own), epoch) for epoch, own in complete.items()]


def last_checkpoints(models: Sequence[EvaluatedModel], named: Collection[str]) -> list[EvaluatedModel]:
    """Leave out the checkpoints that a later one of the same run follows, but for those whose names are given."""
    earlier = {model.name for run in _runs(models).values() for model in run[:-1]}
    return [model for model in models if model.name not in earlier or model.name in named]


def _runs(models: Sequence[EvaluatedModel]) -> dict[object, list[EvaluatedModel]]:
    """Return the models that are checkpoints of runs, evaluated in the same setting, in the order of the epochs."""
    runs: dict[object, list[EvaluatedModel]] = {}
    for model in sorted(models, key=lambda model: model.checkpoint[1] if model.checkpoint else 0):
        if model.checkpoint:
            runs.setdefault((model.checkpoint[0], model.precision, model.seed), []).append(model)
    return runs


def runs_of(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Return the entries of each run by its name, which is theirs without the epoch."""
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        runs.setdefault(re.sub(r" epoch_\d+( @ \w+)?", "", entry.name), []).append(entry)
    return {name: list({entry.epoch: entry for entry in found}.values()) for name, found in runs.items()}


def draw_curves(axis: Any, key: str, runs: Mapping[str, Sequence[Entry]], styles: Mapping[str, Style]) -> None:
    """Draw a line for each run, with whiskers at its checkpoints.

    Args:
        axis: of matplotlib.
        runs, styles: by the run's name.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FixedLocator, MaxNLocator

    for name, entries in runs.items():
        style = styles[name]
        epochs, scores = [entry.epoch for entry in entries], [entry.scores[key] for entry in entries]
        values = [score.value for score in scores]
        whiskers = list(zip(*map(whisker, scores), strict=True))
        axis.errorbar(epochs, values, whiskers, fmt="none", ecolor=INK, elinewidth=0.6, capsize=1.2)
        axis.plot(
            epochs,
            values,
            **outline(style),
            **CURVE_MARKERS,
            linewidth=1.2,
            path_effects=[withStroke(linewidth=1.8, foreground=INK)],
        )
    known = sorted({entry.epoch or 0 for entries in runs.values() for entry in entries})
    axis.xaxis.set_major_locator(FixedLocator(known) if len(known) <= 6 else MaxNLocator(integer=True, nbins=6))
    axis.grid(alpha=0.3, linewidth=0.5)
    axis.spines[["top", "right"]].set_visible(False)
