"""Run the jobs of ``diffclip evaluate``, a model after another, and write their results."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffclip_openclip.data.catalog import FEW_SHOT, LINEAR_PROBE, MMVP, RETRIEVAL, ZERO_SHOT
from diffclip_openclip.evaluation import few_shot, linear_probe, mmvp, retrieval, zero_shot
from diffclip_openclip.evaluation.evaluator import Compute, Evaluator, Subject
from diffclip_openclip.evaluation.plan import Job
from diffclip_openclip.evaluation.results import Identity, file_name, headline, read_finished, slug, write
from diffclip_openclip.weights.loading import LoadedModel, load_model

EVALUATORS: Mapping[str, Evaluator] = {
    ZERO_SHOT: zero_shot,
    RETRIEVAL: retrieval,
    LINEAR_PROBE: linear_probe,
    FEW_SHOT: few_shot,
    MMVP: mmvp,
}
_PATIENCE = timedelta(days=30)  # a process that is done waits for those that are not


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


def evaluate(jobs: Sequence[Job], results: Path, compute: Compute, log: Callable[[str], None]) -> list[str]:
    """Run jobs, writing each result when it is there; what is done already is not done again.

    Under torchrun, the processes take jobs in turns.

    Args:
        jobs: those of a model stand together.
        results: the folder of the results, and of the cache.
        log: is told of each result.

    Returns:
        a line for each job that failed. A failure, of a model too, does not keep others from running.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if compute.device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    failures: list[str] = []
    for spec, group in groupby(jobs[rank::world], key=lambda job: job.spec):
        failures += _evaluate_model(spec, list(group), results, compute, log)
    return _gathered(failures, world)


def _evaluate_model(
    spec: str, jobs: Sequence[Job], results: Path, compute: Compute, log: Callable[[str], None]
) -> list[str]:
    """Run a model's jobs and return their failures; all of them fail where it cannot be loaded."""
    try:
        loaded = load_model(spec, compute.device)
    except Exception as error:
        log(f"failed: {spec}: {type(error).__name__}: {error}")
        return [f"{spec} on {job.data_set.name}: {type(error).__name__}: {error}" for job in jobs]
    failures = []
    for job in jobs:
        try:
            for content in _evaluate_job(job, loaded, results, compute):
                log(headline(content))
        except Exception as error:  # whatever a data set does to the hosts, the other tasks go on
            failures.append(f"{spec} on {job.data_set.name}: {type(error).__name__}: {error}")
            log(f"failed: {failures[-1]}")
    return failures


def _gathered(failures: list[str], world: int) -> list[str]:
    """Return every process's failures, when all have ended."""
    if world == 1:
        return failures
    dist.init_process_group("gloo", timeout=_PATIENCE)
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, failures)
    dist.destroy_process_group()
    return [line for lines in everyone for line in lines]


def _evaluate_job(job: Job, loaded: LoadedModel, results: Path, compute: Compute) -> Iterator[Mapping[str, Any]]:
    """Yield the results of a job, those that were there and those that are new, as their files say them."""
    cache_dir = results / "cache"
    data_sha256 = job.location.fingerprint(cache_dir / "fingerprints")
    subject = Subject(loaded, job.data_set, job.location, compute, cache_dir)
    for task in job.data_set.tasks:
        evaluator = EVALUATORS[task]
        identities = [
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
            for variant in evaluator.variants(job.data_set, job.location, compute.seed)
        ]
        finished = [content for identity in identities if (content := read_finished(identity, results)) is not None]
        if len(finished) == len(identities):
            yield from finished
            continue
        torch.manual_seed(compute.seed)
        start = time.monotonic()
        measurements = list(evaluator.run(subject))
        seconds = time.monotonic() - start
        for identity, measured in zip(identities, measurements, strict=True):
            yield write(
                identity,
                results,
                measured.metrics,
                outcomes=measured.outcomes,
                images=measured.images,
                device=compute.device,
                seconds=seconds,
            )
