"""Differential attention against its written-out definition, timm's implementation and hand-computed numbers."""

import ast
import copy
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DiffAttention

from diffclip_openclip import DifferentialAttention, differential_attention_reference
from diffclip_openclip.attention import paths, use_path
from diffclip_openclip.attention.v1 import dynamic_lambda_init, resolve_lambda_init


def _by_maps(q, k, v, lambda_, *masks_and_dropout):
    return paths.attend_by_maps(q, k, v, lambda_, *masks_and_dropout).transpose(1, 2)


def _by_sdpa(q, k, v, lambda_, *masks_and_dropout):
    return paths.subtract(*paths.attend_by_sdpa(q, k, v, *masks_and_dropout), lambda_).transpose(1, 2)


CORES = {"maps": _by_maps, "sdpa": _by_sdpa}
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
B, N, C, H = 2, 5, 16, 4
P, d = H // 2, C // H

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


def _close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=CORES)
def path(request):
    """The module computes its core in this way, on whatever device."""
    with use_path(request.param):
        yield


def _module(seed=0, **kwargs):
    torch.manual_seed(seed)
    module = DifferentialAttention(C, H, **({"lambda_init": 0.7} | kwargs)).double()
    with torch.no_grad():
        for name in LAMBDAS:
            getattr(module, name).normal_(std=0.5)  # far enough from 0 for lambda to differ from lambda_init
        module.sub_norm.weight.normal_(1.0, 0.2)
    return module


def _defined(module, x, attn_mask=None, is_causal=False):
    """The module's output by the definition: projections, core, norm and scale each written out."""
    B, N, C = x.shape
    H, P = module.num_heads, module.num_heads // 2
    q, k, v = F.linear(x, module.qkv.weight, module.qkv.bias).split(C, dim=-1)
    q, k = (t.view(B, N, H, C // H).transpose(1, 2) for t in (q, k))
    v = v.view(B, N, P, C // P).transpose(1, 2)
    out, _, _ = differential_attention_reference(q, k, v, module.compute_lambda(), attn_mask, is_causal)
    out = out * (out.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt() * module.sub_norm.weight
    out = (out * (1 - module.lambda_init)).transpose(1, 2).reshape(B, N, C)
    return F.linear(out, module.proj.weight, module.proj.bias)


def _output_and_gradients(module, x, forward, weight):
    x = x.detach().requires_grad_()
    module.zero_grad()
    out = forward(x)
    (out * weight).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in module.named_parameters()}


def _causal_by_hand(N):
    return [[j <= i for j in range(N)] for i in range(N)]


# --- the reference itself ---


@pytest.mark.parametrize("is_causal", [False, True])
def test_reference_is_the_definition_entry_by_entry(is_causal):
    """Plain Python over scalars: adjacent heads pair up, values have twice the head's size."""
    torch.manual_seed(0)
    B, H, N, d, lambda_ = 2, 4, 3, 2, 0.3
    q, k = torch.randn(2, B, H, N, d, dtype=torch.float64)
    v = torch.randn(B, H // 2, N, 2 * d, dtype=torch.float64)
    out, a1, a2 = differential_attention_reference(
        q, k, v, torch.tensor(lambda_, dtype=torch.float64), is_causal=is_causal
    )
    visible = _causal_by_hand(N) if is_causal else [[True] * N] * N

    def softmax_row(b, h, i):
        scores = [sum(q[b, h, i, c] * k[b, h, j, c] for c in range(d)).item() / math.sqrt(d) for j in range(N)]
        weights = [math.exp(s) if visible[i][j] else 0.0 for j, s in enumerate(scores)]
        return [w / sum(weights) for w in weights]

    for b in range(B):
        for p in range(H // 2):
            for i in range(N):
                row1, row2 = softmax_row(b, 2 * p, i), softmax_row(b, 2 * p + 1, i)
                assert a1[b, p, i].tolist() == pytest.approx(row1, abs=1e-12)
                assert a2[b, p, i].tolist() == pytest.approx(row2, abs=1e-12)
                for e in range(2 * d):
                    expected = sum((row1[j] - lambda_ * row2[j]) * v[b, p, j, e].item() for j in range(N))
                    assert out[b, p, i, e].item() == pytest.approx(expected, abs=1e-12)


def test_bool_and_additive_masks_mean_the_same():
    torch.manual_seed(0)
    q, k = torch.randn(2, B, H, N, d, dtype=torch.float64)
    v = torch.randn(B, P, N, 2 * d, dtype=torch.float64)
    visible = torch.rand(B, P, N, N) > 0.4
    additive = torch.zeros(B, P, N, N, dtype=torch.float64).masked_fill(~visible, -math.inf)
    _, a1, a2 = differential_attention_reference(q, k, v, torch.tensor(0.3), visible)
    assert all((a[~visible] == 0).all() for a in (a1, a2))
    assert all((a[visible] > 0).all() for a in (a1, a2))
    for from_bool, from_additive in zip(
        (a1, a2), differential_attention_reference(q, k, v, torch.tensor(0.3), additive)[1:], strict=True
    ):
        assert torch.equal(from_bool, from_additive)


# --- fast paths against the reference ---


@st.composite
def _cases(draw):
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    kind = draw(st.sampled_from(["none", "bool", "additive", "learned", "learned with -inf"]))
    return shape, kind, draw(st.sampled_from(list(MASK_SHAPES))), draw(st.booleans()), draw(st.integers(0, 2**31))


def _mask(kind, shape):
    """A mask of one kind; more than a quarter of its entries hidden, so that some queries see nothing."""
    if kind == "none":
        return None
    hidden = torch.rand(shape) < 0.4
    if kind == "bool":
        return ~hidden
    bias = torch.randn(shape, dtype=torch.float64)
    if kind != "learned":
        bias = bias.masked_fill(hidden, -math.inf)
    return bias.requires_grad_(kind.startswith("learned"))


@pytest.mark.parametrize("attend", CORES.values(), ids=CORES)
@settings(deadline=None, max_examples=150)
@given(case=_cases())
def test_core_equals_reference(attend, case):
    (B, N, P, d), kind, mask_shape, is_causal, seed = case
    torch.manual_seed(seed)
    q, k = torch.randn(2, B, 2 * P, N, d, dtype=torch.float64)
    v, weight = torch.randn(2, B, P, N, 2 * d, dtype=torch.float64)
    lambda_ = torch.randn((), dtype=torch.float64)
    mask = _mask(kind, MASK_SHAPES[mask_shape](B, P, N))
    leaves = [t.requires_grad_() for t in (q, k, v, lambda_)]
    if mask is not None and mask.requires_grad:
        leaves.append(mask)

    expected, a1, a2 = differential_attention_reference(q, k, v, lambda_, mask, is_causal)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    actual = attend(q, k, v, lambda_, mask, is_causal, 0.0)
    gradients = torch.autograd.grad((actual * weight).sum(), leaves)

    _close(actual, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.isfinite().all()
        _close(gradient, expected_gradient)
    blind = (a1 + a2).sum(dim=-1) == 0
    assert (actual[blind] == 0).all()


@pytest.mark.parametrize("attend", CORES.values(), ids=CORES)
@pytest.mark.parametrize("is_causal", [False, True])
def test_queries_that_may_look_nowhere_give_zeros_and_finite_gradients(attend, is_causal):
    """Stated apart from the reference, which has the same rule: query 1 is blind, all others see themselves."""
    torch.manual_seed(0)
    q, k = torch.randn(2, B, H, N, d)
    v = torch.randn(B, P, N, 2 * d)
    visible = torch.eye(N, dtype=torch.bool)
    visible[1] = False
    leaves = [t.requires_grad_() for t in (q, k, v)]
    out = attend(q, k, v, torch.tensor(0.3), visible, is_causal, 0.0)
    assert (out[:, :, 1] == 0).all()
    others = [0, 2, 3, 4]
    _close(out[:, :, others], 0.7 * v[:, :, others], 1e-6)  # float32; both maps are the identity
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
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("attend", CORES.values(), ids=CORES)
def test_core_in_lower_precision(attend, is_causal, dtype, tolerance):
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 6, 33, 16).to(dtype)
    v, weight = torch.randn(2, 2, 3, 33, 32).to(dtype)
    lambda_ = torch.tensor(0.6)
    mask = torch.rand(33, 33) > 0.3

    def run(attend, dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (q, k, v)] + [lambda_.clone().requires_grad_()]
        out = attend(*leaves, mask, is_causal, 0.0)
        return [out, *torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)]

    expected = run(lambda *args: differential_attention_reference(*args[:-1])[0], torch.float64)
    for actual, exact in zip(run(attend, dtype), expected, strict=True):
        assert (actual.double() - exact).norm() <= tolerance * exact.norm()


# --- the module ---


@pytest.mark.parametrize("num_tokens", [1, N])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("path")
def test_module_equals_definition(masked, is_causal, num_tokens):
    module = _module()
    x, weight = torch.randn(2, B, num_tokens, C, dtype=torch.float64)
    mask = torch.rand(B, 1, num_tokens, num_tokens) > 0.3 if masked else None
    actual = _output_and_gradients(module, x, lambda x: module(x, mask, is_causal), weight)
    expected = _output_and_gradients(module, x, lambda x: _defined(module, x, mask, is_causal), weight)
    for name in expected:
        _close(actual[name], expected[name])
    for name in LAMBDAS:
        assert num_tokens == 1 or actual[name].abs().max() > 1e-6, name  # compared something


@pytest.mark.usefixtures("path")
def test_learned_mask_gets_its_gradient_through_the_module():
    module, (x, weight) = _module(), torch.randn(2, B, N, C, dtype=torch.float64)
    bias = torch.randn(1, P, 1, N, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad((module(x, bias) * weight).sum(), bias)
    (expected,) = torch.autograd.grad((_defined(module, x, bias) * weight).sum(), bias)
    _close(actual, expected)
    assert actual.abs().max() > 1e-6


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # as for the core, plus two linear layers and the norm, which divides by the small difference of the maps
        (torch.float32, 3e-6),
        (torch.float16, 1e-2),
        (torch.bfloat16, 6e-2),
    ],
)
@pytest.mark.usefixtures("path")
def test_module_in_lower_precision(dtype, tolerance):
    module = _module().to(dtype)
    x = torch.randn(B, N, C).to(dtype)
    exact = _defined(copy.deepcopy(module).double(), x.double(), is_causal=True)
    assert (module(x, is_causal=True).double() - exact).norm() <= tolerance * exact.norm()


class _Float64Oracle(DiffAttention):
    """timm's class rounds its lambda to float32 whatever the parameters are; this keeps its formula in float64."""

    def _compute_lambda(self):
        dots = [(self.get_parameter(f"lambda_q{i}") * self.get_parameter(f"lambda_k{i}")).sum(-1) for i in (1, 2)]
        return dots[0].exp() - dots[1].exp() + self.lambda_init


def _timm(module, oracle_class=DiffAttention, **kwargs):
    oracle = oracle_class(C, num_heads=H // 2, qkv_bias=True, **kwargs)  # timm counts pairs
    oracle.lambda_init = module.lambda_init
    oracle.to(module.qkv.weight.dtype).load_state_dict(module.state_dict())
    return oracle


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.usefixtures("path")
def test_timm_agrees(is_causal, fused):
    module = _module()
    oracle = _timm(module, _Float64Oracle)
    oracle.fused_attn = fused
    x, weight = torch.randn(2, B, N, C, dtype=torch.float64)
    mask = None if is_causal else torch.randn(B, 1, N, N, dtype=torch.float64)  # timm takes one of the two
    actual = _output_and_gradients(module, x, lambda x: module(x, mask, is_causal), weight)
    expected = _output_and_gradients(oracle, x, lambda x: oracle(x, mask, is_causal), weight)
    assert actual.keys() == expected.keys()
    for name in expected:
        _close(actual[name], expected[name])


def test_timm_agrees_unmodified_in_float32():
    module = _module().float()
    x = torch.randn(B, N, C)
    _close(module(x), _timm(module)(x), 1e-5)  # float32


def test_lambda_by_hand():
    module = DifferentialAttention(8, 4, lambda_init=0.6)
    with torch.no_grad():
        module.lambda_q1.copy_(torch.tensor([1.0, 2.0]))
        module.lambda_k1.copy_(torch.tensor([0.5, -0.5]))
        module.lambda_q2.copy_(torch.tensor([0.25, 1.0]))
        module.lambda_k2.copy_(torch.tensor([2.0, -1.0]))
    # exp(0.5 - 1) - exp(0.5 - 1) + 0.6, then with a second dot of 1.5
    assert module.compute_lambda().item() == pytest.approx(0.6, abs=1e-7)
    with torch.no_grad():
        module.lambda_k2.copy_(torch.tensor([2.0, 1.0]))
    assert module.double().compute_lambda().item() == pytest.approx(math.exp(-0.5) - math.exp(1.5) + 0.6, abs=1e-12)


def test_dynamic_schedule_by_hand():
    # 0.8 - 0.6 exp(-0.3 l)
    expected = {0: 0.2, 1: 0.355509, 2: 0.470713, 11: 0.777870}
    for depth, value in expected.items():
        assert dynamic_lambda_init(depth) == pytest.approx(value, abs=1e-6)
        assert DifferentialAttention(C, H, lambda_init="dynamic", depth=depth).lambda_init == dynamic_lambda_init(depth)
        assert resolve_lambda_init(0.5, depth) == 0.5


def test_lambda_vectors_are_drawn_with_std_0_1():
    torch.manual_seed(0)
    module = DifferentialAttention(2 * 4096, 2, device="meta")
    module.lambda_q1, module.lambda_k1, module.lambda_q2, module.lambda_k2 = (
        torch.nn.Parameter(torch.full((4096,), math.nan)) for _ in range(4)
    )
    module.reset_parameters()
    for name in LAMBDAS:
        vector = getattr(module, name)
        assert vector.std().item() == pytest.approx(0.1, rel=0.05)
        assert vector.mean().item() == pytest.approx(0.0, abs=0.01)


def test_defaults_are_the_papers():
    module = DifferentialAttention(C)
    assert (module.num_heads, module.lambda_init, module.attn_drop.p) == (8, 0.8, 0.0)
    assert module.qkv.bias is not None
    assert module.proj.bias is not None
    assert module.sub_norm.eps == 1e-5
    assert (module.sub_norm.weight == 1).all()


@pytest.mark.parametrize("bias", ["qkv_bias", "proj_bias"])
@pytest.mark.usefixtures("path")
def test_without_bias(bias):
    module = _module(**{bias: False})
    x = torch.randn(B, N, C, dtype=torch.float64)
    assert f"{bias.removesuffix('_bias')}.bias" not in module.state_dict()
    _close(module(x), _defined(module, x))


# --- errors ---


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"dim": 15, "num_heads": 5}, ["num_heads", "5", "even"]),
        ({"dim": 16, "num_heads": 1}, ["num_heads", "1", "even"]),
        ({"dim": 16, "num_heads": 0}, ["num_heads", "0"]),
        ({"dim": 16, "num_heads": -2}, ["num_heads", "-2"]),
        ({"dim": 18, "num_heads": 4}, ["dim", "18", "num_heads", "4"]),
        ({"dim": 16, "num_heads": 4, "lambda_init": 1.0}, ["lambda_init", "1.0", "[0, 1)", "dynamic"]),
        ({"dim": 16, "num_heads": 4, "lambda_init": -0.1}, ["lambda_init", "-0.1", "[0, 1)"]),
        ({"dim": 16, "num_heads": 4, "lambda_init": math.nan}, ["lambda_init", "nan", "[0, 1)"]),
        ({"dim": 16, "num_heads": 4, "lambda_init": "static"}, ["lambda_init", "'static'", "'dynamic'"]),
        ({"dim": 16, "num_heads": 4, "lambda_init": "0.8"}, ["lambda_init", "'0.8'", "'dynamic'"]),
    ],
)
def test_bad_sizes_are_refused(kwargs, parts):
    with pytest.raises(ValueError, match="must be") as error:
        DifferentialAttention(**kwargs)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "shape",
    [(5, 6), (6, 5), (6,), (4, 1, 5, 5), (1, 3, 5, 5), (1, 5, 5, 5), (3, 5, 5), (1, 3, 2, 5, 5)],
)
@pytest.mark.usefixtures("path")
def test_mask_of_wrong_shape_is_refused(shape):
    x = torch.randn(3, 5, C, dtype=torch.float64)  # of two pairs, so (batch, tokens, tokens) does not fit
    with pytest.raises(ValueError, match="attn_mask") as error:
        _module()(x, torch.ones(shape, dtype=torch.bool))
    assert str(list(shape)) in str(error.value)
    assert "[3, 2, 5, 5]" in str(error.value)
    assert "[3, 4, 5, 5]" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
@pytest.mark.usefixtures("path")
def test_mask_of_integers_is_refused(dtype):
    with pytest.raises(ValueError, match="bool") as error:
        _module()(torch.randn(B, N, C, dtype=torch.float64), torch.ones(N, N, dtype=dtype))
    assert str(dtype) in str(error.value)


# --- dropout ---


@pytest.mark.usefixtures("path")
def test_dropout_is_off_in_eval():
    module = _module(attn_drop=0.5, proj_drop=0.5).eval()
    x = torch.randn(B, N, C, dtype=torch.float64)
    _close(module(x), _defined(module, x))


@pytest.mark.parametrize("kind", ["attn_drop", "proj_drop"])
@pytest.mark.usefixtures("path")
def test_dropout_is_on_in_training(kind):
    module = _module(**{kind: 0.5}).train()
    x = torch.randn(B, N, C, dtype=torch.float64)
    assert not torch.allclose(module(x), module(x))


@pytest.mark.parametrize("attend", CORES.values(), ids=CORES)
def test_dropout_acts_on_each_map(attend):
    """One token: both maps are [1], so half dropped out, A1 - lambda A2 is one of 0, 2, -2 lambda, 2 - 2 lambda."""
    torch.manual_seed(0)
    draws, lambda_ = 4000, 0.25
    q, k = torch.randn(2, draws, 2, 1, 1)
    out = attend(q, k, torch.ones(draws, 1, 1, 2), torch.tensor(lambda_), None, False, 0.5)[:, 0, 0, 0]
    values, counts = out.unique(return_counts=True)
    assert values.tolist() == pytest.approx([-0.5, 0.0, 1.5, 2.0])
    # each a quarter of independent draws, within 5 standard deviations
    assert (counts - draws / 4).abs().max() < 5 * math.sqrt(draws * 3 / 16)


# --- what the hosts do with a module ---


@pytest.mark.usefixtures("path")
def test_autocast_bfloat16():
    module = _module().float()
    x = torch.randn(B, N, C)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x, is_causal=True)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    exact = _defined(module, x, is_causal=True)
    assert 0 < (out.float() - exact).norm() <= 6e-2 * exact.norm()  # bfloat16, as for the module above
    for name, p in module.named_parameters():
        assert p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name


def test_a_layer_has_the_dtype_that_was_asked_for_and_lambda_float32():
    module = DifferentialAttention(C, H, dtype=torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.compute_lambda().dtype == torch.float32
    assert module(torch.randn(B, N, C, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert module.double().compute_lambda().dtype == torch.float64


@pytest.mark.usefixtures("path")
def test_compiles_without_graph_breaks():
    module = _module().float()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    x, weight = torch.randn(2, B, N, C)
    mask = torch.rand(N, N) > 0.3
    actual = _output_and_gradients(module, x, lambda x: compiled(x, mask, True), weight)
    expected = _output_and_gradients(module, x, lambda x: module(x, mask, True), weight)
    for name in expected:
        _close(actual[name], expected[name], 1e-4)  # float32, another order of summation


@pytest.mark.usefixtures("path")
def test_exports_with_any_batch_size(tmp_path):
    module = _module().eval()
    x = torch.randn(B, N, C, dtype=torch.float64)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        module, (x,), {"is_causal": True}, dynamic_shapes={"x": {0: batch}, "is_causal": None}
    )
    torch.export.save(program, tmp_path / "attention.pt2")
    restored = torch.export.load(tmp_path / "attention.pt2").module()
    x = torch.randn(B + 1, N, C, dtype=torch.float64)
    _close(restored(x, is_causal=True), module(x, is_causal=True))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("is_causal", [False, True])
def test_torchscript_is_equal(is_causal):
    module = _module()
    scripted = torch.jit.script(module)
    x = torch.randn(B, N, C, dtype=torch.float64)
    for mask in (None, torch.rand(N, N) > 0.3, torch.randn(B, 1, N, N, dtype=torch.float64)):
        # float64; the scripted layer scales behind the norm, not the norm's weight
        _close(scripted(x, mask, is_causal), module(x, mask, is_causal), 1e-14)


def test_deepcopy_is_equal_and_apart():
    module = _module()
    twin = copy.deepcopy(module)
    x = torch.randn(B, N, C, dtype=torch.float64)
    assert torch.equal(twin(x), module(x))
    before = module(x)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert torch.equal(module(x), before)


def test_state_dict_keys_and_round_trip():
    module = _module()
    state_dict = module.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state_dict.items()} == {
        "lambda_q1": (4,),
        "lambda_k1": (4,),
        "lambda_q2": (4,),
        "lambda_k2": (4,),
        "qkv.weight": (48, 16),
        "qkv.bias": (48,),
        "sub_norm.weight": (8,),
        "proj.weight": (16, 16),
        "proj.bias": (16,),
    }
    other = _module(seed=1)
    x = torch.randn(B, N, C, dtype=torch.float64)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(state_dict)
    assert torch.equal(other(x), module(x))


def test_built_on_meta_then_materialised():
    with torch.device("meta"):
        module = DifferentialAttention(C, H)
    assert all(p.is_meta for p in module.parameters())
    assert module(torch.empty(B, N, C, device="meta")).shape == (B, N, C)
    module.to_empty(device="cpu")
    for p in module.parameters():
        torch.nn.init.constant_(p, math.nan)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert module(torch.randn(B, N, C)).isfinite().all()


# --- what attention means ---


@pytest.mark.usefixtures("path")
def test_causal_attention_does_not_see_later_tokens():
    module = _module()
    x = torch.randn(B, N, C, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3:] = torch.randn(B, N - 3, C, dtype=torch.float64)
    out, out_changed = module(x, is_causal=True), module(changed, is_causal=True)
    assert torch.equal(out[:, :3], out_changed[:, :3])
    assert not torch.isclose(out[:, 3:], out_changed[:, 3:]).all(dim=-1).any()
    assert not torch.isclose(module(x)[:, :3], module(changed)[:, :3]).all(dim=-1).any()


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_maps(is_causal):
    module = _module()
    x = torch.randn(B, N, C, dtype=torch.float64)
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[2] = False
    a1, a2 = module.attention_maps(x, mask, is_causal=is_causal)
    rows = torch.ones(B, P, N, dtype=torch.float64)
    rows[:, :, 2] = 0  # may look nowhere
    for a in (a1, a2):
        assert a.shape == (B, P, N, N)
        _close(a.sum(dim=-1), rows, 1e-12)
        assert (a.triu(1) == 0).all() == is_causal
    v = module.qkv(x)[..., 2 * C :].view(B, N, P, 2 * d).transpose(1, 2)
    out = (a1 - module.compute_lambda() * a2) @ v
    out = F.rms_norm(out, [2 * d], module.sub_norm.weight, 1e-5) * (1 - module.lambda_init)
    _close(module.proj(out.transpose(1, 2).reshape(B, N, C)), module(x, mask, is_causal))


MATHS = ["v1", "v2", "paths", "cpu", "recompute", "reference"]


@pytest.mark.parametrize("name", MATHS)
def test_imports_torch_only(name):
    tree = ast.parse((Path(paths.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {module for module in imported if module.split(".")[0] not in sys.stdlib_module_names | {"torch"}}
    assert others <= {f"diffclip_openclip.attention.{module}" for module in MATHS}


@pytest.mark.usefixtures("path")
def test_gradients_by_torch_func():
    module, x = _module(), torch.randn(B, N, C, dtype=torch.float64)
    gradient = torch.func.grad(lambda x: module(x).square().sum())(x)
    x.requires_grad_()
    module(x).square().sum().backward()
    _close(gradient, x.grad)
