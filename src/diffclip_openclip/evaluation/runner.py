"""The work of ``diffclip evaluate``: every task of the paper whose data are there, for each model."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffclip_openclip.evaluation import few_shot, linear_probe, mmvp, zeroshot
from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.features import Features, extract
from diffclip_openclip.evaluation.layout import Place, fingerprint, locate
from diffclip_openclip.evaluation.model import LoadedModel, load_model
from diffclip_openclip.evaluation.results import Identity, headline, is_done, write
from diffclip_openclip.evaluation.suite import DATA_SETS, FEW_SHOT, LINEAR_PROBE, MMVP, RETRIEVAL, ZERO_SHOT, DataSet

_PATIENCE = timedelta(days=30)  # a process that is done waits for those that are not


@dataclass(frozen=True)
class Job:
    """All tasks of a model on a data set, which share features or logits."""

    spec: str
    data_set: DataSet
    place: Place


def plan(specs: Sequence[str], roots: Sequence[str]) -> tuple[list[Job], list[DataSet]]:
    """The jobs whose data are there, a model after another, and the data sets that are missing.

    Raises:
        ValueError: a data set whose files contradict each other.
        OSError: a URL that cannot be reached.
    """
    places = {data_set: locate(data_set, roots) for data_set in DATA_SETS}
    jobs = [
        Job(spec, data_set, place)
        for spec in dict.fromkeys(specs)
        for data_set, place in places.items()
        if place is not None
    ]
    return jobs, [data_set for data_set, place in places.items() if place is None]


def dry_run(jobs: Iterable[Job], missing: Iterable[DataSet]) -> list[str]:
    """What :func:`evaluate` would do, as lines."""
    lines = [f"{job.spec}: {', '.join(job.data_set.tasks)} on {job.data_set.name} ({job.place.base})" for job in jobs]
    return lines + missing_lines(missing)


def missing_lines(missing: Iterable[DataSet]) -> list[str]:
    """One line for each data set that is not there, with what it is missing."""
    return [
        f"missing: {data_set.name}, splits {', '.join(data_set.splits)}, for {', '.join(data_set.tasks)}; "
        "`diffclip data` prepares it (docs/data.md)"
        for data_set in missing
    ]


def evaluate(jobs: Sequence[Job], results: Path, compute: Compute, say: Callable[[str], None]) -> list[str]:
    """Run jobs, writing each result when it is there; what is done already is not done again.

    Under torchrun, the processes take jobs in turns.

    Args:
        say: is told of each result.

    Returns:
        a line for each job that failed. A failure does not keep others from running.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if compute.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    failures: list[str] = []
    for spec, group in groupby(jobs[rank::world], key=lambda job: job.spec):
        loaded = load_model(spec, compute.device)
        for job in group:
            try:
                for path in _run(job, loaded, results, compute):
                    say(headline(path))
            except Exception as error:  # whatever a data set does to the hosts, the other tasks go on
                failures.append(f"{spec} on {job.data_set.name}: {type(error).__name__}: {error}")
                say(f"failed: {failures[-1]}")
    return _gathered(failures, world)


def _gathered(failures: list[str], world: int) -> list[str]:
    """Every process's failures, when all have ended."""
    if world == 1:
        return failures
    dist.init_process_group("gloo", timeout=_PATIENCE)
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, failures)
    dist.destroy_process_group()
    return [line for lines in everyone for line in lines]


def _run(job: Job, loaded: LoadedModel, results: Path, compute: Compute) -> Iterable[Path]:
    """Result files of a job, those that were there and those that are new."""
    data_sha256 = fingerprint(job.place, results / "cache" / "fingerprints")
    source = _Source(job, loaded, results / "cache", compute)
    for task in job.data_set.tasks:
        identities = [
            Identity(
                task=task,
                dataset=job.data_set.name,
                label=loaded.label,
                model=loaded.name,
                pretrained=loaded.pretrained,
                checkpoint_sha256=loaded.sha256,
                dataset_sha256=data_sha256,
                precision=compute.precision,
                seed=compute.seed,
                templates=templates,
            )
            for templates in (zeroshot.TEMPLATES if task == ZERO_SHOT else [None])
        ]
        if not all(is_done(identity, results) for identity in identities):
            start = time.monotonic()
            outcome = source.measure(task)
            seconds = time.monotonic() - start
            for identity in identities:
                metrics = outcome[identity.templates] if identity.templates else outcome
                write(identity, results, metrics, compute.device, seconds)
        yield from (identity.path(results) for identity in identities)


class _Source:
    """A model on a data set; its features are extracted once for all tasks that take them."""

    def __init__(self, job: Job, loaded: LoadedModel, memory: Path, compute: Compute) -> None:
        self.job, self.loaded, self.memory, self.compute = job, loaded, memory, compute
        self._parts: tuple[Features, Features, Features] | None = None

    def measure(self, task: str) -> Any:
        """Metrics of a task; for zero-shot classification those of each template set."""
        data_set, compute = self.job.data_set, self.compute
        torch.manual_seed(compute.seed)
        if task == ZERO_SHOT:
            return zeroshot.classify(self.loaded, self.job.place, compute, self.memory)
        if task == RETRIEVAL:
            return zeroshot.retrieve(self.loaded, self.job.place, compute)
        if task == MMVP:
            return mmvp.evaluate(self.loaded, self.job.place, compute)
        train, val, test = self._train_val_test()
        if task == LINEAR_PROBE:
            return linear_probe.evaluate(train, val, test, data_set.mean_per_class, data_set.name)
        assert task == FEW_SHOT
        return few_shot.evaluate(train, test, compute.seed, title=data_set.name)

    def _train_val_test(self) -> tuple[Features, Features, Features]:
        if self._parts is None:
            splits = {
                split: extract(self.loaded, self.job.place, split, self.compute, self.memory)
                for split in self.job.data_set.splits
            }
            if "val" in splits:
                train, val = splits["train"], splits["val"]
            else:
                train, val = linear_probe.hold_out(splits["train"], self.compute.seed)
            parts = [Features(*(tensor.to(self.compute.device) for tensor in part)) for part in (train, val)]
            test = Features(*(tensor.to(self.compute.device) for tensor in splits["test"]))
            self._parts = (parts[0], parts[1], test)
        return self._parts
