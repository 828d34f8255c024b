"""Scores under one set of keys, whoever reports them, and the means that the paper takes of them.

Keys are ``<measure>/<data set>``: ``linear_probe/dtd``, ``few_shot/dtd``, ``image_retrieval@5/flickr30k``,
``zero_shot_7/imagenet1k`` (the paper's 7 templates; ``zero_shot_80``: OpenAI's 80), ``mmvp/<pattern>``,
``pope_random/accuracy``; and, for means, ``linear_probe/mean``.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffclip_openclip.data.catalog import (
    DATA_SETS,
    LINEAR_PROBE,
    MMVP_PAPER_PATTERNS,
    MMVP_PATTERNS,
    RETRIEVAL,
    ZERO_SHOT,
)

RECALLS = (1, 5, 10)
TEMPLATES = {"paper-7": "zero_shot_7", "openai-80": "zero_shot_80"}  # of result files: the measure


@dataclass(frozen=True)
class Score:
    """A number in percent, and where it comes from.

    ``derived``: not given there, but following from what is. ``difference``: to CLIP, where the source prints one.
    """

    value: float
    source: str
    derived: bool = False
    difference: float | None = None


def members(measure: str, task: str) -> tuple[str, ...]:
    """Keys of ``measure`` for the data sets of a task, in the paper's order."""
    return tuple(f"{measure}/{data_set.name}" for data_set in DATA_SETS if task in data_set.tasks)


def _means() -> dict[str, tuple[str, ...]]:
    means = {f"{measure}/mean": members(measure, LINEAR_PROBE) for measure in ("linear_probe", "few_shot")}
    for k in RECALLS:
        for measure in (f"image_retrieval@{k}", f"text_retrieval@{k}"):
            means[f"{measure}/mean"] = members(measure, RETRIEVAL)
    for measure in TEMPLATES.values():
        means[f"{measure}/mean"] = members(measure, ZERO_SHOT)
        means[f"{measure}/mean_without_imagenet"] = members(measure, ZERO_SHOT)[1:]
    means["mmvp/mean_7"] = tuple(f"mmvp/{pattern}" for pattern in MMVP_PAPER_PATTERNS)
    means["mmvp/mean_9"] = tuple(f"mmvp/{pattern}" for pattern in MMVP_PATTERNS)
    return means


MEANS = _means()  # of each mean: the keys that it is taken over


def with_means(scores: Mapping[str, Score], derived: bool) -> dict[str, Score]:
    """``scores`` and those means that are not among them and of which every member is."""
    complete = dict(scores)
    for key, keys in MEANS.items():
        if key not in scores and all(member in scores for member in keys):
            mean = sum(scores[member].value for member in keys) / len(keys)
            complete[key] = Score(mean, f"mean of {len(keys)} values", derived)
    return complete
