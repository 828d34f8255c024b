"""Version 2 of differential attention against its written-out definition, plain attention and hand-computed numbers."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention

from diffclip_openclip import DifferentialAttentionV2, differential_attention_v2_reference
from diffclip_openclip.attention import paths

B, N, C, H = 2, 5, 15, 3
d = C // H
MASK_SHAPES = {
    "scalar": lambda B, H, N: (),
    "keys": lambda B, H, N: (N,),
    "queries": lambda B, H, N: (N, 1),
    "NN": lambda B, H, N: (N, N),
    "HNN": lambda B, H, N: (H, N, N),
    "B1NN": lambda B, H, N: (B, 1, N, N),
    "1H1N": lambda B, H, N: (1, H, 1, N),
    "BHNN": lambda B, H, N: (B, H, N, N),
    "2HNN": lambda B, H, N: (2 * H, N, N),
    "B2HNN": lambda B, H, N: (B, 2 * H, N, N),
}


@pytest.fixture(params=[True, False], ids=["fused", "maps"])
def build(request):
    """Makes the module, which computes by fused attention or by explicit maps."""

    def build(**kwargs):
        module = _module(**kwargs)
        module.fused_attn = request.param
        return module

    return build


def _attend(q, k, v, lambda_, *masks_and_dropout):
    joined = paths.attend_v2(q, k, v, lambda_, *masks_and_dropout)
    return joined.unflatten(-1, (k.shape[1], -1)).transpose(1, 2)


def _close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def _module(seed=0, **kwargs):
    torch.manual_seed(seed)
    return DifferentialAttentionV2(C, H, **kwargs).double()


def _input(seed=1):
    torch.manual_seed(seed)
    return torch.randn(2, B, N, C, dtype=torch.float64).unbind()


def _defined(module, x, attn_mask=None, is_causal=False):
    """The module's output by the definition; the rows of qkv taken apart one by one."""
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


def _output_and_gradients(module, x, forward, weight):
    x = x.detach().requires_grad_()
    module.zero_grad()
    out = forward(x)
    (out * weight).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in module.named_parameters()}


# --- the reference itself ---


@pytest.mark.parametrize("is_causal", [False, True])
def test_reference_is_the_definition_entry_by_entry(is_causal):
    """Plain Python over scalars: query heads 2h and 2h + 1 read key and value head h, lambda is each token's."""
    torch.manual_seed(0)
    B, H, N, d = 2, 3, 3, 2
    q = torch.randn(B, 2 * H, N, d, dtype=torch.float64)
    k, v = torch.randn(2, B, H, N, d, dtype=torch.float64)
    lambda_ = torch.rand(B, H, N, 1, dtype=torch.float64)
    out, a1, a2 = differential_attention_v2_reference(q, k, v, lambda_, is_causal=is_causal)

    def softmax_row(b, g, i):
        scores = [sum(q[b, g, i, c] * k[b, g // 2, j, c] for c in range(d)).item() / math.sqrt(d) for j in range(N)]
        weights = [math.exp(s) if j <= i or not is_causal else 0.0 for j, s in enumerate(scores)]
        return [w / sum(weights) for w in weights]

    for b in range(B):
        for h in range(H):
            for i in range(N):
                row1, row2 = softmax_row(b, 2 * h, i), softmax_row(b, 2 * h + 1, i)
                assert a1[b, h, i].tolist() == pytest.approx(row1, abs=1e-12)
                assert a2[b, h, i].tolist() == pytest.approx(row2, abs=1e-12)
                for c in range(d):
                    expected = sum((row1[j] - lambda_[b, h, i, 0] * row2[j]) * v[b, h, j, c] for j in range(N))
                    assert out[b, h, i, c].item() == pytest.approx(expected.item(), abs=1e-12)


def test_bool_and_additive_masks_mean_the_same():
    torch.manual_seed(0)
    q, (k, v) = torch.randn(B, 2 * H, N, d), torch.randn(2, B, H, N, d)
    visible = torch.rand(B, H, N, N) > 0.4
    additive = torch.zeros(B, H, N, N).masked_fill(~visible, -math.inf)
    results = [differential_attention_v2_reference(q, k, v, torch.tensor(0.3), mask) for mask in (visible, additive)]
    for from_bool, from_additive in zip(*results, strict=True):
        assert torch.equal(from_bool, from_additive)
    for a in results[0][1:]:
        assert (a[~visible] == 0).all()
        assert (a[visible] > 0).all()


# --- the fast path against the reference ---


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


@settings(deadline=None, max_examples=150)
@given(case=_cases())
def test_core_equals_reference(case):
    (B, N, H, d), kind, mask_shape, is_causal, seed = case
    torch.manual_seed(seed)
    q = torch.randn(B, 2 * H, N, d, dtype=torch.float64)
    k, v, weight = torch.randn(3, B, H, N, d, dtype=torch.float64)
    lambda_ = torch.rand(B, H, N, 1, dtype=torch.float64)
    mask = _mask(kind, MASK_SHAPES[mask_shape](B, H, N))
    leaves = [t.requires_grad_() for t in (q, k, v, lambda_)]
    if mask is not None and mask.requires_grad:
        leaves.append(mask)

    expected, a1, a2 = differential_attention_v2_reference(q, k, v, lambda_, mask, is_causal)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), leaves)
    actual = _attend(q, k, v, lambda_, mask, is_causal, 0.0)
    gradients = torch.autograd.grad((actual * weight).sum(), leaves)

    _close(actual, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.isfinite().all()
        _close(gradient, expected_gradient)
    blind = (a1 + a2).sum(dim=-1) == 0
    assert (actual[blind] == 0).all()


@pytest.mark.parametrize("is_causal", [False, True])
def test_queries_that_may_look_nowhere_give_zeros_and_finite_gradients(is_causal):
    """Stated apart from the reference, which has the same rule: query 1 is blind, all others see themselves."""
    torch.manual_seed(0)
    q, (k, v) = torch.randn(B, 2 * H, N, d), torch.randn(2, B, H, N, d)
    lambda_ = torch.rand(B, H, N, 1)
    visible = torch.eye(N, dtype=torch.bool)
    visible[1] = False
    leaves = [t.requires_grad_() for t in (q, k, v, lambda_)]
    out = _attend(q, k, v, lambda_, visible, is_causal, 0.0)
    assert (out[:, :, 1] == 0).all()
    others = [0, 2, 3, 4]
    _close(out[:, :, others], ((1 - lambda_) * v)[:, :, others], 1e-6)  # float32; both maps are the identity
    for gradient in torch.autograd.grad(out.square().sum(), leaves):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # a few roundings of the inputs' precision (2^-24, 2^-11, 2^-8), relative to the tensor's norm: softmax, the
        # products of both maps and their difference each round once; gradients go through as many again
        (torch.float32, 1e-6),
        (torch.float16, 4e-3),
        (torch.bfloat16, 3e-2),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_core_in_lower_precision(is_causal, masked, dtype, tolerance):
    torch.manual_seed(0)
    q = torch.randn(2, 6, 33, 16).to(dtype)
    k, v, weight = torch.randn(3, 2, 3, 33, 16).to(dtype)
    lambda_ = torch.rand(2, 3, 33, 1)
    mask = torch.rand(33, 33) > 0.3 if masked else None

    def run(attend, dtype, lambda_dtype):
        leaves = [t.to(dtype).detach().requires_grad_() for t in (q, k, v)]
        leaves.append(lambda_.to(lambda_dtype).detach().requires_grad_())
        out = attend(*leaves, mask, is_causal, 0.0)
        return [out, *torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)]

    exact = run(lambda *args: differential_attention_v2_reference(*args[:-1])[0], torch.float64, torch.float64)
    for actual, expected in zip(run(_attend, dtype, torch.float32), exact, strict=True):
        assert (actual.double() - expected).norm() <= tolerance * expected.norm()


# --- the module ---


@pytest.mark.parametrize("num_tokens", [1, N])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_module_equals_definition(masked, is_causal, num_tokens, build):
    module = build()
    x, weight = torch.randn(2, B, num_tokens, C, dtype=torch.float64)
    mask = torch.rand(B, 1, num_tokens, num_tokens) > 0.3 if masked else None
    actual = _output_and_gradients(module, x, lambda x: module(x, mask, is_causal), weight)
    expected = _output_and_gradients(module, x, lambda x: _defined(module, x, mask, is_causal), weight)
    for name in expected:
        _close(actual[name], expected[name])
    assert actual["lambda_proj.weight"].abs().max() > 1e-6 or (masked and num_tokens == 1)  # compared something


def test_learned_mask_gets_its_gradient_through_the_module():
    module, (x, weight) = _module(), _input()
    bias = torch.randn(1, H, 1, N, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad((module(x, bias) * weight).sum(), bias)
    (expected,) = torch.autograd.grad((_defined(module, x, bias) * weight).sum(), bias)
    _close(actual, expected)
    assert actual.abs().max() > 1e-6


def _from_plain(qkv_weight, qkv_bias, proj_weight, proj_bias):
    """Plain attention as version 2: its queries for both maps, of which one less a half is left."""
    module = DifferentialAttentionV2(C, H).double()
    q_weight, q_bias = qkv_weight[:C].view(H, 1, d, C), qkv_bias[:C].view(H, 1, d)
    with torch.no_grad():
        module.qkv.weight.copy_(torch.cat([q_weight.expand(H, 2, d, C).reshape(2 * C, C), qkv_weight[C:]]))
        module.qkv.bias.copy_(torch.cat([q_bias.expand(H, 2, d).reshape(2 * C), qkv_bias[C:]]))
        module.lambda_proj.weight.zero_()
        module.proj.weight.copy_(2 * proj_weight)
        module.proj.bias.copy_(proj_bias)
    return module


@pytest.mark.parametrize("is_causal", [False, True])
def test_plain_attention_of_torch_is_a_special_case(is_causal):
    torch.manual_seed(0)
    plain = torch.nn.MultiheadAttention(C, H, batch_first=True).double()
    torch.nn.init.normal_(plain.in_proj_bias)
    torch.nn.init.normal_(plain.out_proj.bias)
    module = _from_plain(plain.in_proj_weight, plain.in_proj_bias, plain.out_proj.weight, plain.out_proj.bias)
    x, _ = _input()
    hidden = torch.ones(N, N, dtype=torch.bool).triu(1) if is_causal else None
    _close(module(x, is_causal=is_causal), plain(x, x, x, attn_mask=hidden, need_weights=False)[0], 1e-12)


def test_plain_attention_of_timm_is_a_special_case():
    torch.manual_seed(0)
    plain = Attention(C, H, qkv_bias=True).double()
    module = _from_plain(plain.qkv.weight, plain.qkv.bias, plain.proj.weight, plain.proj.bias)
    x, _ = _input()
    mask = torch.randn(B, H, N, N, dtype=torch.float64)
    _close(module(x), plain(x), 1e-12)
    _close(module(x, mask), plain(x, mask), 1e-12)


def test_first_map_alone_is_plain_attention_with_its_queries():
    """Which of the adjacent query heads is subtracted, seen without the reference: lambda near 0 leaves the first."""
    module, (x, _) = _module(), _input()
    with torch.no_grad():
        module.lambda_proj.weight.zero_()[:, 0] = -1e3
        x[..., 0] = 1.0
    plain = Attention(C, H, qkv_bias=True).double()
    first = [2 * d * h + i for h in range(H) for i in range(d)] + list(range(2 * C, 4 * C))
    weights = {"qkv.weight": module.qkv.weight[first], "qkv.bias": module.qkv.bias[first]}
    plain.load_state_dict(weights | {"proj.weight": module.proj.weight, "proj.bias": module.proj.bias})
    _close(module(x), plain(x), 1e-12)


def test_lambda_by_hand():
    module = DifferentialAttentionV2(4, 2)
    with torch.no_grad():
        module.lambda_proj.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, -2.0], [0.0, 0.5, 0.0, 0.0]]))
    x = torch.tensor([[[1.0, 2.0, 3.0, 0.5], [0.0, -4.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0]]])
    sigmoid = [[1 / (1 + math.exp(-z)) for z in logits] for logits in ([0.0, -2.0, 2.0], [1.0, -2.0, 0.0])]
    lambda_ = module.compute_lambda(x)
    assert lambda_.shape == (1, 2, 3, 1)
    _close(lambda_[0, :, :, 0], torch.tensor(sigmoid), 1e-6)  # float32
    assert module.double().compute_lambda(x.double()).dtype == torch.float64
    assert module.bfloat16().compute_lambda(x.bfloat16()).dtype == torch.float32


def test_initialised_as_linear_layers_are():
    """Uniform within 1 / sqrt(fan_in), as microsoft's; lambda starts around a half, not at it."""
    torch.manual_seed(0)
    module = DifferentialAttentionV2(256, 8)
    for linear in (module.qkv, module.lambda_proj, module.proj):
        assert 0.99 / 16 < linear.weight.abs().max() <= 1 / 16
    lambda_ = module.compute_lambda(torch.randn(8, 50, 256))
    assert lambda_.mean().item() == pytest.approx(0.5, abs=0.05)
    assert lambda_.std() > 0.1


def test_defaults():
    module = DifferentialAttentionV2(16)
    assert (module.num_heads, module.head_dim, module.attn_drop.p, module.proj_drop.p) == (8, 2, 0.0, 0.0)
    assert module.qkv.bias is not None
    assert module.proj.bias is not None
    assert module.lambda_proj.bias is None


@pytest.mark.parametrize("bias", ["qkv_bias", "proj_bias"])
def test_without_bias(bias):
    module, (x, _) = _module(**{bias: False}), _input()
    assert f"{bias.removesuffix('_bias')}.bias" not in module.state_dict()
    _close(module(x), _defined(module, x))


@pytest.mark.parametrize("num_heads", [1, 3, 5, 15])
def test_every_divisor_of_dim_is_a_number_of_heads(num_heads):
    module, (x, _) = DifferentialAttentionV2(C, num_heads).double(), _input()
    _close(module(x, is_causal=True), _defined(module, x, is_causal=True))


# --- errors ---


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"dim": 16, "num_heads": 0}, ["num_heads is 0", "must be positive"]),
        ({"dim": 16, "num_heads": -2}, ["num_heads is -2", "must be positive"]),
        ({"dim": 16, "num_heads": 3}, ["dim is 16", "num_heads 3", "multiple"]),
    ],
)
def test_bad_sizes_are_refused(kwargs, parts):
    with pytest.raises(ValueError, match="must be") as error:
        DifferentialAttentionV2(**kwargs)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("shape", [(5, 6), (6,), (4, 1, 5, 5), (1, 4, 5, 5), (2, 5, 5), (1, 3, 2, 5, 5)])
def test_mask_of_wrong_shape_is_refused(shape):
    with pytest.raises(ValueError, match="attn_mask") as error:
        _module()(_input()[0], torch.ones(shape, dtype=torch.bool))
    assert str(list(shape)) in str(error.value)
    assert "[2, 3, 5, 5]" in str(error.value)


def test_mask_of_integers_is_refused():
    with pytest.raises(ValueError, match=r"torch\.int64.*bool"):
        _module()(_input()[0], torch.ones(N, N, dtype=torch.int64))


# --- dropout ---


def test_dropout_is_off_in_eval():
    module, (x, _) = _module(attn_drop=0.5, proj_drop=0.5).eval(), _input()
    _close(module(x), _defined(module, x))


@pytest.mark.parametrize("kind", ["attn_drop", "proj_drop"])
def test_dropout_is_on_in_training(kind):
    module, (x, _) = _module(**{kind: 0.5}).train(), _input()
    assert not torch.allclose(module(x), module(x))


@pytest.mark.parametrize("is_causal", [False, True])
def test_dropout_acts_on_each_map(is_causal):
    """One token: both maps are [1], so half dropped out, A1 - lambda A2 is one of 0, 2, -2 lambda, 2 - 2 lambda."""
    torch.manual_seed(0)
    draws, lambda_ = 4000, torch.full((4000, 1, 1, 1), 0.25)
    q, k, v = torch.randn(draws, 2, 1, 1), torch.randn(draws, 1, 1, 1), torch.ones(draws, 1, 1, 1)
    values, counts = _attend(q, k, v, lambda_, None, is_causal, 0.5).unique(return_counts=True)
    assert values.tolist() == pytest.approx([-0.5, 0.0, 1.5, 2.0])
    # each a quarter of independent draws, within 5 standard deviations
    assert (counts - draws / 4).abs().max() < 5 * math.sqrt(draws * 3 / 16)


# --- what the hosts do with a module ---


def test_autocast_bfloat16(build):
    module = build().float()
    x = _input()[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x, is_causal=True)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    exact = _defined(module, x, is_causal=True)
    assert 0 < (out.float() - exact).norm() <= 6e-2 * exact.norm()  # bfloat16: the core's, and three linear layers
    for name, p in module.named_parameters():
        assert p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name


def test_bfloat16_module():
    module = DifferentialAttentionV2(C, H, dtype=torch.bfloat16)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    x = torch.randn(B, N, C, dtype=torch.bfloat16)
    out = module(x)
    assert out.dtype == torch.bfloat16
    exact = _defined(copy.deepcopy(module).double(), x.double())
    assert (out.double() - exact).norm() <= 6e-2 * exact.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_graph_breaks(masked, build):
    module = build().float()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    x, weight = (t.float() for t in _input())
    arguments = (torch.rand(N, N) > 0.3, True) if masked else (None, False)
    actual = _output_and_gradients(module, x, lambda x: compiled(x, *arguments), weight)
    expected = _output_and_gradients(module, x, lambda x: module(x, *arguments), weight)
    for name in expected:
        _close(actual[name], expected[name], 1e-4)  # float32, another order of summation


@pytest.mark.parametrize("is_causal", [False, True])
def test_exports_with_any_batch_size(is_causal, tmp_path):
    module, (x, _) = _module().eval(), _input()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}, "is_causal": None}
    program = torch.export.export(module, (x,), {"is_causal": is_causal}, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "attention.pt2")
    restored = torch.export.load(tmp_path / "attention.pt2").module()
    x = torch.cat([x, x[:1]])
    _close(restored(x, is_causal=is_causal), module(x, is_causal=is_causal))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("is_causal", [False, True])
def test_torchscript_is_equal(is_causal):
    module, (x, _) = _module(), _input()
    scripted = torch.jit.script(module)
    for mask in (None, torch.rand(N, N) > 0.3, torch.randn(B, 1, N, N, dtype=torch.float64)):
        assert torch.equal(scripted(x, mask, is_causal), module(x, mask, is_causal))


def test_state_dict_keys_and_round_trip():
    module, (x, _) = _module(), _input()
    state_dict = module.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state_dict.items()} == {
        "qkv.weight": (60, 15),
        "qkv.bias": (60,),
        "lambda_proj.weight": (3, 15),
        "proj.weight": (15, 15),
        "proj.bias": (15,),
    }
    other = _module(seed=1)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(state_dict)
    assert torch.equal(other(x), module(x))


def test_built_on_meta_then_materialised():
    with torch.device("meta"):
        module = DifferentialAttentionV2(C, H)
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


def test_causal_attention_does_not_see_later_tokens():
    module, (x, other) = _module(), _input()
    changed = torch.cat([x[:, :3], other[:, 3:]], dim=1)
    out, out_changed = module(x, is_causal=True), module(changed, is_causal=True)
    _close(out[:, :3], out_changed[:, :3], 1e-14)
    assert not torch.isclose(out[:, 3:], out_changed[:, 3:]).all(dim=-1).any()
    assert not torch.isclose(module(x)[:, :3], module(changed)[:, :3]).all(dim=-1).any()


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_maps(is_causal):
    module, (x, _) = _module(), _input()
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[2] = False
    a1, a2 = module.attention_maps(x, mask, is_causal=is_causal)
    rows = torch.ones(B, H, N, dtype=torch.float64)
    rows[:, :, 2] = 0  # may look nowhere
    for a in (a1, a2):
        assert a.shape == (B, H, N, N)
        _close(a.sum(dim=-1), rows, 1e-12)
        assert (a.triu(1) == 0).all() == is_causal
    v = module.qkv(x)[..., 3 * C :].view(B, N, H, d).transpose(1, 2)
    out = (a1 - module.compute_lambda(x) * a2) @ v
    _close(module.proj(out.transpose(1, 2).reshape(B, N, C)), module(x, mask, is_causal))


def test_imports_torch_only(tmp_path):
    code = f"""
import sys, types
package = types.ModuleType("diffclip_openclip")  # without what the package itself imports
package.__path__ = [{str(Path(paths.__file__).parents[1])!r}]
sys.modules["diffclip_openclip"] = package
from diffclip_openclip.attention.v2 import DifferentialAttentionV2
DifferentialAttentionV2(9, 3)
hosts = {{"timm", "transformers", "open_clip", "safetensors", "huggingface_hub"}}
assert not hosts & set(sys.modules), hosts & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
