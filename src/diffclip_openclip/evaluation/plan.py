"""Decide what is evaluated on what: the paper's data sets, or those that are named, by the tasks that they are for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffclip_openclip.data.catalog import (
    DATA_SETS,
    FEW_SHOT,
    LINEAR_PROBE,
    RETRIEVAL,
    ZERO_SHOT,
    DataSet,
    known_data_set,
)
from diffclip_openclip.data.layout import Location, locate
from diffclip_openclip.weights.runs import TrainingRun, epoch_of
from diffclip_openclip.weights.spec import ModelSpec, parse_run, parse_spec


@dataclass(frozen=True)
class _Checkpoint:
    """Name a model with what is known of its training."""

    spec: str  # as the command line names it
    label: str  # its name in tables
    provenance: Mapping[str, Any]  # the fields of results that say it


@dataclass(frozen=True)
class Job:
    """Describe all tasks of a model on a data set, which share features or logits."""

    spec: str  # the model, as the command line names it
    label: str  # the model's name in tables
    provenance: Mapping[str, Any]  # the run that the checkpoint is from, its epoch and seed, where they are known
    data_set: DataSet  # the data set, with the tasks that are wanted
    location: Location


def plan(
    specs: Sequence[str], roots: Sequence[str], *, names: Sequence[str] = (), tasks: Sequence[str] = ()
) -> tuple[list[Job], list[str]]:
    """Return the jobs whose data are there, a model after another, and a line for each data set that is missing.

    A data set that is not the paper's is for what its layout allows: retrieval for captions, zero-shot classification
    with class names, linear probe and few-shot with a training split.

    Args:
        specs: models, or runs with all of their checkpoints; see :mod:`~diffclip_openclip.weights.spec`.
        roots: see :func:`~diffclip_openclip.data.layout.locate`.
        names: data sets; all of the paper's by default.
        tasks: those that count; all by default.

    Raises:
        ValueError: a model or data set that cannot be, or a data set whose files contradict each other.
        FileNotFoundError: a named data set, a directory or a checkpoint that is not there.
        OSError: a URL that cannot be reached.
    """
    checkpoints = {found.spec: found for spec in specs for found in _checkpoints(spec)}
    wanted = [data_set for name in dict.fromkeys(names) if (data_set := known_data_set(name))] if names else DATA_SETS
    found = [(data_set, locate(data_set.name, tuple(data_set.splits), roots)) for data_set in wanted]
    found += [_own(name, roots) for name in dict.fromkeys(names) if known_data_set(name) is None]
    chosen = [(_limited(data_set, tasks), location) for data_set, location in found]
    jobs = [
        Job(found.spec, found.label, found.provenance, data_set, location)
        for found in checkpoints.values()
        for data_set, location in chosen
        if location is not None and data_set.tasks
    ]
    missing = [
        data_set for data_set, location in chosen if location is None and data_set.tasks and (names or data_set.paper)
    ]
    return jobs, [
        f"missing: {data_set.name}, splits {', '.join(data_set.splits)}, for {', '.join(data_set.tasks)}; "
        "`diffclip data` prepares it (docs/data.md)"
        for data_set in missing
    ]


def _checkpoints(text: str) -> Iterator[_Checkpoint]:
    """Yield a model's checkpoints: all of a training run's folder, or the one that is named."""
    run = parse_run(text)
    for epoch, spec in run.items():
        yield _Checkpoint(str(spec), spec.label, _provenance(spec) | {"epoch": epoch})
    if not run:
        spec = parse_spec(text)
        yield _Checkpoint(text, spec.label, _provenance(spec))


def _provenance(spec: ModelSpec) -> dict[str, Any]:
    if spec.checkpoint is None:
        return {}
    run = TrainingRun.of_checkpoint(spec.checkpoint)
    seed = run.params.get("seed")
    known = {"run": run.name, "epoch": epoch_of(spec.checkpoint)}
    known["training_seed"] = seed if isinstance(seed, int) else None
    return {name: value for name, value in known.items() if value not in ("", None)}


def _own(name: str, roots: Sequence[str]) -> tuple[DataSet, Location]:
    """Find a data set that is not the paper's, and say what it is for."""
    if Path(name).name != name or name.startswith("."):  # results are files of that name
        raise ValueError(f"{name!r} is no name of a data set; give that of a folder in --data")
    location = locate(name, ["test"], roots, optional=["train", "val"])
    if location is None:
        raise FileNotFoundError(
            f"{', '.join(roots)} has no data set {name!r} with a split test; `diffclip data` writes such (docs/data.md)"
        )
    if location.has_captions:
        return DataSet(name, name, (RETRIEVAL,), {"test": None}), location
    tasks = (ZERO_SHOT,) if location.has_class_names else ()
    if "train" not in location.shard_counts:
        if not tasks:
            raise ValueError(f"{location.base} has no classnames.txt, no split train, and no captions to retrieve by")
        return DataSet(name, name, tasks, {"test": None}), location
    splits: dict[str, int | None] = {
        split: None for split in ("train", "val", "test") if split in location.shard_counts
    }
    return DataSet(name, name, (*tasks, LINEAR_PROBE, FEW_SHOT), splits), location


def _limited(data_set: DataSet, tasks: Sequence[str]) -> DataSet:
    """Return the data set with those of its tasks that are wanted; by default the paper's, or all of another's."""
    possible = (*data_set.tasks, *data_set.more_tasks)
    return replace(data_set, tasks=tuple(task for task in possible if task in tasks) if tasks else data_set.tasks)
