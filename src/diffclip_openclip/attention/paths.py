"""Two attention maps and their difference's product with v: the definition, and the ways in which devices compute it.

Shape legend: that of attention.py. This module imports torch only.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F


def differential_attention_reference(
    q_BHNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor] = None,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The definition, written out; slow paths and fast paths are tested against it.

    Args:
        q_BHNd, k_BHNd: queries and keys, (B, H, N, d), adjacent heads forming a pair.
        v_BPNe: values, (B, P, N, 2 d).
        lambda_: the layer's scalar weight of the second map.
        attn_mask: True (or 0) where a query may look, False (or -inf) where not; broadcastable to (B, P, N, N).
        is_causal: additionally hide later tokens.

    Returns:
        (A1 - lambda A2) v, (B, P, N, 2 d), before the norm; and the maps A1 and A2, each (B, P, N, N). A query that may
        look nowhere has zeros in both.
    """
    B, H, N, _ = q_BHNd.shape
    bias = attention_bias(attn_mask, is_causal, B, H // 2, N, q_BHNd.dtype, q_BHNd.device)
    a1_BPNN, a2_BPNN = (attention_map(q_BHNd[:, which::2], k_BHNd[:, which::2], bias) for which in (0, 1))
    return (a1_BPNN - lambda_ * a2_BPNN) @ v_BPNe, a1_BPNN, a2_BPNN


def attention_map(q_BPNd: torch.Tensor, k_BPNd: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """softmax(q k^T / sqrt(d) + bias), (B, P, N, N), by its definition; zeros for a query that may look nowhere."""
    scores_BPNN = q_BPNd @ k_BPNd.transpose(-2, -1) / math.sqrt(q_BPNd.shape[-1])
    if bias is not None:
        scores_BPNN = scores_BPNN + bias
    blind = (scores_BPNN == -math.inf).all(dim=-1, keepdim=True)
    return scores_BPNN.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)


def attention_bias(
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    B: int,
    P: int,
    N: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Optional[torch.Tensor]:
    """One additive mask, at least 2-d and broadcastable to (B, P, N, N), or None where nothing is hidden."""
    bias: Optional[torch.Tensor] = None
    if attn_mask is not None:
        sizes = [N, N, P, B]  # from the last dimension
        fits = attn_mask.dim() <= 4
        for i in range(min(attn_mask.dim(), 4)):
            fits = fits and attn_mask.shape[-1 - i] in (1, sizes[i])
        if not fits:
            raise ValueError(
                f"attn_mask has shape {list(attn_mask.shape)}; it must be broadcastable to "
                f"(batch, pairs of heads, tokens, tokens) = {[B, P, N, N]}"
            )
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=dtype).masked_fill(attn_mask.logical_not(), -math.inf)
        elif attn_mask.is_floating_point():
            bias = attn_mask.to(dtype)
        else:
            raise ValueError(f"attn_mask has dtype {attn_mask.dtype}; it must be bool or a float that is added")
        if bias.dim() < 2:
            bias = bias.expand(N, N)
    if is_causal:
        causal = torch.full([N, N], -math.inf, dtype=dtype, device=device).triu(1)
        bias = causal if bias is None else bias + causal
    return bias


def attend_by_maps(
    q_BHNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> torch.Tensor:
    """Explicit maps, subtracted before the one product with v: for the CPU where attend_cpu is of no use."""
    B, H, N, d = q_BHNd.shape
    P = H // 2
    scores_BP2NN = ((q_BHNd * d**-0.5) @ k_BHNd.transpose(-2, -1)).view(B, P, 2, N, N)
    bias = attention_bias(attn_mask, is_causal, B, P, N, scores_BP2NN.dtype, scores_BP2NN.device)
    if bias is not None:
        scores_BP2NN = scores_BP2NN + bias.unsqueeze(-3)
    if attn_mask is not None and bias is not None:
        # softmax of nothing but -inf is NaN, in the gradient too
        blind = (bias == -math.inf).all(dim=-1, keepdim=True).unsqueeze(-3)
        maps_BP2NN = scores_BP2NN.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    else:
        maps_BP2NN = scores_BP2NN.softmax(dim=-1)
    if dropout_p > 0.0:
        maps_BP2NN = F.dropout(maps_BP2NN, dropout_p)
    a1_BPNN, a2_BPNN = maps_BP2NN.unbind(2)
    return subtract(a1_BPNN, a2_BPNN, lambda_) @ v_BPNe


def attend_by_sdpa(
    q_BHNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A1 v and A2 v, to be subtracted behind v: no N x N map is kept, the way for accelerators."""
    B, H, N, d = q_BHNd.shape
    q1_BPNd, q2_BPNd = q_BHNd.view(B, H // 2, 2, N, d).unbind(2)
    k1_BPNd, k2_BPNd = k_BHNd.view(B, H // 2, 2, N, d).unbind(2)
    return attend_twice(q1_BPNd, k1_BPNd, q2_BPNd, k2_BPNd, v_BPNe, attn_mask, is_causal, dropout_p)


def attend_twice(
    q1_BPNd: torch.Tensor,
    k1_BPNd: torch.Tensor,
    q2_BPNd: torch.Tensor,
    k2_BPNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A1 v and A2 v, each (B, P, N, e), by one fused attention a map."""
    if attn_mask is None:
        # never a mask tensor for the causal tower: cuDNN's backward is wrong with one (pytorch/pytorch#196678)
        return (
            F.scaled_dot_product_attention(q1_BPNd, k1_BPNd, v_BPNe, None, dropout_p, is_causal),
            F.scaled_dot_product_attention(q2_BPNd, k2_BPNd, v_BPNe, None, dropout_p, is_causal),
        )
    B, P, N, _ = q1_BPNd.shape
    bias = attention_bias(attn_mask, is_causal, B, P, N, q1_BPNd.dtype, q1_BPNd.device)
    assert bias is not None
    blind = (bias == -math.inf).all(dim=-1, keepdim=True)
    bias = bias.masked_fill(blind, 0.0)
    return (
        F.scaled_dot_product_attention(q1_BPNd, k1_BPNd, v_BPNe, bias, dropout_p).masked_fill(blind, 0.0),
        F.scaled_dot_product_attention(q2_BPNd, k2_BPNd, v_BPNe, bias, dropout_p).masked_fill(blind, 0.0),
    )


def on_accelerator(x: torch.Tensor) -> bool:
    """Whether x is not on the CPU: fused attention there takes values wider than keys, and memory is what is short."""
    return x.device.type != "cpu"


def subtract(out1: torch.Tensor, out2: torch.Tensor, lambda_: torch.Tensor) -> torch.Tensor:
    """out1 - lambda out2, in one pass; lambda_ is broadcastable to them."""
    return torch.addcmul(out1, out2, lambda_.to(out2.dtype), value=-1)
