"""The control models: a gate on plain attention's output, and half the heads, against the baseline."""

import open_clip
import pytest
import torch
from support.training import checkpoint_path, train, training_arguments

from diffclip_cli.main import main
from diffclip_openclip.explain.maps import attention_layers, attention_maps
from diffclip_openclip.models import MODELS
from diffclip_openclip.weights.loading import load_model

SIZES = ("nano", "B-16")
CONTROLS = [f"CLIP-{size}-{control}" for size in SIZES for control in ("gated", "half-heads")]


def _on_meta(name):
    with torch.device("meta"):
        return open_clip.create_model(name, device="meta")


def _layers(model):
    return [*attention_layers(model, "image"), *attention_layers(model, "text")]


@pytest.mark.parametrize("name", CONTROLS)
def test_as_many_parameters_as_the_baseline(name):
    count, plain = (
        sum(parameter.numel() for parameter in _on_meta(each).parameters()) for each in (name, MODELS[name].baseline)
    )
    assert count == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize("size", SIZES)
def test_heads(size):
    plain, gated, half = (
        [layer.num_heads for layer in _layers(_on_meta(f"CLIP-{size}-{kind}"))]
        for kind in ("baseline", "gated", "half-heads")
    )
    assert gated == plain
    assert [2 * heads for heads in half] == plain


@pytest.mark.parametrize("is_causal", [False, True], ids=["image", "text"])
def test_the_gate_as_written_out(is_causal):
    """Of both towers: softmax attention times sigmoid(W x + b), before the output projection."""
    torch.manual_seed(0)
    model = open_clip.create_model("CLIP-nano-gated").double()
    layer = _layers(model)[-1 if is_causal else 0]
    x_BNC = torch.randn(2, 5, 128, dtype=torch.float64)
    q, k, v = (
        (x_BNC @ w.t() + b).view(2, 5, 4, 32) for w, b in zip(*map(_thirds, layer.qkv.parameters()), strict=True)
    )
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / 32**0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    heads = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2)
    gate = 1 / (1 + torch.exp(-(x_BNC @ layer.gate.weight.t() + layer.gate.bias)))
    expected = (gate * heads) @ layer.proj.weight.t() + layer.proj.bias
    torch.testing.assert_close(layer(x_BNC, is_causal=is_causal), expected, rtol=0, atol=1e-12)


def _thirds(tensor):
    return tensor.chunk(3)


@pytest.mark.parametrize("name", CONTROLS[:2])
def test_one_step_of_the_trainer_and_what_reads_its_checkpoint(name, tmp_path):
    log = train(tmp_path, training_arguments("--model", name, "--train-num-samples", "8", epochs=1))
    assert "Loss: " in log
    assert main(["convert", str(checkpoint_path(tmp_path, "epoch_1")), str(tmp_path / "OUT")]) == 0
    loaded = load_model(f"local-dir:{tmp_path / 'OUT'}")
    maps = attention_maps(loaded.model, torch.randn(1, 3, 48, 48), loaded.tokenizer(["a mug"]))
    assert [layer.a1.shape[1] for layer in maps] == [layer.num_heads for layer in _layers(loaded.model)]


def test_models_that_differ_in_heads_alone_have_other_hashes(tmp_path):
    """Under which features are kept."""
    model = open_clip.create_model("CLIP-nano-baseline")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    hashes = {load_model(f"CLIP-nano-{kind},{tmp_path / 'weights.pt'}").sha256 for kind in ("baseline", "half-heads")}
    assert len(hashes) == 2
