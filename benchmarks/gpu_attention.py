"""Time ways to compute one layer's (A1 - lambda A2) v on a GPU: section "attention" of gpu.py.

All take queries and keys, (B, H, N, d), values, (B, P, N, 2 d), and give (B, P, N, 2 d); shape legend: that of
diffclip_openclip.attention.reference. They take turns, and each one's output and gradients are compared with explicit
maps in float64. A candidate that cannot run here is named in the figures with the reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffclip_openclip.attention.paths import attend_by_maps, subtract
from diffclip_openclip.attention.reference import pair

LAMBDA = 0.7
_MILLISECONDS = 5.0  # that a turn takes at least, so that a GPU's clock and launches do not decide


@dataclass(frozen=True)
class Candidate:
    """Describe one way to compute a layer's attention."""

    run: Callable[[Tensor, Tensor, Tensor, bool], Tensor]  # q, k, v, is_causal
    backend: SDPBackend | None = None  # of torch's fused attention, the only one that may run; None: torch chooses
    package: str | None = None  # that must be installed
    only_cuda: bool = False
    trains: bool = True  # on the CPU too

    def missing(self, device: str) -> str | None:
        """Say why it cannot be tried on a device, or return None."""
        if device == "cpu" and (self.only_cuda or self.backend not in (None, SDPBackend.MATH)):
            return "needs CUDA"
        if self.package is not None and not _installed(self.package):
            return f"needs {self.package}"
        return None

    def context(self) -> AbstractContextManager[Any]:
        """Return a context in which only its backend runs, so that nothing falls to the math path unseen."""
        return nullcontext() if self.backend is None else sdpa_kernel([self.backend])


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def two_calls(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Call fused attention once a map: today's way, (a)."""
    (q1, q2), (k1, k2) = pair(q), pair(k)
    out1, out2 = (F.scaled_dot_product_attention(*maps, v, is_causal=is_causal) for maps in ((q1, k1), (q2, k2)))
    return _subtract(out1, out2)


def one_call(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Call fused attention once, with half as many heads of values as of queries and keys, (b)."""
    return _subtract(*pair(F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=True)))


def values_in_halves(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Call fused attention once for each half of the values, which are as wide as queries then, (c)."""
    halves = [
        F.scaled_dot_product_attention(q, k, half.repeat_interleave(2, dim=1), is_causal=is_causal)
        for half in v.chunk(2, dim=-1)
    ]
    return torch.cat([_subtract(*pair(half)) for half in halves], dim=-1)


def flash_attention_4(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Call FlashAttention 4 once a map, (d)."""
    flash_attn_func: Any = importlib.import_module("flash_attn.cute").flash_attn_func

    def attend(q: Tensor, k: Tensor) -> Tensor:
        found = flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=is_causal)
        return (found[0] if isinstance(found, tuple) else found).transpose(1, 2)

    (q1, q2), (k1, k2) = pair(q), pair(k)
    return _subtract(attend(q1, k1), attend(q2, k2))


def explicit_maps(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Compute both maps explicitly."""
    return attend_by_maps(q, k, v, torch.tensor(LAMBDA, device=q.device), None, is_causal, 0.0).transpose(1, 2)


def compiled_maps(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Compute both maps explicitly under torch.compile, (e)."""
    return _compiled(explicit_maps)(q, k, v, is_causal)


def flex_attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Call FlexAttention once a map, compiled on a GPU, (e)."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    def earlier(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query >= key

    N = q.shape[2]
    mask = create_block_mask(earlier, None, None, N, N, device=q.device.type) if is_causal else None
    attend: Any = flex if q.device.type == "cpu" else _compiled(flex)
    (q1, q2), (k1, k2) = pair(q), pair(k)
    return _subtract(attend(q1, k1, v, block_mask=mask), attend(q2, k2, v, block_mask=mask))


def triton_diff_attn(q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Tensor:
    """Call aharbi/triton-diff-attn, an outside yardstick, (f); its folder src must be on PYTHONPATH."""
    if is_causal or q.shape[2] % 64:
        raise ValueError("it has no mask, and takes multiples of its block of tokens only")
    (q1, q2), (k1, k2) = pair(q), pair(k)
    parts = (x.contiguous() for x in (q1, q2, k1, k2, v))
    found: Tensor = importlib.import_module("kernel")._diff_attention.apply(
        *parts, q.shape[-1] ** -0.5, LAMBDA, 0.0, False
    )
    return found


def _subtract(out1: Tensor, out2: Tensor) -> Tensor:
    return subtract(out1, out2, torch.tensor(LAMBDA, device=out1.device))


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


CANDIDATES = {
    "(a) two calls": Candidate(two_calls),
    "(a) two calls, cuDNN": Candidate(two_calls, SDPBackend.CUDNN_ATTENTION),
    "(a) two calls, memory-efficient": Candidate(two_calls, SDPBackend.EFFICIENT_ATTENTION),
    "(a) two calls, flash": Candidate(two_calls, SDPBackend.FLASH_ATTENTION),
    "(a) two calls, math": Candidate(two_calls, SDPBackend.MATH),
    "(b) one call, cuDNN": Candidate(one_call, SDPBackend.CUDNN_ATTENTION),
    "(b) one call, math": Candidate(one_call, SDPBackend.MATH),
    "(c) values in halves, flash": Candidate(values_in_halves, SDPBackend.FLASH_ATTENTION),
    "(c) values in halves, math": Candidate(values_in_halves, SDPBackend.MATH),
    "(d) FlashAttention 4": Candidate(flash_attention_4, package="flash_attn.cute", only_cuda=True),
    "(e) maps, torch.compile": Candidate(compiled_maps, only_cuda=True),
    "(e) maps": Candidate(explicit_maps),
    "(e) FlexAttention": Candidate(flex_attention, trains=False),
    "(f) triton-diff-attn": Candidate(triton_diff_attn, package="kernel", only_cuda=True),
}


@dataclass(frozen=True)
class Layer:
    """Hold the sizes of a layer's attention."""

    num_tokens: int
    head_dim: int
    batch_size: int
    is_causal: bool = False
    num_heads: int = 12

    def inputs(self, device: str, dtype: torch.dtype, batch_size: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values as views of one projection, as in a layer."""
        B, N, H, d = batch_size or self.batch_size, self.num_tokens, self.num_heads, self.head_dim
        generator = torch.Generator(device).manual_seed(0)
        qkv = torch.randn(B, N, 3, H * d, device=device, generator=generator).to(dtype)
        parts = zip(qkv.unbind(2), (H, H, H // 2), strict=True)
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x, heads in parts)
        return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def measure(layer: Layer, *, device: str, dtype: torch.dtype, rounds: int) -> dict[str, dict[str, Any]]:
    """Return each candidate's milliseconds, forward and with backward, and its error; or why there are none."""
    found: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, Callable[[], object]]] = {"forward": {}, "forward and backward": {}}
    q, k, v = layer.inputs(device, dtype)
    for name, candidate in CANDIDATES.items():
        if reason := candidate.missing(device):
            found[name] = {"skipped": reason}
            continue
        trains = candidate.trains or device != "cpu"
        try:
            found[name] = {"error": error(layer, candidate, device, dtype, trains)}
            steps = {"forward": _forward(candidate, q, k, v, layer.is_causal)}
            if trains:
                steps["forward and backward"] = _train(candidate, q, k, v, layer.is_causal)
            for step in steps.values():
                step()
        except Exception as problem:  # each package and kernel refuses in its own way, and the others are to be timed
            found[name] = {"skipped": f"{type(problem).__name__}: {str(problem).splitlines()[0][:160]}"}
            continue
        for what, step in steps.items():
            runs[what][name] = step
    for what, steps in runs.items():
        for name, milliseconds in _take_turns(steps, device, rounds).items():
            found[name][what] = milliseconds
    return found


def error(layer: Layer, candidate: Candidate, device: str, dtype: torch.dtype, trains: bool = True) -> float:
    """Return the largest relative error of output and gradients, two samples of them, against maps in float64."""
    results = []
    for kind, run in ((torch.float64, explicit_maps), (dtype, candidate.run)):
        inputs = layer.inputs(device, dtype, batch_size=2)
        inputs = tuple(x.detach().to(kind).requires_grad_(trains) for x in inputs)  # type: ignore[assignment]
        with candidate.context() if run is candidate.run else nullcontext():
            out = run(*inputs, layer.is_causal)
            gradients = torch.autograd.grad(out.sin().sum(), inputs) if trains else ()
        results.append([x.detach().double() for x in (out, *gradients)])
    return max(float((found - exact).norm() / exact.norm()) for exact, found in zip(*results, strict=True))


def _forward(candidate: Candidate, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Callable[[], object]:
    q, k, v = (x.detach() for x in (q, k, v))

    def forward() -> object:
        with candidate.context(), torch.no_grad():
            return candidate.run(q, k, v, is_causal)

    return forward


def _train(candidate: Candidate, q: Tensor, k: Tensor, v: Tensor, is_causal: bool) -> Callable[[], object]:
    def train() -> object:
        with candidate.context():
            out = candidate.run(q, k, v, is_causal)
            return torch.autograd.grad(out, (q, k, v), out)

    return train


def _take_turns(steps: Mapping[str, Callable[[], object]], device: str, rounds: int) -> dict[str, float]:
    """Return the median milliseconds of each step."""

    def timed(step: Callable[[], object], times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            step()
        if device != "cpu":
            torch.accelerator.synchronize()
        return 1000 * (time.perf_counter() - start) / times

    times = {name: max(1, round(_MILLISECONDS / max(timed(step, 1), 1e-3))) for name, step in steps.items()}
    turns = [{name: timed(step, times[name]) for name, step in steps.items()} for _ in range(rounds)]
    return {name: statistics.median(turn[name] for turn in turns) for name in steps}
