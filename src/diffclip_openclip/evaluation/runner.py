"""The work of ``diffclip evaluate``: jobs are run, a model after another, and their results written."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from diffclip_openclip.evaluation import few_shot, linear_probe, mmvp, zeroshot
from diffclip_openclip.evaluation.compute import Compute
from diffclip_openclip.evaluation.features import Features, extract
from diffclip_openclip.evaluation.plan import Job, settings_of
from diffclip_openclip.evaluation.results import Identity, headline, is_done, write
from diffclip_openclip.evaluation.suite import FEW_SHOT, LINEAR_PROBE, MMVP, RETRIEVAL, ZERO_SHOT
from diffclip_openclip.weights.loading import LoadedModel, load_model

_PATIENCE = timedelta(days=30)  # a process that is done waits for those that are not


def evaluate(jobs: Sequence[Job], results: Path, compute: Compute, log: Callable[[str], None]) -> list[str]:
    """Run jobs, writing each result when it is there; what is done already is not done again.

    Under torchrun, the processes take jobs in turns.

    Args:
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
    """Failures of a model's jobs; all of them fail where it cannot be loaded."""
    try:
        loaded = load_model(spec, compute.device)
    except Exception as error:
        log(f"failed: {spec}: {type(error).__name__}: {error}")
        return [f"{spec} on {job.data_set.name}: {type(error).__name__}: {error}" for job in jobs]
    failures = []
    for job in jobs:
        try:
            for path in _run(job, loaded, results, compute):
                log(headline(path))
        except Exception as error:  # whatever a data set does to the hosts, the other tasks go on
            failures.append(f"{spec} on {job.data_set.name}: {type(error).__name__}: {error}")
            log(f"failed: {failures[-1]}")
    return failures


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
    data_sha256 = job.place.fingerprint(results / "cache" / "fingerprints")
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
                seed=seed,
                templates=templates,
                architecture=loaded.architecture,
            )
            for templates, seed in settings_of(job, task, compute.seed)
        ]
        if not all(is_done(identity, results) for identity in identities):
            start = time.monotonic()
            outcome, images = source.measure(task)
            seconds = time.monotonic() - start
            for identity in identities:
                metrics = outcome[identity.templates] if identity.templates else outcome
                write(identity, results, metrics, compute.device, seconds, images)
        yield from (identity.path(results) for identity in identities)


class _Source:
    """A model on a data set; its features are extracted once for all tasks that take them."""

    def __init__(self, job: Job, loaded: LoadedModel, cache_dir: Path, compute: Compute) -> None:
        self.job, self.loaded, self.cache_dir, self.compute = job, loaded, cache_dir, compute
        self._splits: dict[str, Features] = {}

    def measure(self, task: str) -> tuple[Any, dict[str, int]]:
        """Metrics of a task, for zero-shot classification those of each template set; and images by split."""
        loaded, place, compute = self.loaded, self.job.place, self.compute
        torch.manual_seed(compute.seed)
        metrics: Any
        if task == ZERO_SHOT:
            metrics, count = zeroshot.classify(loaded, place, compute, self.cache_dir, self.job.templates)
        elif task == RETRIEVAL:
            metrics, count = zeroshot.retrieve(loaded, place, compute)
        elif task == MMVP:
            metrics, count = mmvp.evaluate(loaded, place, compute)
        else:
            return self._measure_features(task), {split: len(part.labels) for split, part in self._splits.items()}
        return metrics, {"test": count}

    def _measure_features(self, task: str) -> dict[str, float]:
        data_set = self.job.data_set
        train, val, test = self._train_val_test()
        if task == LINEAR_PROBE:
            return linear_probe.evaluate(train, val, test, data_set.mean_per_class, data_set.name)
        assert task == FEW_SHOT
        return few_shot.evaluate(train, test, self.compute.seed, title=data_set.name)

    def _train_val_test(self) -> tuple[Features, Features, Features]:
        if not self._splits:
            for split in self.job.data_set.splits:
                part = extract(self.loaded, self.job.place, split, self.compute, self.cache_dir)
                self._splits[split] = Features(*(tensor.to(self.compute.device) for tensor in part))
        train, test = self._splits["train"], self._splits["test"]
        if "val" in self._splits:
            return train, self._splits["val"], test
        return *linear_probe.hold_out(train, self.compute.seed), test
