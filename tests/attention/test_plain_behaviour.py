"""Layers behave where plain attention does: adapters, hooks, replaced parts, tracing, counters and timm's tools."""

import copy
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models import VisionTransformer
from timm.utils import AttentionExtract
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.feature_extraction import create_feature_extractor

from diffclip_openclip import DifferentialAttention, DifferentialAttentionV2
from diffclip_openclip.attention import use_path

C, H = 16, 4
LAYERS = {"v1": DifferentialAttention, "v2": DifferentialAttentionV2}
WAYS = [("v1", "maps"), ("v1", "blocks"), ("v1", "sdpa"), ("v2", "sdpa")]
every_way = pytest.mark.parametrize(("kind", "path"), WAYS, ids=["-".join(way) for way in WAYS])


def _layer(kind="v1", **kwargs):
    torch.manual_seed(0)
    return LAYERS[kind](C, H, **kwargs).double()


def _tokens(*shape):
    return torch.randn(*(shape or (2, 5)), C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class _DroppingAdapter(nn.Module):
    """A low-rank adapter with dropout around a linear layer, as LoRA adds them; counts its calls."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 3, bias=False).double()
        self.up = nn.Linear(3, base.out_features, bias=False).double()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.base(x) + self.up(self.down(F.dropout(x, 0.5)))


# --- what a user can replace runs once, and its randomness is respected ---


@every_way
@pytest.mark.parametrize("checkpointed", [False, True], ids=["", "checkpointed"])
def test_gradients_through_an_adapter_with_dropout(kind, path, checkpointed):
    """Against finite differences, every call with the same random numbers."""
    layer, x = _layer(kind), _tokens().requires_grad_()
    layer.proj = _DroppingAdapter(layer.proj)

    def loss(x):
        torch.manual_seed(3)
        out = checkpoint(layer, x, use_reentrant=False) if checkpointed else layer(x)
        return out.sin().sum()

    with use_path(path):
        tensors = [x, *layer.parameters()]
        gradients = torch.autograd.grad(loss(x), tensors)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            direction = torch.randn_like(tensor)
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    tensor.add_(direction, alpha=step)
                    values.append(loss(x).item())
                    tensor.add_(direction, alpha=-step)
            numeric = (values[0] - values[1]) / 2e-6
            # central differences of a loss of about 1 in float64: 1e-12 of truncation, 1e-16 / 1e-6 of rounding
            assert (gradient * direction).sum().item() == pytest.approx(numeric, rel=1e-6, abs=1e-8)


@every_way
def test_a_step_calls_each_module_once(kind, path):
    layer, calls = _layer(kind), []
    for name, module in layer.named_children():
        if name not in ("attn_drop", "sub_norm"):  # fused attention has no maps to drop from; the norm has its own test
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with use_path(path):
        layer(_tokens().requires_grad_()).sum().backward()
    assert sorted(calls) == sorted({"qkv", "proj", "proj_drop", *(["lambda_proj"] if kind == "v2" else [])})


@pytest.mark.parametrize(("kind", "path"), [("v1", "maps"), ("v1", "sdpa"), ("v2", "sdpa")])
def test_second_derivatives(kind, path):
    """Of torch's fused attention on the CPU only the one that writes its maps out has them."""
    layer = _layer(kind)
    with use_path(path), sdpa_kernel(SDPBackend.MATH):
        assert torch.autograd.gradgradcheck(lambda x: layer(x).sin().sum(), (_tokens(1, 3).requires_grad_(),))


@pytest.mark.parametrize("kind", LAYERS)
def test_two_backward_passes_over_one_graph(kind):
    layer, x = _layer(kind), _tokens().requires_grad_()
    with use_path("sdpa"):
        loss = layer(x).sin().sum()
    first = torch.autograd.grad(loss, [x, *layer.parameters()], retain_graph=True)
    for again, expected in zip(torch.autograd.grad(loss, [x, *layer.parameters()]), first, strict=True):
        assert torch.equal(again, expected)


@pytest.mark.parametrize("frozen", ["proj", "everything but lambda"])
def test_gradients_with_frozen_parts(frozen):
    layer, x = _layer(), _tokens()
    with use_path("maps"):
        expected = torch.autograd.grad(layer(x).sin().sum(), layer.lambda_q1)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith("proj") if frozen == "proj" else name.startswith("lambda"))
    with use_path("sdpa"):
        torch.testing.assert_close(torch.autograd.grad(layer(x).sin().sum(), layer.lambda_q1), expected)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_follows_fused_attention_is_not_kept(kind, monkeypatch):
    """The projection's input is gone when the layer returns; it is made again in the backward pass."""
    layer, x, inputs = _layer(kind), _tokens().requires_grad_(), []
    linear = F.linear

    def watched(x, weight, bias=None):
        if weight is layer.proj.weight:
            inputs.append(StorageWeakRef(x.untyped_storage()))
        return linear(x, weight, bias)

    monkeypatch.setattr(F, "linear", watched)
    with use_path("sdpa"):
        out = layer(x)
    assert inputs[0].expired()
    out.sum().backward()
    assert x.grad.abs().sum() > 0


# --- the norm is a module of its own ---


@pytest.mark.parametrize("path", ["maps", "sdpa"])
def test_hooks_on_the_norm_run(path):
    layer, seen = _layer(), []
    expected = layer(_tokens())
    layer.sub_norm.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    with use_path(path):
        torch.testing.assert_close(layer(_tokens()), expected, rtol=1e-12, atol=1e-12)
    assert seen == [(2, 5, H // 2, 2 * C // H)]


def test_a_hooked_norm_takes_the_explicit_path_on_its_own():
    layer, seen = _layer(), []
    x = _tokens(2, 600)
    layer.sub_norm.register_forward_pre_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(layer(x), _layer()(x), rtol=1e-10, atol=1e-12)
    assert seen == [1]


@pytest.mark.parametrize("path", ["maps", "sdpa"])
@pytest.mark.parametrize("norm", ["LayerNorm", "RMSNorm without weight", "RMSNorm of other eps", "RMSNorm of no eps"])
def test_a_replaced_norm_is_computed(norm, path):
    layer, x, size = _layer(), _tokens(), 2 * C // H
    layer.sub_norm = {
        "LayerNorm": nn.LayerNorm(size, eps=0.1),
        "RMSNorm without weight": nn.RMSNorm(size, eps=0.1, elementwise_affine=False),
        "RMSNorm of other eps": nn.RMSNorm(size, eps=0.1),
        "RMSNorm of no eps": nn.RMSNorm(size),
    }[norm].double()
    a1, a2 = layer.attention_maps(x)
    v = layer.qkv(x)[..., 2 * C :].unflatten(-1, (H // 2, -1)).transpose(1, 2)
    heads = layer.sub_norm(((a1 - layer.compute_lambda() * a2) @ v).transpose(1, 2)) * (1 - layer.lambda_init)
    with use_path(path):
        torch.testing.assert_close(layer(x), layer.proj(heads.flatten(2)), rtol=1e-12, atol=1e-12)


def test_parametrised_norm_is_computed():
    layer, x = _layer(), _tokens()
    expected = layer(x)
    double = type("Double", (nn.Module,), {"forward": lambda self, weight: 2 * weight})()
    nn.utils.parametrize.register_parametrization(layer.sub_norm, "weight", double)
    bias = layer.proj.bias
    torch.testing.assert_close(layer(x) - bias, 2 * (expected - bias), rtol=1e-12, atol=1e-12)


def test_a_norm_whose_parameters_are_elsewhere_loads_them(monkeypatch):
    """As offloading does: parameters are on meta but within the module's own call."""
    layer, x = _layer(), _tokens(2, 600)
    expected = layer(x)
    weight, norm = layer.sub_norm.weight, layer.sub_norm
    stock = norm.forward

    def forward(x):
        norm.weight = weight
        try:
            return stock(x)
        finally:
            norm.weight = nn.Parameter(weight.to("meta"))

    norm.weight = nn.Parameter(weight.to("meta"))
    norm.forward = forward
    torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)


# --- timm's attributes and tools ---


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("is_causal", [False, True])
def test_unfused_attention_is_equal(kind, is_causal):
    layer, x = _layer(kind), _tokens()
    mask = torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) > 0.4
    for attn_mask in (None, mask):
        expected = layer(x, attn_mask, is_causal)
        unfused = copy.deepcopy(layer)
        unfused.fused_attn = False
        torch.testing.assert_close(unfused(x, attn_mask, is_causal), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_attributes_of_timms_attention(kind):
    ours, plain = _layer(kind), Attention(C, H)
    for name in ("num_heads", "head_dim", "scale"):
        assert getattr(ours, name) == getattr(plain, name), name
    assert ours.fused_attn is True
    assert isinstance(ours.attn_drop, nn.Dropout)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fused", [True, False])
def test_setting_p_of_every_dropout_switches_dropout_off(kind, fused):
    layer, x = _layer(kind, attn_drop=0.5, proj_drop=0.5).train(), _tokens()
    layer.fused_attn = fused
    assert not torch.equal(layer(x), layer(x))
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(layer(x), copy.deepcopy(layer).eval()(x), rtol=1e-12, atol=1e-12)


TOWERS = ["vit_nano_patch12_diffclip_48", "vit_nano_patch12_diffclip_v2_48", "vit_nano_patch12_plain_48"]


@pytest.fixture(params=TOWERS)
def tower(request) -> VisionTransformer:
    torch.manual_seed(0)
    return timm.create_model(request.param).eval()


def test_torch_fx_features(tower):
    images = torch.randn(2, 3, 48, 48)
    name = tower.pretrained_cfg["architecture"]
    features = timm.create_model(name, features_only=True, feature_cls="fx", out_indices=(0, 1))
    assert [tuple(feature.shape) for feature in features(images)] == [(2, 17, 128)] * 2
    extractor = create_feature_extractor(tower, {"blocks.1": "tokens", "norm": "normed"})
    expected = tower.forward_features(images)
    torch.testing.assert_close(extractor(images)["normed"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["fx", "hook"])
def test_timms_attention_extract(method, tower):
    images = torch.randn(2, 3, 48, 48)
    for block in tower.blocks:
        block.attn.fused_attn = False
    found = AttentionExtract(tower, method=method)(images)
    assert len(found) == len(tower.blocks)
    heads = 2 * tower.blocks[0].attn.num_heads if "v2" in tower.pretrained_cfg["architecture"] else 4
    for maps in found.values():
        assert maps.shape == (2, heads, 17, 17)
        torch.testing.assert_close(maps.sum(-1), torch.ones(2, heads, 17), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_fx_traces_a_layer_of_any_size(kind):
    layer = _layer(kind).eval()
    graph = torch.fx.symbolic_trace(layer, concrete_args={"attn_mask": None, "is_causal": False})
    for shape in ((2, 5), (1, 9), (4, 300)):
        x = _tokens(*shape)
        torch.testing.assert_close(graph(x), layer(x), rtol=1e-12, atol=1e-12)


# --- traced and exported programs ---


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_traced_layers_run_without_the_package(kind, tmp_path):
    """With the 401 tokens of 320 pixels in patches of 16, whose maps leave the cache."""
    layer, x = _layer(kind).eval(), _tokens(2, 401)
    traced = torch.jit.trace(layer, (x,))
    traced.save(tmp_path / "layer.pt")
    torch.save((x, layer(x)), tmp_path / "pair.pt")
    code = (
        "import sys, torch\n"
        "layer, (x, expected) = torch.jit.load('layer.pt'), torch.load('pair.pt')\n"
        "torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-12)\n"
        "assert 'diffclip_openclip' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", LAYERS)
def test_onnx_by_tracing(kind):
    ort = pytest.importorskip("onnxruntime")
    layer, x, file = _layer(kind).float().eval(), _tokens(1, 401).float(), io.BytesIO()
    torch.onnx.export(layer, (x,), file, dynamo=False, opset_version=17)
    session = ort.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), layer(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_with_a_batch_size_that_depends_on_data(kind):
    layer, x, chosen = _layer(kind), _tokens(6, 300), torch.tensor([True, True, False, True, False, False])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(lambda x, chosen: layer(x[chosen]), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, chosen), layer(x[chosen]), rtol=1e-10, atol=1e-12)


# --- counters ---


@pytest.mark.parametrize("is_causal", [False, True])
def test_flops_of_a_sample_do_not_depend_on_the_path(is_causal):
    layer = DifferentialAttention(64, 4)
    counts = {}
    for path in ("maps", "blocks"):
        with use_path(path), FlopCounterMode(display=False) as counter:
            out = layer(torch.randn(2, 50, 64, requires_grad=True), is_causal=is_causal)
        counts[path, "forward"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        counts[path, "backward"] = counter.get_total_flops()
    assert counts["maps", "forward"] == counts["blocks", "forward"]
    maps = 2 * 2 * 50 * 50 * 64  # both maps of every pair, which the operator makes again
    assert counts["blocks", "backward"] == counts["maps", "backward"] + maps


# --- machines that are used hard ---


@every_way
def test_eight_threads_at_once(kind, path):
    layer, x = _layer(kind), _tokens(2, 60)

    def step(_):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        return out.detach(), torch.autograd.grad(out.sin().sum(), leaf)[0]

    with use_path(path):
        expected = step(0)
        with ThreadPoolExecutor(8) as pool:
            for result in pool.map(step, range(32)):
                assert all(torch.equal(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


@every_way
def test_memory_that_is_poisoned_leaves_no_trace(kind, path):
    """torch fills uninitialised memory with NaN in deterministic mode."""
    layer, x = _layer(kind), _tokens(2, 60).requires_grad_()
    with use_path(path):
        before = layer(x, is_causal=True)
        torch.use_deterministic_algorithms(True)
        try:
            assert torch.utils.deterministic.fill_uninitialized_memory
            out = layer(x, is_causal=True)
            gradients = torch.autograd.grad(out.sum(), [x, *layer.parameters()])
        finally:
            torch.use_deterministic_algorithms(False)
    assert torch.equal(out, before)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_ahead_of_time_compiled_layers(kind, tmp_path):
    layer, x = _layer(kind).float().eval(), _tokens(2, 401).float()
    program = torch.export.export(layer, (x,))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
    loaded = torch._inductor.aoti_load_package(package)
    torch.testing.assert_close(loaded(x), layer(x), rtol=1e-4, atol=1e-5)


# --- what a stranger did with them ---


class _WritesToItsInput(nn.Module):
    """A projection behind an activation in place."""

    def __init__(self, proj):
        super().__init__()
        self.proj = proj

    def forward(self, x):
        return self.proj(x.relu_())


@pytest.mark.parametrize("kind", LAYERS)
def test_a_projection_may_write_to_its_input(kind):
    x, results = _tokens().requires_grad_(), []
    for inplace in (True, False):
        layer = _layer(kind)
        layer.proj = _WritesToItsInput(layer.proj) if inplace else nn.Sequential(nn.ReLU(), layer.proj)
        with use_path("sdpa"):
            results.append(torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()]))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", LAYERS)
def test_outer_hooks_see_what_an_adapter_keeps(kind):
    """As activation checkpointing and offloading do."""
    layer, seen = _layer(kind), []
    layer.proj = _DroppingAdapter(layer.proj)

    def pack(tensor):
        seen.append(tuple(tensor.shape))
        return tensor

    with use_path("sdpa"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(_tokens(2, 7).requires_grad_())
    assert (14, 3) in seen or (2, 7, 3) in seen


@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_after_first_ones_of_a_part(kind):
    layer, x, results = _layer(kind), _tokens(1, 3).requires_grad_(), []
    with use_path("sdpa"), sdpa_kernel(SDPBackend.MATH):
        for partial in (False, True):
            loss = layer(x).sin().sum()
            if partial:
                torch.autograd.grad(loss, layer.proj.weight, retain_graph=True)
            (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
            results.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_pickled_layer_runs_in_another_process(tmp_path):
    torch.save((_layer(), _tokens(1, 700)), tmp_path / "layer.pt")
    code = "import torch\nlayer, x = torch.load('layer.pt', weights_only=False)\nassert layer(x).isfinite().all()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_for_a_range_of_batch_sizes(kind):
    layer, x = _layer(kind), _tokens(2, 100)
    torch._dynamo.mark_dynamic(x, 0, min=1, max=4096)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for tokens in (x, _tokens(9, 100)):
        torch.testing.assert_close(compiled(tokens), layer(tokens), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kind", "path"), [way for way in WAYS if "blocks" not in way])
def test_a_frozen_layer_within_vmap(kind, path):
    layer, x = _layer(kind), _tokens(1, 3)
    with use_path(path):
        out = torch.func.vmap(lambda scale: layer(x) * scale)(torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(out[1], layer(x), rtol=1e-12, atol=1e-12)


def test_no_tokens_by_blocks():
    with use_path("blocks"):
        assert _layer()(_tokens(2, 0)).shape == (2, 0, C)
