"""Define the layer of DiffCLIP: two softmax maps a pair of heads, the second subtracted with a learned weight.

Source: DiffCLIP (arXiv 2503.06626, section 3) after Differential Transformer (arXiv 2410.05258). Parameters are named
as in timm's ``DiffAttention`` (pytorch-image-models@1.0.31:timm/layers/diff_attention.py), so weights move between the
two. Shape legend: that of reference.py.
"""

import math
from typing import Any, Optional

import torch
from torch import nn

from diffclip_openclip.attention.paths import apply_maps, attend, attend_and_normalise, softmax_maps, split_heads
from diffclip_openclip.attention.recompute import is_stock, spared
from diffclip_openclip.attention.reference import differential_attention_reference

LAMBDA_INIT = 0.8  # DiffCLIP, section 4.1
DYNAMIC = "dynamic"
SUB_NORM_EPS = 1e-5  # Differential Transformer, section 2.1
LAMBDA_STD = 0.1  # microsoft/unilm@master:Diff-Transformer/multihead_diffattn.py

# torch.fx records these as one step each: which path they take depends on sizes that it does not know
torch.fx.wrap("attend")
torch.fx.wrap("attend_and_normalise")


def dynamic_lambda_init(depth: int) -> float:
    """Compute lambda_init of layer ``depth`` (from 0) in DiffCLIP*: 0.8 - 0.6 exp(-0.3 depth) (paper, section 4.5)."""
    return 0.8 - 0.6 * math.exp(-0.3 * depth)


def resolve_lambda_init(lambda_init: float | str, depth: int) -> float:
    """Return lambda_init of one layer, from a constant or ``"dynamic"``.

    Raises:
        ValueError: any other string, or a number that is not in [0, 1).
    """
    if lambda_init == DYNAMIC:
        return dynamic_lambda_init(depth)
    if not isinstance(lambda_init, int | float) or not 0.0 <= lambda_init < 1.0:
        raise ValueError(f"lambda_init is {lambda_init!r}; it must be a number in [0, 1) or {DYNAMIC!r}")
    return float(lambda_init)


class DifferentialAttention(nn.Module):
    """Compute multi-head differential self-attention, (B, N, C) -> (B, N, C).

    out = proj(concat_p((1 - lambda_init) RMSNorm((A1_p - lambda A2_p) v_p))), with
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init, one scalar a layer
    (paper, section 3.2).

    ``fused_attn`` is timm's switch: where it is False, both maps are computed explicitly and go through ``attn_drop``,
    as tools that read them expect. Otherwise :func:`~diffclip_openclip.attention.choice.choose_path` decides.

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
        import diffclip_openclip.attention.cpu  # noqa: F401  defines the operator

        if num_heads <= 0 or num_heads % 2:
            raise ValueError(f"num_heads is {num_heads}; heads are paired, so it must be positive and even")
        if dim % num_heads:
            raise ValueError(f"dim is {dim} and num_heads {num_heads}; dim must be a multiple of num_heads")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.lambda_init = resolve_lambda_init(lambda_init, depth)

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, device=device, dtype=dtype)
        self.attn_drop = nn.Dropout(attn_drop)
        self.sub_norm = nn.RMSNorm(2 * self.head_dim, eps=SUB_NORM_EPS, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, device=device, dtype=dtype)
        self.proj_drop = nn.Dropout(proj_drop)
        self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim, device=device, dtype=dtype))
        self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim, device=device, dtype=dtype))
        self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim, device=device, dtype=dtype))
        self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim, device=device, dtype=dtype))
        self.reset_parameters()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled layer, in a process that may not have made one yet."""
        import diffclip_openclip.attention.cpu  # noqa: F401  defines the operator

        super().__setstate__(state)

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Draw the four lambda vectors anew; the submodules reset themselves."""
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            nn.init.normal_(vector, mean=0.0, std=LAMBDA_STD)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, lambda_init={self.lambda_init:.4g}"

    def compute_lambda(self) -> torch.Tensor:
        """Compute the layer's lambda, a scalar in float32 or better: it is a difference of exponentials."""
        dtype = torch.promote_types(self.lambda_q1.dtype, torch.float32)
        dot1 = (self.lambda_q1.to(dtype) * self.lambda_k1.to(dtype)).sum()
        dot2 = (self.lambda_q2.to(dtype) * self.lambda_k2.to(dtype)).sum()
        return dot1.exp() - dot2.exp() + self.lambda_init

    def forward(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Compute attention of the tokens among each other, (B, N, C).

        Args:
            x: tokens, (B, N, C).
            attn_mask: bool (True: may look) or additive float, broadcastable to (B, P, N, N) or (B, H, N, N).
            is_causal: hide later tokens; combines with ``attn_mask``.

        Raises:
            ValueError: an ``attn_mask`` of another shape or dtype.
        """
        joined_BNC = self._attend(self.qkv(x), attn_mask, is_causal)
        if torch.jit.is_scripting():
            out_BNC = self.proj(joined_BNC)
        else:
            with spared(joined_BNC, self.proj):
                out_BNC = self.proj(joined_BNC)
        return self.proj_drop(out_BNC)

    def _attend(self, qkv_BNC3: torch.Tensor, attn_mask: Optional[torch.Tensor], is_causal: bool) -> torch.Tensor:
        """Compute (1 - lambda_init) RMSNorm((A1 - lambda A2) v) with joined heads, (B, N, C)."""
        lambda_ = self.compute_lambda()
        dropout_p = self.attn_drop.p if self.training else 0.0
        if not torch.jit.is_scripting():
            if not self.fused_attn:  # the maps go through a module, where tools read them
                q_BHNd, k_BHNd, v_BPNe = split_heads(qkv_BNC3, self.num_heads)
                maps_BHNN = self.attn_drop(softmax_maps(q_BHNd, k_BHNd, attn_mask, is_causal))
                return self._scaled_norm(apply_maps(maps_BHNN, lambda_, v_BPNe))
            norm = self.sub_norm
            if is_stock(norm, nn.RMSNorm) and norm.weight is not None and norm.eps is not None:
                weight_e = norm.weight * (1.0 - self.lambda_init)
                return attend_and_normalise(
                    qkv_BNC3, lambda_, weight_e, norm.eps, self.num_heads, attn_mask, is_causal, dropout_p
                )
        return self._scaled_norm(attend(qkv_BNC3, lambda_, self.num_heads, attn_mask, is_causal, dropout_p))

    def _scaled_norm(self, heads_BNPe: torch.Tensor) -> torch.Tensor:
        """Compute (1 - lambda_init) RMSNorm(heads) by the module itself, (B, N, C)."""
        return (self.sub_norm(heads_BNPe) * (1.0 - self.lambda_init)).flatten(2)

    @torch.jit.ignore
    def attention_maps(
        self,
        x: torch.Tensor,
        attn_mask: Optional[torch.Tensor] = None,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two maps A1 and A2, each (B, P, N, N), for the input and masks of :meth:`forward`."""
        _, a1_BPNN, a2_BPNN = differential_attention_reference(
            *split_heads(self.qkv(x), self.num_heads), self.compute_lambda(), attn_mask, is_causal
        )
        return a1_BPNN, a2_BPNN

    @torch.jit.ignore
    def attend_with(self, x: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Compute :meth:`forward` of x (B, N, C) with given A1 - lambda A2, (B, P, N, N)."""
        _, _, v_BPNe = split_heads(self.qkv(x), self.num_heads)
        heads_BNPe = (attention.to(v_BPNe.dtype) @ v_BPNe).transpose(1, 2)
        return self.proj_drop(self.proj(self._scaled_norm(heads_BNPe)))
