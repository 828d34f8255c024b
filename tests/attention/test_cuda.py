"""What only a GPU can show: its fused kernels, precision, memory, and the host commands on it."""

import copy
import json

import pytest
import torch
from support.common import run_host, script, train_arguments

from diffclip_openclip import DifferentialAttention, DifferentialAttentionV2
from diffclip_openclip.bench import measure as bench

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
DEVICE = "cuda"
MODULES = {1: DifferentialAttention, 2: DifferentialAttentionV2}


def _layer(version):
    torch.manual_seed(0)
    layer = MODULES[version](256, 4)
    with torch.no_grad():
        layer.qkv.weight.mul_(3)  # maps that are far from uniform
    return layer


def _output_and_gradients(layer, run, x, weight, is_causal, dtype):
    x = x.detach().clone().requires_grad_()
    with torch.autocast(x.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        out = run(x, is_causal=is_causal)
    (out.to(weight.dtype) * weight).sum().backward()
    return {"out": out.detach(), "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}


# 192 and 576 are 64 more than multiples of 128, where cuDNN's causal backward was wrong (pytorch/pytorch#196678)
@pytest.mark.parametrize("num_tokens", [1, 77, 192, 197, 576])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (None, 1e-4),  # float32, sums of up to 576 terms in another order
        (torch.float16, 2e-2),  # roundings of 2^-11 and 2^-8, as on the CPU twice those of the core
        (torch.bfloat16, 1.2e-1),
    ],
)
@pytest.mark.parametrize("version", MODULES)
def test_layers_are_those_of_the_cpu(version, dtype, tolerance, compiled, is_causal, num_tokens):
    layer = _layer(version)
    x, weight = torch.randn(2, 3, num_tokens, 256)
    exact_layer = copy.deepcopy(layer).double()
    exact = _output_and_gradients(exact_layer, exact_layer, x.double(), weight.double(), is_causal, None)
    layer = layer.to(DEVICE)
    torch.compiler.reset()
    run = torch.compile(layer, fullgraph=True, dynamic=False) if compiled else layer
    actual = _output_and_gradients(layer, run, x.to(DEVICE), weight.to(DEVICE), is_causal, dtype)
    for name, value in exact.items():
        difference = actual[name].double().cpu() - value
        # behind the norm, lambda's gradient is what is left of terms that nearly cancel
        assert difference.norm() <= tolerance * max(value.norm(), 0.1 * exact["x"].norm()), name


@pytest.mark.parametrize("version", MODULES)
def test_no_map_is_kept(version):
    layer, x = _layer(version).to(DEVICE), torch.randn(1, 8192, 256, device=DEVICE)
    with torch.autocast("cuda", torch.bfloat16):
        before = torch.cuda.memory_allocated()
        out = layer(x)
        kept = torch.cuda.memory_allocated() - before
    assert out.requires_grad
    assert kept < 8192 * 8192 * 2, "as much as one map in half precision"


@pytest.mark.parametrize("grad_checkpointing", [False, True])
def test_memory_of_a_train_step(grad_checkpointing):
    setting = bench.Setting(DEVICE, "amp_bf16", grad_checkpointing=grad_checkpointing, batch_size=64)
    models = ("CLIP-B-16-baseline", "DiffCLIP-B-16")
    plain, differential = bench.bench(models, [setting], rounds=2, passes=["train step"])
    assert differential.peak_bytes <= 1.05 * plain.peak_bytes


@pytest.mark.parametrize("flags", [[], ["--torchcompile"], ["--grad-checkpointing"]], ids=lambda flags: "".join(flags))
def test_trains(flags, train_shard, tmp_path):
    processes = min(2, torch.cuda.device_count())
    command = [script("torchrun"), "--standalone", "--nproc-per-node", str(processes), "--no-python", "--"]
    command += [script("open_clip_train"), *train_arguments(train_shard), "--epochs", "1", "--precision", "amp"]
    run_host([*command, "--lr", "1e-3", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8", *flags], tmp_path)
    checkpoint = tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt"
    state_dict = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in state_dict.values())


def test_bench(tmp_path):
    command = [script("diffclip"), "bench", "--model", "CLIP-nano-baseline", "--model", "DiffCLIP-nano"]
    run_host([*command, "--device", "cuda", "--rounds", "2", "--compile", "--output", "figures.json"], tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["device"] == torch.cuda.get_device_name()
    assert all(row["peak_bytes"] > 0 for row in figures["rows"])
