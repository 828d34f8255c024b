"""Hold what compare.py compares and how a comparison is kept in its folder, so that it can go on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from quickstart import DATA, training_command
from report import SPLITS


class Arm(NamedTuple):
    """Describe what is compared."""

    title: str  # in tables; the paper's name, where it has one
    model: str  # open_clip's
    is_continued: bool = False  # whether it starts from the seed's trained baseline
    is_warm_started: bool = False  # by `diffclip warm-start`, and not as it is


CURVE = "unseen-vendor"  # the split by which checkpoints in between are scored
BASELINE, CONTINUED = "baseline", "continued"  # with which the others are compared
SETTINGS = "epochs", "continued_epochs", "points", "flags"  # the same in all arms
# name of its runs -> arm
ARMS = {
    BASELINE: Arm("CLIP", "CLIP-nano-baseline"),
    "gated": Arm("CLIP, gated", "CLIP-nano-gated"),
    "half-heads": Arm("CLIP, half heads", "CLIP-nano-half-heads"),
    "diffclip": Arm("DiffCLIP", "DiffCLIP-nano"),
    "dynamic": Arm("DiffCLIP*", "DiffCLIP-nano-dynamic"),
    "vision": Arm("DiffCLIP†", "DiffCLIP-nano-vision"),
    "v2": Arm("V2", "DiffCLIP-V2-nano"),
    CONTINUED: Arm("CLIP, continued", "CLIP-nano-baseline", is_continued=True),
    "warm-v2": Arm("V2, warm-started", "DiffCLIP-V2-nano", is_continued=True, is_warm_started=True),
}


class Comparison:
    """Hold the folders and settings of a comparison, and the processes that it has running.

    Raises:
        ValueError: the arms are without one that others start from or are compared with.
    """

    def __init__(
        self,
        output: Path,
        epochs: int,
        continued_epochs: int,
        points: int,
        flags: list[str],
        arms: Collection[str] = tuple(ARMS),
    ) -> None:
        self.output, self.epochs, self.continued_epochs = output, epochs, continued_epochs
        self.points, self.flags = points, flags
        self.arms = [name for name in ARMS if name in arms]
        needed = {BASELINE} | ({CONTINUED} if any(ARMS[name].is_continued for name in arms) else set())
        if missing := sorted(needed - set(arms)):
            raise ValueError(f"the arms lack {', '.join(missing)}, with which the others are compared")
        self._running: set[subprocess.Popen[bytes]] = set()
        self._is_stopped = threading.Event()

    @classmethod
    def read(cls, folder: Path, arms: Collection[str] = tuple(ARMS)) -> Comparison:
        """Return the comparison that compare.py keeps in a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: as the class.
        """
        path = folder / "settings.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder} has no settings.json; give what was compare.py's --output")
        settings = json.loads(path.read_text())
        return cls(folder, **{key: settings[key] for key in SETTINGS}, arms=arms)

    def check_settings(self) -> None:
        """Note the settings in OUTPUT, and refuse those of another comparison."""
        own = {key: getattr(self, key) for key in SETTINGS}
        command = training_command("", Path(), self.epochs)
        own["trainer"] = command[command.index("--batch-size") :]  # the quick start's settings may change
        path = self.output / "settings.json"
        known = json.loads(path.read_text()) if path.exists() else own
        if known != {key: own[key] for key in known}:
            sys.exit(
                f"{self.output} is of a comparison with {known}, not {own}; go on with those, or take another --output"
            )
        if not path.exists():
            self.output.mkdir(parents=True, exist_ok=True)
            write(path, own)

    # a training run

    def folder(self, seed: int, name: str) -> Path:
        return self.output / "runs" / f"seed{seed}-{name}"

    def checkpoint(self, seed: int, name: str) -> Path:
        """Return the last checkpoint of a run, which is there when the run is done."""
        epochs = self.continued_epochs if ARMS[name].is_continued else self.epochs
        return self.folder(seed, name) / "checkpoints" / f"epoch_{epochs}.pt"

    def train(self, seed: int, name: str) -> None:
        """Train to the end, from the last epoch that is there.

        Wall times of all attempts are in seconds.json: null for one that was killed with this process, or still runs.
        """
        arm, folder = ARMS[name], self.folder(seed, name)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as lock:
            if (folder / "done").exists():
                return
            model, more = arm.model, []
            if arm.is_warm_started:
                model = f"local-dir:{self._warm_started(seed, folder, lock)}"
            elif arm.is_continued:
                more = ["--pretrained", str(self.checkpoint(seed, BASELINE))]
            epochs = self.continued_epochs if arm.is_continued else self.epochs
            command = [*training_command(model, folder.parent, epochs, seed), "--name", folder.name, *more]
            # one process of one thread; a checkpoint for each point of the curve
            command += ["--workers", "0", "--save-frequency", str(-(-epochs // self.points)), *self.flags]
            seconds, start = folder / "seconds.json", time.monotonic()
            earlier = json.loads(seconds.read_text()) if seconds.exists() else []
            write(seconds, [*earlier, None])
            try:
                self._run(command, folder, lock)
            finally:
                write(seconds, [*earlier, round(time.monotonic() - start, 1)])
            (folder / "done").touch()  # first, as a run without its latest checkpoint would begin anew
            (folder / "checkpoints" / "epoch_latest.pt").unlink(missing_ok=True)

    def _warm_started(self, seed: int, folder: Path, lock: int) -> Path:
        out = folder / "start"
        source = f"{ARMS[BASELINE].model},{self.checkpoint(seed, BASELINE)}"
        if not (folder / "checkpoints").exists():  # the trainer needs it as long as it goes on
            self._run(["diffclip", "warm-start", source, str(out), "--overwrite"], folder, lock)
        return out

    # a seed's evaluation

    def evaluate(self, seed: int) -> None:
        """Score all checkpoints of a seed by CURVE and the last ones by all splits; delete those in between."""
        folder = self.output / "runs" / f"seed{seed}"
        folder.mkdir(exist_ok=True)
        with locked(folder) as lock:
            if self.is_complete(seed):
                return
            for results, names in self.results().items():
                command = ["diffclip", "evaluate", "--data", str(DATA / "eval"), "--output", str(results)]
                curves, last = [*command, "--dataset", CURVE], command
                last += [part for split in SPLITS for part in ("--dataset", split.name)]
                for name in names:
                    curves += ["--model", f"{ARMS[name].model},{self.folder(seed, name)}"]
                    last += ["--model", f"{ARMS[name].model},{self.checkpoint(seed, name)}"]
                self._run(curves, folder, lock)
                self._run(last, folder, lock)
            for name in self.arms:
                kept = self.checkpoint(seed, name)
                for other in kept.parent.glob("*.pt"):
                    if other != kept:
                        other.unlink()
            write(folder / "done", sorted({*self.arms, *self._evaluated(seed)}))

    def results(self) -> dict[Path, list[str]]:
        """Return the folders of results with the runs in them: the continued ones have a baseline of their own."""
        found = {
            self.output / f"results{ending}": [name for name in self.arms if ARMS[name].is_continued == is_continued]
            for ending, is_continued in (("", False), ("-continued", True))
        }
        return {folder: names for folder, names in found.items() if names}

    @staticmethod
    def groups(names: list[str], seeds: list[int]) -> list[str]:
        """Return the report's groups: a model's runs with these seeds."""
        return [f"{ARMS[name].title}=* seed{seed}-{name} epoch_*" for name in names for seed in seeds]

    def is_complete(self, seed: int) -> bool:
        """Tell whether a seed is trained and evaluated in all arms."""
        return self._evaluated(seed) >= set(self.arms)

    def complete_seeds(self) -> list[int]:
        """Return the seeds that are trained and evaluated in all arms."""
        return [seed for seed in self._seeds() if self.is_complete(seed)]

    def trained_seeds(self) -> list[int]:
        """Return the seeds that are trained in all arms."""
        return [s for s in self._seeds() if all((self.folder(s, name) / "done").exists() for name in self.arms)]

    def _seeds(self) -> list[int]:
        names = {path.name.partition("-")[0] for path in (self.output / "runs").glob("seed*")}
        return sorted(int(name.removeprefix("seed")) for name in names)

    def _evaluated(self, seed: int) -> set[str]:
        done = self.output / "runs" / f"seed{seed}" / "done"
        return set(json.loads(done.read_text())) if done.exists() else set()

    # processes

    def _run(self, command: list[str], folder: Path, lock: int) -> None:
        """Run a command on one thread, with its output in ``folder``; it holds the lock as long as it lives."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        with (folder / "output.log").open("ab") as log:
            if self._is_stopped.is_set():
                raise RuntimeError("interrupted")
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, pass_fds=[lock])
            self._running.add(process)
            if self._is_stopped.is_set():  # since it was asked
                process.terminate()
            status = process.wait()
            self._running.discard(process)
        if status:
            raise RuntimeError(f"{command[0]} ended with exit status {status}; see {folder / 'output.log'}")

    def stop(self) -> None:
        """End all processes; what they have saved is there for the next time."""
        self._is_stopped.set()
        for process in list(self._running):
            process.terminate()


def write(path: Path, content: object) -> None:
    """Write JSON, all or nothing of it where this process is killed."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content) + "\n")
    new.replace(path)


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Yield a lock that no other comparison can have, nor what is left running of one that was killed."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"{folder} is in use by another process; wait for it or end it") from None
        yield file.fileno()
