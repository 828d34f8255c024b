"""Run the jobs of ``diffclip evaluate``, a model after another, and write their results.

A job goes through plan, features, score and results. Under torchrun, processes compute the features of a data set
together, a shard each in turn, and then score a data set each.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image

from diffclip_openclip.data.catalog import FEW_SHOT, LINEAR_PROBE, MMVP, RETRIEVAL, SUGAR_CREPE, WINOGROUND, ZERO_SHOT
from diffclip_openclip.evaluation import choices, few_shot, linear_probe, retrieval, zero_shot
from diffclip_openclip.evaluation.evaluator import Compute, Computed, Evaluator, Reading, Subject
from diffclip_openclip.evaluation.features import compute_features
from diffclip_openclip.evaluation.plan import Job
from diffclip_openclip.evaluation.results import Identity, file_name, headline, read_finished, slug, write
from diffclip_openclip.weights.loading import LoadedModel, load_model

EVALUATORS: Mapping[str, Evaluator] = {
    ZERO_SHOT: zero_shot,
    RETRIEVAL: retrieval,
    LINEAR_PROBE: linear_probe,
    FEW_SHOT: few_shot,
    MMVP: choices.MmvpVlm(),
    SUGAR_CREPE: choices.SugarCrepe(),
    WINOGROUND: choices.Winoground(),
}
_PATIENCE = timedelta(days=30)  # a process that is done waits for those that are not
_LONGEST = 600  # characters of a failure's message

Log = Callable[[str], None]


def dry_run(jobs: Iterable[Job], results: Path, compute: Compute) -> list[str]:
    """Say what an evaluation would do, a line a job, without loading a model."""
    lines = []
    for job in jobs:
        there = [task for task in job.data_set.tasks if _is_there(job, task, results, compute)]
        found = f"; in {results}, if of the same weights and data: {', '.join(there)}" if there else ""
        lines.append(f"{job.spec}: {', '.join(job.data_set.tasks)} on {job.data_set.name} ({job.location.base}){found}")
    return lines


def _is_there(job: Job, task: str, results: Path, compute: Compute) -> bool:
    """Tell whether there are all files of a task's results, of whatever weights."""
    folder = f"{slug(job.label)}-*/{task}"
    variants = EVALUATORS[task].variants(job.data_set, job.location, compute.seed)
    names = [file_name(job.data_set.name, variant.templates, compute.precision, variant.seed) for variant in variants]
    return all(any(results.glob(f"{folder}/{name}")) for name in names)


@dataclass(frozen=True)
class _Processes:
    """Describe the processes of torchrun that work together; one, without it."""

    rank: int
    world: int

    def told(self, value: Any) -> list[Any]:
        """Return what each process says here, when all have come to it."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone


def evaluate(jobs: Sequence[Job], results: Path, compute: Compute, log: Log) -> list[str]:
    """Run jobs, writing each result when it is there; what is done already is not done again.

    Args:
        jobs: those of a model stand together.
        results: the folder of the results, and of the cache, which processes of torchrun share.
        log: is told of each result.

    Returns:
        a line for each job that failed. A failure, of a model too, does not keep others from running.
    """
    processes = _Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    if compute.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if processes.world > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        failures: list[str] = []
        for spec, group in groupby(jobs, key=lambda job: job.spec):
            failures += _evaluate_model(spec, list(group), results, compute, log, processes)
        return [line for lines in processes.told(failures) for line in lines]
    finally:
        if processes.world > 1:
            dist.destroy_process_group()


def _evaluate_model(
    spec: str, jobs: Sequence[Job], results: Path, compute: Compute, log: Log, processes: _Processes
) -> list[str]:
    """Run a model's jobs and return the failures that this process tells; all fail where it cannot be loaded."""
    loaded, error = None, None
    try:
        loaded = load_model(spec, compute.device)
        image = loaded.preprocess(Image.new("RGB", (8, 8)))
        fitted = compute.fitted_to_shared_memory(image.nbytes)
    except Exception as caught:
        error = _line(caught)
    if error := next(filter(None, processes.told(error)), None):
        if processes.rank == 0:
            log(f"failed: {spec}: {error}")
            return [f"{spec} on {job.data_set.name}: {error}" for job in jobs]
        return []
    assert loaded is not None
    if fitted.workers != compute.workers and processes.rank == 0:
        log(
            f"{fitted.workers} of {compute.workers} workers decode images: /dev/shm has no room for the batches of more"
        )
    failures = []
    # as many jobs at a time as there are processes, so that each has one to score
    for first in range(0, len(jobs), processes.world):
        chunk = jobs[first : first + processes.world]
        prepared = [_prepared(job, loaded, results, fitted, processes, at) for at, job in enumerate(chunk)]
        errors = processes.told([error for _, error in prepared])
        for at, (job, (work, _)) in enumerate(zip(chunk, prepared, strict=True)):
            if at != processes.rank:
                continue
            failed = {name: error for of_rank in errors for name, error in of_rank[at].items()}
            try:
                if work is None:
                    raise _ToldError(failed[""])
                for content in work.results(results, failed):
                    log(headline(content))
            except Exception as caught:  # whatever a data set does to the hosts, the other jobs go on
                failures.append(f"{spec} on {job.data_set.name}: {_line(caught)}")
                log(f"failed: {failures[-1]}")
    return failures


class _ToldError(Exception):
    """Tell of a failure in words that name its type already."""


def _line(error: Exception) -> str:
    """Return an error in one line, which is no longer than what can be read."""
    message = " ".join(str(error).split())
    message = message if isinstance(error, _ToldError) else f"{type(error).__name__}: {message}"
    return message if len(message) <= _LONGEST else f"{message[:_LONGEST]} ..."


@dataclass(frozen=True)
class _Work:
    """Hold a job whose features are computed."""

    subject: Subject
    provenance: Mapping[str, Any]  # the fields of the results that say where the model is from
    identities: Mapping[str, Sequence[Identity]]  # of each task's results
    finished: Mapping[str, Sequence[Mapping[str, Any]] | None]  # each task's results, where all were there
    computed: Mapping[Reading, Computed]  # what the other tasks score

    def results(self, folder: Path, failed: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        """Yield the results, those that were there and those that are new, as their files say them.

        Args:
            failed: why features could not be computed, by the reading's name.
        """
        subject = self.subject
        for task, identities in self.identities.items():
            if (finished := self.finished[task]) is not None:
                yield from finished
                continue
            evaluator = EVALUATORS[task]
            if evaluator.READING.name in failed:
                raise _ToldError(failed[evaluator.READING.name])
            torch.manual_seed(subject.compute.seed)
            start = time.monotonic()
            measurements = list(evaluator.score(subject, self.computed[evaluator.READING]))
            seconds = time.monotonic() - start
            for identity, measured in zip(identities, measurements, strict=True):
                yield write(
                    identity,
                    folder,
                    measured.metrics,
                    outcomes=measured.outcomes,
                    images=measured.images,
                    captions=measured.captions,
                    provenance=self.provenance,
                    device=subject.compute.device,
                    seconds=seconds,
                )


def _finished(identities: Sequence[Identity], results: Path) -> Sequence[Mapping[str, Any]] | None:
    """Return the results of a task, where all are there."""
    found = [content for identity in identities if (content := read_finished(identity, results)) is not None]
    return found if len(found) == len(identities) else None


def _prepared(
    job: Job, loaded: LoadedModel, results: Path, compute: Compute, processes: _Processes, at: int
) -> tuple[_Work | None, dict[str, str]]:
    """Compute this process's part of a job's features; return its work, and what failed by the reading's name.

    Where all of it failed, there is no work.

    Args:
        at: the place of the job among those that are prepared together; shards are dealt from another process for each,
            so that data sets of one shard are not all the same process's.
    """
    cache_dir = results / "cache"
    rank = (processes.rank + at) % processes.world
    hashes, error = {}, None
    try:
        hashes = job.location.shard_hashes(cache_dir / "fingerprints", rank, processes.world)
    except Exception as caught:
        error = _line(caught)
    told = processes.told((hashes, error))
    if error := next((of_rank for _, of_rank in told if of_rank), None):
        return None, {"": error}
    try:
        hashes = {shard: content for of_rank, _ in told for shard, content in of_rank.items()}
        data_sha256 = job.location.fingerprint(hashes)
        subject = Subject(loaded, job.data_set, job.location, hashes, compute, cache_dir)
        identities = {
            task: [
                Identity(
                    task=task,
                    dataset=job.data_set.name,
                    label=loaded.spec.label,
                    model=loaded.spec.name,
                    pretrained=loaded.spec.pretrained,
                    checkpoint_sha256=loaded.sha256,
                    dataset_sha256=data_sha256,
                    precision=compute.precision,
                    seed=variant.seed,
                    templates=variant.templates,
                    architecture=loaded.architecture,
                )
                for variant in EVALUATORS[task].variants(job.data_set, job.location, compute.seed)
            ]
            for task in job.data_set.tasks
        }
    except Exception as caught:
        return None, {"": _line(caught)}
    finished = {task: _finished(own, results) for task, own in identities.items()}
    computed, errors = {}, {}
    for task, own in finished.items():
        reading = EVALUATORS[task].READING
        if own is None and reading not in computed and reading.name not in errors:
            try:
                computed[reading] = compute_features(subject, reading, rank, processes.world)
            except Exception as caught:  # whatever a data set does to the hosts, the other tasks go on
                errors[reading.name] = _line(caught)
    return _Work(subject, job.provenance, identities, finished, computed), errors
