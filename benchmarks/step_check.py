"""Compare step_model.py's activations with real and simulated passes:  python benchmarks/step_check.py

Real: forward passes on the CPU in float32; autograd's hooks tell what it keeps, which is counted storage by storage.
The CPU's attention keeps other things than an accelerator's two fused ones, so its terms differ. Simulated: forward
passes of tensors that say they are on CUDA and hold no data (torch's FakeTensor), under autocast, with memory-efficient
attention; what is kept is counted likewise, for any size. Two batch sizes each: the difference is a sample's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F
from step_model import FLOAT, Tower, activation_bytes, empty_model, sums_bytes, text_pass, towers_of
from torch import Tensor
from torch._subclasses import FakeTensorMode

REAL = {"DiffCLIP-nano": (600, 640), "DiffCLIP-S-16": (16, 20), "DiffCLIP-B-16": (12, 14)}
SIMULATED = ("DiffCLIP-nano", "DiffCLIP-S-16", "DiffCLIP-B-16", "DiffCLIP-L-14", "DiffCLIP-H-14", "CLIP-B-16-baseline")


def kept_bytes(run: Callable[[Tensor], Tensor], given: Tensor, owned: set[int]) -> int:
    """Return what autograd keeps of a forward pass, in bytes.

    Args:
        owned: storages that count for nothing, the parameters'.
    """
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = run(given)
    kept = sum(storage.nbytes() for key, storage in storages.items() if key not in owned)
    del output
    return kept


def bytes_of_a_sample(model: Any, batch_sizes: tuple[int, int], device: str) -> tuple[float, float]:
    """Return what autograd keeps of an image and of a text."""
    owned = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    small, large = batch_sizes
    found = []
    for run, shape, dtype in (
        (model.visual, (3, *model.visual.image_size), torch.float32),
        (text_pass(model), (model.context_length,), torch.long),
    ):
        kept = [kept_bytes(run, torch.ones(size, *shape, dtype=dtype, device=device), owned) for size in batch_sizes]
        found.append((kept[1] - kept[0]) / (large - small))
    return found[0], found[1]


def efficient_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Call CUDA's memory-efficient attention, and flash attention for shared keys: FakeTensor does not choose."""
    half = torch.get_autocast_dtype("cuda")
    if enable_gqa:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        shared: Tensor = flash(q.to(half), k.to(half), v.to(half), dropout_p, is_causal)[0]
        return shared
    if attn_mask is not None:
        attn_mask = attn_mask.to(half).expand(*q.shape[:3], k.shape[2])
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    output: Tensor = attend(q.to(half), k.to(half), v.to(half), attn_mask, True, dropout_p, is_causal)[0]
    return output


@contextmanager
def simulated_cuda() -> Iterator[None]:
    """Simulate CUDA without a device: fake tensors, its autocast switched on, its attention."""
    backends = torch.backends.cuda
    with (
        FakeTensorMode(),
        mock.patch.object(F, "scaled_dot_product_attention", efficient_attention),
        # torch would ask a device
        mock.patch.object(backends, "SDPAParams", lambda *arguments: arguments),
        mock.patch.object(backends, "can_use_flash_attention", return_value=True),
    ):
        torch.set_autocast_enabled("cuda", True)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()


def without_data(model: Any) -> None:
    """Give a model tensors that say they are on CUDA, within :func:`simulated_cuda`."""
    model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))


def simulated(name: str) -> tuple[float, float]:
    """Return what autograd keeps of an image and of a text on CUDA under autocast."""
    model = empty_model(name).train()
    with simulated_cuda():
        without_data(model)
        return bytes_of_a_sample(model, (8, 16), "cuda")


def cpu_bytes(tower: Tower) -> int:
    """Return step_model.py's figure in float32 with the CPU's differential attention.

    In place of both maps' outputs, that keeps the heads before and behind the norm, and in place of the softmaxes' sums
    the pairs' inverse norms. The projection of an image keeps the last norm's whole output, of which it takes a view.
    """
    saved = sums_bytes(tower) - FLOAT * tower.tokens * tower.heads // 2
    projection = FLOAT * tower.tokens * tower.width if tower.inputs else 0
    return activation_bytes([tower], half=FLOAT) - tower.depth * saved + projection


def row(kind: str, name: str, what: str, predicted: float, found: float) -> str:
    """Return a line of the table."""
    error = 100 * (predicted / found - 1)
    return f"| {kind} | `{name}` | {what} | {predicted / 1e6:.2f} | {found / 1e6:.2f} | {error:+.2f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print("| pass | model | a sample | predicted MB | kept MB | error |\n| --- | --- | --- | ---: | ---: | ---: |")
    for name, batch_sizes in REAL.items():
        model = open_clip.create_model(name, output_dict=True).train()
        for what, tower, found in zip(
            ("image", "text"), towers_of(model), bytes_of_a_sample(model, batch_sizes, "cpu"), strict=True
        ):
            print(row("CPU, float32", name, what, cpu_bytes(tower), found), flush=True)
    for name in SIMULATED:
        for what, tower, found in zip(("image", "text"), towers_of(empty_model(name)), simulated(name), strict=True):
            print(row("simulated CUDA, autocast", name, what, activation_bytes([tower]), found), flush=True)


if __name__ == "__main__":
    main()
