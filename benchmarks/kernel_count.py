"""Count kernels and bytes of an image tower's forward pass on an accelerator:  python benchmarks/kernel_count.py

Nothing is timed, and no accelerator is needed: tensors say they are on CUDA and hold no data (step_check.py), under
autocast with memory-efficient attention. A kernel is an operator that is no view; its bytes are those of the tensors it
takes and gives, which is what goes through memory if nothing stays in a cache.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import torch
from step_check import simulated_cuda, without_data
from step_model import empty_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_NO_KERNELS = {
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::_unsafe_view",
    "aten::promote_types",
    "prim::device",
}


class KernelCount(TorchDispatchMode):
    """Count calls and bytes of operators by name, within its context."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not func.is_view and name not in _NO_KERNELS:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
            self.calls[name.removeprefix("aten::")] += 1
            self.bytes[name.removeprefix("aten::")] += sum(tensor.nbytes for tensor in tensors)
        return output


def count(name: str, batch_size: int) -> KernelCount:
    """Count the kernels of the named model's image tower."""
    model = empty_model(name)
    with simulated_cuda(), torch.no_grad():
        without_data(model)
        images = torch.empty(batch_size, 3, *model.visual.image_size, device="cuda")
        with KernelCount() as counted:
            model.visual(images)
    return counted


def table(names: tuple[str, str], batch_size: int) -> str:
    """Return the second model beside the first as Markdown: the kernels that differ, and the sums."""
    first, second = (count(name, batch_size) for name in names)
    lines = [f"| kernel | {names[0]} | GB | {names[1]} | GB |", "| --- |" + " ---: |" * 4]
    operators = sorted(first.bytes | second.bytes, key=lambda name: first.bytes[name] - second.bytes[name])
    for name in operators:
        if (first.calls[name], first.bytes[name]) != (second.calls[name], second.bytes[name]):
            figures = (first.calls[name], first.bytes[name] / 1e9, second.calls[name], second.bytes[name] / 1e9)
            lines.append("| `{}` | {} | {:.2f} | {} | {:.2f} |".format(name, *figures))
    totals = (first.calls.total(), first.bytes.total() / 1e9, second.calls.total(), second.bytes.total() / 1e9)
    lines.append("| all | {} | {:.2f} | {} | {:.2f} |".format(*totals))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("CLIP-B-16-baseline", "DiffCLIP-B-16")
    parser.add_argument("--model", nargs=2, default=names, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=256, help="default: %(default)s")
    args = parser.parse_args()
    print(table(tuple(args.model), args.batch_size))


if __name__ == "__main__":
    main()
