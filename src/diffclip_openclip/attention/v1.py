"""Differential attention: two softmax maps, the second subtracted with a learned weight lambda.

Source: DiffCLIP (arXiv 2503.06626, section 3) after Differential Transformer (arXiv 2410.05258). Parameter names are
those of timm's ``DiffAttention`` (pytorch-image-models@1.0.31:timm/layers/diff_attention.py), so weights move between
the two.

Shape legend::

    B batch    N tokens    C embed_dim    H num_heads (even)
    P pairs of heads, H / 2          d head_dim, C / H          e value size of a pair, 2 d

Heads 2p and 2p + 1 are maps 1 and 2 of pair p.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn

from diffclip_openclip.attention.modes import keeping_inputs, transformed, without_autocast
from diffclip_openclip.attention.paths import (
    attend_by_maps,
    attend_by_sdpa,
    differential_attention_reference,
    on_accelerator,
    subtract,
)

LAMBDA_INIT = 0.8  # DiffCLIP, section 4.1
DYNAMIC = "dynamic"
SUB_NORM_EPS = 1e-5  # Differential Transformer, section 2.1
LAMBDA_STD = 0.1  # microsoft/unilm@master:Diff-Transformer/multihead_diffattn.py


def dynamic_lambda_init(depth: int) -> float:
    """lambda_init of layer ``depth`` (from 0) in DiffCLIP*: 0.8 - 0.6 exp(-0.3 depth) (paper, section 4.5)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


def resolve_lambda_init(lambda_init: float | str, depth: int) -> float:
    """lambda_init of one layer, from a constant or ``"dynamic"``.

    Raises:
        ValueError: for any other string, or a number that is not in [0, 1).
    """
    if lambda_init == DYNAMIC:
        return dynamic_lambda_init(depth)
    if not isinstance(lambda_init, int | float) or not 0.0 <= lambda_init < 1.0:
        raise ValueError(f"lambda_init is {lambda_init!r}; it must be a number in [0, 1) or {DYNAMIC!r}")
    return float(lambda_init)


class DifferentialAttention(nn.Module):
    """Multi-head differential self-attention, (B, N, C) -> (B, N, C).

    out = proj(concat_p((1 - lambda_init) RMSNorm((A1_p - lambda A2_p) v_p))), with
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init, one scalar a layer
    (paper, section 3.2).

    Args:
        dim: embed_dim C.
        num_heads: H, the usual number of heads of plain attention; two of them make a pair. Even, and a divisor of dim.
        qkv_bias: bias of the fused q, k, v projection.
        proj_bias: bias of the output projection.
        attn_drop: dropout on A1 and A2.
        proj_drop: dropout behind the output projection.
        lambda_init: a number in [0, 1), or "dynamic" for the schedule by ``depth``.
        depth: index of the layer, from 0; read by "dynamic" only.

    Raises:
        ValueError: odd ``num_heads``, ``dim`` not a multiple of it, or a ``lambda_init`` out of range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        lambda_init: float | str = LAMBDA_INIT,
        depth: int = 0,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        # here, because defining operators takes 30 ms, which only those who build a model are to pay
        from diffclip_openclip.attention.cpu import fits_in_cache

        self._fits_in_cache = fits_in_cache
        if num_heads <= 0 or num_heads % 2:
            raise ValueError(f"num_heads is {num_heads}; heads are paired, so it must be positive and even")
        if dim % num_heads:
            raise ValueError(f"dim is {dim} and num_heads {num_heads}; dim must be a multiple of num_heads")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.lambda_init = resolve_lambda_init(lambda_init, depth)
        self.attn_drop_p = attn_drop

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.sub_norm = nn.RMSNorm(2 * self.head_dim, eps=SUB_NORM_EPS, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        # float32 whatever dtype the rest has: lambda is a difference of exponentials
        self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim, dtype=torch.float32, device=device))
        self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim, dtype=torch.float32, device=device))
        self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim, dtype=torch.float32, device=device))
        self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim, dtype=torch.float32, device=device))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Draw the four lambda vectors anew; the submodules reset themselves."""
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            nn.init.normal_(vector, mean=0.0, std=LAMBDA_STD)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, lambda_init={self.lambda_init:.4g}"

    def compute_lambda(self) -> torch.Tensor:
        """The layer's lambda, a scalar in float32 or better."""
        dtype = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        dot1 = (self.lambda_q1.to(dtype) * self.lambda_k1.to(dtype)).sum()
        dot2 = (self.lambda_q2.to(dtype) * self.lambda_k2.to(dtype)).sum()
        return dot1.exp() - dot2.exp() + self.lambda_init

    def _split(self, qkv_BNC3: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        B, N, _ = qkv_BNC3.shape
        q_BNC, k_BNC, v_BNC = qkv_BNC3.chunk(3, dim=-1)
        q_BHNd = q_BNC.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        k_BHNd = k_BNC.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        v_BPNe = v_BNC.reshape(B, N, self.num_heads // 2, 2 * self.head_dim).transpose(1, 2)
        return q_BHNd, k_BHNd, v_BPNe

    def _norm(self, out_BNPe: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(out_BNPe, [2 * self.head_dim], weight.to(out_BNPe.dtype), self.sub_norm.eps)

    def _join(self, out_BPNe: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out_BNPe = out_BPNe.transpose(1, 2)  # the layout in which fused attention returns it
        if torch.jit.is_scripting():
            return self.proj(self._norm(out_BNPe, weight).flatten(2))
        # autocast would copy the heads to float32 for the norm, which sums in float32 anyway
        with without_autocast(out_BNPe.device.type):
            normed_BNPe = self._norm(out_BNPe, weight)
        return self.proj(normed_BNPe.flatten(2))

    def _subtract_and_join(
        self, out1_BPNe: torch.Tensor, out2_BPNe: torch.Tensor, lambda_: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        return self._join(subtract(out1_BPNe, out2_BPNe, lambda_), weight)

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: tokens, (B, N, C).
            attn_mask: bool (True: may look) or additive float, broadcastable to (B, P, N, N).
            is_causal: hide later tokens; combines with ``attn_mask``.

        Raises:
            ValueError: an ``attn_mask`` of another shape or dtype.
        """
        B, N, _ = x.shape
        qkv_BNC3 = self.qkv(x)
        lambda_ = self.compute_lambda()
        weight = self.sub_norm.weight * (1.0 - self.lambda_init)
        dropout_p = self.attn_drop_p if self.training else 0.0
        if not torch.jit.is_scripting():  # scripted and exported models are to run without this package's operator
            whole = attn_mask is None and dropout_p == 0.0 and not torch.compiler.is_exporting()
            blocks = whole and not on_accelerator(x) and not self._fits_in_cache(B, self.num_heads, N)
            if blocks and (torch.compiler.is_compiling() or not transformed(qkv_BNC3, lambda_, weight)):
                out_BNC, _, _ = torch.ops.diffclip_openclip.attend_cpu(
                    qkv_BNC3, lambda_, weight, self.num_heads, self.sub_norm.eps, is_causal, torch.is_grad_enabled()
                )
                return self.proj_drop(self.proj(out_BNC))
        q_BHNd, k_BHNd, v_BPNe = self._split(qkv_BNC3)
        if not on_accelerator(x):
            out_BPNe = attend_by_maps(q_BHNd, k_BHNd, v_BPNe, lambda_, attn_mask, is_causal, dropout_p)
            return self.proj_drop(self._join(out_BPNe, weight))
        out1_BPNe, out2_BPNe = attend_by_sdpa(q_BHNd, k_BHNd, v_BPNe, attn_mask, is_causal, dropout_p)
        if not torch.jit.is_scripting():
            return self.proj_drop(keeping_inputs(self._subtract_and_join, out1_BPNe, out2_BPNe, lambda_, weight))
        return self.proj_drop(self._subtract_and_join(out1_BPNe, out2_BPNe, lambda_, weight))

    @torch.jit.ignore
    def attention_maps(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The two maps A1 and A2, each (B, P, N, N), for the input and masks of :meth:`forward`."""
        _, a1_BPNN, a2_BPNN = differential_attention_reference(
            *self._split(self.qkv(x)), self.compute_lambda(), attn_mask, is_causal
        )
        return a1_BPNN, a2_BPNN

    @torch.jit.ignore
    def attend_with(self, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """:meth:`forward` of x (B, N, C) with given maps A1 - lambda A2, (B, P, N, N), in place of its own."""
        _, _, v_BPNe = self._split(self.qkv(x))
        weight = self.sub_norm.weight * (1.0 - self.lambda_init)
        return self.proj_drop(self._join(attention.to(v_BPNe.dtype) @ v_BPNe, weight))
