"""accelerate's offloading, which brings a module's parameters in place for the module's own forward alone."""

import accelerate
import open_clip
import pytest
import torch
from support.text_towers import TEXTS, text_model
from transformers import AutoModel

from diffclip_openclip import DiffCLIPVisionConfig, DiffCLIPVisionModel

VISION = {"image 1": "vit_nano_patch12_diffclip_48", "image 2": "vit_nano_patch12_diffclip_v2_48"}
TOWERS = ["text 1", "text 2", *VISION, "plain image"]


def _tower(name):
    """A tower in evaluation mode, and an input."""
    if name.startswith("text"):
        return text_model(attention_version=int(name[-1])), TEXTS
    torch.manual_seed(0)
    config = DiffCLIPVisionConfig(VISION.get(name, "vit_nano_patch12_plain_48"))
    return DiffCLIPVisionModel(config).eval(), torch.randn(2, 3, 48, 48)


def _offloaded(how, model, folder):
    if how == "cpu_offload":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if how == "disk_offload":
        return accelerate.disk_offload(model, folder / "offloaded", execution_device=torch.device("cpu"))
    model.save_pretrained(folder / "model")
    device_map = {"": "disk"}
    if how == "inferred map":
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        device_map = accelerate.infer_auto_device_map(
            model, {"cpu": size // 2, "disk": 2 * size}, no_split_module_classes=model._no_split_modules
        )
        assert set(device_map.values()) == {"cpu", "disk"}
    return AutoModel.from_pretrained(folder / "model", device_map=device_map, offload_folder=folder / "offloaded")


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("how", ["cpu_offload", "disk_offload", "disk map", "inferred map"])
def test_offloaded_towers_give_the_same(how, tower, tmp_path):
    model, inputs = _tower(tower)
    with torch.no_grad():
        expected = model(inputs, output_hidden_states=True)
        model = _offloaded(how, model, tmp_path)
        assert any(parameter.is_meta for parameter in model.parameters())
        actual = model(inputs, output_hidden_states=True)
    assert torch.equal(actual.pooler_output, expected.pooler_output)
    for a, b in zip(actual.hidden_states, expected.hidden_states, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["DiffCLIP-nano", "DiffCLIP-V2-nano"])
def test_whole_models_of_open_clip_are_offloaded_too(name):
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    inputs = torch.randn(2, 3, 48, 48), torch.randint(1, 49408, (2, 16))
    with torch.no_grad():
        expected = model(*inputs)
        actual = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))(*inputs)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_attentions_of_an_offloaded_tower_are_refused():
    model = accelerate.cpu_offload(text_model(), execution_device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"lambda vectors are offloaded.*load the model without offloading"):
        model(TEXTS, output_attentions=True)
