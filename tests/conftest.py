"""Cut real image-text data in the hosts' formats from the embedded emoji, for tests of all parts."""

import os
import tempfile
from pathlib import Path

import pytest
import torch
from support.common import EMOJI, made_once, read_tar, write_tar

# torch.compile's cache does not ask which instructions ATEN_CPU_CAPABILITY allows: under another value kernels from it
# fail to build or give numbers of 1e34, of plain layers too (torch 2.15), so each value has a cache of its own
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor-{torch.backends.cpu.get_cpu_capability()}"
)


@pytest.fixture(scope="session")
def train_shard(tmp_path_factory) -> Path:
    """Write 32 image-text pairs in open_clip's webdataset format."""
    path = tmp_path_factory.mktemp("train") / "noto.tar"
    write_tar(path, read_tar(EMOJI / "train" / "noto.tar", 64))
    return path


@pytest.fixture(scope="session")
def eval_root(tmp_path_factory) -> Path:
    """Write small sets in clip_benchmark's webdataset layout: ``groups`` (classification) and ``retrieval``."""
    root = tmp_path_factory.mktemp("eval")
    for name, source in (("groups", "unseen-vendor-groups"), ("retrieval", "retrieval")):
        write_tar(root / name / "test" / "0.tar", read_tar(EMOJI / "eval" / source / "test" / "0.tar", 64))
        (root / name / "test" / "nshards.txt").write_text("1\n")
        for path in (EMOJI / "eval" / source).glob("*.txt"):
            (root / name / path.name).write_text(path.read_text())
    return root


@pytest.fixture(scope="session")
def suite(tmp_path_factory) -> Path:
    """All of the paper's data sets in small."""
    from support.evaluation_data import build_suite  # not all environments have what it needs

    return made_once(tmp_path_factory, "suite", lambda folder: build_suite(folder / "data")) / "data"
