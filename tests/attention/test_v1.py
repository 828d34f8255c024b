"""Differential attention against its written-out definition, timm's implementation and hand-computed numbers."""

import math

import pytest
import torch
from support.attention_layers import LAMBDAS, B, N, causal_by_hand, close, layer_v1, output_and_gradients
from timm.layers import DiffAttention

from diffclip_openclip import DifferentialAttention, differential_attention_reference
from diffclip_openclip.attention import use_path
from diffclip_openclip.attention.v1 import dynamic_lambda_init, resolve_lambda_init

C, H = 16, 4

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
    visible = causal_by_hand(N) if is_causal else [[True] * N] * N

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


# --- the module ---


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
@pytest.mark.parametrize("path", ["maps", "sdpa"])
def test_timm_agrees(path, is_causal, fused):
    module = layer_v1()
    oracle = _timm(module, _Float64Oracle)
    oracle.fused_attn = fused
    x, weight = torch.randn(2, B, N, C, dtype=torch.float64)
    mask = None if is_causal else torch.randn(B, 1, N, N, dtype=torch.float64)  # timm takes one of the two
    with use_path(path):
        actual = output_and_gradients(module, x, lambda x: module(x, mask, is_causal), weight)
    expected = output_and_gradients(oracle, x, lambda x: oracle(x, mask, is_causal), weight)
    assert actual.keys() == expected.keys()
    for name in expected:
        close(actual[name], expected[name])


def test_timm_agrees_unmodified_in_float32():
    module = layer_v1().float()
    x = torch.randn(B, N, C)
    close(module(x), _timm(module)(x), 1e-5)  # float32


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


# --- what the hosts do with a module ---
