"""Reads and checks what ``diffclip evaluate`` wrote: RESULTS/<model>/<task>/<name>.json, metrics as fractions."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from diffclip_openclip.evaluation.suite import (
    DATA_SETS,
    MMVP,
    MMVP_PATTERNS,
    POPE,
    POPE_CATEGORIES,
    RETRIEVAL,
    TASKS,
    ZERO_SHOT,
)
from diffclip_openclip.report.scores import RECALLS, TEMPLATES, Score

_TASKS = (*TASKS, POPE)
_FIELDS = (
    "dataset",
    "model",
    "label",
    "checkpoint_sha256",
    "metrics",
    "images",
    "versions",
    "device",
    "precision",
    "date",
)


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
    paths = sorted(path for task in _TASKS for path in folder.glob(f"*/{task}/*.json"))
    results = [_read(path, folder) for path in paths]
    if not results:
        raise ValueError(
            f"{folder} holds no results; they are expected as MODEL/TASK/NAME.json, as `diffclip evaluate` writes "
            f"them, with TASK one of {', '.join(_TASKS)}"
        )
    if not any(result.scores for result in results):
        names = sorted({result.content["dataset"] for result in results})
        raise ValueError(f"{folder} holds results of {', '.join(names)} only, none of which the paper has")
    return results


def _read(path: Path, folder: Path) -> Result:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is no JSON ({error}); run that evaluation again, or remove the file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no result: its content is a {type(content).__name__}, not an object")
    task = path.parent.name
    wanted = (*_FIELDS, "templates") if task == ZERO_SHOT else _FIELDS
    if missing := [field for field in wanted if field not in content]:
        raise ValueError(f"{path} is no result of `diffclip evaluate`: it lacks {', '.join(missing)}")
    if content.get("task", task) != task:
        raise ValueError(f"{path} lies in the folder of task {task}, and says that its task is {content['task']!r}")
    _check_types(path, content)
    name = path.relative_to(folder).as_posix()
    scores = {key: Score(100 * _fraction(path, content, place), name) for key, place in _places(path, task, content)}
    return Result(name, task, content, scores)


def _check_types(path: Path, content: Mapping[str, Any]) -> None:
    for field in ("dataset", "model", "label", "precision"):
        if not isinstance(content[field], str):
            raise ValueError(f"{path}: {field} must be a string, not {content[field]!r}")
    for field in ("checkpoint_sha256", "architecture"):
        if not isinstance(content.get(field), str | None):
            raise ValueError(f"{path}: {field} must be a string or null, not {content[field]!r}")
    if not isinstance(content.get("seed"), int | None):
        raise ValueError(f"{path}: seed must be a whole number or null, not {content['seed']!r}")
    for field in ("metrics", "versions", "images"):
        if not isinstance(content[field], dict):
            raise ValueError(f"{path}: {field} must be an object, not {content[field]!r}")
    if not all(isinstance(count, int) for count in content["images"].values()):
        raise ValueError(f"{path}: images must be numbers of images by split, not {content['images']!r}")


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
