"""Differential attention on the CPU, block by block: no map leaves the cache, and none is kept for the backward pass.

Explicit maps cost hardly more arithmetic than plain attention, but at ViT sizes they go through memory several times.
Here a block of maps is made, subtracted, multiplied with v and normalised in buffers that stay in the cache, and the
backward pass makes it again, as fused plain attention does. These are operators of torch, which torch.compile calls as
they are; they have no second derivative.

Shape legend: that of attention.py, and R rows of a block (samples x pairs).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

_CACHE_BYTES = 2 << 20  # of maps a thread: fastest of 0.5 to 16 MiB on a CPU with 1 MiB of second-level cache a core


def fits_in_cache(batch_size: int, num_heads: int, num_tokens: int) -> bool:
    """Whether all maps would be one block, which leaves nothing to gain over explicit maps."""
    return 4 * batch_size * num_heads * num_tokens * num_tokens <= _CACHE_BYTES


def _block_size(B: int, P: int, N: int, itemsize: int) -> tuple[int, int]:
    """Samples and pairs of a block: whole samples as long as they fit, else some pairs of one sample."""
    fitting = max(1, _CACHE_BYTES * torch.get_num_threads() // (2 * N * N * itemsize))
    return max(1, min(B, fitting // P)), min(P, fitting)


def _blocks(B: int, P: int, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    for sample in range(0, B, size[0]):
        for pair in range(0, P, size[1]):
            yield slice(sample, min(sample + size[0], B)), slice(pair, min(pair + size[1], P))


def _heads(qkv_BNC3: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Views q and k, (2, B, P, N, d), and v, (B, P, N, e)."""
    q_BNC, k_BNC, v_BNC = qkv_BNC3.chunk(3, dim=-1)
    q, k = (x.unflatten(-1, (num_heads // 2, 2, -1)).permute(3, 0, 2, 1, 4) for x in (q_BNC, k_BNC))
    return q, k, v_BNC.unflatten(-1, (num_heads // 2, -1)).transpose(1, 2)


def _causal_bias(is_causal: bool, N: int, dtype: torch.dtype) -> torch.Tensor | None:
    return torch.full([N, N], -math.inf, dtype=dtype).triu_(1) if is_causal else None


def _product(a: torch.Tensor, b: torch.Tensor, scale: float, out: torch.Tensor) -> None:
    """out = scale a b, batched; ``out`` may have a wider dtype."""
    if a.dtype == out.dtype:
        torch.baddbmm(out, a, b, beta=0, alpha=scale, out=out)
    else:
        out.copy_(torch.bmm(a, b)).mul_(scale)


def _maps(q_2RNd: torch.Tensor, k_2RNd: torch.Tensor, bias: torch.Tensor | None, out_2RNN: torch.Tensor) -> None:
    for q_RNd, k_RNd, map_RNN in zip(q_2RNd, k_2RNd, out_2RNN, strict=True):
        _product(q_RNd, k_RNd.transpose(1, 2), q_RNd.shape[-1] ** -0.5, map_RNN)
        if bias is not None:
            map_RNN += bias
        torch.softmax(map_RNN, -1, out=map_RNN)


@torch.library.custom_op("diffclip_openclip::attend_cpu", mutates_args=(), device_types="cpu")
def attend_cpu(
    qkv: torch.Tensor,
    lambda_: torch.Tensor,
    weight: torch.Tensor,
    num_heads: int,
    eps: float,
    is_causal: bool,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """RMSNorm((A1 - lambda A2) v) of each pair of heads.

    Args:
        qkv: (B, N, 3 C), queries, keys and values of ``num_heads`` heads, adjacent ones forming a pair.
        lambda_: the layer's scalar.
        weight: of the norm, (e,).
        keep: also return what the backward pass needs.

    Returns:
        the normalised heads, (B, N, C); and, each empty without ``keep``, the heads before the norm, (B, P, N, e), and
        their inverse root mean squares, (B, P, N, 1).
    """
    q, k, v = _heads(qkv, num_heads)
    (B, P, N, e), dtype = v.shape, torch.promote_types(qkv.dtype, torch.float32)
    out_BNPe = qkv.new_empty(B, N, P, e)
    kept_BPNe = qkv.new_empty((B, P, N, e) if keep else 0)
    inverse_rms_BPN1 = qkv.new_empty((B, P, N, 1) if keep else 0, dtype=dtype)
    bias, factor = _causal_bias(is_causal, N, dtype), float(lambda_)
    size = _block_size(B, P, N, dtype.itemsize)
    buffers = torch.empty(2, size[0] * size[1], N, N, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(B, P, size):
            both, v_RNe = (slice(None), *block), v[block].flatten(0, 1)
            maps_2RNN = buffers[:, : len(v_RNe)]
            _maps(q[both].flatten(1, 2), k[both].flatten(1, 2), bias, maps_2RNN)
            difference_RNN = torch.sub(maps_2RNN[0], maps_2RNN[1], alpha=factor, out=maps_2RNN[0])
            heads = torch.bmm(difference_RNN.to(qkv.dtype), v_RNe).view_as(v[block])
            wide = heads.to(dtype)
            inverse_rms = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            if keep:
                kept_BPNe[block], inverse_rms_BPN1[block] = heads, inverse_rms
            # written where the next projection reads it
            out_BNPe[block[0], :, block[1]] = (wide * inverse_rms).mul_(weight).transpose(1, 2)
    return out_BNPe.flatten(2), kept_BPNe, inverse_rms_BPN1


@attend_cpu.register_fake
def _attend_cpu_fake(
    qkv: torch.Tensor,
    lambda_: torch.Tensor,
    weight: torch.Tensor,
    num_heads: int,
    eps: float,
    is_causal: bool,
    keep: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (B, N, C3), P, dtype = qkv.shape, num_heads // 2, torch.promote_types(qkv.dtype, torch.float32)
    kept = qkv.new_empty((B, P, N, C3 // (3 * P)) if keep else (0,))
    return qkv.new_empty(B, N, C3 // 3), kept, qkv.new_empty((B, P, N, 1) if keep else (0,), dtype=dtype)


@torch.library.custom_op("diffclip_openclip::attend_cpu_backward", mutates_args=(), device_types="cpu")
def _attend_cpu_backward(
    grad: torch.Tensor,
    kept: torch.Tensor,
    inverse_rms: torch.Tensor,
    qkv: torch.Tensor,
    lambda_: torch.Tensor,
    weight: torch.Tensor,
    num_heads: int,
    is_causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of qkv, lambda_ and weight from that of the normalised heads, (B, N, C)."""
    q, k, v = _heads(qkv, num_heads)
    (B, P, N, e), dtype = v.shape, torch.promote_types(qkv.dtype, torch.float32)
    grad_BPNe = grad.unflatten(-1, (P, e)).transpose(1, 2)
    grad_qkv = torch.empty_like(qkv)
    grad_q, grad_k, grad_v = _heads(grad_qkv, num_heads)
    grad_lambda, grad_weight = torch.zeros((), dtype=dtype), torch.zeros(e, dtype=dtype)
    bias, factor = _causal_bias(is_causal, N, dtype), float(lambda_)
    size = _block_size(B, P, N, dtype.itemsize)
    buffers = torch.empty(4, size[0] * size[1], N, N, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(B, P, size):
            both = (slice(None), *block)
            grad_RNe = _norm_backward(
                grad_BPNe[block].to(dtype), kept[block].to(dtype), inverse_rms[block], weight, grad_weight
            )
            grad_RNe = grad_RNe.to(qkv.dtype).flatten(0, 1)
            q_2RNd, k_2RNd, v_RNe = q[both].flatten(1, 2), k[both].flatten(1, 2), v[block].flatten(0, 1)
            maps_2RNN, (work_RNN, grad_map_RNN) = buffers[:2, : len(v_RNe)], buffers[2:, : len(v_RNe)]
            _maps(q_2RNd, k_2RNd, bias, maps_2RNN)
            torch.sub(maps_2RNN[0], maps_2RNN[1], alpha=factor, out=work_RNN)
            grad_v[block] = torch.bmm(work_RNN.to(qkv.dtype).transpose(1, 2), grad_RNe).view_as(v[block])
            _product(grad_RNe, v_RNe.transpose(1, 2), 1.0, grad_map_RNN)
            # the second map's gradient is -lambda times the first's
            for i, sign in ((0, 1.0), (1, -factor)):
                along_RN1 = _softmax_backward(grad_map_RNN, maps_2RNN[i], work_RNN)
                if i == 1:
                    grad_lambda -= along_RN1.sum()
                scores_RNN, scale = work_RNN.to(qkv.dtype), sign * q.shape[-1] ** -0.5
                grad_q[i][block] = torch.bmm(scores_RNN, k_2RNd[i]).mul_(scale).view_as(q[i][block])
                grad_k[i][block] = torch.bmm(scores_RNN.transpose(1, 2), q_2RNd[i]).mul_(scale).view_as(k[i][block])
    return grad_qkv, grad_lambda.to(lambda_.dtype), grad_weight.to(weight.dtype)


def _norm_backward(
    grad: torch.Tensor, heads: torch.Tensor, inverse_rms: torch.Tensor, weight: torch.Tensor, grad_weight: torch.Tensor
) -> torch.Tensor:
    """The gradient before the norm; adds the weight's to ``grad_weight``."""
    normed = heads * inverse_rms
    product = grad * normed
    grad_weight += product.sum((0, 1, 2))
    along = product.mul_(weight).mean(-1, keepdim=True)
    return (grad * weight).addcmul_(normed, along, value=-1).mul_(inverse_rms)


def _softmax_backward(grad: torch.Tensor, softmax: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The gradient before the softmax, into ``out``; returns sum(grad softmax) of each row."""
    torch.mul(grad, softmax, out=out)
    along = out.sum(-1, keepdim=True)
    out.addcmul_(softmax, along, value=-1)
    return along


@_attend_cpu_backward.register_fake
def _attend_cpu_backward_fake(
    grad: torch.Tensor,
    kept: torch.Tensor,
    inverse_rms: torch.Tensor,
    qkv: torch.Tensor,
    lambda_: torch.Tensor,
    weight: torch.Tensor,
    *_: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(qkv), torch.empty_like(lambda_), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    qkv, lambda_, weight, num_heads, _, is_causal, _ = inputs
    ctx.save_for_backward(*output[1:], qkv, lambda_, weight)
    ctx.flags = num_heads, is_causal


def _backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_attend_cpu_backward(grad, *ctx.saved_tensors, *ctx.flags), None, None, None, None


attend_cpu.register_autograd(_backward, setup_context=_setup_context)
