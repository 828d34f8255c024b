"""Write out the definitions of differential attention, against which every faster way is tested.

Sources: DiffCLIP (arXiv 2503.06626, section 3) after Differential Transformer (arXiv 2410.05258) for version 1;
microsoft/unilm@31646c5:Diff-Transformer/Diff-Transformer-V2/multihead_flashdiffv2.py for version 2.

Shape legend of the package::

    B batch    N tokens    C embed_dim    d head_dim
    H heads with a map of their own: version 1's heads (C = H d), version 2's query heads (C = H d / 2)
    P pairs of them, H / 2       e size of a pair's values: 2 d in version 1, d in version 2
"""

import math
from typing import Optional

import torch


def pair(heads_BHxx: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the heads of maps 1 and 2, each (B, P, ...)."""
    first, second = in_pairs(heads_BHxx).unbind(2)
    return first, second


def in_pairs(heads_BHxx: torch.Tensor) -> torch.Tensor:
    """Return a view of shape (B, P, 2, ...): heads 2p and 2p + 1 are the pair p.

    This is the pair convention, for queries, keys, maps and masks alike. What a pair shares, version 2's keys or a mask
    for each pair, is given to its heads by ``repeat_interleave(2)``.
    """
    return heads_BHxx.unflatten(1, (-1, 2))


def differential_attention_reference(
    q_BHNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BPNe: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor] = None,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute differential attention, version 1, by its definition.

    Args:
        q_BHNd, k_BHNd: queries and keys, (B, H, N, d).
        v_BPNe: values, (B, P, N, 2 d).
        lambda_: the layer's scalar weight of the second map.
        attn_mask: True (or 0) where a query may look, False (or -inf) where not; broadcastable to (B, P, N, N), a mask
            for each pair, or to (B, H, N, N), a mask for each head.
        is_causal: additionally hide later tokens.

    Returns:
        (A1 - lambda A2) v, (B, P, N, 2 d), before the norm; and the maps A1 and A2, each (B, P, N, N). A query that may
        look nowhere has zeros in both.

    Raises:
        ValueError: an ``attn_mask`` of another shape or dtype.
    """
    B, H, N, _ = q_BHNd.shape
    bias = attention_bias(attn_mask, is_causal, B, H, N, q_BHNd.dtype, q_BHNd.device, paired=True)
    a1_BPNN, a2_BPNN = pair(attention_map(q_BHNd, k_BHNd, bias))
    return (a1_BPNN - lambda_ * a2_BPNN) @ v_BPNe, a1_BPNN, a2_BPNN


def differential_attention_v2_reference(
    q_BHNd: torch.Tensor,
    k_BPNd: torch.Tensor,
    v_BPNd: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor] = None,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute differential attention, version 2, by its definition.

    Args:
        q_BHNd: queries, (B, H, N, d), H twice the number of heads of plain attention.
        k_BPNd, v_BPNd: keys and values, (B, P, N, d), which a pair of query heads shares.
        lambda_: weights of the second map, sigmoid applied; broadcastable to (B, P, N, 1).
        attn_mask: as in :func:`differential_attention_reference`.
        is_causal: additionally hide later tokens.

    Returns:
        (A1 - lambda A2) v, (B, P, N, d); and the maps A1 and A2, each (B, P, N, N). A query that may look nowhere has
        zeros in both.

    Raises:
        ValueError: an ``attn_mask`` of another shape or dtype.
    """
    B, H, N, _ = q_BHNd.shape
    bias = attention_bias(attn_mask, is_causal, B, H, N, q_BHNd.dtype, q_BHNd.device, paired=True)
    a1_BPNN, a2_BPNN = pair(attention_map(q_BHNd, k_BPNd.repeat_interleave(2, dim=1), bias))
    return (a1_BPNN - lambda_.to(a2_BPNN.dtype) * a2_BPNN) @ v_BPNd, a1_BPNN, a2_BPNN


def attention_map(q_BHNd: torch.Tensor, k_BHNd: torch.Tensor, bias: Optional[torch.Tensor]) -> torch.Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias), (B, H, N, N); a query that may look nowhere has zeros."""
    scores_BHNN = q_BHNd @ k_BHNd.transpose(-2, -1) / math.sqrt(q_BHNd.shape[-1])
    if bias is not None:
        scores_BHNN = scores_BHNN + bias
    blind = (scores_BHNN == -math.inf).all(dim=-1, keepdim=True)
    return scores_BHNN.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)


def attention_bias(
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    B: int,
    H: int,
    N: int,
    dtype: torch.dtype,
    device: torch.device,
    paired: bool = False,
) -> Optional[torch.Tensor]:
    """Return one additive mask for both kinds of masking, or None where nothing is hidden.

    Args:
        attn_mask: bool (True: may look) or a float that is added; broadcastable to (B, H, N, N).
        is_causal: additionally hide later tokens.
        B, H, N: batch size, heads and tokens.
        dtype, device: of the scores.
        paired: also take masks that are broadcastable to (B, P, N, N), and give each to both heads of its pair.

    Returns:
        -inf where a query may not look; at least 2-d and broadcastable to (B, H, N, N).

    Raises:
        ValueError: a mask of another shape or dtype; states it and what is allowed.
    """
    bias: Optional[torch.Tensor] = None
    if attn_mask is not None:
        _check_mask(attn_mask, B, H, N, paired)
        if attn_mask.dtype == torch.bool:
            bias = torch.zeros_like(attn_mask, dtype=dtype).masked_fill(attn_mask.logical_not(), -math.inf)
        else:
            bias = attn_mask.to(dtype)
        if bias.dim() < 2:
            bias = bias.expand(N, N)
        if bias.dim() > 2 and bias.shape[-3] not in (1, H):  # a mask for each pair
            bias = bias.repeat_interleave(2, dim=-3)
    if is_causal:
        causal_NN = torch.full([N, N], -math.inf, dtype=dtype, device=device).triu(1)
        bias = causal_NN if bias is None else bias + causal_NN
    return bias


def _check_mask(attn_mask: torch.Tensor, B: int, H: int, N: int, paired: bool) -> None:
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise ValueError(f"attn_mask has dtype {attn_mask.dtype}; it must be bool or a float that is added")
    sizes = [N, N, H, B]  # from the last dimension
    fits = attn_mask.dim() <= 4
    for i in range(min(attn_mask.dim(), 4)):
        size = attn_mask.shape[-1 - i]
        fits = fits and (size in (1, sizes[i]) or (paired and i == 2 and 2 * size == H))
    if not fits:
        allowed = f"(batch, heads, tokens, tokens) = {[B, H, N, N]}"
        if paired:
            allowed = f"(batch, pairs of heads, tokens, tokens) = {[B, H // 2, N, N]} or {allowed}"
        raise ValueError(f"attn_mask has shape {list(attn_mask.shape)}; it must be broadcastable to {allowed}")
