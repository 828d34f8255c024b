"""Rounding: within what the arithmetic allows on any processor, and in 16 bits no worse than plain attention."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import rounding

from diffclip_openclip import differential_attention_reference
from diffclip_openclip.attention import paths
from diffclip_openclip.attention.cpu import attend_cpu

EPS = 1e-5


def _joined(x_BHNd):
    return x_BHNd.transpose(1, 2).flatten(2)


def _by_definition(q, k, v, lambda_, weight, is_causal):
    heads, _, _ = differential_attention_reference(q, k, v, lambda_, None, is_causal)
    return heads, F.rms_norm(heads, heads.shape[-1:], weight, EPS)


def _by_maps(q, k, v, lambda_, weight, is_causal):
    heads = paths.attend_by_maps(q, k, v, lambda_, None, is_causal, 0.0)
    normed = paths.normalise(heads, weight, EPS)
    return heads.transpose(1, 2), normed.transpose(1, 2)


def _by_blocks(q, k, v, lambda_, weight, is_causal, block_bytes=1):
    qkv = torch.cat([_joined(q), _joined(k), _joined(v)], dim=-1)
    normed, heads, _ = attend_cpu(qkv, lambda_, weight, q.shape[1], EPS, is_causal, True, block_bytes)
    return heads.detach(), normed.unflatten(-1, (v.shape[1], -1)).transpose(1, 2)


def _results(run, tensors, grad, is_causal):
    """Heads, normed heads and the gradients of q, k, v, lambda and weight, in float64."""
    own = [tensor.detach().requires_grad_() for tensor in tensors]
    heads, normed = run(*own, is_causal)
    gradients = torch.autograd.grad(normed, own, grad.to(normed.dtype))
    return [tensor.detach().double() for tensor in (heads, normed, *gradients)]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("std", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("run", [_by_maps, _by_blocks])
def test_within_what_rounding_allows(run, dtype, std, is_causal):
    """Every element of the output and of all gradients, against float64."""
    B, P, N, d = 2, 2, 12, 8
    u = torch.finfo(torch.float32).eps / 2
    u_stored = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    for seed in range(5):
        torch.manual_seed(seed)
        q, k = (std * torch.randn(2, B, 2 * P, N, d)).to(dtype)
        v, grad = torch.randn(2, B, P, N, 2 * d).to(dtype)
        tensors = q, k, v, torch.tensor(0.7), torch.rand(2 * d).to(dtype).float() + 0.5
        exact = [tensor.double() for tensor in (*tensors, grad)]
        expected = _results(_by_definition, exact[:5], exact[5], is_causal)
        maps = [torch.stack([x[:, 0::2], x[:, 1::2]]) for x in exact[:2]]
        allowed = rounding.bound(*maps, *exact[2:], EPS, is_causal, u, u_stored, least)
        q_error, k_error = (torch.stack([*x], dim=2).flatten(1, 2) for x in (allowed.q, allowed.k))
        allowed = allowed._replace(q=q_error, k=k_error)
        for name, ours, theirs, most in zip(
            allowed._fields, _results(run, tensors, grad, is_causal), expected, allowed, strict=True
        ):
            assert ((ours - theirs).abs() <= most).all(), (name, seed, ((ours - theirs).abs() / most).max())


def test_gradients_that_are_sums_over_thousands_of_blocks():
    """One sample 4,096 times: its terms' roundings stay, and a sum in float32, block by block, would add its own."""
    B, P, N, d = 4096, 1, 3, 2
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2 * P, N, d).expand(2, B, 2 * P, N, d)
    v, grad = torch.randn(2, 1, P, N, 2 * d).expand(2, B, P, N, 2 * d)
    tensors = q, k, v, torch.tensor(0.3), torch.ones(2 * d)
    samples = [tensor[:1] if tensor.dim() > 1 else tensor for tensor in (*tensors, grad)]
    for ours, single in zip(
        _results(_by_blocks, tensors, grad, False)[-2:],
        _results(_by_blocks, samples[:5], samples[5], False)[-2:],
        strict=True,
    ):
        # a rounding of the sample's own gradient, and one of the sum
        assert ((ours - B * single).abs() <= torch.finfo(torch.float32).eps * ours.abs()).all(), ours / single / B - 1


def _relative_error(run, dtype, std, seed):
    """Of a core's heads, for logits of a standard deviation at a ViT-B/16's size."""
    torch.manual_seed(seed)
    q, k = (math.sqrt(std) * torch.randn(2, 2, 4, 197, 64)).to(dtype)
    v = torch.randn(2, 2, 197, 128).to(dtype)
    expected = run(q.double(), k.double(), v.double())
    return ((run(q, k, v).double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("run", [_by_maps, _by_blocks])
@pytest.mark.parametrize("std", [3.0, 6.0, 12.0])
def test_error_in_16_bits_does_not_grow_with_the_logits(std, run, dtype):
    """At most 1.5 times that of torch's own attention, whose softmax is in float32."""

    def ours(q, k, v):
        wide = torch.promote_types(q.dtype, torch.float32)
        return run(q, k, v, torch.tensor(0.5, dtype=wide), torch.ones(128, dtype=wide), False)[0]

    def plain(q, k, v):
        return F.scaled_dot_product_attention(q[:, 0::2], k[:, 0::2], v)

    errors = [sum(_relative_error(core, dtype, std, seed) for seed in range(3)) for core in (ours, plain)]
    assert errors[0] <= 1.5 * errors[1], errors
