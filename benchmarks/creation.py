"""Measure how long open_clip takes to build models:  python benchmarks/creation.py

Prints median seconds of ``open_clip.create_model`` for each DiffCLIP and its baseline, and how many random values are
drawn for each parameter value. The models take turns; the first call, which imports, is not counted.
"""

import argparse
import logging
import statistics
import time
from typing import Any

import open_clip
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWS = ("uniform_", "normal_", "normal")


class _DrawnValues(TorchDispatchMode):
    """Count the values that random initialisation draws."""

    drawn = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in _DRAWS and args[0].device.type != "meta":
            self.drawn += args[0].numel()
        return func(*args, **(kwargs or {}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", default=["B-16", "L-14"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    for size in args.size:
        names = [f"CLIP-{size}-baseline", f"DiffCLIP-{size}"]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds + 1):
            for name in names:
                start = time.perf_counter()
                open_clip.create_model(name)
                seconds[name].append(time.perf_counter() - start)
        for name in names:
            with _DrawnValues() as counter:
                model = open_clip.create_model(name)
            share = counter.drawn / sum(parameter.numel() for parameter in model.parameters())
            print(
                f"{name:20} {statistics.median(seconds[name][1:]):6.2f} s   {share:.2f} values drawn a parameter value"
            )


if __name__ == "__main__":
    main()
