"""Turn a result file into the report's scores: percent by key, with intervals and what became of each sample."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffclip_openclip.data.catalog import (
    FEW_SHOT,
    MMVP,
    MMVP_PATTERNS,
    POPE,
    POPE_CATEGORIES,
    RECALL_AT,
    RETRIEVAL,
    SUGAR_CREPE,
    SUGAR_CREPE_KINDS,
    WINOGROUND,
    ZERO_SHOT,
    deviations,
    known_data_set,
)
from diffclip_openclip.evaluation.results import read, read_outcomes
from diffclip_openclip.report.paper import TEMPLATE_MEASURES, Score
from diffclip_openclip.report.uncertainty import Interval, Outcomes, outcomes_interval


@dataclass(frozen=True)
class Result:
    """Hold one result file."""

    path: str  # from the folder of all results
    task: str
    content: Mapping[str, Any]  # of the file
    scores: Mapping[str, Score]  # what the report shows of it, by key


class _Place(NamedTuple):
    """Say where a score is in a result file."""

    key: str  # of the score
    steps: tuple[str, ...]  # to its number in ``metrics``


def read_result(path: Path, folder: Path) -> Result:
    """Read a result file.

    Raises:
        ValueError: it is no result, or a number in it is no fraction.
    """
    task, content = path.parent.name, read(path)
    name = plain_text(path.relative_to(folder).as_posix())
    arrays = read_outcomes(path)
    is_other_size = bool(deviations(content["dataset"], content["images"], content.get("captions")))
    scores = {}
    for place in _places(path, task, content):
        value = 100 * _fraction(path, content, place.steps)
        outcomes = _outcomes(task, content, arrays, place) if arrays else None
        interval = _interval(task, content, value, outcomes)
        known = () if outcomes is None else (outcomes,)
        scores[place.key] = Score(value, name, interval=interval, outcomes=known, is_other_size=is_other_size)
    return Result(name, task, content, scores)


def plain_text(text: str) -> str:
    """Return text as one line of letters that can be printed, which no format takes for more than text."""
    line = re.sub(r"[^\S ]+", " ", text)
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


def _places(path: Path, task: str, content: Mapping[str, Any]) -> Iterator[_Place]:
    """Yield the scores of a result, those of the user's own data sets too."""
    name = plain_text(content["dataset"])
    data_set = known_data_set(name)
    is_known = data_set is not None
    if task == POPE:
        if name in (f"pope_{category}" for category in POPE_CATEGORIES):
            for metric in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
                yield _Place(f"{name}/{metric}", (metric,))
    elif task == ZERO_SHOT:
        templates = content["templates"]
        if data_set and "Figure 3" in data_set.paper and templates not in TEMPLATE_MEASURES:
            raise ValueError(f"{path}: templates is {templates!r}, not one of {', '.join(TEMPLATE_MEASURES)}")
        measure = TEMPLATE_MEASURES.get(templates, "zero_shot_own")
        yield _Place(f"{measure}/{name}", ("acc1",))
        if not is_known and content["metrics"].get("acc5") is not None:  # null: below five classes
            yield _Place(f"{measure}_top5/{name}", ("acc5",))
    elif task == RETRIEVAL:
        for k, kind in product(RECALL_AT, ("image", "text")):
            metric = f"{kind}_retrieval_recall@{k}"
            if content["metrics"].get(metric, 0) is not None:  # null: fewer than k images or captions
                yield _Place(f"{kind}_retrieval@{k}/{name}", (metric,))
    elif task == MMVP:
        patterns = content["metrics"].get("patterns")
        if not isinstance(patterns, dict) or not patterns.keys() & set(MMVP_PATTERNS):
            raise ValueError(f"{path}: metrics holds none of MMVP's patterns")
        for pattern in MMVP_PATTERNS:
            if pattern in patterns:
                yield _Place(f"mmvp/{pattern}", ("patterns", pattern))
    elif task == SUGAR_CREPE:
        kinds = content["metrics"].get("kinds")
        if not isinstance(kinds, dict) or not kinds.keys() & SUGAR_CREPE_KINDS.keys():
            raise ValueError(f"{path}: metrics holds none of SugarCrepe's kinds")
        for kind in SUGAR_CREPE_KINDS:
            if kind in kinds:
                yield _Place(f"sugar_crepe/{kind}", ("kinds", kind))
    elif task == WINOGROUND:
        for metric in ("text_score", "image_score", "group_score"):
            yield _Place(f"winoground/{metric}", (metric,))
    else:
        yield _Place(f"{task}/{name}", ("accuracy",))


def _fraction(path: Path, content: Mapping[str, Any], steps: tuple[str, ...]) -> float:
    value: Any = content["metrics"]
    for step in steps:
        if not isinstance(value, dict) or step not in value:
            raise ValueError(f"{path}: metrics lacks {' / '.join(steps)}")
        value = value[step]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{path}: {' / '.join(steps)} is {value!r}, which is no fraction between 0 and 1")
    return value


# uncertainty


def _interval(task: str, content: Mapping[str, Any], value: float, outcomes: Outcomes | None) -> Interval | None:
    """Return the interval of a score; of few-shot the one that its file has, since its mean is of many episodes."""
    ci95 = content["metrics"].get("ci95")
    if task == FEW_SHOT and isinstance(ci95, int | float) and math.isfinite(ci95):
        return Interval(value - 100 * ci95, value + 100 * ci95)
    return None if outcomes is None else outcomes_interval(outcomes)


def _outcomes(
    task: str, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray], place: _Place
) -> Outcomes | None:
    """Return what a score is computed from; ``arrays`` are those of the task in ``evaluation.outcomes.OUTCOMES``."""
    name, metric = content["dataset"], place.steps[0]
    samples = f"{task} {name} {content.get('dataset_sha256')} {content.get('seed')}"
    if task == RETRIEVAL:
        hits, trials = _recalls(arrays, metric)
        return Outcomes(samples, hits, trials)
    if task == MMVP:
        hits = arrays["hit"][arrays["pattern"] == MMVP_PATTERNS.index(place.steps[1])]
        return Outcomes(f"{samples} {place.key}", hits, np.ones(len(hits)))
    if task == POPE:
        hits, trials = _answers(arrays, metric)
        return Outcomes(samples, hits, trials)
    if task == SUGAR_CREPE:
        hits = arrays["correct"][arrays["kind"] == list(SUGAR_CREPE_KINDS).index(place.steps[1])]
        return Outcomes(f"{samples} {place.key}", hits, np.ones(len(hits)))
    if task == WINOGROUND:
        hits = arrays[metric.removesuffix("_score")]
        return Outcomes(samples, hits, np.ones(len(hits)))
    hits = arrays[{"acc1": "correct1", "acc5": "correct5"}.get(metric, "accuracy" if task == FEW_SHOT else "correct")]
    data_set = known_data_set(name)
    per_class = task == "linear_probe" and data_set is not None and data_set.mean_per_class
    return Outcomes(samples, hits, np.ones(len(hits)), arrays["label"] if per_class else None)


def _recalls(arrays: Mapping[str, np.ndarray], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return hits and trials by image: captions of one image succeed and fail together."""
    kind, _, k = metric.partition("_retrieval_recall@")
    if kind == "text":
        hits = arrays["image_to_text_rank"] <= int(k)
        return hits, np.ones(len(hits))
    images, number = arrays["image_of_text"], len(arrays["image_to_text_rank"])
    found = np.bincount(images, arrays["text_to_image_rank"] <= int(k), minlength=number)
    return found, np.bincount(images, minlength=number)


def _answers(arrays: Mapping[str, np.ndarray], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return hits and trials by question: F1 is twice the right yes over all that are said and all that are due."""
    correct, due = arrays["correct"].astype(bool), arrays["label"].astype(bool)
    said, all_of_them = correct == due, np.ones(len(due))
    right_yes = correct & due
    return {
        "accuracy": (correct, all_of_them),
        "precision": (right_yes, said.astype(float)),
        "recall": (right_yes, due.astype(float)),
        "f1": (2.0 * right_yes, said.astype(float) + due),
        "yes_ratio": (said, all_of_them),
    }[metric]
