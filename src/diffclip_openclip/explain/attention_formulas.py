"""Write out the attention maps of modules that compute them without keeping them.

There is a function for each attention class. It follows the class's ``forward``, takes the same arguments, and is for
evaluation mode: it leaves out dropout on the maps.

Shape legend::

    B batch    N tokens    C embed_dim    h maps a layer: heads, or pairs of heads    d size of a value
"""

import inspect
from collections.abc import Callable
from functools import cache, singledispatch
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


class WrittenOut(NamedTuple):
    """Hold the maps of a call, and how the module's output follows from them."""

    a1: Tensor  # A1, or plain attention's only map, (B, h, N, N)
    a2: Tensor | None  # A2, (B, h, N, N); None for plain attention
    lambda_: Tensor | None  # weight of A2, broadcastable to (B, h, N, 1); None for plain attention
    # the map that the values are multiplied with, (B, h, N, N) -> the module's output, (B, N, C); for
    # weighted_difference(a1, a2, lambda_) it returns what the call returned
    output: Callable[[Tensor], Tensor]


def weighted_difference(a1: Tensor, a2: Tensor | None, lambda_: Tensor | None) -> Tensor:
    """Return A1 - lambda A2 in the dtype of ``a1``, or ``a1`` itself for plain attention."""
    return a1 if a2 is None or lambda_ is None else a1 - lambda_.to(a1.dtype) * a2


@singledispatch
def write_out(attention: nn.Module, *args: Any, **kwargs: Any) -> WrittenOut:
    """Compute the maps of the call ``attention(*args, **kwargs)``.

    Raises:
        ValueError: the module's class is not among :data:`SUPPORTED`.
    """
    raise ValueError(f"the attention maps of {type(attention).__name__} cannot be written out; {SUPPORTED}")


def is_supported(attention: nn.Module) -> bool:
    """Tell whether :func:`write_out` knows the class whose ``forward`` the module runs."""
    # a subclass may have a forward of its own, which the formula of its base would get wrong
    return next(cls for cls in type(attention).__mro__ if "forward" in vars(cls)) in write_out.registry


@write_out.register
def _(
    attention: DifferentialAttention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> WrittenOut:
    a1, a2 = attention.attention_maps(x, attn_mask, is_causal)
    return WrittenOut(a1, a2, attention.compute_lambda(), lambda given: attention.attend_with(x, given))


@write_out.register
def _(
    attention: DifferentialAttentionV2, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> WrittenOut:
    a1, a2 = attention.attention_maps(x, attn_mask, is_causal)
    return WrittenOut(a1, a2, attention.compute_lambda(x), lambda given: attention.attend_with(x, given))


@write_out.register
def _(
    attention: timm.layers.DiffAttention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> WrittenOut:
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    h = attention.num_heads
    q, k, v = attention.q_norm(_heads(q, 2 * h)), attention.k_norm(_heads(k, 2 * h)), _heads(v, h)
    lambda_ = attention._compute_lambda()
    _, a1, a2 = differential_attention_reference(q, k, v, lambda_, attn_mask, is_causal)

    def output(given: Tensor) -> Tensor:
        out_BhNd = attention.sub_norm(given.to(v.dtype) @ v) * (1 - attention.lambda_init)
        return attention.proj(attention.norm(_joined(out_BhNd)))

    return WrittenOut(a1, a2, lambda_, output)


@write_out.register
def _(
    attention: timm.layers.Attention, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> WrittenOut:
    q, k, v = (_heads(part, attention.num_heads) for part in attention.qkv(x).chunk(3, dim=-1))
    return _of_timm(attention, x, q, k, v, None, attn_mask, is_causal)


@write_out.register(EvaAttention)
@write_out.register(timm.layers.AttentionRope)
def _(
    attention: Any, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
) -> WrittenOut:
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
) -> WrittenOut:
    """Compute what timm's plain attention classes have in common, from q, k and v on.

    Args:
        q: (B, h, N, d); k and v may have fewer heads.
    """
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rope is not None:
        q, k = (_rotated(attention, part, rope).type_as(v) for part in (q, k))
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    gate = getattr(attention, "gate", None)  # EvaAttention has none

    def output(out_BhNd: Tensor) -> Tensor:
        out_BNC = attention.norm(_joined(out_BhNd))
        return attention.proj(out_BNC if gate is None else out_BNC * gate(x).sigmoid())

    return _plain(q, k, v, attn_mask, is_causal, output)


def _rotated(attention: Any, x_BhNd: Tensor, rope: Tensor) -> Tensor:
    prefix, patches = x_BhNd.split([attention.num_prefix_tokens, x_BhNd.shape[2] - attention.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attention.rotate_half)], dim=2)


@write_out.register
def _(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
) -> WrittenOut:
    weights, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    q, k, v = (
        _heads(F.linear(x, weight, bias), attention.num_heads)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    mask = _may_look(attn_mask, q, hides_where_true=True)
    return _plain(q, k, v, mask, False, lambda out_BhNd: attention.out_proj(_joined(out_BhNd)))


@write_out.register
def _(attention: open_clip.transformer.Attention, *args: Any, **kwargs: Any) -> WrittenOut:
    # forward takes (x, attn_mask) in open_clip 3.3, (x, k_x, v_x, attn_mask) in its main branch
    call = inspect.signature(attention.forward).bind(*args, **kwargs).arguments
    x, key, value = call["x"], call.get("k_x"), call.get("v_x")
    weights, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    q, k, v = (
        _heads(F.linear(x if given is None else given, weight, bias), attention.num_heads)
        for given, weight, bias in zip((x, key, value), weights, biases, strict=True)
    )
    if attention.logit_scale is None:
        q, k = attention.ln_q(q), attention.ln_k(k)
    else:  # cosines times a learned scale, which sqrt(d) keeps from being divided
        scale = attention.logit_scale.clamp(max=attention.logit_scale_max).exp() * q.shape[-1] ** 0.5
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)

    def output(out_BhNd: Tensor) -> Tensor:
        out_BhNd = out_BhNd if attention.head_scale is None else out_BhNd * attention.head_scale
        return attention.out_proj(attention.ln_inner(_joined(out_BhNd)))

    return _plain(q, k, v, _may_look(call.get("attn_mask"), q, _open_clip_hides_where_true()), False, output)


def _plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None,
    is_causal: bool,
    output: Callable[[Tensor], Tensor],
) -> WrittenOut:
    """Compute plain attention.

    Args:
        q: (B, h, N, d), as k and v.
        output: what the module does with A v, (B, h, N, d), to make its output, (B, N, C).
    """
    B, h, N, _ = q.shape
    a1_BhNN = attention_map(q, k, attention_bias(attn_mask, is_causal, B, h, N, q.dtype, q.device))
    return WrittenOut(a1_BhNN, None, None, lambda given: output(given.to(v.dtype) @ v))


def _may_look(attn_mask: Tensor | None, q_BhNd: Tensor, hides_where_true: bool) -> Tensor | None:
    """Turn a mask of torch or open_clip into one of timm, whose boolean masks are True where a query may look.

    Masks of single heads, (B h, N, N), become (B, h, N, N).
    """
    if attn_mask is None:
        return None
    B, h, N, _ = q_BhNd.shape
    mask = attn_mask.view(B, h, N, N) if attn_mask.dim() == 3 else attn_mask
    return ~mask if hides_where_true and mask.dtype == torch.bool else mask


@cache
def _open_clip_hides_where_true() -> bool:
    """Tell which way the installed open_clip reads boolean masks: 3.3 hides where one is True, its main branch shows.

    Its attention is asked. Of two tokens, the first is zero, so its own value is. If it may look at itself alone, the
    mask changes nothing of what it returns without the other.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        attention = open_clip.transformer.Attention(1, 1).eval()
        tokens_12C = torch.tensor([[[0.0], [1.0]]])
        masked = attention(tokens_12C, attn_mask=torch.eye(2, dtype=torch.bool))
        return not torch.equal(masked[:, :1], attention(tokens_12C[:, :1]))


def _heads(x_BNC: Tensor, heads: int) -> Tensor:
    return x_BNC.unflatten(-1, (heads, -1)).transpose(1, 2)


def _joined(x_BhNd: Tensor) -> Tensor:
    return x_BhNd.transpose(1, 2).flatten(2)


SUPPORTED = "supported are " + ", ".join(
    f"{cls.__module__.split('.')[0]}'s {cls.__name__}" for cls in write_out.registry if cls is not object
)
