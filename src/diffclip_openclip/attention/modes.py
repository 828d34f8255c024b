"""What torch does around a layer: transforms and compilation, what autograd keeps, autocast."""

import contextlib
from collections.abc import Callable

import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint


@torch.jit.ignore
def transformed(*tensors: torch.Tensor) -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which operators and checkpoints do not support."""
    return any(
        torch.func.debug_unwrap(tensor) is not tensor or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


@torch.jit.ignore
def keeping_inputs(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """function(*inputs), of which autograd keeps the inputs alone and computes the rest again.

    For what follows two fused attentions, whose outputs are kept anyway. torch.compile makes that choice by itself.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not transformed(*inputs):
        output: torch.Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return output
    return function(*inputs)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """A context in which operators take and give the dtypes that their tensors have."""
    # torch.compile of torch 2.7 cannot ask, and compiles for no device without it
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
