"""Run open_clip's unchanged trainer on DiffCLIP-nano, in processes that can be killed and starved."""

import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

import torch

STEPS = 2  # of an epoch of synthetic data
EPOCHS = 3
PATIENCE = 300  # seconds, after which something hangs

# children start with the trainer imported, so that a test of many runs pays for that import once
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["open_clip_train.main"])


def _run_trainer(arguments: list[str], folder: str, log: str, file_limit: int) -> None:
    os.setsid()
    os.chdir(folder)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # what data loaders use where no fork server is
    if file_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from open_clip_train.main import main

    sys.exit(main(arguments) or 0)


class Training:
    """Run the trainer in ``folder``; neither it nor its workers survive the end of ``with``."""

    def __init__(self, folder: Path, arguments: list[str], file_limit: int = 0) -> None:
        """Prepare the process; above ``file_limit`` bytes, files cannot be written, as on a full disk."""
        self._log = folder / f"{len(list(folder.glob('*.log')))}.log"
        self._log.touch()
        self._process = _context.Process(target=_run_trainer, args=(arguments, str(folder), str(self._log), file_limit))

    def __enter__(self) -> "Training":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def log(self) -> str:
        """Return what the trainer and its workers have printed so far."""
        return self._log.read_text(errors="replace")

    def until(self, text: str, times: int = 1) -> None:
        """Wait until the log has ``text`` in it, ``times`` times."""
        deadline = time.monotonic() + PATIENCE
        while self.log.count(text) < times:
            assert self._process.is_alive(), f"ended before {text!r}:\n{self.log[-6000:]}"
            assert time.monotonic() < deadline, f"no {text!r}:\n{self.log[-6000:]}"
            time.sleep(0.005)

    def ended(self) -> int:
        """Wait for the end and return the exit status."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, f"hangs:\n{self.log[-6000:]}"
        return self._process.exitcode

    def kill(self) -> None:
        """Send SIGKILL to the trainer and its workers."""
        self._process.kill()
        self._process.join()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def training_arguments(*more: str, epochs: int = EPOCHS) -> list[str]:
    """Return the trainer's arguments: a short run on open_clip's synthetic data unless ``more`` names other data.

    Synthetic data are the same pair always, so that no order is left to chance. SigLIP's loss learns from a batch of
    equal pairs, which has no gradient in CLIP's.
    """
    arguments = ["--model", "DiffCLIP-nano", "--batch-size", "8", "--epochs", str(epochs), "--warmup", "1"]
    arguments += ["--lr", "1e-3", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8", "--log-every-n-steps", "1"]
    arguments += ["--name", "run", "--logs", "logs", "--resume", "latest", "--precision", "fp32"]
    if "--dataset-type" not in more:
        arguments += ["--dataset-type", "synthetic", "--train-num-samples", str(8 * STEPS), "--workers", "0"]
        arguments += ["--siglip"]
    return [*arguments, *more]


def on_shards(shards: str, samples: int) -> list[str]:
    """Return the arguments that make the trainer read shards, with ``samples`` pairs in an epoch."""
    kind = ["--dataset-type", "webdataset", "--workers", "1"]
    return [*kind, "--train-data", shards, "--train-num-samples", str(samples)]


def checkpoint_path(folder: Path, name: str) -> Path:
    """Return where a run in ``folder`` keeps a checkpoint."""
    return folder / "logs" / "run" / "checkpoints" / f"{name}.pt"


def load_checkpoint(path: Path) -> dict:
    """Read a checkpoint of the trainer."""
    return torch.load(path, map_location="cpu", weights_only=True)


def steps_of(checkpoint: dict) -> set[int]:
    """Return how many steps AdamW has made, by its own count for each tensor."""
    return {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()}


def train(folder: Path, arguments: list[str]) -> str:
    """Run the trainer to its end and return its log."""
    with Training(folder, arguments) as run:
        assert run.ended() == 0, run.log[-6000:]
        return run.log


def losses_in(log: str) -> list[float]:
    """Return the loss of each step that the log names; open_clip's main branch names an epoch's mean too."""
    return [float(loss) for loss in re.findall(r"(?<!Avg) Loss: (\S+)", log)]
