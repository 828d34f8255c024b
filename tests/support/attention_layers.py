"""Build small layers of both versions in float64, and write out what they compute, for tests of attention."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from diffclip_openclip import (
    DifferentialAttention,
    DifferentialAttentionV2,
    differential_attention_reference,
    differential_attention_v2_reference,
)

B, N = 2, 5
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def causal_by_hand(N):
    return [[j <= i for j in range(N)] for i in range(N)]


def output_and_gradients(module, x, forward, weight):
    x = x.detach().requires_grad_()
    module.zero_grad()
    out = forward(x)
    (out * weight).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in module.named_parameters()}


def layer_v1(seed=0, **kwargs):
    """Return a layer of embed_dim 16 with two pairs of heads."""
    torch.manual_seed(seed)
    module = DifferentialAttention(16, 4, **({"lambda_init": 0.7} | kwargs)).double()
    with torch.no_grad():
        for name in LAMBDAS:
            getattr(module, name).normal_(std=0.5)  # far enough from 0 for lambda to differ from lambda_init
        module.sub_norm.weight.normal_(1.0, 0.2)
    return module


def defined_v1(module, x, attn_mask=None, is_causal=False):
    """Compute the module's output by the definition: projections, core, norm and scale each written out."""
    B, N, C = x.shape
    H, P = module.num_heads, module.num_heads // 2
    q, k, v = F.linear(x, module.qkv.weight, module.qkv.bias).split(C, dim=-1)
    q, k = (t.view(B, N, H, C // H).transpose(1, 2) for t in (q, k))
    v = v.view(B, N, P, C // P).transpose(1, 2)
    out, _, _ = differential_attention_reference(q, k, v, module.compute_lambda(), attn_mask, is_causal)
    out = out * (out.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * module.sub_norm.weight
    out = (out * (1 - module.lambda_init)).transpose(1, 2).reshape(B, N, C)
    return F.linear(out, module.proj.weight, module.proj.bias)


def layer_v2(seed=0, **kwargs):
    """Return a layer of embed_dim 15 with three heads."""
    torch.manual_seed(seed)
    return DifferentialAttentionV2(15, 3, **kwargs).double()


def defined_v2(module, x, attn_mask=None, is_causal=False):
    """Compute the module's output by the definition; the rows of qkv are taken apart one by one."""
    B, N, C = x.shape
    H = module.num_heads
    d = C // H
    rows = F.linear(x, module.qkv.weight, module.qkv.bias).transpose(1, 2)  # (B, 4 C, N)
    q = torch.stack([rows[:, d * i : d * (i + 1)] for i in range(2 * H)], dim=1)
    k = torch.stack([rows[:, 2 * C + d * i : 2 * C + d * (i + 1)] for i in range(H)], dim=1)
    v = torch.stack([rows[:, 3 * C + d * i : 3 * C + d * (i + 1)] for i in range(H)], dim=1)
    lambda_ = 1 / (1 + (-x @ module.lambda_proj.weight.t()).exp())
    out, _, _ = differential_attention_v2_reference(
        *(t.transpose(-2, -1) for t in (q, k, v)), lambda_.transpose(1, 2)[..., None], attn_mask, is_causal
    )
    return F.linear(out.transpose(1, 2).reshape(B, N, C), module.proj.weight, module.proj.bias)


class Version(NamedTuple):
    """Hold what tests of both versions need to know of one."""

    layer: Callable  # makes a small layer from a seed and arguments of its class
    defined: Callable  # computes its output by the definition
    embed_dim: int
    maps: int  # how many (A1, A2) a layer of that size has
    shapes: dict  # of its state dict

    def tokens(self, num_tokens=N, seed=1):
        """Return two random inputs, (B, num_tokens, embed_dim)."""
        torch.manual_seed(seed)
        return torch.randn(2, B, num_tokens, self.embed_dim, dtype=torch.float64).unbind()


V1 = Version(
    layer_v1,
    defined_v1,
    embed_dim=16,
    maps=2,
    shapes=dict.fromkeys(LAMBDAS, (4,))
    | {"qkv.weight": (48, 16), "qkv.bias": (48,), "sub_norm.weight": (8,), "proj.weight": (16, 16), "proj.bias": (16,)},
)
V2 = Version(
    layer_v2,
    defined_v2,
    embed_dim=15,
    maps=3,
    shapes={
        "qkv.weight": (60, 15),
        "qkv.bias": (60,),
        "lambda_proj.weight": (3, 15),
        "proj.weight": (15, 15),
        "proj.bias": (15,),
    },
)
