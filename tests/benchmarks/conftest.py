"""Make checkpoints of nano models with drawn weights, for the benchmarks that compare models."""

import open_clip
import pytest
import torch
from support.common import made_once

DRAWN = (("CLIP-nano-baseline", 2), ("DiffCLIP-nano", 2), ("DiffCLIP-V2-nano", 1))


@pytest.fixture(scope="session")
def nano_checkpoints(tmp_path_factory) -> dict[str, list[str]]:
    """NAME,CHECKPOINT of each seed, by name."""

    def make(folder):
        for name, seeds in DRAWN:
            for seed in range(seeds):
                torch.manual_seed(seed)
                torch.save(open_clip.create_model(name).state_dict(), folder / f"{name}-{seed}.pt")

    folder = made_once(tmp_path_factory, "nano_checkpoints", make)
    return {name: [f"{name},{folder / f'{name}-{seed}.pt'}" for seed in range(seeds)] for name, seeds in DRAWN}
