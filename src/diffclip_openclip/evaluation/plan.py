"""What is evaluated on what: the paper's data sets, or those that are named, by the tasks that they are for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.layout import Place, locate
from diffclip_openclip.evaluation.results import file_name, slug
from diffclip_openclip.evaluation.suite import DATA_SETS, FEW_SHOT, LINEAR_PROBE, RETRIEVAL, ZERO_SHOT, DataSet
from diffclip_openclip.evaluation.zeroshot import templates_of
from diffclip_openclip.weights.spec import parse_spec


@dataclass(frozen=True)
class Job:
    """All tasks of a model on a data set, which share features or logits; ``label`` is the model's in tables."""

    spec: str
    label: str
    data_set: DataSet
    place: Place

    @property
    def templates(self) -> Mapping[str, list[str]]:
        """Sets of templates by name, for zero-shot classification."""
        is_papers = any(self.data_set.name == data_set.name for data_set in DATA_SETS)
        return templates_of(self.place, is_papers)


def plan(
    specs: Sequence[str], roots: Sequence[str], names: Sequence[str] = (), tasks: Sequence[str] = ()
) -> tuple[list[Job], list[DataSet]]:
    """The jobs whose data are there, a model after another, and the paper's data sets that are missing.

    Args:
        specs: models; see :func:`~diffclip_openclip.weights.spec.parse_spec`.
        roots: see :func:`~diffclip_openclip.evaluation.layout.locate`.
        names: data sets; all of the paper's by default. One that is not the paper's is for what its layout allows:
            retrieval for captions, zero-shot classification with class names, linear probe and few-shot with a
            training split.
        tasks: those that count; all by default.

    Raises:
        ValueError: a model or data set that cannot be, or a data set whose files contradict each other.
        FileNotFoundError: a named data set, a directory or a checkpoint that is not there.
        OSError: a URL that cannot be reached.
    """
    labels = {spec: parse_spec(spec).label for spec in specs}
    known = {data_set.name: data_set for data_set in DATA_SETS}
    wanted = [known[name] for name in names if name in known] if names else DATA_SETS
    places = {data_set: locate(data_set.name, data_set.splits, roots) for data_set in wanted}
    places |= dict(_own(name, roots) for name in names if name not in known)
    chosen = {_limited(data_set, tasks): place for data_set, place in places.items()}
    jobs = [
        Job(spec, label, data_set, place)
        for spec, label in labels.items()
        for data_set, place in chosen.items()
        if place is not None and data_set.tasks
    ]
    return jobs, [data_set for data_set, place in chosen.items() if place is None and data_set.tasks]


def _own(name: str, roots: Sequence[str]) -> tuple[DataSet, Place]:
    if Path(name).name != name or name.startswith("."):  # results are files of that name
        raise ValueError(f"{name!r} is no name of a data set; give that of a folder in --data")
    place = locate(name, ["test"], roots, optional=["train", "val"])
    if place is None:
        raise FileNotFoundError(
            f"{', '.join(roots)} has no data set {name!r} with a split test; `diffclip data` writes such (docs/data.md)"
        )
    if place.has_captions:
        return DataSet(name, name, (RETRIEVAL,), ("test",)), place
    tasks = (ZERO_SHOT,) if place.has_class_names else ()
    if "train" not in place.shards:
        if not tasks:
            raise ValueError(f"{place.base} has no classnames.txt, no split train, and no captions to retrieve by")
        return DataSet(name, name, tasks, ("test",)), place
    splits = tuple(split for split in ("train", "val", "test") if split in place.shards)
    return DataSet(name, name, (*tasks, LINEAR_PROBE, FEW_SHOT), splits), place


def _limited(data_set: DataSet, tasks: Sequence[str]) -> DataSet:
    return replace(data_set, tasks=tuple(task for task in data_set.tasks if not tasks or task in tasks))


def settings_of(job: Job, task: str, seed: int) -> list[tuple[str | None, int | None]]:
    """Templates and seed of each result of a task; None where it has no such thing."""
    if task == ZERO_SHOT:
        return [(templates, None) for templates in job.templates]
    return [(None, seed if task in (LINEAR_PROBE, FEW_SHOT) else None)]


def dry_run(jobs: Iterable[Job], missing: Iterable[DataSet], results: Path, compute: Compute) -> list[str]:
    """What an evaluation would do, as lines, without loading a model."""
    lines = []
    for job in jobs:
        there = [task for task in job.data_set.tasks if _is_there(job, task, results, compute)]
        found = f"; in {results}, if of the same weights and data: {', '.join(there)}" if there else ""
        lines.append(f"{job.spec}: {', '.join(job.data_set.tasks)} on {job.data_set.name} ({job.place.base}){found}")
    return lines + missing_lines(missing)


def _is_there(job: Job, task: str, results: Path, compute: Compute) -> bool:
    folder = f"{slug(job.label)}-*/{task}"
    names = [
        file_name(job.data_set.name, templates, compute.precision, seed)
        for templates, seed in settings_of(job, task, compute.seed)
    ]
    return all(any(results.glob(f"{folder}/{name}")) for name in names)


def missing_lines(missing: Iterable[DataSet]) -> list[str]:
    """One line for each data set that is not there, with what it is missing."""
    return [
        f"missing: {data_set.name}, splits {', '.join(data_set.splits)}, for {', '.join(data_set.tasks)}; "
        "`diffclip data` prepares it (docs/data.md)"
        for data_set in missing
    ]
