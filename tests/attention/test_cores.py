"""Compare the ways to compute both versions' cores, from q, k, v and lambda, with their written-out definitions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.attention_layers import close

from diffclip_openclip import differential_attention_reference, differential_attention_v2_reference
from diffclip_openclip.attention import paths

MASK_SHAPES = {
    "scalar": lambda B, P, N: (),
    "keys": lambda B, P, N: (N,),
    "queries": lambda B, P, N: (N, 1),
    "NN": lambda B, P, N: (N, N),
    "PNN": lambda B, P, N: (P, N, N),
    "B1NN": lambda B, P, N: (B, 1, N, N),
    "1P1N": lambda B, P, N: (1, P, 1, N),
    "B11N": lambda B, P, N: (B, 1, 1, N),
    "BPNN": lambda B, P, N: (B, P, N, N),
    "HNN": lambda B, P, N: (2 * P, N, N),
    "1H1N": lambda B, P, N: (1, 2 * P, 1, N),
    "BHNN": lambda B, P, N: (B, 2 * P, N, N),
}


def _by_maps(q, k, v, lambda_, *masks_and_dropout):
    return paths.attend_by_maps(q, k, v, lambda_, *masks_and_dropout).transpose(1, 2)


def _by_sdpa(q, k, v, lambda_, *masks_and_dropout):
    return paths.subtract(*paths.attend_by_sdpa(q, k, v, *masks_and_dropout), lambda_).transpose(1, 2)


def _v2(q, k, v, lambda_, *masks_and_dropout):
    joined = paths.attend_v2(q, k, v, lambda_, *masks_and_dropout)
    return joined.unflatten(-1, (k.shape[1], -1)).transpose(1, 2)


class Core(NamedTuple):
    attend: Callable  # (q, k, v, lambda, attn_mask, is_causal, dropout_p) -> (B, P, N, size of v)
    reference: Callable  # (q, k, v, lambda, attn_mask, is_causal) -> the same, and both maps
    version: int

    def inputs(self, B, P, N, d):
        """Return q, k, v and lambda of P pairs of maps; version 2 shares keys, and has a lambda for each token."""
        q = torch.randn(B, 2 * P, N, d, dtype=torch.float64)
        k = torch.randn(B, P * (3 - self.version), N, d, dtype=torch.float64)
        v = torch.randn(B, P, N, d * (3 - self.version), dtype=torch.float64)
        return q, k, v, torch.rand((B, P, N, 1) if self.version == 2 else (), dtype=torch.float64)


CORES = {
    "maps": Core(_by_maps, differential_attention_reference, 1),
    "sdpa": Core(_by_sdpa, differential_attention_reference, 1),
    "v2": Core(_v2, differential_attention_v2_reference, 2),
}


@pytest.fixture(params=CORES.values(), ids=CORES, scope="module")
def core(request) -> Core:
    return request.param


@pytest.mark.parametrize("core", [CORES["sdpa"], CORES["v2"]], ids=["v1", "v2"])
def test_bool_and_additive_masks_mean_the_same(core):
    """In the references."""
    torch.manual_seed(0)
    visible = torch.rand(2, 2, 5, 5) > 0.4
    additive = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, -math.inf)
    inputs = core.inputs(2, 2, 5, 4)
    results = [core.reference(*inputs, mask) for mask in (visible, additive)]
    for from_bool, from_additive in zip(*results, strict=True):
        assert torch.equal(from_bool, from_additive)
    for a in results[0][1:]:
        assert (a[~visible] == 0).all()
        assert (a[visible] > 0).all()


@st.composite
def _cases(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["none", "bool", "additive", "learned", "learned with -inf"]))
    return shape, kind, draw(st.sampled_from(list(MASK_SHAPES))), draw(st.booleans()), draw(st.integers(0, 2**31))


def _mask(kind, shape):
    """Return a mask of one kind; more than a quarter of its entries hidden, so that some queries see nothing."""
    if kind == "none":
        return None
    hidden = torch.rand(shape) < 0.4
    if kind == "bool":
        return ~hidden
    bias = torch.randn(shape, dtype=torch.float64)
    if kind != "learned":
        bias = bias.masked_fill(hidden, -math.inf)
    return bias.requires_grad_(kind.startswith("learned"))


@settings(deadline=None, max_examples=150)
@given(case=_cases())
def test_core_equals_reference(core, case):
    (B, P, N, d), kind, mask_shape, is_causal, seed = case
    torch.manual_seed(seed)
    leaves = [t.requires_grad_() for t in core.inputs(B, P, N, d)]
    inputs, mask = tuple(leaves), _mask(kind, MASK_SHAPES[mask_shape](B, P, N))
    if mask is not None and mask.requires_grad:
        leaves.append(mask)

    expected, a1, a2 = core.reference(*inputs, mask, is_causal)
    weight = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    actual = core.attend(*inputs, mask, is_causal, 0.0)
    gradients = torch.autograd.grad((actual * weight).sum(), leaves)

    close(actual, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.isfinite().all()
        close(gradient, expected_gradient)
    blind = (a1 + a2).sum(dim=-1) == 0
    assert (actual[blind] == 0).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_queries_that_may_look_nowhere_give_zeros_and_finite_gradients(core, is_causal):
    """Stated apart from the reference, which has the same rule: query 1 is blind, all others see themselves."""
    torch.manual_seed(0)
    q, k, v, lambda_ = (t.float() for t in core.inputs(2, 2, 5, 4))
    visible = torch.eye(5, dtype=torch.bool)
    visible[1] = False
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = core.attend(q, k, v, lambda_, visible, is_causal, 0.0)
    assert (out[:, :, 1] == 0).all()
    others = [0, 2, 3, 4]
    close(out[:, :, others], ((1 - lambda_) * v)[:, :, others], 1e-6)  # float32; both maps are the identity
    for gradient in torch.autograd.grad(out.square().sum(), leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # a few roundings of the inputs' precision (2^-24, 2^-11, 2^-8), relative to the tensor's norm: softmax, the
        # difference of the maps and two products each round once; gradients go through as many again
        (torch.float32, 1e-6),
        (torch.float16, 4e-3),
        (torch.bfloat16, 3e-2),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_core_in_lower_precision(core, is_causal, masked, dtype, tolerance):
    torch.manual_seed(0)
    *qkv, lambda_ = core.inputs(2, 3, 33, 16)
    qkv = [t.to(dtype) for t in qkv]
    weight = torch.randn(qkv[2].shape).to(dtype)
    mask = torch.rand(33, 33) > 0.3 if masked else None

    def run(attend, dtype, lambda_dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in qkv]
        leaves.append(lambda_.to(lambda_dtype).detach().requires_grad_())
        out = attend(*leaves, mask, is_causal, 0.0)
        return [out, *torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)]

    exact = run(lambda *arguments: core.reference(*arguments[:-1])[0], torch.float64, torch.float64)
    scales = [tensor.norm() for tensor in exact]
    if core.version == 1:  # the one lambda's gradient is a sum of terms of both signs, each of which was rounded
        _, _, a2 = core.reference(*(t.double() for t in qkv), lambda_, mask, is_causal)
        scales[-1] = (weight.double() * (a2 @ qkv[2].double())).norm()
    for actual, expected, scale in zip(run(core.attend, dtype, torch.float32), exact, scales, strict=True):
        assert (actual.double() - expected).norm() <= tolerance * scale


@pytest.mark.parametrize("is_causal", [False, True])
def test_dropout_acts_on_each_map(core, is_causal):
    """One token: both maps are [1], so half dropped out, A1 - lambda A2 is one of 0, 2, -2 lambda, 2 - 2 lambda."""
    torch.manual_seed(0)
    draws = 4000
    q, k, v, lambda_ = (t.float() for t in core.inputs(draws, 1, 1, 1))
    out = core.attend(q, k, torch.ones_like(v), torch.full_like(lambda_, 0.25), None, is_causal, 0.5)
    values, counts = out[:, 0, 0, 0].unique(return_counts=True)
    assert values.tolist() == pytest.approx([-0.5, 0.0, 1.5, 2.0])
    # each a quarter of independent draws, within 5 standard deviations
    assert (counts - draws / 4).abs().max() < 5 * math.sqrt(draws * 3 / 16)
