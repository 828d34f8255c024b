"""The CPU's block-wise operator against the definition, in values and gradients, whatever the size of its blocks."""

import pytest
import torch
import torch.nn.functional as F

from diffclip_openclip import DifferentialAttention, differential_attention_reference
from diffclip_openclip.attention import choice, use_path
from diffclip_openclip.attention.cpu import attend_cpu

EPS = 1e-5


def _reference(qkv, lambda_, weight, num_heads, is_causal):
    B, N, C3 = qkv.shape
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k))
    v = v.unflatten(-1, (num_heads // 2, -1)).transpose(1, 2)
    out, _, _ = differential_attention_reference(q, k, v, lambda_, None, is_causal)
    return F.rms_norm(out, [v.shape[-1]], weight, EPS).transpose(1, 2).reshape(B, N, C3 // 3)


def _inputs(B, N, num_heads, d, dtype=torch.float64):
    generator = torch.Generator().manual_seed(B * 100 + N)
    qkv = torch.randn(B, N, 3 * num_heads * d, generator=generator, dtype=dtype)
    weight = torch.rand(2 * d, generator=generator, dtype=torch.promote_types(dtype, torch.float32)) + 0.5
    lambda_ = torch.tensor(0.7, dtype=weight.dtype)
    return tuple(tensor.requires_grad_() for tensor in (qkv, lambda_, weight))


def _bytes_of_pairs(count, N, itemsize=8):
    """block_bytes for blocks of so many pairs."""
    return 2 * count * N * N * itemsize + 1


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 7, 1000], ids=lambda n: f"blocks-of-{n}-pairs")
@pytest.mark.parametrize(("B", "N", "num_heads", "d"), [(3, 9, 6, 4), (5, 1, 2, 3), (1, 17, 10, 1)])
def test_values_and_gradients(B, N, num_heads, d, pairs, is_causal):
    inputs = _inputs(B, N, num_heads, d)
    expected = _reference(*inputs, num_heads, is_causal)
    actual, *_ = attend_cpu(*inputs, num_heads, EPS, is_causal, True, _bytes_of_pairs(pairs, N))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


# PRECISION


def test_torchs_own_checks():
    """Schema, fake tensors, autograd registration and AOT dispatch."""
    torch.library.opcheck(attend_cpu, (*_inputs(2, 7, 4, 2, torch.float32), 4, EPS, True, True, 1))
    detached = tuple(tensor.detach() for tensor in _inputs(2, 7, 4, 2, torch.float32))
    torch.library.opcheck(attend_cpu, (*detached, 4, EPS, False, False, 1))


def _large_layer() -> tuple[DifferentialAttention, torch.Tensor]:
    torch.manual_seed(0)
    return DifferentialAttention(32, 4), torch.randn(4, 300, 32)


def _runs(module, *arguments, **kwargs) -> bool:
    """Whether the operator is among those that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        module(*arguments, **kwargs)
    return any(event.key == "diffclip_openclip::attend_cpu" for event in record.key_averages())


def test_the_layer_uses_it_where_maps_would_leave_the_cache():
    layer, x = _large_layer()
    assert not choice.fits_in_cache(4, 4, 300)
    assert choice.fits_in_cache(1, 4, 300)
    assert _runs(layer, x)
    assert _runs(layer, x, is_causal=True)
    assert not _runs(layer, x, attn_mask=torch.ones(300, 300, dtype=torch.bool))
    assert not _runs(layer, x[:1])
    dropping = DifferentialAttention(32, 4, attn_drop=0.1)
    assert not _runs(dropping, x)
    assert _runs(dropping.eval(), x)


def test_the_layers_paths_agree():
    layer, x = _large_layer()
    layer, x = layer.double(), x.double().requires_grad_()
    results = []
    for path in ("blocks", "maps"):
        with use_path(path):
            out = layer(x, is_causal=True)
            results.append([out, *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_no_map_is_kept_for_the_backward_pass():
    layer, x = _large_layer()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        layer(x)
    assert saved
    assert not any(shape[-2:] == (300, 300) for shape in saved)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_layer_is_equal(dynamic):
    layer, x = _large_layer()
    x.requires_grad_()
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic)
    expected, actual = layer(x), compiled(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    (theirs,), (ours,) = (torch.autograd.grad(out.sum(), x) for out in (expected, actual))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_exported_programs_do_without_it():
    """They are to run where this package is not, as in ONNX."""
    layer, x = _large_layer()
    program = torch.export.export(layer, (x,))
    assert not any("attend_cpu" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_scripted_layers_do_without_it():
    layer, x = _large_layer()
    scripted = torch.jit.script(layer)
    assert "attend_cpu" not in str(scripted.inlined_graph)
    torch.testing.assert_close(scripted(x), layer(x), rtol=1e-5, atol=1e-6)


def _per_sample_gradients(layer, x):
    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    return torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(layer.named_parameters()), x)


def test_transforms_of_torch_func():
    """The operator has neither a batching rule nor a forward-mode derivative, so explicit maps stand in for it."""
    torch.manual_seed(0)
    layer = DifferentialAttention(4, 2).double()
    x, tangent = torch.randn(2, 2, 600, 4, dtype=torch.float64)  # a sample alone leaves the cache
    assert _runs(layer, x)
    output, directional = torch.func.jvp(layer, (x,), (tangent,))
    torch.testing.assert_close(output, layer(x))
    step = 1e-5
    differences = (layer(x + step * tangent) - layer(x - step * tangent)) / (2 * step)
    torch.testing.assert_close(directional, differences, rtol=1e-6, atol=1e-8)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, directional)
    for name, gradients in _per_sample_gradients(layer, x).items():
        for gradient, sample in zip(gradients, x, strict=True):
            layer.zero_grad()
            layer(sample[None]).square().sum().backward()
            torch.testing.assert_close(gradient, layer.get_parameter(name).grad)
