"""Folders with a text tower's config and no weights: which may give a new tower, and for how long a context."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from support.common import run_warm
from support.text_towers import TEXTS, name_to_open_clip, same_weights, text_config, text_model
from transformers import AutoConfig, AutoModel, CLIPTextConfig, CLIPTextModel

from diffclip_openclip import DiffCLIPTextConfig, DiffCLIPTextModel
from diffclip_openclip.registration import config_dir

DIFFERENTIAL = ["DiffCLIP-nano", "DiffCLIP-V2-nano"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a config and no weights that a model config known to open_clip names."""
    text_config().save_pretrained(tmp_path / "text")
    name_to_open_clip(monkeypatch, tmp_path / "text")
    return tmp_path / "text"


# --- which folders ---


@pytest.mark.parametrize("left", [[], ["model.pt"], ["README.md", "tokenizer.json"]], ids=str)
@pytest.mark.parametrize("auto", [False, True])
def test_an_incomplete_copy_raises(auto, left, tmp_path):
    """As CLIPTextModel does; random weights in silence would be taken for the model's."""
    for model, place in ((text_model(), tmp_path / "ours"), (_clip(), tmp_path / "clip")):
        model.save_pretrained(place)
        (place / "model.safetensors").unlink()
        for name in left:
            (place / name).touch()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        CLIPTextModel.from_pretrained(tmp_path / "clip")
    message = r"ours has a config\.json and no weights.*copy them.*from_config.*pretrained_text=False.*add_model_config"
    with pytest.raises(OSError, match=message):
        (AutoModel if auto else DiffCLIPTextModel).from_pretrained(tmp_path / "ours")


def _clip() -> CLIPTextModel:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, **sizes))


def test_a_copy_of_a_packaged_folder_raises(tmp_path):
    shutil.copytree(config_dir() / "text" / "DiffCLIP-nano", tmp_path / "DiffCLIP-nano")
    with pytest.raises(OSError, match="no weights"):
        AutoModel.from_pretrained(tmp_path / "DiffCLIP-nano")
    assert AutoModel.from_pretrained(config_dir() / "text" / "DiffCLIP-nano").config.hidden_size == 128


def test_a_folder_that_a_users_model_config_names_gives_a_new_tower(tmp_path):
    """As docs/models.md shows for a size of your own."""
    code = (
        "import json, open_clip\n"
        "from diffclip_openclip import DiffCLIPTextConfig\n"
        "DiffCLIPTextConfig(hidden_size=64, num_hidden_layers=1).save_pretrained('text-tower')\n"
        "config = open_clip.get_model_config('DiffCLIP-nano')\n"
        "config['text_cfg']['hf_model_name'] = 'text-tower'\n"
        "open('Mine.json', 'w').write(json.dumps(config))\n"
        "open_clip.add_model_config('Mine.json')\n"
        "print(open_clip.create_model('Mine').text.config.hidden_size)"
    )
    assert run_warm(code, tmp_path).splitlines()[-1] == "64"


def test_open_clip_builds_from_any_folder_if_asked_for_no_weights(tmp_path):
    text_config().save_pretrained(tmp_path / "text")
    model_cfg = open_clip.get_model_config("DiffCLIP-nano")
    model_cfg["text_cfg"]["hf_model_name"] = str(tmp_path / "text")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{tmp_path}", pretrained_text=False)
    assert model.text.config.num_hidden_layers == 3
    with pytest.raises(OSError, match="no weights"):
        open_clip.create_model(f"local-dir:{tmp_path}")


# --- with which arguments ---


def test_overrides_of_the_config(folder):
    model = DiffCLIPTextModel.from_pretrained(folder, lambda_init="dynamic")
    assert model.config.lambda_init == "dynamic"
    assert model.layers[0].attn.lambda_init == pytest.approx(0.2)


def test_same_weights_as_from_the_config(folder):
    torch.manual_seed(0)
    loaded = DiffCLIPTextModel.from_pretrained(folder)
    assert not loaded.training
    assert same_weights(loaded, text_model(seed=0))
    torch.manual_seed(0)
    assert same_weights(DiffCLIPTextModel.from_pretrained(folder, device_map="cpu"), loaded)


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "auto"},
        {"torch_dtype": "auto"},
        {"device_map": "cpu"},
        {"device_map": "auto"},
        {"low_cpu_mem_usage": True},
        {"ignore_mismatched_sizes": True},
        {"cache_dir": "cache", "local_files_only": True, "revision": "main"},
        {"attn_implementation": "eager", "output_attentions": True},
    ],
    ids=str,
)
def test_arguments_of_transformers(arguments, folder):
    model = AutoModel.from_pretrained(folder, **arguments)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(TEXTS).pooler_output.isfinite().all()


def test_dtype(folder):
    assert AutoModel.from_pretrained(folder, dtype=torch.bfloat16).layers[0].attn.qkv.weight.dtype == torch.bfloat16
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    assert AutoModel.from_pretrained(folder, dtype="auto").layers[0].attn.qkv.weight.dtype == torch.float16


def test_loading_info_says_that_everything_is_new(folder):
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert info["missing_keys"] == set(model.state_dict())
    assert not info["unexpected_keys"]


def test_unknown_arguments_are_refused(folder):
    with pytest.raises(TypeError, match="nonsense"):
        DiffCLIPTextModel.from_pretrained(folder, nonsense=1)


# --- for how long a context ---


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_a_longer_context_is_a_config_of_ones_own(name, tmp_path):
    """What docs/training.md tells to do: open_clip gives the text tower its folder and nothing else."""
    (tmp_path / "text").mkdir()
    text_config = json.loads((config_dir() / "text" / name / "config.json").read_text())
    (tmp_path / "text" / "config.json").write_text(json.dumps(text_config | {"max_position_embeddings": 32}))
    config = open_clip.get_model_config(name)
    config["text_cfg"] |= {"hf_model_name": str(tmp_path / "text"), "context_length": 32}
    (tmp_path / f"{name}-longer.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / f"{name}-longer.json")
    model = open_clip.create_model(f"{name}-longer")
    model.encode_text(open_clip.get_tokenizer(f"{name}-longer")(["word " * 40])).sum().backward()
    positions = model.text.transformer.embeddings.positional_embedding
    assert positions.shape == (32, 128)
    assert (positions.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("name", DIFFERENTIAL)
def test_a_forced_longer_context_says_what_to_do(name):
    model = open_clip.create_model(name, force_context_length=32)
    with pytest.raises(ValueError, match=r"takes at most 16 .*a longer tower needs a config of its own.*training.md"):
        model.encode_text(open_clip.get_tokenizer(name, context_length=32)(["word " * 40]))


def test_a_shorter_context_keeps_the_towers_positions():
    """Texts may always be shorter than a differential tower's context."""
    model = open_clip.create_model("DiffCLIP-nano", force_context_length=8)
    assert model.text.transformer.embeddings.positional_embedding.shape == (16, 128)


def test_configs_say_the_context_of_their_text_towers():
    for path in config_dir().glob("*.json"):
        text_cfg = json.loads(path.read_text())["text_cfg"]
        if "hf_model_name" in text_cfg:
            text = AutoConfig.from_pretrained(config_dir() / text_cfg["hf_model_name"])
            assert isinstance(text, DiffCLIPTextConfig)
            assert text_cfg["context_length"] == text.max_position_embeddings
