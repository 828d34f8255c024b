"""peft's adapters on both towers: they change nothing at first, train alone, and merge into the weights."""

import open_clip
import peft
import pytest
import torch

from diffclip_openclip.attention.choice import use_path

NAMES = ["DiffCLIP-nano", "DiffCLIP-V2-nano"]
LINEAR = r".*\.(attn\.(qkv|proj)|mlp\.(fc1|fc2|c_fc|c_proj))"
ADAPTERS = {
    "LoRA": peft.LoraConfig(target_modules=LINEAR, r=4),
    "DoRA": peft.LoraConfig(target_modules=LINEAR, r=4, use_dora=True),
    "IA3": peft.IA3Config(target_modules=LINEAR, feedforward_modules=r".*\.mlp\.(fc2|c_proj)"),
    "LNTuning": peft.LNTuningConfig(target_modules=r".*\.(norm1|norm2|ln_1|ln_2|sub_norm)"),
}


def _model_and_inputs(name):
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval().double()
    return model, (torch.randn(2, 3, 48, 48, dtype=torch.float64), torch.randint(1, 49408, (2, 16)))


def _train_a_step(model, inputs):
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)
    for _ in range(2):  # LoRA's second matrix is zero at first
        optimizer.zero_grad()
        image, text, _ = model(*inputs)
        (image * text).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", NAMES)
def test_adapters_train_alone_and_merge(name, adapter):
    model, inputs = _model_and_inputs(name)
    with torch.no_grad():
        before = model.encode_image(inputs[0]), model.encode_text(inputs[1])
    adapted = peft.get_peft_model(model, ADAPTERS[adapter])
    with torch.no_grad():
        torch.testing.assert_close(adapted.base_model.model.encode_image(inputs[0]), before[0])
        torch.testing.assert_close(adapted.base_model.model.encode_text(inputs[1]), before[1])
    _train_a_step(adapted, inputs)
    for key, parameter in adapted.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, key
    with torch.no_grad():
        trained = adapted(*inputs)
        merged = adapted.merge_and_unload()
        for a, b in zip(merged(*inputs), trained, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert merged.state_dict().keys() == _model_and_inputs(name)[0].state_dict().keys()
    assert not torch.allclose(trained[0], before[0])


@pytest.mark.parametrize("path", ["maps", "sdpa"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences_with_an_adapters_dropout(name, path):
    """Dropout in an adapter of ``proj`` is drawn once a step, whatever is computed again in the backward pass."""
    model, inputs = _model_and_inputs(name)
    config = peft.LoraConfig(target_modules=r".*\.attn\.proj", r=4, lora_dropout=0.5, init_lora_weights=False)
    adapted = peft.get_peft_model(model, config).train()

    def loss():
        torch.manual_seed(1)
        with use_path(path):
            image, text, _ = adapted(*inputs)
        return (image * text).sum()

    adapted.double()
    weight = next(p for key, p in adapted.named_parameters() if "lora_A" in key and "visual" in key)
    loss().backward()
    direction = torch.randn_like(weight)
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
        above = loss()
        weight -= 2 * step * direction
        below = loss()
    expected = (above - below) / (2 * step)
    torch.testing.assert_close((weight.grad * direction).sum(), expected, rtol=1e-5, atol=1e-9)
