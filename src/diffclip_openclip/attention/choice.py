"""Choose how to compute the difference of two maps (:func:`choose_path`).

========  ==============================================================================================================
"maps"    Both maps explicitly, subtracted before one product with v.
"blocks"  Block by block in the CPU's cache, norm included; no map leaves it (cpu.py).
"sdpa"    Two calls of torch's fused attention, subtracted behind the product with v; no N x N map is kept.
========  ==============================================================================================================

A layer whose ``fused_attn`` is False and a scripted layer on the CPU do not ask and take "maps".
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import torch

PATHS = ("maps", "blocks", "sdpa")
# bytes of maps that one thread works on: fastest of 0.5 to 16 MiB on a CPU with 1 MiB of second-level cache a core
CACHE_BYTES = 2 << 20
_TORCH = (int(torch.__version__.split(".")[0]), int(torch.__version__.split(".")[1]))
# values wider than queries get a wrong shape before (pytorch/pytorch#176767)
MPS_TAKES_WIDE_VALUES = _TORCH >= (2, 12)
_chosen: Optional[str] = None  # by use_path


@dataclass(frozen=True)
class Measured:
    """Hold which path was fastest on a kind of CUDA device."""

    capability: tuple[int, int]  # compute capability
    torch: tuple[int, int]  # the lowest version of torch for which it holds
    most_tokens: int  # of a sequence
    path: str  # one of PATHS
    source: str  # file in benchmarks/results


# From section 2 of benchmarks/gpu.py; the first row that fits decides. None was measured: "sdpa" everywhere.
MEASURED: tuple[Measured, ...] = ()


@contextlib.contextmanager
def use_path(path: str) -> Iterator[None]:
    """Compute differential attention in one way within the context, in all threads: for tests and comparisons.

    Version 2 has one way, fused attention, and is not changed; nor are scripted layers and those whose ``fused_attn``
    is False. Compiled layers are compiled anew.

    Raises:
        ValueError: an unknown path; and from a layer, where "blocks" is used for what it cannot compute.
    """
    if path not in PATHS:
        raise ValueError(f"path is {path!r}; it must be one of {', '.join(map(repr, PATHS))}")
    global _chosen
    before, _chosen = _chosen, path
    try:
        yield
    finally:
        _chosen = before


def choose_path(qkv_BNC3: torch.Tensor, num_heads: int, *, masked: bool, dropout_p: float, fusible: bool) -> str:
    """Decide how to compute version 1's attention.

    Args:
        qkv_BNC3: queries, keys and values of ``num_heads`` heads, (B, N, 3 C).
        masked: whether there is an ``attn_mask``; being causal is none.
        dropout_p: dropout on the maps.
        fusible: whether the CPU operator could take over the norm: it is torch's own, and nothing transforms the call.

    Raises:
        ValueError: :func:`use_path` asks for "blocks" where they cannot compute what is asked for.
    """
    device = qkv_BNC3.device.type
    blocks_can = fusible and not masked and dropout_p == 0.0 and device == "cpu"
    if _chosen is not None:
        if _chosen == "blocks" and not blocks_can:
            raise ValueError(
                "use_path('blocks') is in force; blocks take tensors on the CPU without attn_mask, dropout or "
                "torch.func, and torch's own RMSNorm without hooks; use another path for this call"
            )
        return _chosen
    if device == "mps" and not MPS_TAKES_WIDE_VALUES:
        return "maps"
    if device == "cuda" and MEASURED:
        capability = torch.cuda.get_device_capability(qkv_BNC3.device)
        return measured_path(MEASURED, capability, _TORCH, qkv_BNC3.shape[1]) or "sdpa"
    if device != "cpu":
        return "sdpa"  # memory is what is short there
    if not blocks_can or torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "maps"  # exported programs are to run where this package's operator is not
    B, N, _ = qkv_BNC3.shape
    return "maps" if fits_in_cache(B, num_heads, N) else "blocks"  # one block has nothing to gain


def measured_path(
    table: tuple[Measured, ...], capability: tuple[int, int], version: tuple[int, int], num_tokens: int
) -> Optional[str]:
    """Return the path of the table's first row that fits a device, a version of torch and a length, or None."""
    for row in table:
        if row.capability == capability and row.torch <= version and num_tokens <= row.most_tokens:
            return row.path
    return None


def fits_in_cache(batch_size: int, num_heads: int, num_tokens: int) -> bool:
    """Tell whether all maps together, in float32, are one thread's share of the cache.

    Sizes that torch.compile keeps open do not count as fitting, so that they stay open.
    """
    fits = 4 * batch_size * num_heads * num_tokens * num_tokens <= CACHE_BYTES
    if not torch.compiler.is_compiling():
        return fits
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # half a second to import

    return statically_known_true(fits)
