"""Compute differential attention on the CPU block by block, so that no map leaves the cache and none is kept.

Explicit maps cost hardly more arithmetic than plain attention, but at ViT sizes they go through memory several times.
Here a block of maps is made, subtracted, multiplied with v and normalised in buffers that stay in the cache, and the
backward pass makes it again, as fused plain attention does. These are operators of torch, which torch.compile calls as
they are; they have no second derivative.

The backward pass, for one pair of heads, from g, the gradient of its output y. Forward, with maps i = 1, 2:

    S_i = q_i k_i^T / sqrt(d)    A_i = softmax(S_i)    D = A_1 - lambda A_2    h = D v
    r = (mean(h^2) + eps)^(-1/2)    n = h r    y = w n

Backward, in this order, sums over whatever an index is missing from:

    norm       dw = sum(g n)               dh = r (w g - n mean(w g n))
    product    dv = D^T dh                 dD = dh v^T
    maps       dA_1 = dD                   dA_2 = -lambda dD              dlambda = -sum(dD A_2)
    softmax    dS_i = A_i (dA_i - sum_j(dA_i A_i)) = s_i A_i (dD - c_i)    with s = (1, -lambda), c_i = sum_j(dD A_i)
    scores     dq_i = dS_i k_i / sqrt(d)   dk_i = dS_i^T q_i / sqrt(d)

So both maps share dD, and dlambda is the sum of c_2, which the softmax needs anyway. Kept from the forward pass are h
and r; the maps are made again.

Shape legend: that of reference.py, and R rows of a block (samples x pairs).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from diffclip_openclip.attention.paths import split_heads
from diffclip_openclip.attention.reference import attention_bias, pair


def _block_size(B: int, P: int, N: int, itemsize: int, block_bytes: int) -> tuple[int, int]:
    """Return the samples and pairs of a block: whole samples as long as they fit, else some pairs of one sample."""
    fitting = max(1, block_bytes * torch.get_num_threads() // max(1, 2 * N * N * itemsize))
    return max(1, min(B, fitting // P)), min(P, fitting)


def _blocks(B: int, P: int, size: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    for sample in range(0, B, size[0]):
        for first in range(0, P, size[1]):
            yield slice(sample, min(sample + size[0], B)), slice(first, min(first + size[1], P))


def _heads(qkv_BNC3: torch.Tensor, num_heads: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    """Return views: q and k of both maps, each (B, P, N, d), and v, (B, P, N, e)."""
    q_BHNd, k_BHNd, v_BPNe = split_heads(qkv_BNC3, num_heads)
    return list(pair(q_BHNd)), list(pair(k_BHNd)), v_BPNe


def _make_maps(
    q_RNd: list[torch.Tensor], k_RNd: list[torch.Tensor], bias: torch.Tensor | None, out_2RNN: torch.Tensor
) -> None:
    """Write both maps, in float32 or better: scores rounded to 16 bits would cost more than all other roundings."""
    for q, k, map_RNN in zip(q_RNd, k_RNd, out_2RNN, strict=True):
        q, k = q.to(map_RNN.dtype), k.to(map_RNN.dtype)
        torch.baddbmm(map_RNN, q, k.transpose(1, 2), beta=0, alpha=q.shape[-1] ** -0.5, out=map_RNN)
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
    block_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute RMSNorm((A1 - lambda A2) v) of each pair of heads.

    Args:
        qkv: queries, keys and values of ``num_heads`` heads, (B, N, 3 C).
        lambda_: the layer's scalar.
        weight: of the norm, (e,).
        keep: also return what the backward pass needs.
        block_bytes: of maps that a thread works on at a time.

    Returns:
        the normalised heads, (B, N, C); and, each empty without ``keep``, the heads before the norm, (B, P, N, e), and
        their inverse root mean squares, (B, P, N, 1).
    """
    q, k, v = _heads(qkv, num_heads)
    (B, P, N, e), dtype = v.shape, torch.promote_types(qkv.dtype, torch.float32)
    out_BNPe = qkv.new_empty(B, N, P, e)
    kept_BPNe = qkv.new_empty((B, P, N, e) if keep else 0)
    inverse_rms_BPN1 = qkv.new_empty((B, P, N, 1) if keep else 0, dtype=dtype)
    bias, factor = attention_bias(None, is_causal, B, num_heads, N, dtype, qkv.device), float(lambda_)
    size = _block_size(B, P, N, dtype.itemsize, block_bytes)
    buffers = torch.empty(2, size[0] * size[1], N, N, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(B, P, size):
            q_RNd, k_RNd, v_RNe = (
                [x[block].flatten(0, 1) for x in q],
                [x[block].flatten(0, 1) for x in k],
                v[block].flatten(0, 1),
            )
            maps_2RNN = buffers[:, : len(v_RNe)]
            _make_maps(q_RNd, k_RNd, bias, maps_2RNN)
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
    block_bytes: int,
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
    block_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of qkv, lambda_ and weight from that of the normalised heads, (B, N, C)."""
    q, k, v = _heads(qkv, num_heads)
    (B, P, N, e), dtype = v.shape, torch.promote_types(qkv.dtype, torch.float32)
    grad_BPNe = grad.unflatten(-1, (P, e)).transpose(1, 2)
    grad_qkv = torch.empty_like(qkv)
    grad_q, grad_k, grad_v = _heads(grad_qkv, num_heads)
    # float64: sums over all blocks, of which there may be thousands
    grad_lambda, grad_weight = torch.zeros((), dtype=torch.float64), torch.zeros(e, dtype=torch.float64)
    bias, factor = attention_bias(None, is_causal, B, num_heads, N, dtype, qkv.device), float(lambda_)
    size = _block_size(B, P, N, dtype.itemsize, block_bytes)
    buffers = torch.empty(4, size[0] * size[1], N, N, dtype=dtype)
    with torch.autocast("cpu", enabled=False):
        for block in _blocks(B, P, size):
            q_RNd, k_RNd, v_RNe = (
                [x[block].flatten(0, 1) for x in q],
                [x[block].flatten(0, 1) for x in k],
                v[block].flatten(0, 1),
            )
            maps_2RNN, (work_RNN, grad_difference_RNN) = buffers[:2, : len(v_RNe)], buffers[2:, : len(v_RNe)]
            _make_maps(q_RNd, k_RNd, bias, maps_2RNN)
            grad_RNe = _norm_backward(
                grad_BPNe[block].to(dtype), kept[block].to(dtype), inverse_rms[block], weight, grad_weight
            ).flatten(0, 1)
            torch.bmm(grad_RNe, v_RNe.transpose(1, 2).to(dtype), out=grad_difference_RNN)
            torch.sub(maps_2RNN[0], maps_2RNN[1], alpha=factor, out=work_RNN)
            grad_v[block] = torch.bmm(work_RNN.to(qkv.dtype).transpose(1, 2), grad_RNe.to(qkv.dtype)).view_as(v[block])
            for i, sign in ((0, 1.0), (1, -factor)):
                along_RN1 = _softmax_backward(grad_difference_RNN, maps_2RNN[i], work_RNN)
                if i == 1:
                    grad_lambda -= along_RN1.sum()
                grad_scores_RNN, scale = work_RNN.to(qkv.dtype), sign * q_RNd[i].shape[-1] ** -0.5
                grad_q[i][block] = torch.bmm(grad_scores_RNN, k_RNd[i]).mul_(scale).view_as(q[i][block])
                grad_k[i][block] = torch.bmm(grad_scores_RNN.transpose(1, 2), q_RNd[i]).mul_(scale).view_as(k[i][block])
    return grad_qkv, grad_lambda.to(lambda_.dtype), grad_weight.to(weight.dtype)


def _norm_backward(
    grad: torch.Tensor, heads: torch.Tensor, inverse_rms: torch.Tensor, weight: torch.Tensor, grad_weight: torch.Tensor
) -> torch.Tensor:
    """Compute the gradient before the norm, and add the weight's to ``grad_weight``, which all blocks share."""
    normed = heads * inverse_rms
    product = grad * normed
    grad_weight += product.sum((0, 1, 2))
    along = product.mul_(weight).mean(-1, keepdim=True)
    return (grad * weight).addcmul_(normed, along, value=-1).mul_(inverse_rms)


def _softmax_backward(grad: torch.Tensor, softmax: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Write softmax (grad - c) to ``out`` and return c, each row's sum(grad softmax)."""
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
    qkv, lambda_, weight, num_heads, _, is_causal, _, block_bytes = inputs
    ctx.save_for_backward(*output[1:], qkv, lambda_, weight)
    ctx.flags = num_heads, is_causal, block_bytes


def _backward(ctx: Any, grad: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return *_attend_cpu_backward(grad, *ctx.saved_tensors, *ctx.flags), None, None, None, None, None


attend_cpu.register_autograd(_backward, setup_context=_setup_context)


# Counted as torch counts its own attention: products of matrices alone, in the backward pass with the maps made again.
# A pair's maps take 2 N^2 d multiplications and additions of either kind, its product with v N^2 e = 2 N^2 d.


@register_flop_formula(torch.ops.diffclip_openclip.attend_cpu)
def _attend_cpu_flops(qkv_shape: tuple[int, ...], *_: object, **__: object) -> int:
    B, N, C3 = qkv_shape
    return 4 * _flops_of_a_product(B, N, C3)


@register_flop_formula(torch.ops.diffclip_openclip.attend_cpu_backward)
def _attend_cpu_backward_flops(grad_shape: tuple[int, ...], *_: object, **__: object) -> int:
    B, N, C = grad_shape
    return 10 * _flops_of_a_product(B, N, 3 * C)


def _flops_of_a_product(B: int, N: int, C3: int) -> int:
    """Return the operations of one product of all heads: (N, d) with (d, N)."""
    return B * N * N * C3 // 3
