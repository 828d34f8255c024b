"""Define the interface of the protocols: what each is given, what it yields, and how it computes.

A protocol is a module with the two functions of :class:`Evaluator` (after big_vision's evaluators,
google-research/big_vision@1475d53:big_vision/evaluators). :mod:`.runner` lists them by task.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from diffclip_openclip.data.catalog import DataSet
from diffclip_openclip.data.layout import Location, Shard
from diffclip_openclip.data.shards import Batch, batches
from diffclip_openclip.weights.loading import LoadedModel

# What autocast computes in, by open_clip's names.
PRECISIONS = {"fp32": None, "amp": torch.float16, "amp_bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """Describe how an evaluation computes.

    Raises:
        ValueError: a batch size below 1, workers below 0, or a device that is not there.
    """

    device: str = "cpu"  # torch's name of the device, without an index
    precision: str = "fp32"  # a key of PRECISIONS
    batch_size: int = 64  # images a batch
    workers: int = 2  # processes that decode images; 0 decodes in the process itself
    seed: int = 0  # seed of few-shot episodes and of held-out samples

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"the batch size is {self.batch_size}; it must be 1 or more")
        if self.workers < 0:
            raise ValueError(f"there are to be {self.workers} workers; 0 decodes images in the process itself")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"the seed is {self.seed}; it must be at least 0 and below 2^32")
        backend = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(self.device)
        if backend is not None and not backend.is_available():
            raise ValueError(f"torch finds no device {self.device!r} here; give --device cpu, or leave it out")

    @property
    def amp(self) -> bool:
        """Return whether anything is autocast."""
        return PRECISIONS[self.precision] is not None

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Autocast to this precision, also for hosts that call ``torch.autocast(device, enabled=...)`` themselves."""
        dtype = PRECISIONS[self.precision]
        if dtype is None:
            yield
            return
        before = torch.get_autocast_dtype(self.device)
        torch.set_autocast_dtype(self.device, dtype)
        try:
            with torch.autocast(self.device):
                yield
        finally:
            torch.set_autocast_dtype(self.device, before)


@dataclass(frozen=True)
class Subject:
    """Hold a model and a data set to be measured on."""

    loaded: LoadedModel
    data_set: DataSet
    location: Location
    compute: Compute
    cache_dir: Path  # a folder for what is computed once: features, classifiers, hashes of shards
    shared: dict[str, Any] = field(default_factory=dict)  # values that several protocols take of this subject, by name

    def batches(self, shards: Sequence[Shard], field: str, transform: Any) -> Iterator[Batch]:
        """Read shards in batches as ``compute`` says; see :func:`diffclip_openclip.data.shards.batches`."""
        compute = self.compute
        return batches(
            shards,
            field,
            transform,
            batch_size=compute.batch_size,
            workers=compute.workers,
            pin_memory=compute.device == "cuda",
        )

    def test_batches(self, field: str) -> Iterator[tuple[int, torch.Tensor, tuple[Any, ...]]]:
        """Read the split ``test``: a shard's number, images as the model wants them, (B, 3, H, W), ``field`` of each.

        Workers read several shards at once, so that batches of different shards come in turns.
        """
        for batch in self.batches(self.location.shards("test"), field, self.loaded.preprocess):
            if batch.images is not None:
                yield batch.shard, batch.images, batch.values


class Variant(NamedTuple):
    """Describe one of a task's results; what does not apply is None."""

    templates: str | None = None  # the name of the set of templates
    seed: int | None = None  # the seed that the result depends on


class Measurement(NamedTuple):
    """Hold what a result says."""

    metrics: Mapping[str, Any]  # fractions from 0 to 1 by name, NaN where there is none; and what else is reported
    images: Mapping[str, int]  # the number of images that it is of, by split
    outcomes: Mapping[str, np.ndarray]  # what became of each sample, by name, in the order of the shards' samples


class Evaluator(Protocol):
    """Measure one task."""

    def variants(self, data_set: DataSet, location: Location, seed: int) -> Sequence[Variant]:
        """List the results that the task has on a data set."""
        ...

    def run(self, subject: Subject) -> Iterable[Measurement]:
        """Yield the measurement of each variant, in their order."""
        ...
