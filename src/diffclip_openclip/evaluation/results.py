"""Write and read result files, in clip_benchmark's form with what makes a number repeatable.

A file is RESULTS/MODEL/TASK/NAME.json. :data:`FIELDS` is the one table of what is in it.
:mod:`~diffclip_openclip.evaluation.outcomes` writes and reads NAME.npz beside it.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffclip_openclip.data.catalog import (
    LINEAR_PROBE,
    MMVP,
    POPE,
    RETRIEVAL,
    SUGAR_CREPE,
    TASKS,
    ZERO_SHOT,
    deviations,
)
from diffclip_openclip.evaluation.outcomes import load_outcomes, write_outcomes
from diffclip_openclip.files import kept, read_json

RESULT_TASKS = (*TASKS, POPE)
_PACKAGES = ("diffclip-openclip", "open_clip_torch", "clip_benchmark", "timm", "torch", "transformers", "webdataset")


class _Kind(NamedTuple):
    """Describe which values a field may have."""

    types: tuple[type, ...]
    words: str  # the same in words, for error messages


_STRING = _Kind((str,), "a string")
_STRING_OR_NULL = _Kind((str, type(None)), "a string or null")
_WHOLE_OR_NULL = _Kind((int, type(None)), "a whole number or null")
_NUMBER = _Kind((int, float), "a number")
_OBJECT = _Kind((dict,), "an object")


class _Field(NamedTuple):
    """Describe a field of a result file."""

    kind: _Kind
    required: bool = False  # whether a file without it is no result


# A field that is added here must not be required: files that are written already lack it.
FIELDS: Mapping[str, _Field] = {
    # What was measured.
    "task": _Field(_STRING),
    "dataset": _Field(_STRING, required=True),
    "templates": _Field(_STRING_OR_NULL),  # name of the set; required of zero-shot classification
    # The model's name in tables, and open_clip's arguments for it.
    "model": _Field(_STRING, required=True),
    "pretrained": _Field(_STRING_OR_NULL),
    "label": _Field(_STRING, required=True),
    "architecture": _Field(_STRING_OR_NULL),  # open_clip's name of it, where it has one
    # of weights, architecture and preprocessing; for POPE, of the answers
    "checkpoint_sha256": _Field(_STRING_OR_NULL, required=True),
    "dataset_sha256": _Field(_STRING_OR_NULL),  # of shards and class names; for POPE, of the questions
    # The training run that a checkpoint is from, and its epoch, where they are known.
    "run": _Field(_STRING_OR_NULL),
    "epoch": _Field(_WHOLE_OR_NULL),
    "training_seed": _Field(_WHOLE_OR_NULL),  # the trainer's --seed
    # Settings that the metrics depend on.
    "precision": _Field(_STRING, required=True),
    "seed": _Field(_WHOLE_OR_NULL),
    "language": _Field(_STRING_OR_NULL),
    "metrics": _Field(_OBJECT, required=True),  # fractions by name, null where there is none
    "outcomes_sha256": _Field(_STRING_OR_NULL),  # of the file of outcomes that belongs to this one
    "images": _Field(_OBJECT, required=True),  # the number of images by split
    "captions": _Field(_OBJECT),  # the number of captions by split, in retrieval
    # Where the numbers come from.
    "versions": _Field(_OBJECT, required=True),
    "device": _Field(_STRING_OR_NULL, required=True),
    "seconds": _Field(_NUMBER),
    "date": _Field(_STRING_OR_NULL, required=True),
}


# The metrics that a line about a result shows, where these are not the first three.
_HEADLINES = {
    RETRIEVAL: ("image_retrieval_recall@5", "text_retrieval_recall@5"),  # of Table 2
    LINEAR_PROBE: ("accuracy", "acc1", "mean_per_class_recall"),
    MMVP: ("mean_7", "mean_9"),
    SUGAR_CREPE: ("mean",),
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Hold what a result depends on; a file of other values is out of date. Fields are those of :data:`FIELDS`."""

    task: str
    dataset: str
    label: str
    model: str
    pretrained: str
    checkpoint_sha256: str
    dataset_sha256: str
    precision: str
    seed: int | None = None  # for linear probe and few-shot only
    templates: str | None = None  # for zero-shot classification only
    architecture: str | None = None

    def path(self, results: Path) -> Path:
        """Return the result's file; the model's folder ends with the start of its checkpoint's hash."""
        name = file_name(self.dataset, self.templates, self.precision, self.seed)
        return results / f"{slug(self.label)}-{self.checkpoint_sha256[:8]}" / self.task / name

    def fields(self) -> dict[str, Any]:
        """Return the fields as they are written: without those that do not apply, with clip_benchmark's language."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return given | {"language": "en"}


def file_name(dataset: str, templates: str | None, precision: str, seed: int | None) -> str:
    """Return a result's file name; precision and seed are appended unless they are fp32 and 0."""
    parts = [dataset, templates, None if precision == "fp32" else precision, f"seed{seed}" if seed else None]
    return f"{'_'.join(filter(None, parts))}.json"


def slug(label: str) -> str:
    """Make a label into a folder's name."""
    return re.sub(r"[^\w.=-]+", "_", label)


def write(
    identity: Identity,
    results: Path,
    metrics: Mapping[str, Any],
    *,
    outcomes: Mapping[str, np.ndarray],
    device: str,
    seconds: float,
    images: Mapping[str, int] | None = None,
    captions: Mapping[str, int] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a result to its two files, which replace older ones, and return the content of the JSON.

    The JSON is written last and has the hash of the other. So a result without its outcomes, or with those of another
    run, is not taken for a finished one, wherever the process ends.

    Args:
        metrics: by name; NaN becomes null.
        outcomes: those of :data:`~diffclip_openclip.evaluation.outcomes.OUTCOMES` for the task, of any numeric type.
        seconds: how long computing took.
        images: the number of images that it is of, by split.
        captions: likewise, in retrieval.
        provenance: the fields ``run``, ``epoch`` and ``training_seed``, where they are known.
    """
    path = identity.path(results)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in metrics.items()}
    content = identity.fields() | dict(provenance or {})
    content |= {
        "metrics": plain,
        "outcomes_sha256": write_outcomes(path, identity.task, outcomes),
        "images": dict(images or {}),
        **({"captions": dict(captions)} if captions else {}),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": device,
        "seconds": round(seconds, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with kept(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return content


def read_outcomes(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays of :data:`~diffclip_openclip.evaluation.outcomes.OUTCOMES` of the result ``path``.

    Returns:
        None where there are none; see :func:`~diffclip_openclip.evaluation.outcomes.load_outcomes`.

    Raises:
        ValueError: ``path`` is no result.
    """
    return load_outcomes(path, read(path).get("outcomes_sha256"))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def result_paths(results: Path) -> list[Path]:
    """List the result files in a folder; files elsewhere than in a model's folder of a known task are none."""
    return sorted(path for task in RESULT_TASKS for path in results.glob(f"*/{task}/*.json"))


def read(path: Path) -> dict[str, Any]:
    """Check a result file and return its content, by :data:`FIELDS`; fields that are not required may be missing.

    Raises:
        ValueError: it is no result; names the file and what is wrong in it.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; run that evaluation again, or remove the file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no result: its content is a {type(content).__name__}, not an object")
    task = path.parent.name
    required = [name for name, field in FIELDS.items() if field.required or (name == "templates" and task == ZERO_SHOT)]
    if missing := [name for name in required if name not in content]:
        raise ValueError(f"{path} is no result of `diffclip evaluate`: it lacks {', '.join(missing)}")
    if content.get("task", task) != task:
        raise ValueError(f"{path} lies in the folder of task {task}, and says that its task is {content['task']!r}")
    for name, field in FIELDS.items():
        if name in content and not isinstance(content[name], field.kind.types):
            raise ValueError(f"{path}: {name} must be {field.kind.words}, not {_shown(content[name])}")
    for name in ("images", "captions"):
        if not all(isinstance(count, int) for count in content.get(name, {}).values()):
            raise ValueError(f"{path}: {name} must be numbers of {name} by split, not {_shown(content[name])}")
    for name, value in content["metrics"].items():
        if any(isinstance(inner, list | dict) for inner in (value.values() if isinstance(value, dict) else [value])):
            raise ValueError(f"{path}: metrics must be numbers or null; {name} is {_shown(value)}")
    return content


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def read_finished(identity: Identity, results: Path) -> dict[str, Any] | None:
    """Return the content of a result's file if it is of this very model, data and setting, otherwise None.

    A result that should have outcomes and has not is none.
    """
    path = identity.path(results)
    try:
        content = read_json(path)
    except (FileNotFoundError, ValueError):
        return None
    wanted = identity.fields()
    if not isinstance(content, dict) or {key: content.get(key) for key in wanted} != wanted:
        return None
    outcomes = content.get("outcomes_sha256")
    return content if outcomes is None or load_outcomes(path, outcomes) is not None else None


def headline(content: Mapping[str, Any]) -> str:
    """Describe a result in one line: its first figures, and what is to be known of them."""
    metrics = content["metrics"]
    names = _HEADLINES.get(content["task"], tuple(metrics)[:3])
    figures = [(name, metrics[name]) for name in names if isinstance(metrics.get(name), float)]
    shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures)
    templates = f" ({content['templates']} templates)" if "templates" in content else ""
    warnings = []
    if metrics.get("predicted_classes") == 1:
        reason = "W is 0, so that " if metrics.get("weight_norm") == 0 else ""
        warnings.append(f"{reason}every image is predicted to be of one class")
    if unlike := deviations(content["dataset"], content["images"], content.get("captions")):
        warnings.append(f"not of the published size ({', '.join(unlike)})")
    warning = f"; warning: {'; '.join(warnings)}" if warnings else ""
    return f"{content['label']}: {content['task']} on {content['dataset']}{templates}: {shown}{warning}"
