"""Does it learn better? The paper's four models at equal budget, several seeds:  python examples/emoji/compare.py

Trains each with the quick start's settings and evaluates all with `diffclip evaluate`. `diffclip report --group` then
makes mean and standard deviation over seeds: OUTPUT/report. About 6 minutes a model and seed on two CPU cores. An
interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from quickstart import DATA, EPOCHS, prepare_environment, run, train
from report import SPLITS

# paper's name -> open_clip's
MODELS = {
    "CLIP": "CLIP-nano-baseline",
    "DiffCLIP": "DiffCLIP-nano",
    "DiffCLIP*": "DiffCLIP-nano-dynamic",
    "DiffCLIP†": "DiffCLIP-nano-vision",
}
# a group of the report is a model's seeds; their labels have the model's name and the checkpoint's file
GROUPS = [option for name, model in MODELS.items() for option in ("--group", f"{name}={model} *")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two; default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s, the quick start's")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="default: %(default)s")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error(f"--seeds has {len(args.seeds)}; a spread needs at least two")

    prepare_environment()
    results = str(args.output / "results")
    command = ["diffclip", "evaluate", "--data", str(DATA / "eval"), "--output", results]
    for split in SPLITS:
        command += ["--dataset", split.name]
    for seed in args.seeds:
        for model in MODELS.values():
            checkpoint = train(model, args.output / f"seed{seed}", args.epochs, seed)
            command += ["--model", f"{model},{checkpoint}"]
    run(command)
    run(["diffclip", "report", results, "--output", str(args.output / "report"), "--overwrite", *GROUPS])


if __name__ == "__main__":
    main()
