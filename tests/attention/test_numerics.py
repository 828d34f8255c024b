"""No NaN in bfloat16 and float16, pure and autocast, forward and backward, whatever the input; plain CLIP beside it."""

import contextlib
import functools
import math

import open_clip
import pytest
import torch
from timm.layers import Attention

from diffclip_cli.main import main
from diffclip_openclip import DifferentialAttention, DifferentialAttentionV2
from diffclip_openclip.attention import use_path

B, N, C, H = 2, 17, 128, 2  # heads of 64, as in every CLIP
LAMBDAS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
LAYERS = ["plain", "v1 maps", "v1 blocks", "v1 sdpa", "v2"]
DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def build():
    """A layer by its name in LAYERS; version 1 computes in the named one of its three ways."""
    with contextlib.ExitStack() as stack:

        def build(kind: str) -> torch.nn.Module:
            torch.manual_seed(0)
            if kind == "plain":
                return Attention(C, H, qkv_bias=True)
            if kind == "v2":
                return DifferentialAttentionV2(C, H)
            stack.enter_context(use_path(kind.removeprefix("v1 ")))
            return DifferentialAttention(C, H)

        yield build


def _tokens(kind: str) -> torch.Tensor:
    x_BNC = torch.randn(B, N, C, generator=torch.Generator().manual_seed(1))
    return {
        "zeros": torch.zeros_like(x_BNC),
        "one token repeated": x_BNC[:1, :1].expand(B, N, C).clone(),
        "tiny": 1e-7 * x_BNC,
        "normal": x_BNC,
    }[kind]


def _with_logits(layer: torch.nn.Module, x_BNC: torch.Tensor, largest: float) -> torch.nn.Module:
    """Queries and keys scaled so that the largest logit's magnitude is ``largest``."""
    q_BNC, k_BNC = layer.qkv(x_BNC).detach().double().split([layer.qkv.out_features - 2 * C, 2 * C], dim=-1)
    maps = q_BNC.shape[-1] // C  # of version 2's queries, two a key
    q_BHND = q_BNC.reshape(B, N, H, maps * C // H).transpose(1, 2).reshape(B, H, N * maps, C // H)
    k_BHNd = k_BNC[..., :C].reshape(B, N, H, C // H).transpose(1, 2)
    logits = q_BHND @ k_BHNd.transpose(-2, -1) / math.sqrt(C // H)
    factor = (largest / logits.abs().max()).sqrt()
    with torch.no_grad():
        layer.qkv.weight[:-C] *= factor
        layer.qkv.bias[:-C] *= factor
    return layer


def _run(layer, x_BNC, dtype, autocast, is_causal):
    """Output in float32, and names of what has no finite gradient."""
    context = torch.autocast("cpu", dtype) if autocast else contextlib.nullcontext()
    if not autocast:
        layer, x_BNC = layer.to(dtype), x_BNC.to(dtype)
    x_BNC.requires_grad_()
    with context:
        out_BNC = layer(x_BNC, is_causal=is_causal).float()
    (out_BNC * torch.randn(out_BNC.shape, generator=torch.Generator().manual_seed(2))).sum().backward()
    gradients = {"x": x_BNC.grad} | {name: parameter.grad for name, parameter in layer.named_parameters()}
    return out_BNC.detach(), [name for name, gradient in gradients.items() if not gradient.isfinite().all()]


every_precision = [
    pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"]),
    pytest.mark.parametrize("autocast", [False, True], ids=["pure", "autocast"]),
    pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16"]),
    pytest.mark.parametrize("kind", LAYERS),
]


def in_every_precision(test):
    return functools.reduce(lambda test, mark: mark(test), every_precision, test)


@in_every_precision
def test_degenerate_tokens(kind, dtype, autocast, is_causal, build):
    for tokens in ("zeros", "one token repeated", "tiny"):
        out_BNC, bad = _run(build(kind), _tokens(tokens), dtype, autocast, is_causal)
        assert out_BNC.isfinite().all(), tokens
        assert not bad, tokens


@in_every_precision
def test_logits_of_ten_thousand(kind, dtype, autocast, is_causal, build):
    x_BNC = _tokens("normal")
    out_BNC, bad = _run(_with_logits(build(kind), x_BNC, 1e4), x_BNC, dtype, autocast, is_causal)
    assert out_BNC.isfinite().all()
    assert not bad


@pytest.mark.parametrize("kind", LAYERS)
def test_logits_beyond_the_range_of_float16(kind, build):
    """1e5, where float16 ends at 65,504."""
    x_BNC = _tokens("normal")
    out_BNC, bad = _run(_with_logits(build(kind), x_BNC, 1e5), x_BNC, torch.float16, False, False)
    assert out_BNC.isfinite().all()
    assert not bad


@pytest.mark.parametrize("dtype", DTYPES, ids=["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["v1 maps", "v1 blocks", "v1 sdpa"])
def test_one_token_repeated_by_hand(kind, dtype, build):
    """Both maps are 1 / N everywhere, so (A1 - lambda A2) v = (1 - lambda) v, which the norm makes v / rms(v)."""
    layer, x_BNC = build(kind), _tokens("one token repeated")
    v_PE = layer.qkv(x_BNC)[0, 0, -C:].detach().view(H // 2, 2 * C // H)
    difference_PE = (1 - layer.compute_lambda().detach()) * v_PE
    rms_P1 = (difference_PE.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = layer.proj((0.2 * difference_PE / rms_P1).flatten()).detach()  # 1 - lambda_init
    out_BNC, _ = _run(layer, x_BNC, dtype, False, False)
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    torch.testing.assert_close(out_BNC, expected.expand(B, N, C), rtol=0, atol=tolerance * float(expected.abs().max()))


def _with_dots(layer: DifferentialAttention, first: float, second: float) -> DifferentialAttention:
    """lambda = exp(first) - exp(second) + lambda_init."""
    with torch.no_grad():
        for name in LAMBDAS:
            getattr(layer, name).fill_(1.0)
        layer.lambda_q1.fill_(first / layer.head_dim)
        layer.lambda_q2.fill_(second / layer.head_dim)
    return layer


@pytest.mark.parametrize("kind", ["v1 maps", "v1 blocks", "v1 sdpa"])
@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float32, 88.0), (torch.bfloat16, 88.0), (torch.float16, 11.0)], ids=str
)
def test_range_of_lambda(dtype, largest, kind, build):
    """exp ends at 88.7 in float32 and bfloat16, at 11.1 in float16; trained vectors' products are far below 1."""
    x_BNC = _tokens("normal")
    for dots in ((largest, 0.0), (0.0, largest), (-1e4, -1e4)):
        out_BNC, _ = _run(_with_dots(build(kind), *dots), x_BNC.clone(), dtype, False, False)
        assert out_BNC.isfinite().all(), dots
    out_BNC, _ = _run(_with_dots(build(kind), largest + 1, 0.0), x_BNC.clone(), dtype, False, False)
    assert not out_BNC.isfinite().all(), "as by the definition: nothing is clamped"


def test_weights_with_a_lambda_beyond_its_range_are_not_converted(tmp_path, capsys):
    model = open_clip.create_model("DiffCLIP-nano")
    _with_dots(model.visual.trunk.blocks[1].attn, 89.0, 0.0)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "OUT"), "--preprocess", "slip"]) == 2
    assert capsys.readouterr().err == "diffclip convert: error: the model's outputs are not finite\n"
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


# --- both towers, in the trainer's precisions ---

IMAGES = {
    "black": lambda: torch.zeros(4, 3, 48, 48),
    "white": lambda: torch.full((4, 3, 48, 48), 2.6),
    "one image": lambda: torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)).repeat(4, 1, 1, 1),
    "unnormalised": lambda: 255 * torch.rand(4, 3, 48, 48, generator=torch.Generator().manual_seed(1)),
}
TEXTS = {
    "one token repeated": lambda: torch.full((4, 16), 320),
    "nothing but padding": lambda: torch.zeros(4, 16, dtype=torch.int64),
    "empty": lambda: torch.tensor([[49406, 49407] + [0] * 14] * 4),
    "no room for an end": lambda: torch.randint(1, 49000, (4, 16), generator=torch.Generator().manual_seed(1)),
}
_slow = [pytest.param(precision, marks=pytest.mark.slow) for precision in ("bf16", "fp16", "pure_fp16")]


@pytest.mark.parametrize("precision", ["amp", "amp_bf16", "pure_bf16", *_slow])
@pytest.mark.parametrize("name", ["CLIP-nano-baseline", "DiffCLIP-nano", "DiffCLIP-V2-nano"])
def test_towers(name, precision):
    """Loss and gradients, also where all pairs of a batch are one; then with logits 1e4 times as large."""
    from open_clip_train.precision import get_autocast

    torch.manual_seed(0)
    model = open_clip.create_model(name, precision=precision, output_dict=True).train()
    autocast, dtype = get_autocast(precision, device_type="cpu"), open_clip.get_input_dtype(precision)
    for factor in (1.0, 100.0):
        _scale_queries(model, factor)
        for image, text in zip(IMAGES, TEXTS, strict=True):
            with autocast():
                output = model(IMAGES[image]().to(dtype), TEXTS[text]())
                loss = open_clip.ClipLoss()(**output)
            loss.backward()
            assert all(value.isfinite().all() for value in output.values()), (image, text, factor)
            bad = [key for key, p in model.named_parameters() if not p.grad.isfinite().all()]
            assert not bad, (image, text, factor)
            model.zero_grad()


@torch.no_grad()
def _scale_queries(model: torch.nn.Module, factor: float) -> None:
    """Queries and keys of every layer, so the logits by the factor's square."""
    for key, parameter in model.named_parameters():
        if ".qkv." in key or "in_proj" in key:
            parameter[:-128] *= factor  # values come last
