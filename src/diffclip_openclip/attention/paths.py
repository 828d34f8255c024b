"""Compute the difference of two maps: explicitly, by fused attention, or by the CPU operator (choice.py says which).

All ways give the same values and gradients, up to rounding. A query that may look nowhere is called blind; it gets
zeros. Shape legend: that of reference.py.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F

from diffclip_openclip.attention.choice import CACHE_BYTES, choose_path
from diffclip_openclip.attention.recompute import recomputed, transformed, without_autocast
from diffclip_openclip.attention.reference import attention_bias, pair


def split_heads(qkv_BNC3: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return version 1's queries and keys, (B, H, N, d), and values, (B, P, N, e), as views."""
    B, N, C3 = qkv_BNC3.shape
    q_BNC, k_BNC, v_BNC = qkv_BNC3.chunk(3, dim=-1)
    q_BHNd = q_BNC.reshape(B, N, num_heads, C3 // 3 // num_heads).transpose(1, 2)
    k_BHNd = k_BNC.reshape(B, N, num_heads, C3 // 3 // num_heads).transpose(1, 2)
    v_BPNe = v_BNC.reshape(B, N, num_heads // 2, 2 * C3 // 3 // num_heads).transpose(1, 2)
    return q_BHNd, k_BHNd, v_BPNe


def attend(
    qkv_BNC3: torch.Tensor,
    lambda_: torch.Tensor,
    num_heads: int,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> torch.Tensor:
    """Compute version 1's (A1 - lambda A2) v before the norm, (B, N, P, e)."""
    q_BHNd, k_BHNd, v_BPNe = split_heads(qkv_BNC3, num_heads)
    if torch.jit.is_scripting():
        by_maps = qkv_BNC3.device.type == "cpu"
    else:
        masked = attn_mask is not None
        path = choose_path(qkv_BNC3, num_heads, masked=masked, dropout_p=dropout_p, fusible=False)
        by_maps = path == "maps"
    if by_maps:
        return attend_by_maps(q_BHNd, k_BHNd, v_BPNe, lambda_, attn_mask, is_causal, dropout_p)
    out1_BNPe, out2_BNPe = attend_by_sdpa(q_BHNd, k_BHNd, v_BPNe, attn_mask, is_causal, dropout_p)
    return subtract(out1_BNPe, out2_BNPe, lambda_)


def attend_and_normalise(
    qkv_BNC3: torch.Tensor,
    lambda_: torch.Tensor,
    norm_weight_e: torch.Tensor,
    eps: float,
    num_heads: int,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> torch.Tensor:
    """Compute version 1's RMSNorm((A1 - lambda A2) v) with joined heads, (B, N, C)."""
    fusible = torch.compiler.is_compiling() or not transformed(qkv_BNC3, lambda_, norm_weight_e)
    path = choose_path(qkv_BNC3, num_heads, masked=attn_mask is not None, dropout_p=dropout_p, fusible=fusible)
    if path == "blocks":
        out_BNC, _, _ = torch.ops.diffclip_openclip.attend_cpu(
            qkv_BNC3, lambda_, norm_weight_e, num_heads, eps, is_causal, torch.is_grad_enabled(), CACHE_BYTES
        )
        return out_BNC
    q_BHNd, k_BHNd, v_BPNe = split_heads(qkv_BNC3, num_heads)
    if path == "maps":
        heads_BNPe = attend_by_maps(q_BHNd, k_BHNd, v_BPNe, lambda_, attn_mask, is_causal, dropout_p)
        return normalise(heads_BNPe, norm_weight_e, eps).flatten(2)
    out1_BNPe, out2_BNPe = attend_by_sdpa(q_BHNd, k_BHNd, v_BPNe, attn_mask, is_causal, dropout_p)

    def subtract_and_normalise(
        out1: torch.Tensor, out2: torch.Tensor, lambda_: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return normalise(subtract(out1, out2, lambda_), weight, eps)

    return recomputed(subtract_and_normalise, out1_BNPe, out2_BNPe, lambda_, norm_weight_e).flatten(2)


def attend_v2(
    q_BHNd: torch.Tensor,
    k_BPNd: torch.Tensor,
    v_BPNd: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> torch.Tensor:
    """Compute version 2's (A1 - lambda A2) v with joined heads, (B, N, C), by fused attention.

    On the CPU too, whose fused kernel takes values as wide as keys. Against explicit maps (one CPU thread, forward and
    backward) that is about as fast at ViT-B/16's size, 1.6 times as fast at L/14's and 0.8 times at the text tower's.
    """
    B, P, N, d = k_BPNd.shape
    if attn_mask is None and _shares_keys(q_BHNd, k_BPNd, v_BPNd, dropout_p, is_causal):
        out_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BPNd, v_BPNd, None, dropout_p, is_causal, enable_gqa=True)
        out1_BPNd, out2_BPNd = pair(out_BHNd)
    elif attn_mask is None and not is_causal and q_BHNd.device.type == "cpu":
        # every query sees every key, so both maps' queries are one longer sequence over the shared keys and values;
        # that copies the queries, which on accelerators costs more than to read keys and values twice
        q_BPMd = q_BHNd.reshape(B, P, 2 * N, d)
        out_BPMd = F.scaled_dot_product_attention(q_BPMd, k_BPNd, v_BPNd, None, dropout_p)
        out1_BPNd, out2_BPNd = out_BPMd.unflatten(2, (2, N)).unbind(2)
    else:
        q1_BPNd, q2_BPNd = pair(q_BHNd)
        out1_BPNd, out2_BPNd = _attend_twice(q1_BPNd, k_BPNd, q2_BPNd, k_BPNd, v_BPNd, attn_mask, is_causal, dropout_p)
    out1_BNPd, out2_BNPd, lambda_BNP1 = out1_BPNd.transpose(1, 2), out2_BPNd.transpose(1, 2), lambda_.transpose(1, 2)
    if torch.jit.is_scripting():
        return _subtract_for_joining(out1_BNPd, out2_BNPd, lambda_BNP1).flatten(2)
    else:  # noqa: RET505  TorchScript leaves out a branch, not what follows one
        return recomputed(_subtract_for_joining, out1_BNPd, out2_BNPd, lambda_BNP1).flatten(2)


def _shares_keys(
    q_BHNd: torch.Tensor, k_BPNd: torch.Tensor, v_BPNd: torch.Tensor, dropout_p: float, is_causal: bool
) -> bool:
    """Tell whether flash attention takes more heads of queries than of keys; other kernels do not, or fall to maps."""
    if torch.jit.is_scripting():
        return False
    else:  # noqa: RET505  TorchScript leaves out a branch, not what follows one
        if q_BHNd.device.type != "cuda":
            return False
        backends = torch.backends.cuda
        asked = backends.SDPAParams(q_BHNd, k_BPNd, v_BPNd, None, dropout_p, is_causal, True)
        return bool(backends.can_use_flash_attention(asked))


def softmax_maps(
    q_BHNd: torch.Tensor, k_BHNd: torch.Tensor, attn_mask: Optional[torch.Tensor], is_causal: bool
) -> torch.Tensor:
    """Compute all heads' maps, (B, H, N, N), in float32 or better, as fused attention does inside."""
    scores_BHNN, blind = _masked_scores(q_BHNd, k_BHNd, attn_mask, is_causal)
    return _without_blind(scores_BHNN.softmax(dim=-1), blind)


def _masked_scores(
    q_BHNd: torch.Tensor, k_BHNd: torch.Tensor, attn_mask: Optional[torch.Tensor], is_causal: bool
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Compute q k^T / sqrt(d), with -inf where a query that is not blind may not look; and which are, (..., N, 1)."""
    scores_BHNN = _scores(q_BHNd, k_BHNd)
    B, H, N, _ = scores_BHNN.shape
    bias = attention_bias(attn_mask, is_causal, B, H, N, scores_BHNN.dtype, scores_BHNN.device, paired=True)
    if bias is None:
        return scores_BHNN, None
    if attn_mask is None:  # a causal mask hides no query from itself
        return scores_BHNN + bias, None
    bias, blind = _sighted(bias)  # softmax of nothing but -inf is NaN, in the gradient too
    return scores_BHNN + bias, blind


def _without_blind(maps_BHNN: torch.Tensor, blind: Optional[torch.Tensor]) -> torch.Tensor:
    """Return the maps with zeros for blind queries."""
    return maps_BHNN if blind is None else maps_BHNN.masked_fill(blind, 0.0)


def attend_by_maps(
    q_BHNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> torch.Tensor:
    """Compute (A1 - lambda A2) v, (B, N, P, e), by explicit maps."""
    maps_BHNN = softmax_maps(q_BHNd, k_BHNd, attn_mask, is_causal)
    if dropout_p > 0.0:
        maps_BHNN = F.dropout(maps_BHNN, dropout_p)
    return apply_maps(maps_BHNN, lambda_, v_BPNe)


def apply_maps(maps_BHNN: torch.Tensor, lambda_: torch.Tensor, v_BPNe: torch.Tensor) -> torch.Tensor:
    """Compute (A1 - lambda A2) v, (B, N, P, e), from the heads' maps."""
    a1_BPNN, a2_BPNN = pair(maps_BHNN)
    return (subtract(a1_BPNN, a2_BPNN, lambda_).to(v_BPNe.dtype) @ v_BPNe).transpose(1, 2)


def attend_by_sdpa(
    q_BHNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute A1 v and A2 v, each (B, N, P, e), by fused attention, which returns its output in this layout."""
    q1_BPNd, q2_BPNd = pair(q_BHNd)
    k1_BPNd, k2_BPNd = pair(k_BHNd)
    out1_BPNe, out2_BPNe = _attend_twice(q1_BPNd, k1_BPNd, q2_BPNd, k2_BPNd, v_BPNe, attn_mask, is_causal, dropout_p)
    return out1_BPNe.transpose(1, 2), out2_BPNe.transpose(1, 2)


def _attend_twice(
    q1_BPNd: torch.Tensor,
    k1_BPNd: torch.Tensor,
    q2_BPNd: torch.Tensor,
    k2_BPNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute A1 v and A2 v, each (B, P, N, e), by one fused attention a map."""
    if attn_mask is None:
        # never a mask tensor for the causal tower: cuDNN's backward is wrong with one (pytorch/pytorch#196678)
        return (
            F.scaled_dot_product_attention(q1_BPNd, k1_BPNd, v_BPNe, None, dropout_p, is_causal),
            F.scaled_dot_product_attention(q2_BPNd, k2_BPNd, v_BPNe, None, dropout_p, is_causal),
        )
    B, P, N, _ = q1_BPNd.shape
    bias = attention_bias(attn_mask, is_causal, B, 2 * P, N, q1_BPNd.dtype, q1_BPNd.device, paired=True)
    assert bias is not None
    bias, blind = _sighted(bias)
    bias1, bias2, blind1, blind2 = bias, bias, blind, blind
    if bias.dim() > 2 and bias.shape[-3] == 2 * P:  # a mask for each head
        bias1, bias2 = pair(bias.expand(B, 2 * P, N, N))
        blind1, blind2 = pair(blind.expand(B, 2 * P, N, 1))
    return (
        F.scaled_dot_product_attention(q1_BPNd, k1_BPNd, v_BPNe, bias1, dropout_p).masked_fill(blind1, 0.0),
        F.scaled_dot_product_attention(q2_BPNd, k2_BPNd, v_BPNe, bias2, dropout_p).masked_fill(blind2, 0.0),
    )


def _scores(q_BHNd: torch.Tensor, k_BHNd: torch.Tensor) -> torch.Tensor:
    """Compute q k^T / sqrt(d) in float32 or better: rounding to 16 bits would cost more than the rest of attention."""
    wide = torch.promote_types(q_BHNd.dtype, torch.float32)
    q_BHNd, k_BHNd = q_BHNd.to(wide) * q_BHNd.shape[-1] ** -0.5, k_BHNd.to(wide)
    if torch.jit.is_scripting():
        return q_BHNd @ k_BHNd.transpose(-2, -1)
    else:  # noqa: RET505  TorchScript leaves out a branch, not what follows one
        with without_autocast(q_BHNd.device.type):
            return q_BHNd @ k_BHNd.transpose(-2, -1)


def _sighted(bias_NN: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mask without blind queries' rows, which hide nothing, and which queries are blind, (..., N, 1)."""
    blind = (bias_NN == -math.inf).all(dim=-1, keepdim=True)
    return bias_NN.masked_fill(blind, 0.0), blind


def subtract(out1: torch.Tensor, out2: torch.Tensor, lambda_: torch.Tensor) -> torch.Tensor:
    """Compute out1 - lambda out2 in one pass; ``lambda_`` is broadcastable to them."""
    return torch.addcmul(out1, out2, lambda_.to(out2.dtype), value=-1)


def _subtract_for_joining(out1_BNPd: torch.Tensor, out2_BNPd: torch.Tensor, lambda_: torch.Tensor) -> torch.Tensor:
    """Compute the difference in the layout in which joining heads copies nothing: that of fused attention on GPUs."""
    return subtract(out1_BNPd, out2_BNPd, lambda_).contiguous()


def normalise(heads_BNPe: torch.Tensor, weight_e: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute the RMSNorm of each pair's heads, (B, N, P, e)."""
    if torch.jit.is_tracing():  # ONNX by tracing has no RMSNorm
        wide_BNPe = heads_BNPe.to(torch.promote_types(heads_BNPe.dtype, torch.float32))
        inverse_rms_BNP1 = (wide_BNPe.square().mean(dim=-1, keepdim=True) + eps).rsqrt()
        return (wide_BNPe * inverse_rms_BNP1 * weight_e).to(heads_BNPe.dtype)
    # autocast would copy the heads to float32 for the norm, which sums in float32 anyway
    with without_autocast(heads_BNPe.device.type):
        return F.rms_norm(heads_BNPe, heads_BNPe.shape[-1:], weight_e.to(heads_BNPe.dtype), eps)


# what torch.fx is not to look into: it would have to decide by tensors that have no shape yet
torch.fx.wrap("_masked_scores")
torch.fx.wrap("_without_blind")
