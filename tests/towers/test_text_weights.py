"""Weights of the text tower: how they start, how they are saved and loaded."""

import gc
import json
import shutil
import weakref

import accelerate
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.text_towers import TEXTS, name_to_open_clip, same_weights, text_config, text_model
from transformers import AutoConfig, AutoModel

from diffclip_openclip import DiffCLIPTextModel


def _check_initialised(model):
    """OpenAI's, as in design.md: the standard deviations hold for every weight, within a few per cent."""
    C, L = model.config.hidden_size, model.config.num_hidden_layers
    residual = C**-0.5 * (2 * L) ** -0.5
    stds = {"embeddings.token_embedding.weight": 0.02, "embeddings.positional_embedding": 0.01}
    for i in range(L):
        stds[f"layers.{i}.attn.qkv.weight"] = C**-0.5
        stds[f"layers.{i}.attn.proj.weight"] = residual
        stds[f"layers.{i}.mlp.c_fc.weight"] = (2 * C) ** -0.5
        stds[f"layers.{i}.mlp.c_proj.weight"] = residual
    parameters = dict(model.named_parameters())
    for name, std in stds.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.06), name
        assert parameters[name].mean().abs() < 0.1 * std, name
    for name, p in parameters.items():
        assert p.isfinite().all(), name
        if ".lambda_" in name:
            assert 0 < p.abs().max() < 0.6, name
        elif "ln_" in name or "sub_norm" in name:
            assert (p == (0 if name.endswith("bias") else 1)).all(), name


WIDE = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 200, "max_position_embeddings": 32}


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("how", ["class", "config", "directory"])
def test_initialisation(how, version, tmp_path, monkeypatch):
    config = text_config(**WIDE, attention_version=version)
    torch.manual_seed(0)
    if how == "class":
        model = DiffCLIPTextModel(config)
    elif how == "config":
        model = AutoModel.from_config(config)
    else:
        config.save_pretrained(tmp_path)
        name_to_open_clip(monkeypatch, tmp_path)
        model = AutoModel.from_pretrained(tmp_path)
    _check_initialised(model)


@pytest.mark.parametrize(
    ("version", "missing"),
    [
        (1, "embeddings.token_embedding.weight"),
        (1, "embeddings.positional_embedding"),
        (1, "layers.0.attn.qkv.weight"),
        (1, "layers.0.attn.proj.weight"),
        (1, "layers.0.attn.lambda_q1"),
        (1, "layers.1.attn.sub_norm.weight"),
        (1, "layers.1.mlp.c_fc.weight"),
        (1, "ln_final.bias"),
        (2, "layers.0.attn.qkv.weight"),
        (2, "layers.0.attn.proj.weight"),
        (2, "layers.1.attn.lambda_proj.weight"),
    ],
)
def test_weights_missing_from_a_checkpoint_are_initialised_and_the_others_kept(version, missing, tmp_path):
    model = text_model(**WIDE, attention_version=version)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    loaded = DiffCLIPTextModel.from_pretrained(tmp_path)
    for key, tensor in weights.items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    _check_initialised(loaded)


def test_replaced_layers_are_freed():
    """As where a tower is quantised layer by layer: nothing but the tower's modules may hold a layer."""
    model = text_model()
    replaced = [weakref.ref(module) for module in model.modules() if type(module) is torch.nn.Linear]
    for layer in model.layers:
        for parent, name in ((layer.attn, "qkv"), (layer.attn, "proj"), (layer.mlp, "c_fc"), (layer.mlp, "c_proj")):
            setattr(parent, name, torch.nn.Identity())
    gc.collect()
    assert len(replaced) == 12
    assert not any(reference() for reference in replaced)


@pytest.mark.parametrize("version", [0, 1, 2])
def test_one_dtype_for_all_parameters(version, tmp_path):
    text_model(attention_version=version).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    new = AutoModel.from_config(text_config(attention_version=version), dtype=torch.bfloat16)
    for model in (loaded, new):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model(TEXTS).pooler_output.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "context", [lambda: torch.device("meta"), accelerate.init_empty_weights], ids=["torch", "accelerate"]
)
def test_nothing_is_materialised_on_the_meta_device(context):
    with context():
        model = AutoModel.from_config(text_config())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in AutoModel.from_config(text_config()).parameters()} == {"cpu"}


@pytest.mark.parametrize("lambda_init", [0.35, "dynamic"])
@pytest.mark.parametrize("auto", [False, True])
def test_save_and_load_is_exact(auto, lambda_init, tmp_path):
    model = text_model(lambda_init=lambda_init, layer_norm_eps=1e-4)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["lambda_init"] == lambda_init
    torch.manual_seed(1)
    loaded = (AutoModel if auto else DiffCLIPTextModel).from_pretrained(tmp_path)
    assert type(loaded) is DiffCLIPTextModel
    assert same_weights(loaded, model)
    assert [layer.attn.lambda_init for layer in loaded.layers] == [layer.attn.lambda_init for layer in model.layers]
    assert torch.equal(loaded(TEXTS).pooler_output, model(TEXTS).pooler_output)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_save_and_load_of_version_2_is_exact(hidden_act, tmp_path):
    model = text_model(attention_version=2, hidden_act=hidden_act)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_version"] == 2
    torch.manual_seed(1)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert same_weights(loaded, model)
    assert torch.equal(loaded(TEXTS).pooler_output, model(TEXTS).pooler_output)


def test_configs_from_before_version_2_are_version_1(tmp_path):
    text_config().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attention_version"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).attention_version == 1


@pytest.mark.parametrize("kwargs", [{"max_shard_size": "10KB"}, {"variant": "fp16"}])
def test_other_weight_files_are_loaded_too(kwargs, tmp_path):
    model = text_model()
    model.save_pretrained(tmp_path, **kwargs)
    assert not (tmp_path / "model.safetensors").exists()
    kwargs.pop("max_shard_size", None)
    assert same_weights(DiffCLIPTextModel.from_pretrained(tmp_path, **kwargs), model)


def test_weights_in_a_subfolder_are_loaded(tmp_path):
    model = text_model()
    model.save_pretrained(tmp_path / "text")
    shutil.copy(tmp_path / "text" / "config.json", tmp_path)
    assert same_weights(DiffCLIPTextModel.from_pretrained(tmp_path, subfolder="text"), model)


@pytest.mark.parametrize("length", [0, 100, -1])
def test_truncated_weights_raise(length, tmp_path):
    text_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Exception, match="deserializing header"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("lost", ["index", "shard"])
def test_incomplete_shards_raise(lost, tmp_path):
    text_model().save_pretrained(tmp_path, max_shard_size="10KB")
    victim = sorted(tmp_path.glob("*.json" if lost == "index" else "*.safetensors"))[-1]
    assert victim.name != "config.json"
    victim.unlink()
    with pytest.raises(OSError, match="model"):
        DiffCLIPTextModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("auto", [False, True])
def test_missing_directory_raises(auto, tmp_path):
    with pytest.raises(OSError, match="absent"):
        (AutoModel if auto else DiffCLIPTextModel).from_pretrained(tmp_path / "absent")


def test_directory_without_config_raises(tmp_path):
    with pytest.raises(OSError, match=r"model\.safetensors|config\.json"):
        DiffCLIPTextModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("unlocked_layers", [0, 1])
def test_a_locked_towers_layer_norms_train_unless_asked_not_to(unlocked_layers, freeze):
    model = open_clip.create_model("DiffCLIP-nano")
    model.lock_text_tower(unlocked_layers=unlocked_layers, freeze_layer_norm=freeze)
    tower = model.text.transformer
    norms = [module for module in tower.layers[0].modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {p.requires_grad for norm in norms for p in norm.parameters()} == {not freeze}
    others = {p.requires_grad for name, p in tower.layers[0].named_parameters() if not name.startswith("ln_")}
    assert others == {False}


def test_names_of_parameters_are_plain_for_everybody_else(tmp_path):
    """They are keys of dictionaries that others save and load."""
    tower = open_clip.create_model("DiffCLIP-nano").text.transformer
    names = dict(tower.named_parameters())
    assert {type(name) for name in names} == {str}
    assert names.keys() == tower.state_dict().keys()
    torch.save(names, tmp_path / "averaged.pt")
    assert torch.load(tmp_path / "averaged.pt").keys() == names.keys()
