"""Parity with the authors' implementation: values, gradients, lambdas and maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.golden_model import CASES, clip_loss, facts_of, golden_model, inputs, load

from diffclip_openclip import to_reference


def _logits(model, images, text):
    image_embed = model.encode_image(images)
    text_embed = model.encode_text(text)
    logits = model.logit_scale.exp() * F.normalize(image_embed, dim=-1) @ F.normalize(text_embed, dim=-1).t()
    return image_embed, text_embed, logits


def _attention_layers(model):
    """Differential attention modules under the reference's layer names."""
    layers = {f"visual.blocks.{i}": block.attn for i, block in enumerate(model.visual.trunk.blocks)}
    return layers | {f"transformer.resblocks.{i}": layer.attn for i, layer in enumerate(model.text.transformer.layers)}


def _reference_gradients(model):
    """Gradients in the reference's layout, by the same key map as the weights."""
    return to_reference({name: p.grad for name, p in model.named_parameters()})


@pytest.mark.parametrize("case", CASES)
def test_float64_values_and_gradients(case, tmp_path):
    arrays, facts = load(case), facts_of(case)
    model = golden_model(case, tmp_path).double()
    images, text = inputs(case)
    image_embed, text_embed, logits = _logits(model, images.double(), text)
    loss = clip_loss(logits)
    loss.backward()

    np.testing.assert_allclose(image_embed.detach(), arrays["image_embed"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(text_embed.detach(), arrays["text_embed"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(logits.detach(), arrays["logits"], rtol=0, atol=1e-9)
    assert loss.item() == pytest.approx(facts["loss"], abs=1e-9)

    gradients = _reference_gradients(model)
    assert gradients.keys() == facts["grad_norm"].keys()
    for key, norm in facts["grad_norm"].items():
        # keys' biases shift all scores of a query alike, so their true gradient is zero and only rounding is left
        assert gradients[key].norm().item() == pytest.approx(norm, rel=1e-8, abs=1e-13), key
    compared = [key.removeprefix("grad/") for key in arrays if key.startswith("grad/")]
    assert compared
    for key in compared:
        expected = arrays[f"grad/{key}"]
        error = np.linalg.norm(gradients[key].numpy() - expected)
        assert error <= 1e-8 * np.linalg.norm(expected) + 1e-13, key


@pytest.mark.parametrize("case", CASES)
def test_float32_embeddings(case, tmp_path):
    arrays = load(case)
    model = golden_model(case, tmp_path).eval()
    images, text = inputs(case)
    with torch.no_grad():
        image_embed, text_embed, _ = _logits(model, images, text)
    np.testing.assert_allclose(image_embed, arrays["image_embed"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(text_embed, arrays["text_embed"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_lambda_of_every_layer(case, tmp_path):
    facts = facts_of(case)
    model = golden_model(case, tmp_path).double()
    lambdas = {layer: attn.compute_lambda().item() for layer, attn in _attention_layers(model).items()}
    assert lambdas == pytest.approx(facts["lambda"], abs=1e-12)


def test_attention_maps(tmp_path):
    arrays = load("tiny_static_maps")
    model = golden_model("tiny_static", tmp_path).double().eval()
    images, text = inputs("tiny_static")
    seen = {}

    def keep(layer):
        def hook(attn, args, kwargs):
            a1, a2 = attn.attention_maps(*args, is_causal=kwargs["is_causal"])
            seen[f"{layer}/a1"], seen[f"{layer}/a2"] = a1, a2

        return hook

    for layer, attn in _attention_layers(model).items():
        attn.register_forward_pre_hook(keep(layer), with_kwargs=True)
    with torch.no_grad():
        _logits(model, images[:1].double(), text[:1])
    assert seen.keys() == arrays.keys()
    for key, expected in arrays.items():
        np.testing.assert_allclose(seen[key], expected, rtol=0, atol=1e-6, err_msg=key)  # stored in float32
