"""Version 2 of differential attention against its written-out definition, plain attention and hand-computed numbers."""

import math

import pytest
import torch
from support.attention_layers import V2, B, N, close, defined_v2, layer_v2, output_and_gradients
from timm.layers import Attention

from diffclip_openclip import DifferentialAttentionV2, differential_attention_v2_reference
from diffclip_openclip.attention import paths

C, H = 15, 3
d = C // H

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


# --- the module ---


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
    x, _ = V2.tokens()
    hidden = torch.ones(N, N, dtype=torch.bool).triu(1) if is_causal else None
    close(module(x, is_causal=is_causal), plain(x, x, x, attn_mask=hidden, need_weights=False)[0], 1e-12)


def test_plain_attention_of_timm_is_a_special_case():
    torch.manual_seed(0)
    plain = Attention(C, H, qkv_bias=True).double()
    module = _from_plain(plain.qkv.weight, plain.qkv.bias, plain.proj.weight, plain.proj.bias)
    x, _ = V2.tokens()
    mask = torch.randn(B, H, N, N, dtype=torch.float64)
    close(module(x), plain(x), 1e-12)
    close(module(x, mask), plain(x, mask), 1e-12)


def test_first_map_alone_is_plain_attention_with_its_queries():
    """Which of the adjacent query heads is subtracted, seen without the reference: lambda near 0 leaves the first."""
    module, (x, _) = layer_v2(), V2.tokens()
    with torch.no_grad():
        module.lambda_proj.weight.zero_()[:, 0] = -1e3
        x[..., 0] = 1.0
    plain = Attention(C, H, qkv_bias=True).double()
    first = [2 * d * h + i for h in range(H) for i in range(d)] + list(range(2 * C, 4 * C))
    weights = {"qkv.weight": module.qkv.weight[first], "qkv.bias": module.qkv.bias[first]}
    plain.load_state_dict(weights | {"proj.weight": module.proj.weight, "proj.bias": module.proj.bias})
    close(module(x), plain(x), 1e-12)


def test_lambda_by_hand():
    module = DifferentialAttentionV2(4, 2)
    with torch.no_grad():
        module.lambda_proj.weight.copy_(torch.tensor([[1.0, 0.0, 0.0, -2.0], [0.0, 0.5, 0.0, 0.0]]))
    x = torch.tensor([[[1.0, 2.0, 3.0, 0.5], [0.0, -4.0, 1.0, 1.0], [2.0, 0.0, 0.0, 0.0]]])
    sigmoid = [[1 / (1 + math.exp(-z)) for z in logits] for logits in ([0.0, -2.0, 2.0], [1.0, -2.0, 0.0])]
    lambda_ = module.compute_lambda(x)
    assert lambda_.shape == (1, 2, 3, 1)
    close(lambda_[0, :, :, 0], torch.tensor(sigmoid), 1e-6)  # float32
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


@pytest.mark.parametrize("num_heads", [1, 3, 5, 15])
def test_every_divisor_of_dim_is_a_number_of_heads(num_heads):
    module, (x, _) = DifferentialAttentionV2(C, num_heads).double(), V2.tokens()
    close(module(x, is_causal=True), defined_v2(module, x, is_causal=True))


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


# --- what the hosts do with a module ---


# --- on accelerators ---


@pytest.mark.parametrize("is_causal", [False, True])
def test_heads_that_share_keys_in_one_call(is_causal, monkeypatch):
    """Flash attention on GPUs takes them; on the CPU the same call repeats the keys."""
    module, (x, weight) = layer_v2(), V2.tokens()
    found = []
    for shares in (False, True):
        monkeypatch.setattr(paths, "_shares_keys", lambda *_, shares=shares: shares)
        found.append(output_and_gradients(module, x, lambda x: module(x, is_causal=is_causal), weight))
    for name, separate in found[0].items():
        close(found[1][name], separate)


def test_autocast_casts_the_input_once():
    module, x = layer_v2().float(), torch.randn(B, N, C)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.profiler.profile(activities=activities, record_shapes=True) as record,
    ):
        module(x)
    copies = [event for event in record.events() if event.name == "aten::_to_copy"]
    assert [event.input_shapes[0] for event in copies].count([B, N, C]) == 1
