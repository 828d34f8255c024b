"""Read the embedded emoji, write shards, and run the hosts' commands as a user would, for tests of all parts."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from packaging.version import Version
from support.warm import run_forked

REPOSITORY = Path(__file__).resolve().parents[2]
EMOJI = REPOSITORY / "examples" / "emoji" / "data"
IS_OPEN_CLIP_3 = Version(version("open_clip_torch")).major < 4  # not its main branch
simulates_cuda = pytest.mark.skipif(
    torch.version.cuda is not None and not torch.cuda.is_available() and Version(torch.__version__) < Version("2.15"),
    reason="CUDA builds of torch 2.7 ask for a driver even for tensors without data, those of 2.15 do not",
)


def read_tar(path: Path, count: int) -> list[tuple[str, bytes]]:
    """Return the first ``count`` files of a shard, each as name and content."""
    with tarfile.open(path) as tar:
        members = [member for member, _ in zip(tar, range(count), strict=False)]
        return [(member.name, tar.extractfile(member).read()) for member in members]


def write_tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def train_arguments(shard: Path) -> list[str]:
    """Return the trainer's arguments for the fixture ``train_shard``: 4 steps an epoch, into logs/run."""
    arguments = ["--model", "DiffCLIP-nano", "--dataset-type", "webdataset", "--train-data", str(shard)]
    arguments += ["--train-num-samples", "32", "--batch-size", "8", "--workers", "1", "--warmup", "1"]
    return [*arguments, "--name", "run", "--logs", "logs"]


def plain_environment(**extra: str) -> dict[str, str]:
    """Return the environment of a user's shell: nothing puts the checkout on the path, and there is no network."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "COV"))}
    return environment | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | extra


def run_host(command: list[str], cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, outside the checkout; fail with its output unless it ends with 0.

    A Python module or console script of this environment is run in a fork, so that it starts in less time.
    """
    environment = plain_environment(**extra)
    if not extra and (arguments := _python_arguments(command)):
        done = run_forked(arguments, cwd, environment)
    else:
        done = subprocess.run(
            command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done


def _python_arguments(command: list[str]) -> list[str] | None:
    """Return the arguments with which Python runs a module or a console script, None for other commands."""
    if command[0] == sys.executable and command[1] == "-m":
        return command[1:]
    if Path(command[0]).parent == Path(sys.executable).parent:
        with open(command[0], "rb") as file:
            return command if file.readline().startswith(b"#!") and command[0] != sys.executable else None
    return None


def script(name: str) -> str:
    """Return the path of a console script of the environment that the tests run in."""
    return str(Path(sys.executable).with_name(name))


def run_python(code: str, cwd: Path, python: str = sys.executable, **extra: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    return run_host([python, "-c", code], cwd, **extra).stdout


def run_warm(code: str, cwd: Path, *arguments: str, **extra: str) -> str:
    """Run code in a fork of a process that has imported the hosts' libraries, and return what it printed."""
    done = run_forked(["-c", code, *arguments], cwd, plain_environment(**extra))
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that all of xdist's processes share, which the first of them has filled."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder
