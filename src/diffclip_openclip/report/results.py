"""Reads and checks what ``diffclip evaluate`` wrote: RESULTS/<model>/<task>/<name>.json, metrics as fractions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from diffclip_openclip.data.catalog import (
    DATA_SETS,
    MMVP,
    MMVP_PATTERNS,
    POPE,
    POPE_CATEGORIES,
    RETRIEVAL,
    ZERO_SHOT,
)
from diffclip_openclip.evaluation.results import RESULT_TASKS, read, result_paths
from diffclip_openclip.report.scores import RECALLS, TEMPLATES, Score


@dataclass(frozen=True)
class Result:
    """One file: what it says (``content``), and what it adds to the report (``scores``, by key; none: not reported)."""

    path: str
    task: str
    content: Mapping[str, Any]
    scores: Mapping[str, Score]


def read_results(folder: Path) -> list[Result]:
    """All results in ``folder``.

    Files elsewhere than in a model's folder of a known task are not looked at.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        ValueError: a file is no result, or there are none; names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder that `diffclip evaluate` wrote")
    results = [_read(path, folder) for path in result_paths(folder)]
    if not results:
        raise ValueError(
            f"{folder} holds no results; they are expected as MODEL/TASK/NAME.json, as `diffclip evaluate` writes "
            f"them, with TASK one of {', '.join(RESULT_TASKS)}"
        )
    if not any(result.scores for result in results):
        names = sorted({result.content["dataset"] for result in results})
        raise ValueError(f"{folder} holds results of {', '.join(names)} only, none of which the paper has")
    return results


def _read(path: Path, folder: Path) -> Result:
    task, content = path.parent.name, read(path)
    name = path.relative_to(folder).as_posix()
    scores = {key: Score(100 * _fraction(path, content, place), name) for key, place in _places(path, task, content)}
    return Result(name, task, content, scores)


def _places(path: Path, task: str, content: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keys of a result that the report knows, each with the place of its number in ``metrics``."""
    name = content["dataset"]
    if task == POPE:
        if name in (f"pope_{category}" for category in POPE_CATEGORIES):
            yield from ((f"{name}/{metric}", (metric,)) for metric in ("accuracy", "precision", "recall", "f1"))
            yield f"{name}/yes_ratio", ("yes_ratio",)
    elif not any(name == data_set.name and task in data_set.tasks for data_set in DATA_SETS):
        return
    elif task == ZERO_SHOT:
        if content["templates"] not in TEMPLATES:
            raise ValueError(f"{path}: templates is {content['templates']!r}, not one of {', '.join(TEMPLATES)}")
        yield f"{TEMPLATES[content['templates']]}/{name}", ("acc1",)
    elif task == RETRIEVAL:
        for k, kind in product(RECALLS, ("image", "text")):
            metric = f"{kind}_retrieval_recall@{k}"
            if content["metrics"].get(metric, 0) is not None:  # null: fewer than k images or captions
                yield f"{kind}_retrieval@{k}/{name}", (metric,)
    elif task == MMVP:
        patterns = content["metrics"].get("patterns")
        if not isinstance(patterns, dict) or not patterns.keys() & set(MMVP_PATTERNS):
            raise ValueError(f"{path}: metrics holds none of MMVP's patterns")
        yield from ((f"mmvp/{name}", ("patterns", name)) for name in MMVP_PATTERNS if name in patterns)
    else:
        yield f"{task}/{name}", ("accuracy",)


def _fraction(path: Path, content: Mapping[str, Any], place: tuple[str, ...]) -> float:
    value: Any = content["metrics"]
    for step in place:
        if not isinstance(value, dict) or step not in value:
            raise ValueError(f"{path}: metrics lacks {' / '.join(place)}")
        value = value[step]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{path}: {' / '.join(place)} is {value!r}, which is no fraction between 0 and 1")
    return value
