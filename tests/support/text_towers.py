"""A small text tower for tests, and texts for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import factory

from diffclip_openclip import DiffCLIPTextConfig, DiffCLIPTextModel

START, END = 48, 49
# a 0 inside is a token ("!" in CLIP's vocabulary), zeros behind the end are padding
TEXTS = torch.tensor(
    [
        [START, 5, 0, 7, END, 0, 0, 0],
        [START, 9, END, 0, 0, 0, 0, 0],
        [START, 3, 4, 0, 6, 1, 2, END],
    ]
)
END_OF_TEXT = [4, 2, 7]


def text_config(**kwargs: Any) -> DiffCLIPTextConfig:
    """A config of three layers for texts of up to eight tokens."""
    sizes = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 8,
        "bos_token_id": START,
        "eos_token_id": END,
    }
    return DiffCLIPTextConfig(**(sizes | kwargs))


def text_model(seed: int = 0, **kwargs: Any) -> DiffCLIPTextModel:
    """A model with new weights, in evaluation mode; ``kwargs`` change its config."""
    torch.manual_seed(seed)
    return DiffCLIPTextModel(text_config(**kwargs)).eval()


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two modules have equal state dicts."""
    a_state, b_state = a.state_dict(), b.state_dict()
    return a_state.keys() == b_state.keys() and all(torch.equal(a_state[key], b_state[key]) for key in a_state)


def name_to_open_clip(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let open_clip know a model config whose text tower is that folder, as ``open_clip.add_model_config`` does."""
    text_cfg = {"hf_model_name": str(folder), "hf_pooler_type": "diffclip_text_pooler", "hf_proj_type": "linear"}
    vision_cfg = {"image_size": 48, "timm_model_name": "vit_nano_patch12_diffclip_48", "timm_pool": "token"}
    config = {"embed_dim": 8, "vision_cfg": vision_cfg | {"timm_proj": "linear"}, "text_cfg": text_cfg}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "mine", config)
