"""Use the layers of both versions as modules are used: masks, dropout, precision, compilation, export, state dicts."""

import ast
import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from support.attention_layers import LAMBDAS, V1, V2, B, N, Version, close, output_and_gradients

from diffclip_openclip.attention import paths, use_path


@pytest.fixture(params=[V1, V2], ids=["v1", "v2"])
def version(request) -> Version:
    return request.param


@pytest.fixture(params=["v1-maps", "v1-sdpa", "v2-maps", "v2-sdpa"])
def by_path(request):
    """A version whose layers compute in this way, on whatever device."""
    name, _, path = request.param.partition("-")
    if name == "v1":
        with use_path(path):
            yield V1
    else:

        def layer(*args, **kwargs):
            module = V2.layer(*args, **kwargs)
            module.fused_attn = path == "sdpa"
            return module

        yield V2._replace(layer=layer)


# --- values and gradients ---


@pytest.mark.parametrize("num_tokens", [1, N])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_module_equals_definition(masked, is_causal, num_tokens, by_path):
    module, (x, weight) = by_path.layer(), by_path.tokens(num_tokens)
    mask = torch.rand(B, 1, num_tokens, num_tokens) > 0.3 if masked else None
    actual = output_and_gradients(module, x, lambda x: module(x, mask, is_causal), weight)
    expected = output_and_gradients(module, x, lambda x: by_path.defined(module, x, mask, is_causal), weight)
    for name in expected:
        close(actual[name], expected[name])
    for name in {*LAMBDAS, "lambda_proj.weight"} & actual.keys():
        assert num_tokens == 1 or actual[name].abs().max() > 1e-6, name  # compared something


def test_learned_mask_gets_its_gradient_through_the_module(by_path):
    module, (x, weight) = by_path.layer(), by_path.tokens()
    bias = torch.randn(1, by_path.maps, 1, N, dtype=torch.float64, requires_grad=True)
    (actual,) = torch.autograd.grad((module(x, bias) * weight).sum(), bias)
    (expected,) = torch.autograd.grad((by_path.defined(module, x, bias) * weight).sum(), bias)
    close(actual, expected)
    assert actual.abs().max() > 1e-6


@pytest.mark.parametrize("bias", ["qkv_bias", "proj_bias"])
def test_without_bias(bias, by_path):
    module, (x, _) = by_path.layer(**{bias: False}), by_path.tokens()
    assert f"{bias.removesuffix('_bias')}.bias" not in module.state_dict()
    close(module(x), by_path.defined(module, x))


def test_gradients_by_torch_func(by_path):
    module, (x, _) = by_path.layer(), by_path.tokens()
    gradient = torch.func.grad(lambda x: module(x).square().sum())(x)
    x.requires_grad_()
    module(x).square().sum().backward()
    close(gradient, x.grad)


def test_causal_attention_does_not_see_later_tokens(by_path):
    module, (x, other) = by_path.layer(), by_path.tokens()
    changed = torch.cat([x[:, :3], other[:, 3:]], dim=1)
    out, out_changed = module(x, is_causal=True), module(changed, is_causal=True)
    close(out[:, :3], out_changed[:, :3], 1e-14)
    assert not torch.isclose(out[:, 3:], out_changed[:, 3:]).all(dim=-1).any()
    assert not torch.isclose(module(x)[:, :3], module(changed)[:, :3]).all(dim=-1).any()


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_maps(is_causal, version):
    module, (x, _) = version.layer(), version.tokens()
    mask = torch.ones(N, N, dtype=torch.bool)
    mask[2] = False
    a1, a2 = module.attention_maps(x, mask, is_causal=is_causal)
    rows = torch.ones(B, version.maps, N, dtype=torch.float64)
    rows[:, :, 2] = 0  # may look nowhere
    for a in (a1, a2):
        assert a.shape == (B, version.maps, N, N)
        close(a.sum(dim=-1), rows, 1e-12)
        assert (a.triu(1) == 0).all() == is_causal
    lambda_ = module.compute_lambda() if version is V1 else module.compute_lambda(x)
    close(module.attend_with(x, a1 - lambda_ * a2), module(x, mask, is_causal))


# --- masks that are refused ---


@pytest.mark.parametrize("shape", [(5, 6), (6, 5), (6,), (4, 1, 5, 5), (1, 5, 5, 5), (7, 5, 5), (1, 3, 2, 5, 5)])
def test_mask_of_wrong_shape_is_refused(shape, by_path):
    x = torch.randn(7, N, by_path.embed_dim, dtype=torch.float64)  # 7 is no number of heads
    with pytest.raises(ValueError, match="attn_mask") as error:
        by_path.layer()(x, torch.ones(shape, dtype=torch.bool))
    for allowed in (shape, [7, by_path.maps, N, N], [7, 2 * by_path.maps, N, N]):
        assert str(list(allowed)) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_mask_of_integers_is_refused(dtype, by_path):
    with pytest.raises(ValueError, match=f"{dtype}.*bool"):
        by_path.layer()(by_path.tokens()[0], torch.ones(N, N, dtype=dtype))


# --- dropout ---


def test_dropout_is_off_in_eval(by_path):
    module, (x, _) = by_path.layer(attn_drop=0.5, proj_drop=0.5).eval(), by_path.tokens()
    close(module(x), by_path.defined(module, x))


@pytest.mark.parametrize("kind", ["attn_drop", "proj_drop"])
def test_dropout_is_on_in_training(kind, by_path):
    module, (x, _) = by_path.layer(**{kind: 0.5}).train(), by_path.tokens()
    assert not torch.allclose(module(x), module(x))


# --- what the hosts do with a module ---


def test_autocast_bfloat16(by_path):
    module, x = by_path.layer().float(), by_path.tokens()[0].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x, is_causal=True)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    exact = by_path.defined(module, x, is_causal=True)
    assert 0 < (out.float() - exact).norm() <= 6e-2 * exact.norm()  # bfloat16, as for the module below
    for name, p in module.named_parameters():
        assert p.grad.dtype == torch.float32, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        # as for the core, plus two linear layers and the norm, which divides by the small difference of the maps
        (torch.float32, 3e-6),
        (torch.float16, 1e-2),
        (torch.bfloat16, 6e-2),
    ],
)
def test_module_in_lower_precision(dtype, tolerance, by_path):
    module, x = by_path.layer().to(dtype), by_path.tokens()[0].to(dtype)
    exact = by_path.defined(copy.deepcopy(module).double(), x.double(), is_causal=True)
    out = module(x, is_causal=True)
    assert out.dtype == dtype
    assert (out.double() - exact).norm() <= tolerance * exact.norm()


def test_a_layer_has_the_dtype_that_was_asked_for_and_lambda_float32(version):
    module = type(version.layer())(version.embed_dim, version.layer().num_heads, dtype=torch.bfloat16)
    x = version.tokens()[0].bfloat16()
    arguments = () if version is V1 else (x,)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.compute_lambda(*arguments).dtype == torch.float32
    assert module(x).dtype == torch.bfloat16
    assert module.double().compute_lambda(*(x.double() for x in arguments)).dtype == torch.float64


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_graph_breaks(masked, by_path):
    module = by_path.layer().float()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    x, weight = (t.float() for t in by_path.tokens())
    arguments = (torch.rand(N, N) > 0.3, True) if masked else (None, False)
    actual = output_and_gradients(module, x, lambda x: compiled(x, *arguments), weight)
    expected = output_and_gradients(module, x, lambda x: module(x, *arguments), weight)
    for name in expected:
        close(actual[name], expected[name], 1e-4)  # float32, another order of summation


@pytest.mark.parametrize("is_causal", [False, True])
def test_exports_with_any_batch_size(is_causal, by_path, tmp_path):
    module, (x, _) = by_path.layer().eval(), by_path.tokens()
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}, "is_causal": None}
    program = torch.export.export(module, (x,), {"is_causal": is_causal}, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "attention.pt2")
    restored = torch.export.load(tmp_path / "attention.pt2").module()
    x = torch.cat([x, x[:1]])
    close(restored(x, is_causal=is_causal), module(x, is_causal=is_causal))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("is_causal", [False, True])
def test_torchscript_is_equal(is_causal, version):
    module, (x, _) = version.layer(), version.tokens()
    scripted = torch.jit.script(module)
    for mask in (None, torch.rand(N, N) > 0.3, torch.randn(B, 1, N, N, dtype=torch.float64)):
        # float64; version 1's scripted layer scales behind the norm, not the norm's weight
        close(scripted(x, mask, is_causal), module(x, mask, is_causal), 1e-14 if version is V1 else 0.0)


def test_deepcopy_is_equal_and_apart(version):
    module, (x, _) = version.layer(), version.tokens()
    twin = copy.deepcopy(module)
    before = module(x)
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(1.0)
    assert torch.equal(module(x), before)


def test_state_dict_keys_and_round_trip(version):
    module, (x, _) = version.layer(), version.tokens()
    state_dict = module.state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state_dict.items()} == version.shapes
    other = version.layer(seed=1)
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(state_dict)
    assert torch.equal(other(x), module(x))


def test_built_on_meta_then_materialised(version):
    built = version.layer()
    with torch.device("meta"):
        module = type(built)(version.embed_dim, built.num_heads)
    assert all(p.is_meta for p in module.parameters())
    assert module(torch.empty(B, N, version.embed_dim, device="meta")).shape == (B, N, version.embed_dim)
    module.to_empty(device="cpu")
    for p in module.parameters():
        torch.nn.init.constant_(p, math.nan)
    for part in module.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    assert module(torch.randn(B, N, version.embed_dim)).isfinite().all()


# --- what the layers stand on ---

FOLDER = Path(paths.__file__).parent


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[!_]*.py")), ids=lambda path: path.stem)
def test_imports_torch_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {module for module in imported if module.split(".")[0] not in sys.stdlib_module_names | {"torch"}}
    assert others <= {f"diffclip_openclip.attention.{path.stem}" for path in FOLDER.glob("*.py")}
