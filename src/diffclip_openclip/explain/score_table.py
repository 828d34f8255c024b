"""Scores of models beside each other: means, bootstrap intervals over images, and paired differences.

Shape legend: S checkpoints of a model, I images, K scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
_RESAMPLES = 9999
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over images and checkpoints, and its 95 % bootstrap interval over images."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """A score of one model, in 0..1: its ``value``, the means of its ``checkpoints``, and what chance gives.

    ``difference`` is to the first model, on the same images; None for the first model itself.
    """

    model: str
    score: str
    chance: float
    value: Estimate
    checkpoints: list[float]
    difference: Estimate | None


def summarize(scores: Mapping[str, Floats], chance: Mapping[str, float], seed: int = 0) -> list[Row]:
    """A row for each score and model.

    Intervals are over images, with the checkpoints as they are; how much trainings differ is in ``checkpoints``.

    Args:
        scores: of each model, (S, I, K), on the same images.
        chance: the K scores' names, in this order, with what chance gives.
        seed: of the bootstrap.
    """
    first = next(iter(scores))
    rows = []
    for i, score in enumerate(chance):
        base_I = scores[first][:, :, i].mean(axis=0)
        for model, values in scores.items():
            own_I = values[:, :, i].mean(axis=0)
            difference = None if model == first else _estimate(own_I - base_I, seed)
            checkpoints = values[:, :, i].mean(axis=1).tolist()
            rows.append(Row(model, score, chance[score], _estimate(own_I, seed), checkpoints, difference))
    return rows


def _estimate(values_I: Floats, seed: int) -> Estimate:
    from scipy.stats import bootstrap

    drawn = bootstrap(
        (values_I,), np.mean, n_resamples=_RESAMPLES, confidence_level=_LEVEL, method="percentile", rng=seed
    )
    return Estimate(float(values_I.mean()), *map(float, drawn.confidence_interval))


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table, in per cent: intervals in brackets, differences in points."""
    first = rows[0].model
    lines = [
        f"| score | chance | model | mean [95 % interval] | its checkpoints | difference to {first} |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        checkpoints = ", ".join(f"{100 * value:.1f}" for value in row.checkpoints)
        difference = "" if row.difference is None else _cell(row.difference, "+")
        cells = [row.score, f"{100 * row.chance:.1f}", row.model, _cell(row.value), checkpoints, difference]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(estimate: Estimate, sign: str = "") -> str:
    mean, low, high = (format(100 * value, f"{sign}.1f") for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"
