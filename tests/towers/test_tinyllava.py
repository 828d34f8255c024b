"""The image tower as a tower of TinyLLaVA, by the example's registration and a stand-in of TinyLLaVA's factory."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch
from PIL import Image
from support.common import REPOSITORY
from support.vision_towers import TOKENS, WIDTH, assert_same_weights, write_tower
from transformers import AutoConfig, AutoModel


class _StandInTower(torch.nn.Module):
    """What a TinyLLaVA v1 tower inherits (53f12c7:tinyllava/model/vision_tower/base.py), as far as it is used here."""

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg

    def load_model(self, name):
        self._vision_tower = self._vision_tower.from_pretrained(name).requires_grad_(False)

    def forward(self, images, vision_feature_layer=-2):
        return self._vision_tower(images, output_hidden_states=True).hidden_states[vision_feature_layer][:, 1:]


@pytest.fixture
def factory(monkeypatch):
    """A stand-in for TinyLLaVA v1's factory, with the towers that it has and the example's; name -> class."""
    towers = {"clip": "CLIP", "siglip": "SigLIP", "dinov2": "DINOv2", "mof": "MoF"}

    def register_vision_tower(name):
        return lambda tower: towers.setdefault(name, tower)

    modules = {f"tinyllava{part}": ModuleType(f"tinyllava{part}") for part in ("", ".model", ".model.vision_tower")}
    modules["tinyllava.model.vision_tower"].register_vision_tower = register_vision_tower
    modules["tinyllava.model.vision_tower.base"] = base = ModuleType("base")
    base.VisionTower = _StandInTower
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    path = REPOSITORY / "examples" / "llava" / "tinyllava_tower.py"
    spec = importlib.util.spec_from_file_location("tinyllava_tower", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

    def find(name):
        matching = [tower for known, tower in towers.items() if known in name.split(":")[0].lower()]
        return matching[-1]  # the last match wins

    return find


def test_tinyllava_tower(factory, tmp_path_factory):
    tower_folder = write_tower(tmp_path_factory.mktemp("clip-tower"))
    assert "clip" in str(tower_folder)  # what is behind the colon must not matter
    name = f"diffattn_vit:{tower_folder}"
    config = AutoConfig.from_pretrained(name.split(":")[-1])
    assert config.hidden_size == WIDTH
    config.model_name_or_path = name.split(":")[-1]
    tower = factory(name)(config)
    tower.load_model(config.model_name_or_path)
    reference = AutoModel.from_pretrained(tower_folder)
    assert_same_weights(tower._vision_tower, reference)
    images = tower._image_processor(Image.new("RGB", (60, 50), "teal"), return_tensors="pt")["pixel_values"]
    for layer in ({}, {"vision_feature_layer": -1}):
        features = tower(images, **layer)
        assert features.shape == (1, TOKENS - 1, config.hidden_size)
    assert torch.equal(tower(images), reference(images, output_hidden_states=True).hidden_states[-2][:, 1:])
    assert factory("openai/clip-vit-large") == "CLIP"
