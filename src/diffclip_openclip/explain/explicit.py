"""Calls of attention modules with their maps written out, for modules that compute them without keeping them.

Each function below follows the ``forward`` of the class that it is registered for, takes its arguments, and is for
evaluation mode: dropout on the maps is left out.

Shape legend::

    B batch    N tokens    C embed_dim    h maps a layer: heads, or pairs of heads    d size of a value
"""

from collections.abc import Callable
from functools import singledispatch
from typing import Any, NamedTuple

import open_clip.transformer
import timm.layers
import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from diffclip_openclip.attention.reference import attention_bias, attention_map, differential_attention_reference
from diffclip_openclip.attention.v1 import DifferentialAttention
from diffclip_openclip.attention.v2 import DifferentialAttentionV2


class Explicit(NamedTuple):
    """The maps of a call, and the module's output as a function of the map that its values are multiplied with.

    ``a1`` and ``a2`` are (B, h, N, N), ``lambda_`` is broadcastable to (B, h, N, 1); plain attention has ``a1`` alone.
    ``output`` takes (B, h, N, N) and gives (B, N, C); at :func:`weighted_difference` it gives what the call gave.
    """

    a1: Tensor
    a2: Tensor | None
    lambda_: Tensor | None
    output: Callable[[Tensor], Tensor]


def weighted_difference(a1: Tensor, a2: Tensor | None, lambda_: Tensor | None) -> Tensor:
    """A1 - lambda A2, in the dtype of ``a1``; ``a1`` itself for plain attention."""
    return a1 if a2 is None or lambda_ is None else a1 - lambda_.to(a1.dtype) * a2


@singledispatch
def explicit(attention: nn.Module, *args: Any, **kwargs: Any) -> Explicit:
    """The call ``attention(*args, **kwargs)`` with its maps written out.

    Raises:
        ValueError: a module that :func:`is_supported` denies.
    """
    raise ValueError(f"the attention maps of {type(attention).__name__} cannot be written out; {SUPPORTED}")


def is_supported(attention: nn.Module) -> bool:
    """Whether :func:`explicit` knows the class whose ``forward`` the module runs; a subclass may have its own."""
    return next(cls for cls in type(attention).__mro__ if "forward" in vars(cls)) in explicit.registry


@explicit.register
def _(
    attention: DifferentialAttention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Explicit:
    a1, a2 = attention.attention_maps(x, attn_mask, is_causal)
    return Explicit(a1, a2, attention.compute_lambda(), lambda given: attention.attend_with(x, given))


@explicit.register
def _(
    attention: DifferentialAttentionV2, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Explicit:
    a1, a2 = attention.attention_maps(x, attn_mask, is_causal)
    return Explicit(a1, a2, attention.compute_lambda(x), lambda given: attention.attend_with(x, given))


@explicit.register
def _(
    attention: timm.layers.DiffAttention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Explicit:
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    h = attention.num_heads
    q, k, v = attention.q_norm(_heads(q, 2 * h)), attention.k_norm(_heads(k, 2 * h)), _heads(v, h)
    lambda_ = attention._compute_lambda()
    _, a1, a2 = differential_attention_reference(q, k, v, lambda_, attn_mask, is_causal)

    def output(given: Tensor) -> Tensor:
        out_BhNd = attention.sub_norm(given.to(v.dtype) @ v) * (1 - attention.lambda_init)
        return attention.proj(attention.norm(_joined(out_BhNd)))

    return Explicit(a1, a2, lambda_, output)


@explicit.register
def _(
    attention: timm.layers.Attention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Explicit:
    q, k, v = (_heads(part, attention.num_heads) for part in attention.qkv(x).chunk(3, dim=-1))
    return _of_timm(attention, x, q, k, v, None, attn_mask, is_causal)


@explicit.register(EvaAttention)
@explicit.register(timm.layers.AttentionRope)
def _(
    attention: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Explicit:
    parts: tuple[Tensor, ...]
    if attention.qkv is None:
        parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
    elif getattr(attention, "q_bias", None) is None:
        parts = attention.qkv(x).chunk(3, dim=-1)
    else:
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        parts = F.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in parts)
    return _of_timm(attention, x, q, k, v, rope, attn_mask, is_causal)


def _of_timm(
    attention: Any,
    x: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
) -> Explicit:
    """What timm's plain attention classes have in common, from q, k and v (B, h, N, d) on; k and v may have fewer h."""
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        q, k = (_rotated(attention, part, rope).type_as(v) for part in (q, k))
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    gate = getattr(attention, "gate", None)  # timm 1.0.26 has none yet

    def output(out_BhNd: Tensor) -> Tensor:
        out_BNC = attention.norm(_joined(out_BhNd))
        return attention.proj(out_BNC if gate is None else out_BNC * gate(x).sigmoid())

    return _plain(q, k, v, attn_mask, is_causal, output)


def _rotated(attention: Any, x_BhNd: Tensor, rope: Tensor) -> Tensor:
    prefix, patches = x_BhNd.split([attention.num_prefix_tokens, x_BhNd.shape[2] - attention.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attention.rotate_half)], dim=2)


@explicit.register
def _(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
) -> Explicit:
    weights, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    q, k, v = (
        _heads(F.linear(x, weight, bias), attention.num_heads)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    return _plain(q, k, v, _may_look(attn_mask, q), False, lambda out_BhNd: attention.out_proj(_joined(out_BhNd)))


@explicit.register
def _(attention: open_clip.transformer.Attention, x: Tensor, attn_mask: Tensor | None = None) -> Explicit:
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = (_heads(part, attention.num_heads) for part in qkv.chunk(3, dim=-1))

    def output(out_BhNd: Tensor) -> Tensor:
        out_BhNd = out_BhNd if attention.head_scale is None else out_BhNd * attention.head_scale
        return attention.out_proj(attention.ln_inner(_joined(out_BhNd)))

    return _plain(attention.ln_q(q), attention.ln_k(k), v, _may_look(attn_mask, q), False, output)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    output: Callable[[Tensor], Tensor],
) -> Explicit:
    """Plain attention with q, k and v (B, h, N, d); ``output`` is what follows on A v."""
    B, h, N, _ = q.shape
    a1_BhNN = attention_map(q, k, attention_bias(attn_mask, is_causal, B, h, N, q.dtype, q.device))
    return Explicit(a1_BhNN, None, None, lambda given: output(given.to(v.dtype) @ v))


def _may_look(attn_mask: Tensor | None, q_BhNd: Tensor) -> Tensor | None:
    """torch's and open_clip's mask as timm's: True where a query may look, not where it may not; heads on their own."""
    if attn_mask is None:
        return None
    B, h, N, _ = q_BhNd.shape
    mask = attn_mask.view(B, h, N, N) if attn_mask.dim() == 3 else attn_mask
    return ~mask if mask.dtype == torch.bool else mask


def _heads(x_BNC: Tensor, heads: int) -> Tensor:
    return x_BNC.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x_BhNd: Tensor) -> Tensor:
    return x_BhNd.transpose(1, 2).flatten(2)


SUPPORTED = "supported are " + ", ".join(
    f"{cls.__module__.split('.')[0]}'s {cls.__name__}" for cls in explicit.registry if cls is not object
)
