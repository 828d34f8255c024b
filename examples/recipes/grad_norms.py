"""Gradient norms of a run of open_clip's trainer, from its checkpoints:  python examples/recipes/grad_norms.py RUN

The trainer logs no gradient norm, but AdamW keeps a running mean of each gradient's square, over about 1 / (1 - beta2)
steps (50 with the recipes' 0.98). The root of its sum is the root mean square of the gradient's norm at the end of an
epoch, as the optimizer saw it. RUN holds checkpoints/epoch_*.pt; one line an epoch.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "image tower": lambda name: name.startswith("visual."),
    "text tower": lambda name: not name.startswith("visual.") and name != "logit_scale",
    "lambdas": lambda name: ".lambda_" in name,
    "logit_scale": lambda name: name == "logit_scale",
}


def gradient_norms(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """Root mean square of the gradient's norm over AdamW's last steps, for each of ``PARTS``.

    Raises:
        ValueError: the checkpoint is none of the trainer's with AdamW and all weights trained.
    """
    if not {"state_dict", "optimizer"} <= checkpoint.keys():
        raise ValueError(f"a checkpoint of open_clip's trainer has state_dict and optimizer, this has {[*checkpoint]}")
    weights = {name.removeprefix("module."): tensor for name, tensor in checkpoint["state_dict"].items()}
    squares = _mean_squares(weights, checkpoint["optimizer"])
    return {part: math.sqrt(sum(squares[name] for name in squares if has(name))) for part, has in PARTS.items()}


def _mean_squares(weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> dict[str, float]:
    """The mean square of each weight's gradient, summed over its elements."""
    # open_clip@v3.3.0:src/open_clip_train/main.py: weights without decay are the optimizer's first
    plain = [name for name in weights if _without_decay(name, weights[name])]
    names = plain + [name for name in weights if name not in plain]
    states, beta2 = optimizer["state"], optimizer["param_groups"][0]["betas"][1]
    shapes = [states[number]["exp_avg_sq"].shape for number in sorted(states) if "exp_avg_sq" in states[number]]
    if shapes != [weights[name].shape for name in names]:
        raise ValueError("the optimizer's state is not that of AdamW with all of the model's weights trained")
    squares = {}
    for number, name in enumerate(names):
        total = float(states[number]["exp_avg_sq"].double().sum())
        squares[name] = total / (1 - beta2 ** float(states[number]["step"]))
    return squares


def _without_decay(name: str, weight: Tensor) -> bool:
    return weight.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, as in runs/cc12m/logs/MODEL/cc12m")
    args = parser.parse_args()
    epochs = {int(path.stem[6:]): path for path in args.run.glob("checkpoints/epoch_*.pt") if path.stem[6:].isdigit()}
    if not epochs:
        sys.exit(f"there is no checkpoints/epoch_*.pt in {args.run}")
    print("epoch" + "".join(f"{part:>13}" for part in PARTS))
    for epoch, path in sorted(epochs.items()):
        norms = gradient_norms(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        print(f"{epoch:5}" + "".join(f"{norms[part]:13.4g}" for part in PARTS))


if __name__ == "__main__":
    main()
