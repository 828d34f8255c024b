"""How an evaluation computes: device, precision, batch size and workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

# open_clip's names; what autocast computes in
PRECISIONS = {"fp32": None, "amp": torch.float16, "amp_bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """``device`` is torch's name without an index, ``precision`` a key of :data:`PRECISIONS`."""

    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 64
    workers: int = 2
    seed: int = 0

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
