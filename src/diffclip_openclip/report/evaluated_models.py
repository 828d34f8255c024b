"""Read what ``diffclip evaluate`` wrote, and group it into models.

Result files are RESULTS/<model>/<task>/<name>.json, with metrics as fractions. A model is a checkpoint as it was
evaluated, in one precision and with one seed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    RECALL_AT,
    RETRIEVAL,
    ZERO_SHOT,
)
from diffclip_openclip.evaluation.results import RESULT_TASKS, read, result_paths
from diffclip_openclip.report.paper import TEMPLATE_MEASURES, Score, with_means


@dataclass(frozen=True)
class Result:
    """Hold one result file."""

    path: str  # from the folder of all results
    task: str
    content: Mapping[str, Any]  # of the file
    scores: Mapping[str, Score]  # what the report shows of it, by key; empty where the paper has no such data set


@dataclass(frozen=True)
class EvaluatedModel:
    """Hold all results of a checkpoint in one precision and with one seed."""

    name: str  # the label, with the checkpoint's hash and the settings where the label alone is not unique
    architecture: str | None  # open_clip's name of it, if it has one
    sha256: str | None  # of the checkpoint
    precision: str | None  # None where no result has one
    seed: int | None  # likewise
    results: tuple[Result, ...]

    @property
    def scores(self) -> dict[str, Score]:
        """Return the scores of all results, and the means whose members are all there."""
        return with_means({key: score for result in self.results for key, score in result.scores.items()}, False)

    def is_set_as(self, other: "EvaluatedModel") -> bool:
        """Tell whether precision and seed are the same, as far as both are known."""
        pairs = ((self.precision, other.precision), (self.seed, other.seed))
        return all(mine == theirs or mine is None or theirs is None for mine, theirs in pairs)


def read_models(folder: Path) -> list[EvaluatedModel]:
    """Return all models that have results in ``folder``, by name.

    Files elsewhere than in a model's folder of a known task are not read.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        ValueError: a file is no result, there are no results, or two files are of the same model and data.
    """
    groups = _by_checkpoint(_read_results(folder))
    labels = [label for label, _ in groups]
    models = [model for key, own in groups.items() for model in _models(*key, own, ambiguous=labels.count(key[0]) > 1)]
    return sorted(models, key=lambda model: model.name)


# files


def _read_results(folder: Path) -> list[Result]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder that `diffclip evaluate` wrote")
    results = [_read_result(path, folder) for path in result_paths(folder)]
    if not results:
        raise ValueError(
            f"{folder} holds no results; they are expected as MODEL/TASK/NAME.json, as `diffclip evaluate` writes "
            f"them, with TASK one of {', '.join(RESULT_TASKS)}"
        )
    if not any(result.scores for result in results):
        names = sorted({result.content["dataset"] for result in results})
        raise ValueError(f"{folder} holds results of {', '.join(names)} only, none of which the paper has")
    return results


def _read_result(path: Path, folder: Path) -> Result:
    task, content = path.parent.name, read(path)
    name = path.relative_to(folder).as_posix()
    scores = {key: Score(100 * _fraction(path, content, steps), name) for key, steps in _scored(path, task, content)}
    return Result(name, task, content, scores)


def _scored(path: Path, task: str, content: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the keys that the report knows of a result, each with the steps to its number in ``metrics``."""
    name = content["dataset"]
    if task == POPE:
        if name in (f"pope_{category}" for category in POPE_CATEGORIES):
            yield from ((f"{name}/{metric}", (metric,)) for metric in ("accuracy", "precision", "recall", "f1"))
            yield f"{name}/yes_ratio", ("yes_ratio",)
    elif not any(name == data_set.name and task in data_set.tasks for data_set in DATA_SETS):
        return
    elif task == ZERO_SHOT:
        templates = content["templates"]
        if templates not in TEMPLATE_MEASURES:
            raise ValueError(f"{path}: templates is {templates!r}, not one of {', '.join(TEMPLATE_MEASURES)}")
        yield f"{TEMPLATE_MEASURES[templates]}/{name}", ("acc1",)
    elif task == RETRIEVAL:
        for k, kind in product(RECALL_AT, ("image", "text")):
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


def _fraction(path: Path, content: Mapping[str, Any], steps: tuple[str, ...]) -> float:
    value: Any = content["metrics"]
    for step in steps:
        if not isinstance(value, dict) or step not in value:
            raise ValueError(f"{path}: metrics lacks {' / '.join(steps)}")
        value = value[step]
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{path}: {' / '.join(steps)} is {value!r}, which is no fraction between 0 and 1")
    return value


# models


def _by_checkpoint(results: Iterable[Result]) -> dict[tuple[str, str | None], list[Result]]:
    """Group results by label and checkpoint.

    POPE scores a language model's answers. Each category has a file of answers with a hash of its own, so these results
    go by their label: to the one checkpoint that has it, or else into a group of their own.
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


def _models(label: str, sha256: str | None, results: Sequence[Result], ambiguous: bool) -> Iterator[EvaluatedModel]:
    """Yield a model for each precision and seed; a result that depends on neither is in each of them."""
    name = f"{label} @ {sha256[:8] if sha256 else 'no checkpoint'}" if ambiguous else label
    settings = _settings(results)
    several_precisions, several_seeds = (len({setting[at] for setting in settings}) > 1 for at in (0, 1))
    for precision, seed in settings:
        own = tuple(result for result in results if _applies(result, precision, seed))
        _check_unique(own)
        shown = [precision] if several_precisions else []
        shown += [f"seed {seed}"] if several_seeds and seed is not None else []
        architecture = next((result.content.get("architecture") for result in own if result.task != POPE), None)
        yield EvaluatedModel(
            f"{name} ({', '.join(map(str, shown))})" if shown else name, architecture, sha256, precision, seed, own
        )


def _settings(results: Sequence[Result]) -> list[tuple[str | None, int | None]]:
    """Return the precisions that there are results in, each with its seeds."""
    seeds: dict[str, set[int]] = {}
    for result in results:
        if result.task != POPE:
            seed = result.content.get("seed")
            seeds.setdefault(result.content["precision"], set()).update([] if seed is None else [seed])
    found: list[tuple[str | None, int | None]] = []
    for precision in sorted(seeds):
        found += [(precision, seed) for seed in sorted(seeds[precision])] or [(precision, None)]
    return found or [(None, None)]


def _applies(result: Result, precision: str | None, seed: int | None) -> bool:
    if result.task == POPE:
        return True
    return result.content["precision"] == precision and result.content.get("seed") in (None, seed)


def _check_unique(results: Iterable[Result]) -> None:
    seen: dict[str, str] = {}
    for result in results:
        for key in result.scores:
            if key in seen:
                raise ValueError(f"{seen[key]} and {result.path} are results of the same model and data; remove one")
            seen[key] = result.path
