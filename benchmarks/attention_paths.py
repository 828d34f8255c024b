"""CPU paths of one attention layer against plain attention:  python benchmarks/attention_paths.py

Forward, and forward with backward, of DifferentialAttention's three paths and of timm's plain Attention, interleaved;
medians and the ratio of throughputs to plain attention (1.00 is as fast).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import Attention

from diffclip_openclip.attention import DifferentialAttention, use_path


def measure(paths: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each path; the paths take turns, the first two rounds are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(repeats + 2):
        for name, run in paths.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=197)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--num-heads", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()

    torch.manual_seed(0)
    plain = Attention(args.dim, args.num_heads, qkv_bias=True)
    differential = DifferentialAttention(args.dim, args.num_heads)
    x = torch.randn(args.batch_size, args.tokens, args.dim, requires_grad=True)

    def by(path: str) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with use_path(path):
                return differential(x)

        return run

    forward: dict[str, Callable[[], torch.Tensor]] = {
        "plain attention": lambda: plain(x),
        "differential, in blocks": by("blocks"),
        "differential, by maps": by("maps"),
        "differential, by SDPA": by("sdpa"),
    }
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32, {vars(args)}")

    def train(run: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: run().sum().backward()

    for title, paths in (
        ("forward", {name: torch.no_grad()(run) for name, run in forward.items()}),
        ("forward and backward", {name: train(run) for name, run in forward.items()}),
    ):
        medians = measure(paths, args.repeats)
        for name, seconds in medians.items():
            ratio = medians["plain attention"] / seconds
            print(f"{title:22} {name:24} {1000 * seconds:7.1f} ms   {ratio:.2f}")


if __name__ == "__main__":
    main()
