"""Run the recipes of examples/, and read the command lines that they would run."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from open_clip_train.params import parse_args
from support.common import REPOSITORY, plain_environment
from torch.distributed.run import parse_args as parse_torchrun

RECIPES = REPOSITORY / "examples" / "recipes"
# What recipes read. Those of the shell that the tests are run in must not reach them.
VARIABLES = {
    *("IMG2DATASET", "DATA", "LIST", "EVAL", "OUT", "NODES", "GPUS", "RDZV", "ACCUM", "WORKERS", "SEED", "EPOCHS"),
    *("SAMPLES", "SMALL", "DRY_RUN"),
}


def run_recipe(name: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe as a user with the environment active would."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {key: value for key, value in plain_environment(PATH=path).items() if key not in VARIABLES}
    command = ["bash", str(RECIPES / f"{name}.sh"), *arguments]
    return subprocess.run(command, cwd=cwd, env=own | variables, capture_output=True, text=True)


def planned_commands(name: str, *arguments: str, cwd: Path, **variables: str) -> list[list[str]]:
    """Return the command lines that a recipe would run."""
    done = run_recipe(name, *arguments, cwd=cwd, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines()]


def read_training(command: list[str]):
    """Return what torchrun and the trainer read from a command line: torchrun's arguments, and the trainer's."""
    assert command[0] == "torchrun"
    launch = parse_torchrun(command[1:])
    assert launch.no_python
    assert launch.training_script == "open_clip_train"
    return launch, parse_args(launch.training_script_args)


def planned_training(name: str, model: str, cwd: Path, *arguments: str, **variables: str):
    """Return what torchrun and the trainer read when a recipe trains ``model``."""
    (command,) = planned_commands(name, "train", model, *arguments, cwd=cwd, **variables)
    return read_training(command)


def make_shards(folder: Path, successes: list[int]) -> None:
    """Write what img2dataset leaves: shards and their statistics, with a count of pairs for each."""
    folder.mkdir()
    for number, count in enumerate(successes):
        (folder / f"{number:05}.tar").touch()
        statistics = {"count": 10000, "successes": count, "status_dict": {"success": count, '"successes": 9': 1}}
        (folder / f"{number:05}_stats.json").write_text(json.dumps(statistics, indent=4))
