"""Define the interface of the protocols: what each needs, what it is given, what it yields, and how it computes.

A protocol is a module or an object with what :class:`Evaluator` says (after big_vision's evaluators,
google-research/big_vision@1475d53:big_vision/evaluators). :mod:`.runner` lists them by task.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from diffclip_openclip.data.catalog import DataSet
from diffclip_openclip.data.layout import Location, Shard
from diffclip_openclip.weights.loading import LoadedModel

# What autocast computes in, by open_clip's names.
PRECISIONS = {"fp32": None, "amp": torch.float16, "amp_bf16": torch.bfloat16}
_SHARED_MEMORY = Path("/dev/shm")  # Linux's; other systems have no such bound


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

    def fitted_to_shared_memory(self, image_bytes: int) -> "Compute":
        """Return the same with as many workers as shared memory has room for.

        Workers hand batches over in shared memory, and wait for ever where it is full: in a container it is 64 MB by
        default. Each has up to two batches there, and one more is on its way to the device.

        Args:
            image_bytes: of an image as the model takes it.
        """
        if not self.workers or not _SHARED_MEMORY.is_dir():
            return self
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes on this machine
        batches = shutil.disk_usage(_SHARED_MEMORY).free // (self.batch_size * image_bytes * beside)
        return replace(self, workers=min(self.workers, max(0, (batches - 1) // 2)))


@dataclass(frozen=True)
class Subject:
    """Hold a model and a data set to be measured on."""

    loaded: LoadedModel
    data_set: DataSet
    location: Location
    shard_hashes: Mapping[Shard, str]  # the hash of each of the location's shards
    compute: Compute
    cache_dir: Path  # a folder for what is computed once: features, classifiers


@dataclass(frozen=True)
class Reading:
    """Describe what is computed of the samples of a data set's shards, before they are scored."""

    name: str  # of the folder in the cache, with what the values are of
    fields: tuple[str, ...]  # extensions of the files that are read beside each image
    splits: tuple[str, ...] | None = ("test",)  # the splits that are read; None for all of the data set's
    in_backbone: bool = False  # features before the projection to the joint space, instead of embeddings in it
    # Gives the texts of a sample, of the values of its fields; they are embedded with the image.
    texts: Callable[..., Sequence[str]] | None = None


class Variant(NamedTuple):
    """Describe one of a task's results; what does not apply is None."""

    templates: str | None = None  # the name of the set of templates
    seed: int | None = None  # the seed that the result depends on


class Measurement(NamedTuple):
    """Hold what a result says."""

    metrics: Mapping[str, Any]  # fractions from 0 to 1 by name, NaN where there is none; and what else is reported
    images: Mapping[str, int]  # the number of images that it is of, by split
    outcomes: Mapping[str, np.ndarray]  # what became of each sample, by name, in the order of the shards' samples
    captions: Mapping[str, int] | None = None  # the number of captions by split, in retrieval


# Files with what was computed of each shard, by split and in order.
Computed = Mapping[str, Sequence[Path]]


class Evaluator(Protocol):
    """Measure one task: score what :attr:`READING` says is computed."""

    READING: Reading

    def variants(self, data_set: DataSet, location: Location, seed: int) -> Sequence[Variant]:
        """List the results that the task has on a data set."""
        ...

    def score(self, subject: Subject, computed: Computed) -> Iterable[Measurement]:
        """Yield the measurement of each variant, in their order."""
        ...
