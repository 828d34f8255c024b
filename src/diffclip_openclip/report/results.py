"""Reads what ``diffclip evaluate`` wrote: RESULTS/<model>/<task>/<name>.json, metrics as fractions."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffclip_openclip.evaluation.suite import (
    DATA_SETS,
    FEW_SHOT,
    LINEAR_PROBE,
    MMVP,
    MMVP_PATTERNS,
    POPE,
    POPE_CATEGORIES,
    RETRIEVAL,
    ZERO_SHOT,
)
from diffclip_openclip.report.scores import RECALLS, TEMPLATES, Score, with_means

_TASKS = (ZERO_SHOT, RETRIEVAL, LINEAR_PROBE, FEW_SHOT, MMVP, POPE)
_FIELDS = ("dataset", "model", "label", "checkpoint_sha256", "metrics", "versions", "device", "precision", "date")


@dataclass(frozen=True)
class Result:
    """One file: what it says (``content``), and what it adds to the report (``scores``, by key; none: not reported)."""

    path: str
    task: str
    content: Mapping[str, Any]
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Model:
    """A checkpoint and all results of it. ``name`` is its label, with the checkpoint's hash where two share a label."""

    name: str
    open_clip_name: str
    sha256: str | None
    results: tuple[Result, ...]

    @property
    def scores(self) -> dict[str, Score]:
        """What its files say, and the means of what is complete."""
        return with_means({key: score for result in self.results for key, score in result.scores.items()}, False)


def read_models(folder: Path) -> list[Model]:
    """All models that have results in ``folder``, by name.

    Files elsewhere than in a model's folder of a known task are not looked at.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        ValueError: a file is no result, two files say the same, or there are none; names the file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder that `diffclip evaluate` wrote")
    results = [_read(path, folder) for path in sorted(_paths(folder))]
    if not results:
        raise ValueError(
            f"{folder} holds no results; they are expected as MODEL/TASK/NAME.json, as `diffclip evaluate` writes "
            f"them, with TASK one of {', '.join(_TASKS)}"
        )
    if not any(result.scores for result in results):
        names = sorted({result.content["dataset"] for result in results})
        raise ValueError(f"{folder} holds results of {', '.join(names)} only, none of which the paper has")
    groups = _grouped(results)
    labels = [label for label, _ in groups]
    return sorted(
        (_model(label, sha256, own, labels.count(label) > 1) for (label, sha256), own in groups.items()),
        key=lambda model: model.name,
    )


def _paths(folder: Path) -> Iterator[Path]:
    for task in _TASKS:
        yield from folder.glob(f"*/{task}/*.json")


def _grouped(results: Iterable[Result]) -> dict[tuple[str, str | None], list[Result]]:
    """Results by label and checkpoint.

    What POPE scores are a language model's answers, of which each category has a file: they go by the label alone, to
    the one checkpoint that has it, or else stand for themselves.
    """
    groups: dict[tuple[str, str | None], list[Result]] = {}
    answers: list[Result] = []
    for result in results:
        if result.task == POPE:
            answers.append(result)
        else:
            groups.setdefault((result.content["label"], result.content["checkpoint_sha256"]), []).append(result)
    checkpoints = list(groups)
    for result in answers:
        own = [key for key in checkpoints if key[0] == result.content["label"]]
        groups.setdefault(own[0] if len(own) == 1 else (result.content["label"], None), []).append(result)
    return groups


def _model(label: str, sha256: str | None, results: list[Result], ambiguous: bool) -> Model:
    seen: dict[str, str] = {}
    for result in results:
        for key in result.scores:
            if key in seen:
                raise ValueError(f"{seen[key]} and {result.path} are results of the same model and data; remove one")
            seen[key] = result.path
    name = f"{label} @ {sha256[:8] if sha256 else 'no checkpoint'}" if ambiguous else label
    # a converted directory is named by its path
    open_clip_name = Path(results[0].content["model"].rpartition(":")[2]).name
    return Model(name, open_clip_name, sha256, tuple(results))


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
    for field in ("dataset", "model", "label"):
        if not isinstance(content[field], str):
            raise ValueError(f"{path}: {field} must be a string, not {content[field]!r}")
    if not isinstance(content["checkpoint_sha256"], str | None):
        raise ValueError(f"{path}: checkpoint_sha256 must be a string or null, not {content['checkpoint_sha256']!r}")
    for field in ("metrics", "versions"):
        if not isinstance(content[field], dict):
            raise ValueError(f"{path}: {field} must be an object, not {content[field]!r}")


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
        for k in RECALLS:
            yield f"image_retrieval@{k}/{name}", (f"image_retrieval_recall@{k}",)
            yield f"text_retrieval@{k}/{name}", (f"text_retrieval_recall@{k}",)
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
