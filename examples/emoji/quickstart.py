"""Train DiffCLIP-nano on the embedded emoji, evaluate it, show what it predicts:  python examples/emoji/quickstart.py

About 5 minutes of training on two CPU cores. Trainer and benchmark are the hosts' own commands, shown before they
run. An interrupted run continues where it stopped; delete the output folder to start anew.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from report import SPLITS, print_table, result_file, save_predictions

DATA = Path(__file__).resolve().parent / "data"
BATCH_SIZE = 256
EPOCHS = 13
MODEL, BASELINE = "DiffCLIP-nano", "CLIP-nano-baseline"


def run(command: list[str]) -> None:
    """Show a command, run it, and stop with its exit status if it fails."""
    print(f"\n$ {shlex.join(command)}\n", flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(f"the command above failed with exit status {status}")


def prepare_environment() -> None:
    """What the commands below need from their environment."""
    # the environment's own commands, also where it is not activated
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # the data loader's process needs the cores on which the trainer's threads would otherwise spin
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # glibc keeps freed memory, whose pages would be given back and made anew in each step
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(1 << 32))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(1 << 25))


def training_command(model: str, runs: Path, epochs: int, seed: int = 0) -> list[str]:
    """Return the command that trains ``model`` with open_clip's trainer, into the folder ``runs/model``."""
    shards = DATA / "{train/noto,train/twemoji,train-openmoji/openmoji}.tar"
    command = [sys.executable, "-m", "open_clip_train.main", "--model", model, "--name", model, "--logs", str(runs)]
    command += ["--dataset-type", "webdataset", "--train-data", str(shards), "--workers", "1"]
    command += ["--batch-size", str(BATCH_SIZE), "--epochs", str(epochs), "--seed", str(seed), "--precision", "fp32"]
    # Muon takes matrices but the token embedding, and AdamW all others; AdamW alone finds a quarter as many labels
    command += ["--opt", "timm/muon", "--lr", "3e-3", "--warmup", "40", "--wd", "0.1"]
    command += ["--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8"]
    # crops and colours vary, since vendors differ in them
    command += ["--aug-cfg", "scale=(0.6,1.0)", "color_jitter=(0.4,0.4,0.4,0)", "color_jitter_prob=0.5"]
    command += ["gray_scale_prob=0.2", "--log-every-n-steps", "10", "--save-most-recent", "--save-frequency", "0"]
    return [*command, "--resume", "latest"]


def train(model: str, runs: Path, epochs: int, seed: int = 0) -> Path:
    """Train ``model`` and return its checkpoint."""
    run(training_command(model, runs, epochs, seed))
    return runs / model / "checkpoints" / "epoch_latest.pt"


def evaluate(model: str, checkpoint: Path, runs: Path) -> None:
    """Run clip_benchmark once for each task; one JSON a split."""
    for task in dict.fromkeys(split.task for split in SPLITS):
        command = ["clip_benchmark", "eval", "--model", model, "--pretrained", str(checkpoint), "--task", task]
        command += ["--dataset", *(f"wds/{split.name}" for split in SPLITS if split.task == task)]
        command += ["--dataset_root", str(DATA / "eval" / "{dataset}"), "--batch_size", "256", "--num_workers", "1"]
        command += ["--recall_k", "1", "5", "--no_amp", "--output", str(result_file(runs, model, "{dataset}"))]
        run(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help=f"also train {BASELINE}, with the same budget and seed")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart"), help="default: %(default)s")
    args = parser.parse_args()

    prepare_environment()
    models = [MODEL, BASELINE] if args.compare else [MODEL]
    seconds, checkpoints = {}, {}
    for model in models:
        start = time.monotonic()
        checkpoints[model] = train(model, args.output, args.epochs)
        seconds[model] = time.monotonic() - start
        evaluate(model, checkpoints[model], args.output)
    print_table(models, args.output)
    for model in models:
        print(f"{model}: trainer's wall time {seconds[model] / 60:.1f} min, checkpoint {checkpoints[model]}")
    picture = args.output / "predictions.png"
    save_predictions(MODEL, checkpoints[MODEL], DATA / "eval" / "unseen-vendor", picture)
    print(f"predictions on the unseen vendor: {picture}")


if __name__ == "__main__":
    main()
