"""The text tower as a transformers model."""

import json
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from diffclip_openclip import (
    DiffCLIPTextConfig,
    DiffCLIPTextModel,
    DifferentialAttention,
    DifferentialAttentionV2,
)
from diffclip_openclip.registration import config_dir

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


def _config(**kwargs):
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


def _model(seed=0, **kwargs):
    torch.manual_seed(seed)
    return DiffCLIPTextModel(_config(**kwargs)).eval()


def _same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


# --- configuration ---


def test_defaults_are_the_text_tower_of_b16():
    config = DiffCLIPTextConfig()
    expected = {
        "vocab_size": 49408,
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "attention_version": 1,
        "lambda_init": 0.8,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    shipped = AutoConfig.from_pretrained(config_dir() / "text" / "DiffCLIP-B-16")
    assert {name: getattr(shipped, name) for name in expected} == expected


@pytest.mark.parametrize("lambda_init", [1.0, -0.2, "static", math.inf])
def test_bad_lambda_init_is_refused(lambda_init):
    with pytest.raises(ValueError, match="must be a number in") as error:
        _config(lambda_init=lambda_init)
    assert repr(lambda_init) in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"num_attention_heads": 1}, ["num_heads is 1", "even"]),
        ({"num_attention_heads": 6}, ["32", "6", "multiple"]),
    ],
)
def test_bad_heads_are_refused(sizes, parts):
    with pytest.raises(ValueError, match="num_heads") as error:
        DiffCLIPTextModel(_config(**sizes))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("version", [0, 3, "2", None])
def test_bad_attention_version_is_refused(version):
    with pytest.raises(ValueError, match=r"attention_version is .* must be 1 or 2") as error:
        _config(attention_version=version)
    assert repr(version) in str(error.value)


def test_attention_version_decides_the_class():
    for version, attention in ((1, DifferentialAttention), (2, DifferentialAttentionV2)):
        model = _model(attention_version=version, attention_dropout=0.25)
        assert [type(layer.attn) for layer in model.layers] == [attention] * 3
        assert {(layer.attn.num_heads, layer.attn.attn_drop_p) for layer in model.layers} == {(4, 0.25)}


def test_version_2_takes_an_odd_number_of_heads():
    assert _model(attention_version=2, num_attention_heads=1)(TEXTS).pooler_output.isfinite().all()


def test_auto_classes():
    assert type(AutoConfig.for_model("diffclip_text")) is DiffCLIPTextConfig
    torch.manual_seed(0)
    model = AutoModel.from_config(_config(lambda_init="dynamic"))
    assert type(model) is DiffCLIPTextModel
    assert _same_weights(model, _model(lambda_init="dynamic"))
    assert model.config.lambda_init == "dynamic"


def test_lambda_init_by_layer():
    assert [layer.attn.lambda_init for layer in _model(lambda_init=0.5).layers] == [0.5] * 3
    assert [layer.attn.lambda_init for layer in _model(lambda_init="dynamic").layers] == pytest.approx(
        [0.2, 0.355509, 0.470713], abs=1e-6
    )


def test_layer_norm_eps():
    norms = [m for m in _model().modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 1
    assert {norm.eps for norm in norms} == {1e-5}


# --- what the tower computes ---


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_layers_are_pre_norm_causal(hidden_act, version):
    act, other = (_quick_gelu, F.gelu) if hidden_act == "quick_gelu" else (F.gelu, _quick_gelu)
    model = _model(hidden_act=hidden_act, attention_version=version).double()
    layer = model.layers[0]
    x = torch.randn(2, 8, 32, dtype=torch.float64)
    y = x + layer.attn(layer.ln_1(x), is_causal=True)
    hidden = layer.mlp.c_fc(layer.ln_2(y))
    torch.testing.assert_close(layer(x), y + layer.mlp.c_proj(act(hidden)), rtol=0, atol=1e-12)
    # the weights are small: make sure that another activation would have been seen
    assert (layer.mlp.c_proj(act(hidden)) - layer.mlp.c_proj(other(hidden))).abs().max() > 1e-4


def test_pools_at_the_first_largest_token():
    model = _model()
    texts = torch.cat([TEXTS, torch.tensor([[START, 2, END, 4, END, 3, END, 1], [1, 7, 3, 7, 2, 0, 0, 0]])])
    out = model(texts)
    expected = [out.last_hidden_state[i, end] for i, end in enumerate([*END_OF_TEXT, 2, 1])]
    assert torch.equal(out.pooler_output, torch.stack(expected))


@pytest.mark.parametrize("version", [1, 2])
def test_shorter_context_gives_the_same_embedding(version):
    model = _model(attention_version=version).double()
    for length in (5, 6):
        torch.testing.assert_close(
            model(TEXTS[:2, :length]).pooler_output, model(TEXTS[:2]).pooler_output, rtol=0, atol=1e-12
        )


def test_longer_context_is_refused():
    with pytest.raises(ValueError, match="max_position_embeddings") as error:
        _model()(torch.zeros(1, 11, dtype=torch.int64))
    assert "11 tokens" in str(error.value)
    assert "at most 8" in str(error.value)


def test_padding_and_attention_mask_have_no_effect():
    model = _model()
    expected = model(TEXTS)
    for mask in (TEXTS != 0, torch.zeros_like(TEXTS), (TEXTS != 0).float()):
        out = model(TEXTS, attention_mask=mask)
        assert torch.equal(out.pooler_output, expected.pooler_output)
        assert torch.equal(out.last_hidden_state, expected.last_hidden_state)
    padded = TEXTS.clone()
    for row, end in zip(padded, END_OF_TEXT, strict=True):
        row[end + 1 :] = 17
    assert torch.equal(model(padded).pooler_output, expected.pooler_output)


def test_token_0_inside_a_text_is_read():
    model = _model()
    before = model(TEXTS).pooler_output
    with torch.no_grad():
        model.embeddings.token_embedding.weight[0] += torch.randn(32)
    changed = (model(TEXTS).pooler_output - before).abs().amax(dim=-1) > 1e-4
    assert changed.tolist() == [True, False, True]  # the second text has it as padding only


@pytest.mark.parametrize("by", ["argument", "config"])
def test_hidden_states(by):
    model = _model(**({"output_hidden_states": True} if by == "config" else {}))
    out = model(TEXTS, **({"output_hidden_states": True} if by == "argument" else {}))
    assert [tuple(state.shape) for state in out.hidden_states] == [(3, 8, 32)] * 4
    assert torch.equal(out.hidden_states[0], model.embeddings(TEXTS))
    for i, layer in enumerate(model.layers):
        assert torch.equal(out.hidden_states[i + 1], layer(out.hidden_states[i]))
    assert torch.equal(out.last_hidden_state, model.ln_final(out.hidden_states[-1]))


def test_no_hidden_states_unless_asked():
    assert _model()(TEXTS).hidden_states is None
    assert _model(output_hidden_states=True)(TEXTS, output_hidden_states=False).hidden_states is None


def test_return_dict_false_gives_a_tuple():
    model = _model()
    out = model(TEXTS, return_dict=False)
    assert type(out) is tuple
    assert len(out) == 2
    expected = model(TEXTS)
    assert torch.equal(out[0], expected.last_hidden_state)
    assert torch.equal(out[1], expected.pooler_output)


@pytest.mark.parametrize("kwargs", [{}, {"add_pooling_layer": True}, {"add_pooling_layer": False}], ids=str)
@pytest.mark.parametrize("how", ["class", "config", "initialised", "loaded"])
def test_pooling_layer(how, kwargs, tmp_path):
    """open_clip 3 passes it, open_clip 4 does not; reading out has no weights, so it is done whatever is passed."""
    (_model() if how == "loaded" else _config()).save_pretrained(tmp_path)
    if how == "class":
        model = DiffCLIPTextModel(_config(), **kwargs)
    elif how == "config":
        model = AutoModel.from_config(_config(), **kwargs)
    else:
        model = AutoModel.from_pretrained(tmp_path, **kwargs)
    out = model(TEXTS)
    assert torch.equal(out.pooler_output, out.last_hidden_state[range(3), TEXTS.argmax(dim=-1)])
    assert "pooler" not in " ".join(model.state_dict())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # open_clip calls this one
@pytest.mark.parametrize("version", [1, 2])
def test_gradient_checkpointing_gives_the_same_gradients(version):
    model = _model(attention_dropout=0.2, attention_version=version).train()

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)  # the same dropout, also where it is drawn again in the backward pass
        model(TEXTS).pooler_output.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    calls = []
    model.layers[0].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    model.gradient_checkpointing_enable()
    actual = gradients()
    assert len(calls) == 2  # once more in the backward pass
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.parametrize("version", [1, 2])
def test_every_parameter_gets_a_gradient(version):
    model = _model(attention_version=version)
    model(TEXTS).pooler_output.pow(3).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("version", [1, 2])
def test_compiles_without_graph_breaks(version):
    model = _model(num_hidden_layers=1, attention_version=version)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    actual, expected = compiled(TEXTS), model(TEXTS)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)  # float32
    actual.pooler_output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_resized_vocabulary():
    model = _model()
    before = model(TEXTS).pooler_output
    model.resize_token_embeddings(60, mean_resizing=False)
    assert model.config.vocab_size == 60
    assert torch.equal(model(TEXTS).pooler_output, before)
    assert model(torch.full((1, 2), 59)).pooler_output.isfinite().all()


# --- initialisation ---


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


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", ["class", "config", "directory"])
def test_initialisation(how, version, tmp_path):
    config = _config(**WIDE, attention_version=version)
    torch.manual_seed(0)
    if how == "class":
        model = DiffCLIPTextModel(config)
    elif how == "config":
        model = AutoModel.from_config(config)
    else:
        config.save_pretrained(tmp_path)
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
    model = _model(**WIDE, attention_version=version)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[missing]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    loaded = DiffCLIPTextModel.from_pretrained(tmp_path)
    for key, tensor in weights.items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    _check_initialised(loaded)


# --- saving and loading ---


@pytest.mark.parametrize("lambda_init", [0.35, "dynamic"])
@pytest.mark.parametrize("auto", [False, True])
def test_save_and_load_is_exact(auto, lambda_init, tmp_path):
    model = _model(lambda_init=lambda_init, layer_norm_eps=1e-4)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["lambda_init"] == lambda_init
    torch.manual_seed(1)
    loaded = (AutoModel if auto else DiffCLIPTextModel).from_pretrained(tmp_path)
    assert type(loaded) is DiffCLIPTextModel
    assert _same_weights(loaded, model)
    assert [layer.attn.lambda_init for layer in loaded.layers] == [layer.attn.lambda_init for layer in model.layers]
    assert torch.equal(loaded(TEXTS).pooler_output, model(TEXTS).pooler_output)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_save_and_load_of_version_2_is_exact(hidden_act, tmp_path):
    model = _model(attention_version=2, hidden_act=hidden_act)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attention_version"] == 2
    torch.manual_seed(1)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert _same_weights(loaded, model)
    assert torch.equal(loaded(TEXTS).pooler_output, model(TEXTS).pooler_output)


def test_configs_from_before_version_2_are_version_1(tmp_path):
    _config().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attention_version"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).attention_version == 1


@pytest.mark.parametrize("kwargs", [{"max_shard_size": "10KB"}, {"variant": "fp16"}])
def test_other_weight_files_are_loaded_too(kwargs, tmp_path):
    model = _model()
    model.save_pretrained(tmp_path, **kwargs)
    assert not (tmp_path / "model.safetensors").exists()
    kwargs.pop("max_shard_size", None)
    assert _same_weights(DiffCLIPTextModel.from_pretrained(tmp_path, **kwargs), model)


def test_weights_in_a_subfolder_are_loaded(tmp_path):
    model = _model()
    model.save_pretrained(tmp_path / "text")
    shutil.copy(tmp_path / "text" / "config.json", tmp_path)
    assert _same_weights(DiffCLIPTextModel.from_pretrained(tmp_path, subfolder="text"), model)


def test_config_without_weights_takes_overrides_of_the_config(tmp_path):
    _config().save_pretrained(tmp_path)
    model = DiffCLIPTextModel.from_pretrained(tmp_path, lambda_init="dynamic")
    assert model.config.lambda_init == "dynamic"
    assert model.layers[0].attn.lambda_init == pytest.approx(0.2)


def test_config_without_weights_takes_a_dtype(tmp_path):
    _config().save_pretrained(tmp_path)
    model = DiffCLIPTextModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.layers[0].attn.qkv.weight.dtype == torch.bfloat16


def test_config_without_weights_refuses_unknown_arguments(tmp_path):
    _config().save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="nonsense"):
        DiffCLIPTextModel.from_pretrained(tmp_path, nonsense=1)


@pytest.mark.parametrize("length", [0, 100, -1])
def test_truncated_weights_raise(length, tmp_path):
    _model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Exception, match="deserializing header"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("lost", ["index", "shard"])
def test_incomplete_shards_raise(lost, tmp_path):
    _model().save_pretrained(tmp_path, max_shard_size="10KB")
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
