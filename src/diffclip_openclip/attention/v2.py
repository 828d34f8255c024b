"""Differential attention, version 2: twice the query heads over the same keys and values, lambda by token and head.

Source: Differential Transformer V2, microsoft/unilm@31646c5:Diff-Transformer/Diff-Transformer-V2/
multihead_flashdiffv2.py. Against version 1 there is no norm of the heads and no lambda_init, and keys, values and the
output projection are those of plain attention.

Shape legend::

    B batch    N tokens    C embed_dim    H num_heads, as in plain attention
    G query heads, 2 H           d head_dim, C / H

Query heads 2h and 2h + 1 are maps 1 and 2 of head h.
"""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn

from diffclip_openclip.attention.modes import keeping_inputs
from diffclip_openclip.attention.paths import attend_twice, attention_bias, attention_map, on_accelerator, subtract


def differential_attention_v2_reference(
    q_BGNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BHNd: torch.Tensor,
    lambda_: torch.Tensor,
    attn_mask: Optional[torch.Tensor] = None,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The definition, written out; the fast path is tested against it.

    Args:
        q_BGNd: queries, (B, 2 H, N, d), adjacent heads forming a pair.
        k_BHNd, v_BHNd: keys and values, (B, H, N, d), one head a pair of query heads.
        lambda_: weights of the second map, sigmoid applied; broadcastable to (B, H, N, 1).
        attn_mask: True (or 0) where a query may look, False (or -inf) where not; broadcastable to (B, H, N, N).
        is_causal: additionally hide later tokens.

    Returns:
        (A1 - lambda A2) v, (B, H, N, d); and the maps A1 and A2, each (B, H, N, N). A query that may look nowhere has
        zeros in both.
    """
    B, H, N, _ = k_BHNd.shape
    bias = attention_bias(attn_mask, is_causal, B, H, N, q_BGNd.dtype, q_BGNd.device)
    a1_BHNN, a2_BHNN = (attention_map(q_BGNd[:, which::2], k_BHNd, bias) for which in (0, 1))
    return (a1_BHNN - lambda_.to(a2_BHNN.dtype) * a2_BHNN) @ v_BHNd, a1_BHNN, a2_BHNN


def _attend(
    q_BGNd: torch.Tensor,
    k_BHNd: torch.Tensor,
    v_BHNd: torch.Tensor,
    attn_mask: Optional[torch.Tensor],
    is_causal: bool,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A1 v and A2 v by fused attention, on CPU too, whose fused kernel takes values as wide as keys.

    Against explicit maps (one CPU thread, forward and backward) about as fast at ViT-B/16's size, 1.6 times as fast at
    L/14's and 0.8 times at the text tower's.
    """
    B, H, N, d = k_BHNd.shape
    q_BH2Nd = q_BGNd.reshape(B, H, 2, N, d)
    if attn_mask is None and not is_causal:
        # every query sees every key, so both maps' queries are one longer sequence over the shared keys and values
        out_BHNNd = F.scaled_dot_product_attention(q_BH2Nd.reshape(B, H, 2 * N, d), k_BHNd, v_BHNd, None, dropout_p)
        out1_BHNd, out2_BHNd = out_BHNNd.reshape(B, H, 2, N, d).unbind(2)
        return out1_BHNd, out2_BHNd
    q1_BHNd, q2_BHNd = q_BH2Nd.unbind(2)
    return attend_twice(q1_BHNd, k_BHNd, q2_BHNd, k_BHNd, v_BHNd, attn_mask, is_causal, dropout_p)


class DifferentialAttentionV2(nn.Module):
    """Multi-head differential self-attention, version 2, (B, N, C) -> (B, N, C).

    out = proj(concat_h((A1_h - sigmoid(lambda_h) A2_h) v_h)), with lambda_h = lambda_proj(x)_h, one logit a token and
    head.

    The rows of ``qkv`` are, in this order: queries (head, map 1 or 2, d), keys (head, d), values (head, d). With plain
    attention's query rows in both maps, a zero ``lambda_proj`` and twice its ``proj.weight``, it is plain attention.

    Args:
        dim: embed_dim C.
        num_heads: H, the number of heads of plain attention; a divisor of dim, odd ones too.
        qkv_bias: bias of the fused q, k, v projection.
        proj_bias: bias of the output projection.
        attn_drop: dropout on A1 and A2.
        proj_drop: dropout behind the output projection.

    Raises:
        ValueError: ``num_heads`` not positive, or ``dim`` not a multiple of it.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if num_heads <= 0:
            raise ValueError(f"num_heads is {num_heads}; it must be positive")
        if dim % num_heads:
            raise ValueError(f"dim is {dim} and num_heads {num_heads}; dim must be a multiple of num_heads")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.attn_drop_p = attn_drop

        self.qkv = nn.Linear(dim, 4 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.lambda_proj = nn.Linear(dim, num_heads, bias=False, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"

    def compute_lambda(self, x: torch.Tensor) -> torch.Tensor:
        """The weights of the second map, sigmoid(lambda), for tokens x (B, N, C): (B, H, N, 1), float32 or better."""
        logits_BNH = self.lambda_proj(x)
        logits_BNH = logits_BNH.to(torch.promote_types(logits_BNH.dtype, torch.float32))
        return logits_BNH.sigmoid().transpose(1, 2).unsqueeze(-1)

    def _project(self, x_BNC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        B, N, C = x_BNC.shape
        q_BNC2, k_BNC, v_BNC = self.qkv(x_BNC).split([2 * C, C, C], dim=-1)
        q_BGNd = q_BNC2.reshape(B, N, 2 * self.num_heads, self.head_dim).transpose(1, 2)
        k_BHNd = k_BNC.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        v_BHNd = v_BNC.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        return q_BGNd, k_BHNd, v_BHNd

    def _join(self, out_BHNd: torch.Tensor) -> torch.Tensor:
        return self.proj(out_BHNd.transpose(1, 2).flatten(2))

    def _subtract_and_join(
        self, out1_BHNd: torch.Tensor, out2_BHNd: torch.Tensor, lambda_: torch.Tensor
    ) -> torch.Tensor:
        return self._join(subtract(out1_BHNd, out2_BHNd, lambda_))

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: tokens, (B, N, C).
            attn_mask: bool (True: may look) or additive float, broadcastable to (B, H, N, N).
            is_causal: hide later tokens; combines with ``attn_mask``.

        Raises:
            ValueError: an ``attn_mask`` of another shape or dtype.
        """
        q_BGNd, k_BHNd, v_BHNd = self._project(x)
        dropout_p = self.attn_drop_p if self.training else 0.0
        out1_BHNd, out2_BHNd = _attend(q_BGNd, k_BHNd, v_BHNd, attn_mask, is_causal, dropout_p)
        lambda_ = self.compute_lambda(x)
        if not torch.jit.is_scripting() and on_accelerator(x):
            return self.proj_drop(keeping_inputs(self._subtract_and_join, out1_BHNd, out2_BHNd, lambda_))
        return self.proj_drop(self._subtract_and_join(out1_BHNd, out2_BHNd, lambda_))

    @torch.jit.ignore
    def attention_maps(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two maps A1 and A2, each (B, H, N, N), for the input and masks of :meth:`forward`."""
        _, a1_BHNN, a2_BHNN = differential_attention_v2_reference(
            *self._project(x), self.compute_lambda(x), attn_mask, is_causal
        )
        return a1_BHNN, a2_BHNN

    @torch.jit.ignore
    def attend_with(self, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """:meth:`forward` of x (B, N, C) with given maps A1 - sigmoid(lambda) A2, (B, H, N, N), in place of its own."""
        _, _, v_BHNd = self._project(x)
        return self.proj_drop(self._join(attention.to(v_BHNd.dtype) @ v_BHNd))
