"""Image towers for tests: open_clip directories of nano models, and what their images are normalised with."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from diffclip_openclip import DiffCLIPVisionModel
from diffclip_openclip.towers.vision import image_processor_from_open_clip

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TOKENS, WIDTH, DEPTH = 17, 128, 4  # of the nano tower


def write_open_clip(folder: Path, name: str, **preprocess: Any) -> torch.nn.Module:
    """Write an open_clip directory with the weights of a new model, and return the model."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess_cfg = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "shortest"} | preprocess
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model


def write_tower(folder: Path) -> Path:
    """Write a DiffCLIP tower with its preprocessing, as the LLaVA example's README saves them; its place in folder."""
    write_open_clip(folder / "open_clip", "DiffCLIP-nano")
    DiffCLIPVisionModel.from_open_clip(folder / "open_clip").save_pretrained(folder / "tower")
    image_processor_from_open_clip(folder / "open_clip").save_pretrained(folder / "tower")
    return folder / "tower"


def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    """Assert that two modules have equal state dicts."""
    a_state, b_state = a.state_dict(), b.state_dict()
    assert a_state.keys() == b_state.keys()
    for key in a_state:
        assert torch.equal(a_state[key], b_state[key]), key
