"""How an evaluation computes: device, precision, batch size and workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# open_clip's names; what autocast computes in
PRECISIONS = {"fp32": None, "amp": torch.float16, "amp_bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """``device`` is torch's name without an index, ``precision`` a key of :data:`PRECISIONS`.

    Raises:
        ValueError: a batch size below 1, workers below 0, or a device that is not there.
    """

    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 2
    seed: int = 0

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
        """Whether anything is autocast."""
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
