"""Compute differential attention on the CPU block by block, so that no map leaves the cache and none is kept.

Explicit maps cost hardly more arithmetic than plain attention, but at ViT sizes they go through memory several times.
Here a block of maps is made, subtracted, multiplied with v and normalised in buffers that stay in the cache, and the
backward pass makes it again, as fused plain attention does. blocks.py shares the blocks out among threads. These are
operators of torch, which torch.compile calls as they are; they have no second derivative.

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

Shape legend: that of reference.py, and of a block R pairs (samples x pairs) and M = 2 R maps.
"""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from diffclip_openclip.attention.blocks import Block, compute, divide, largest, threads_sleep
from diffclip_openclip.attention.paths import split_heads
from diffclip_openclip.attention.reference import attention_bias, in_pairs


def _divide(qkv_BNC3: torch.Tensor, num_heads: int, block_bytes: int, maps: int) -> tuple[tuple[Block, ...], list[Any]]:
    """Return the blocks, and for each worker a buffer for so many maps of each pair of a block."""
    B, N, _ = qkv_BNC3.shape
    dtype = torch.promote_types(qkv_BNC3.dtype, torch.float32)
    fitting = max(1, block_bytes // max(1, 2 * N * N * dtype.itemsize))
    blocks, workers = divide(B, num_heads // 2, fitting, torch.get_num_threads(), sleeping=threads_sleep())
    return blocks, [torch.empty(maps * largest(blocks), N, N, dtype=dtype) for _ in range(workers)]


def _heads(qkv_BNC3: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return views: q and k, (B, P, 2, N, d), and v, (B, P, N, e)."""
    q_BHNd, k_BHNd, v_BPNe = split_heads(qkv_BNC3, num_heads)
    return in_pairs(q_BHNd), in_pairs(k_BHNd), v_BPNe


def _make_maps(
    q_MNd: torch.Tensor, k_MNd: torch.Tensor, bias: torch.Tensor | None, out_MNN: torch.Tensor
) -> torch.Tensor:
    """Write maps, in float32 or better: scores rounded to 16 bits would cost more than all other roundings."""
    q_MNd, k_MNd = q_MNd.to(out_MNN.dtype), k_MNd.to(out_MNN.dtype)
    torch.baddbmm(out_MNN, q_MNd, k_MNd.transpose(1, 2), beta=0, alpha=q_MNd.shape[-1] ** -0.5, out=out_MNN)
    if bias is not None:
        out_MNN += bias
    return torch.softmax(out_MNN, -1, out=out_MNN)


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
        block_bytes: of both maps of a block's pairs, which one thread computes.

    Returns:
        the normalised heads, (B, N, C); and, each empty without ``keep``, the heads before the norm, (B, P, N, e), and
        their inverse root mean squares, (B, P, N, 1).
    """
    q, k, v = _heads(qkv, num_heads)
    (B, P, N, e), dtype = v.shape, torch.promote_types(qkv.dtype, torch.float32)
    out_BNPe = qkv.new_empty(B, N, P, e)
    out_BPNe = out_BNPe.transpose(1, 2)  # written where the next projection reads it
    kept_BPNe = qkv.new_empty((B, P, N, e) if keep else 0)
    inverse_rms_BPN1 = qkv.new_empty((B, P, N, 1) if keep else 0, dtype=dtype)
    bias, factor = attention_bias(None, is_causal, B, num_heads, N, dtype, qkv.device), float(lambda_)

    def attend_block(buffer_MNN: torch.Tensor, block: Block) -> None:
        q_MNd, k_MNd, v_RNe = q[block].flatten(0, 2), k[block].flatten(0, 2), v[block].flatten(0, 1)
        a1_RNN, a2_RNN = _make_maps(q_MNd, k_MNd, bias, buffer_MNN[: len(q_MNd)]).unflatten(0, (-1, 2)).unbind(1)
        difference_RNN = a1_RNN.sub_(a2_RNN, alpha=factor)
        heads = torch.bmm(difference_RNN.to(qkv.dtype), v_RNe).view_as(v[block])
        norms = torch.linalg.vector_norm(heads, dim=-1, keepdim=True, dtype=dtype)
        inverse_rms = norms.square_().div_(e).add_(eps).rsqrt_()
        if keep:
            kept_BPNe[block], inverse_rms_BPN1[block] = heads, inverse_rms
        torch.mul(heads * inverse_rms, weight, out=out_BPNe[block])

    compute(attend_block, *_divide(qkv, num_heads, block_bytes, maps=2))
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
    (B, P, N, e), d, dtype = v.shape, q.shape[-1], torch.promote_types(qkv.dtype, torch.float32)
    grad_BPNe = grad.unflatten(-1, (P, e)).transpose(1, 2)
    grad_qkv = torch.empty_like(qkv)
    grad_q, grad_k, grad_v = _heads(grad_qkv, num_heads)
    # sums of each pair, so that no total depends on how pairs are divided into blocks
    sums_BP, sums_BPe = torch.empty(B, P, dtype=dtype), torch.empty(B, P, e, dtype=dtype)
    bias, factor = attention_bias(None, is_causal, B, num_heads, N, dtype, qkv.device), float(lambda_)
    scale_211 = torch.tensor([d**-0.5, -factor * d**-0.5], dtype=dtype).view(2, 1, 1)

    def attend_block(buffer_MNN: torch.Tensor, block: Block) -> None:
        q_MNd, k_MNd, v_RNe = q[block].flatten(0, 2), k[block].flatten(0, 2), v[block].flatten(0, 1)
        M, R = len(q_MNd), len(v_RNe)
        maps_MNN, work_MNN, grad_difference_RNN = buffer_MNN[: 2 * M + R].split([M, M, R])
        maps_R2NN, work_R2NN = maps_MNN.unflatten(0, (R, 2)), work_MNN.unflatten(0, (R, 2))
        _make_maps(q_MNd, k_MNd, bias, maps_MNN)
        grad_heads, sums_BPe[block] = _norm_backward(
            grad_BPNe[block].to(dtype), kept[block].to(dtype), inverse_rms[block], weight
        )
        grad_RNe = grad_heads.flatten(0, 1)
        torch.bmm(grad_RNe, v_RNe.transpose(1, 2).to(dtype), out=grad_difference_RNN)
        difference_RNN = torch.sub(maps_R2NN[:, 0], maps_R2NN[:, 1], alpha=factor, out=work_MNN[:R])
        grad_v[block] = torch.bmm(difference_RNN.to(qkv.dtype).transpose(1, 2), grad_RNe.to(qkv.dtype)).view_as(
            v[block]
        )
        along_R2N1 = _softmax_backward(grad_difference_RNN.unsqueeze(1), maps_R2NN, work_R2NN)
        sums_BP[block] = along_R2N1[:, 1].sum((1, 2)).view_as(sums_BP[block])
        grad_scores_MNN = work_MNN.to(qkv.dtype)
        grad_q_MNd, grad_k_MNd = torch.bmm(grad_scores_MNN, k_MNd), torch.bmm(grad_scores_MNN.transpose(1, 2), q_MNd)
        torch.mul(grad_q_MNd.view_as(q[block]), scale_211, out=grad_q[block])
        torch.mul(grad_k_MNd.view_as(k[block]), scale_211, out=grad_k[block])

    compute(attend_block, *_divide(qkv, num_heads, block_bytes, maps=5))
    # float64: sums over all pairs, of which there may be thousands
    grad_lambda, grad_weight = -sums_BP.sum(dtype=torch.float64), sums_BPe.sum((0, 1), dtype=torch.float64)
    return grad_qkv, grad_lambda.to(lambda_.dtype), grad_weight.to(weight.dtype)


def _norm_backward(
    grad: torch.Tensor, heads: torch.Tensor, inverse_rms: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradient before the norm, and each pair's share of the weight's, (..., e)."""
    normed = heads * inverse_rms
    product = grad * normed
    share = product.sum(-2)
    along = product.mul_(weight).mean(-1, keepdim=True)
    return (grad * weight).addcmul_(normed, along, value=-1).mul_(inverse_rms), share


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
