"""Define the layer of Differential Transformer V2: twice the query heads over shared keys, lambda by token.

Source: microsoft/unilm@31646c5:Diff-Transformer/Diff-Transformer-V2/multihead_flashdiffv2.py. Against version 1 there
is no norm of the heads and no lambda_init, and keys, values and the output projection are those of plain attention.
Shape legend: that of reference.py.
"""

from typing import Optional

import torch
from torch import nn

from diffclip_openclip.attention.paths import apply_maps, attend_v2, softmax_maps
from diffclip_openclip.attention.recompute import in_autocast_dtype, spared
from diffclip_openclip.attention.reference import differential_attention_v2_reference

torch.fx.wrap("attend_v2")  # one step for torch.fx: which path it takes depends on what torch.fx does not know


class DifferentialAttentionV2(nn.Module):
    """Compute multi-head differential self-attention, version 2, (B, N, C) -> (B, N, C).

    out = proj(concat_p((A1_p - sigmoid(lambda_p) A2_p) v_p)), with lambda_p = lambda_proj(x)_p, one logit a token and
    head.

    The rows of ``qkv`` are, in this order: queries (head, map 1 or 2, d), keys (head, d), values (head, d). With plain
    attention's query rows in both maps, a zero ``lambda_proj`` and twice its ``proj.weight``, it is plain attention.

    ``fused_attn`` is timm's switch: where it is False, both maps are computed explicitly and go through ``attn_drop``.

    Args:
        dim: embed_dim C.
        num_heads: P, the number of heads of plain attention; a divisor of dim, odd ones too.
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
        self.scale = self.head_dim**-0.5
        self.fused_attn = True

        self.qkv = nn.Linear(dim, 4 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        self.lambda_proj = nn.Linear(dim, num_heads, bias=False, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"

    def compute_lambda(self, x: torch.Tensor) -> torch.Tensor:
        """Compute sigmoid(lambda), (B, P, N, 1), in float32 or better, for tokens x (B, N, C)."""
        logits_BNP = self.lambda_proj(x)
        logits_BNP = logits_BNP.to(torch.promote_types(logits_BNP.dtype, torch.float32))
        return logits_BNP.sigmoid().transpose(1, 2).unsqueeze(-1)

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Compute attention of the tokens among each other, (B, N, C).

        Args:
            x: tokens, (B, N, C).
            attn_mask: bool (True: may look) or additive float, broadcastable to (B, P, N, N) or (B, 2 P, N, N).
            is_causal: hide later tokens; combines with ``attn_mask``.

        Raises:
            ValueError: an ``attn_mask`` of another shape or dtype.
        """
        if not torch.jit.is_scripting():
            x = in_autocast_dtype(x)
        joined_BNC = self._attend(self.qkv(x), self.compute_lambda(x), attn_mask, is_causal)
        if torch.jit.is_scripting():
            out_BNC = self.proj(joined_BNC)
        else:
            with spared(joined_BNC, self.proj):
                out_BNC = self.proj(joined_BNC)
        return self.proj_drop(out_BNC)

    def _attend(
        self, qkv_BNC4: torch.Tensor, lambda_: torch.Tensor, attn_mask: Optional[torch.Tensor], is_causal: bool
    ) -> torch.Tensor:
        """Compute (A1 - lambda A2) v with joined heads, (B, N, C)."""
        q_BHNd, k_BPNd, v_BPNd = self._split(qkv_BNC4)
        dropout_p = self.attn_drop.p if self.training else 0.0
        if not torch.jit.is_scripting() and not self.fused_attn:  # the maps go through a module, where tools read them
            maps_BHNN = self.attn_drop(softmax_maps(q_BHNd, k_BPNd.repeat_interleave(2, dim=1), attn_mask, is_causal))
            return apply_maps(maps_BHNN, lambda_, v_BPNd).flatten(2)
        return attend_v2(q_BHNd, k_BPNd, v_BPNd, lambda_, attn_mask, is_causal, dropout_p)

    def _split(self, qkv_BNC4: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        B, N, _ = qkv_BNC4.shape
        C = self.num_heads * self.head_dim
        q_BNC2, k_BNC, v_BNC = qkv_BNC4.split([2 * C, C, C], dim=-1)
        q_BHNd = q_BNC2.reshape(B, N, 2 * self.num_heads, self.head_dim).transpose(1, 2)
        k_BPNd = k_BNC.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        v_BPNd = v_BNC.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        return q_BHNd, k_BPNd, v_BPNd

    @torch.jit.ignore
    def attention_maps(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two maps A1 and A2, each (B, P, N, N), for the input and masks of :meth:`forward`."""
        _, a1_BPNN, a2_BPNN = differential_attention_v2_reference(
            *self._split(self.qkv(x)), self.compute_lambda(x), attn_mask, is_causal
        )
        return a1_BPNN, a2_BPNN

    @torch.jit.ignore
    def attend_with(self, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Compute :meth:`forward` of x (B, N, C) with given A1 - sigmoid(lambda) A2, (B, P, N, N)."""
        _, _, v_BPNd = self._split(self.qkv(x))
        return self.proj_drop(self.proj((attention.to(v_BPNd.dtype) @ v_BPNd).transpose(1, 2).flatten(2)))
