"""Make tensors that are cheap to make again in the backward pass, so that autograd does not keep them.

Fused attention keeps its inputs and outputs. Behind the outputs of two maps follow a subtraction and a norm, whose
results are cheap to make and as large as a layer's other activations. :func:`recomputed` makes them again in the
backward pass, and :func:`spared` lets a module that follows keep nothing of them either. Modules themselves run once: a
user may have replaced them by ones with dropout, hooks or state.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad


def transformed(*tensors: torch.Tensor) -> bool:
    """Tell whether torch.func or forward-mode differentiation is at work; custom backward passes support neither."""
    return any(
        torch.func.debug_unwrap(tensor) is not tensor or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def is_stock(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a module is of just this class, with no hook, parametrisation or forward of its own.

    Only then may another kernel read its parameters in its place: offloading, sharding, adapters and observers all
    change one of these.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return type(module) is kind and not hooked and "forward" not in module.__dict__


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Return a context in which operators take and give the dtypes that their tensors have."""
    # torch.compile of torch 2.7 cannot ask, and compiles for no device without it
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def in_autocast_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Cast once what several linear layers read: autocast, where it is on, would cast for each.

    torch.compile does so by itself.
    """
    # torch.fx traces with objects that are no tensors; autocast leaves float64 alone
    if torch.compiler.is_compiling() or not isinstance(tensor, torch.Tensor) or tensor.dtype == torch.float64:
        return tensor
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


class _Recomputed(torch.autograd.Function):
    """Compute ``function(*inputs)``; the backward pass computes it again from the inputs."""

    generate_vmap_rule = True

    @staticmethod
    def forward(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.function = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.again = {}

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, output = _compute_again(ctx)
        ctx.again.clear()
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        # with create_graph where the caller asked for it: grad mode is on in a backward pass only then
        gradients = iter(torch.autograd.grad(output, wanted, grad, create_graph=torch.is_grad_enabled()))
        return None, *(next(gradients) if tensor.requires_grad else None for tensor in inputs)


def _compute_again(ctx: Any) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the inputs and the output with its graph, which ``ctx.again`` keeps for the function's backward pass.

    What was made for first derivatives ends at the inputs, so it is of no use for second ones: ``ctx.again`` has one
    entry for either.
    """
    second = torch.is_grad_enabled()
    if second not in ctx.again:
        inputs = ctx.saved_tensors
        if not second:
            inputs = tuple(tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs)
        with torch.enable_grad():
            ctx.again[second] = inputs, ctx.function(*inputs)
    found: tuple[tuple[torch.Tensor, ...], torch.Tensor] = ctx.again[second]
    return found


def recomputed(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """Compute ``function(*inputs)`` so that autograd keeps the inputs alone.

    torch.compile makes that choice by itself, and traced programs compute the function as it is.

    Args:
        function: takes tensors alone, has no randomness and no side effects, and does not depend on autocast.
        inputs: tensors that fused attention keeps already.
    """
    plain = torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled()
    if plain or transformed(*inputs):
        return function(*inputs)
    output: torch.Tensor = _Recomputed.apply(function, *inputs)
    return output


def spared(tensor: torch.Tensor, module: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return a context for ``module(tensor)`` in which autograd does not keep a tensor that :func:`recomputed` gave.

    What the module keeps of it for its backward pass is made again then, once for it and for :func:`recomputed`
    together. Only of a linear layer of torch's own is it known that it does nothing else with its input.
    """
    # torch.fx traces with objects that are no tensors
    if torch.compiler.is_compiling() or not isinstance(tensor, torch.Tensor) or not is_stock(module, nn.Linear):
        return contextlib.nullcontext()
    base = tensor._base  # of which the joined heads are a view
    maker: Any = (tensor if base is None else base).grad_fn
    if maker is None or maker.name() != f"{_Recomputed.__name__}Backward":
        return contextlib.nullcontext()
    storage = tensor.untyped_storage()._cdata

    def pack(kept: torch.Tensor) -> Any:
        if kept.untyped_storage()._cdata != storage:
            return kept
        return kept.shape, kept.stride(), kept.storage_offset()

    def unpack(packed: Any) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        _, output = _compute_again(maker)
        return output.detach().as_strided(*packed)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
