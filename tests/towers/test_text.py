"""The text tower as a transformers model."""

import math
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import QuickGELU, TextTransformer
from support.text_towers import END, END_OF_TEXT, START, TEXTS, name_to_open_clip, same_weights, text_config, text_model
from transformers import AutoConfig, AutoModel

from diffclip_openclip import (
    DiffCLIPTextConfig,
    DiffCLIPTextModel,
    DifferentialAttention,
    DifferentialAttentionV2,
)
from diffclip_openclip.explain.attention_formulas import write_out
from diffclip_openclip.registration import config_dir
from diffclip_openclip.towers.blocks import GatedAttention, PlainAttention
from diffclip_openclip.weights.layouts import from_openai


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
        "differential_layers": None,
        "causal": True,
        "pooling": "argmax",
        "projection_dim": None,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    shipped = AutoConfig.from_pretrained(config_dir() / "text" / "DiffCLIP-B-16")
    assert {name: getattr(shipped, name) for name in expected} == expected


@pytest.mark.parametrize("lambda_init", [1.0, -0.2, "static", math.inf])
def test_bad_lambda_init_is_refused(lambda_init):
    with pytest.raises(ValueError, match="must be a number in") as error:
        text_config(lambda_init=lambda_init)
    assert repr(lambda_init) in str(error.value)


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"num_attention_heads": 1}, ["num_heads is 1", "even"]),
        ({"num_attention_heads": 6}, ["32", "6", "multiple"]),
        ({"num_attention_heads": 6, "attention_version": 0}, ["32", "6", "multiple"]),
    ],
)
def test_bad_heads_are_refused(sizes, parts):
    with pytest.raises(ValueError, match="num_heads") as error:
        DiffCLIPTextModel(text_config(**sizes))
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("version", [-1, 3, "2", None, False])
def test_bad_attention_version_is_refused(version):
    with pytest.raises(ValueError, match=r"attention_version is .* must be 1 or 2, or 0 for plain attention") as error:
        text_config(attention_version=version)
    assert repr(version) in str(error.value)


@pytest.mark.parametrize(("version", "gate"), [(1, True), (2, True), (0, 1), (0, None)])
def test_a_gate_is_of_version_0_alone(version, gate):
    with pytest.raises(ValueError, match=f"attention_gate is {gate} with attention_version {version}; it must be"):
        text_config(attention_version=version, attention_gate=gate)


def test_attention_version_decides_the_class():
    assert [type(layer.attn) for layer in text_model(attention_version=0, attention_gate=True).layers] == [
        GatedAttention
    ] * 3
    for version, attention in enumerate((PlainAttention, DifferentialAttention, DifferentialAttentionV2)):
        model = text_model(attention_version=version, attention_dropout=0.25)
        assert [type(layer.attn) for layer in model.layers] == [attention] * 3
        assert {(layer.attn.num_heads, layer.attn.attn_drop.p) for layer in model.layers} == {(4, 0.25)}


def test_version_2_takes_an_odd_number_of_heads():
    assert text_model(attention_version=2, num_attention_heads=1)(TEXTS).pooler_output.isfinite().all()


def test_auto_classes():
    assert type(AutoConfig.for_model("diffclip_text")) is DiffCLIPTextConfig
    torch.manual_seed(0)
    model = AutoModel.from_config(text_config(lambda_init="dynamic"))
    assert type(model) is DiffCLIPTextModel
    assert same_weights(model, text_model(lambda_init="dynamic"))
    assert model.config.lambda_init == "dynamic"


def test_lambda_init_by_layer():
    assert [layer.attn.lambda_init for layer in text_model(lambda_init=0.5).layers] == [0.5] * 3
    assert [layer.attn.lambda_init for layer in text_model(lambda_init="dynamic").layers] == pytest.approx(
        [0.2, 0.355509, 0.470713], abs=1e-6
    )


def test_layer_norm_eps():
    norms = [m for m in text_model().modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 1
    assert {norm.eps for norm in norms} == {1e-5}


# --- what the tower computes ---


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_layers_are_pre_norm_causal(hidden_act, version):
    act, other = (_quick_gelu, F.gelu) if hidden_act == "quick_gelu" else (F.gelu, _quick_gelu)
    model = text_model(hidden_act=hidden_act, attention_version=version).double()
    layer = model.layers[0]
    x = torch.randn(2, 8, 32, dtype=torch.float64)
    y = x + layer.attn(layer.ln_1(x), is_causal=True)
    hidden = layer.mlp.c_fc(layer.ln_2(y))
    torch.testing.assert_close(layer(x), y + layer.mlp.c_proj(act(hidden)), rtol=0, atol=1e-12)
    # the weights are small: make sure that another activation would have been seen
    assert (layer.mlp.c_proj(act(hidden)) - layer.mlp.c_proj(other(hidden))).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"act_layer": QuickGELU}),
        ({"hidden_act": "gelu", "causal": False, "pooling": "first"}, {"no_causal_mask": True, "pool_type": "first"}),
        (  # SigLIP 2
            {
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-2,
                "causal": False,
                "pooling": "last",
                "projection_dim": 8,
            },
            {
                "act_layer": partial(torch.nn.GELU, "tanh"),
                "norm_layer": partial(torch.nn.LayerNorm, eps=1e-2),
                "no_causal_mask": True,
                "pool_type": "last",
                "proj_bias": True,
            },
        ),
        ({"pooling": "eos", "eos_token_id": 7}, {"act_layer": QuickGELU, "pool_type": "eos", "eos_id": 7}),
    ],
)
def test_version_0_is_open_clips_own_text_tower(ours, theirs):
    model = text_model(attention_version=0, **ours).double()
    own = TextTransformer(8, 50, 32, 4, 3, mlp_ratio=2.0, output_dim=8, **theirs).double().eval()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    weights = from_openai({f"text.{key}": tensor for key, tensor in own.state_dict().items()})
    projection = weights.pop("text.proj.weight", torch.eye(8, dtype=torch.float64))
    model.load_state_dict({key.removeprefix("text.transformer."): tensor for key, tensor in weights.items()})
    torch.testing.assert_close(model(TEXTS).pooler_output @ projection.t(), own(TEXTS), rtol=0, atol=1e-12)


def test_chosen_layers_are_differential():
    model = text_model(attention_version=2, differential_layers=[0, 2])
    expected = [DifferentialAttentionV2, PlainAttention, DifferentialAttentionV2]
    assert [type(layer.attn) for layer in model.layers] == expected
    assert model(TEXTS).pooler_output.isfinite().all()


def test_pools_at_the_first_largest_token():
    model = text_model()
    texts = torch.cat([TEXTS, torch.tensor([[START, 2, END, 4, END, 3, END, 1], [1, 7, 3, 7, 2, 0, 0, 0]])])
    out = model(texts)
    expected = [out.last_hidden_state[i, end] for i, end in enumerate([*END_OF_TEXT, 2, 1])]
    assert torch.equal(out.pooler_output, torch.stack(expected))


@pytest.mark.parametrize("version", [0, 1, 2])
def test_shorter_context_gives_the_same_embedding(version):
    model = text_model(attention_version=version).double()
    for length in (5, 6):
        torch.testing.assert_close(
            model(TEXTS[:2, :length]).pooler_output, model(TEXTS[:2]).pooler_output, rtol=0, atol=1e-12
        )


def test_longer_context_is_refused():
    with pytest.raises(ValueError, match="max_position_embeddings") as error:
        text_model()(torch.zeros(1, 11, dtype=torch.int64))
    assert "11 tokens" in str(error.value)
    assert "at most 8" in str(error.value)


def test_padding_and_attention_mask_have_no_effect():
    model = text_model()
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
    model = text_model()
    before = model(TEXTS).pooler_output
    with torch.no_grad():
        model.embeddings.token_embedding.weight[0] += torch.randn(32)
    changed = (model(TEXTS).pooler_output - before).abs().amax(dim=-1) > 1e-4
    assert changed.tolist() == [True, False, True]  # the second text has it as padding only


@pytest.mark.parametrize("by", ["argument", "config"])
def test_hidden_states(by):
    model = text_model(**({"output_hidden_states": True} if by == "config" else {}))
    out = model(TEXTS, **({"output_hidden_states": True} if by == "argument" else {}))
    assert [tuple(state.shape) for state in out.hidden_states] == [(3, 8, 32)] * 4
    assert torch.equal(out.hidden_states[0], model.embeddings(TEXTS))
    for i, layer in enumerate(model.layers):
        assert torch.equal(out.hidden_states[i + 1], layer(out.hidden_states[i]))
    assert torch.equal(out.last_hidden_state, model.ln_final(out.hidden_states[-1]))


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("by", ["argument", "config"])
def test_attentions_are_the_weighted_maps_and_change_no_state(by, version):
    """The layers attend alike with the maps that are returned."""
    options = {"output_attentions": True} if by == "config" else {}
    model = text_model(attention_version=version, **options)
    out = model(TEXTS, output_attentions=True) if by == "argument" else model(TEXTS)
    plain = model(TEXTS, output_attentions=False, output_hidden_states=True)
    assert plain.attentions is None
    assert torch.equal(out.last_hidden_state, plain.last_hidden_state)
    assert torch.equal(out.pooler_output, plain.pooler_output)
    assert [tuple(weights.shape) for weights in out.attentions] == [(3, 2 if version == 1 else 4, 8, 8)] * 3
    for layer, state, weights in zip(model.layers, plain.hidden_states, out.attentions, strict=False):
        assert (weights.triu(1) == 0).all()  # causal
        normed = layer.ln_1(state)
        written_out = write_out(layer.attn, normed, is_causal=True)
        torch.testing.assert_close(written_out.output(weights), layer.attn(normed, is_causal=True))


def test_attentions_may_be_set_in_the_config_of_an_eager_model_alone(tmp_path):
    """As in transformers, which refuses it of every model with "sdpa"."""
    model = text_model(attn_implementation="eager")
    model.config.output_attentions = True
    assert len(model(TEXTS).attentions) == 3
    model.save_pretrained(tmp_path)
    assert len(AutoModel.from_pretrained(tmp_path)(TEXTS).attentions) == 3
    with pytest.raises(ValueError, match="output_attentions"):
        text_model(attn_implementation="sdpa").config.output_attentions = True


@pytest.mark.parametrize("implementation", [None, "sdpa", "eager"])
def test_supported_attention_is_the_layers_own(implementation):
    model = text_model(attn_implementation=implementation)
    assert model.config._attn_implementation == (implementation or "sdpa")
    assert torch.equal(model(TEXTS).pooler_output, text_model()(TEXTS).pooler_output)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention", "paged|eager", "owner/kernel"])
def test_other_attention_is_refused_with_the_reason(implementation):
    message = rf"attn_implementation is '{re.escape(implementation)}'.*'sdpa' or 'eager'.*values .* wider than its keys"
    with pytest.raises(ValueError, match=message):
        text_model(attn_implementation=implementation)
    model = text_model()
    with pytest.raises(ValueError, match="wider than"):
        model.set_attn_implementation(implementation)


def test_position_ids():
    """As CLIPTextModel's: each token gets the row of the position embedding that is asked for."""
    model = text_model()
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [1, 3, 5, 7, 0, 2, 4, 6], [7, 6, 5, 4, 3, 2, 1, 0]])
    out = model(TEXTS, position_ids=ids)
    assert torch.equal(out.last_hidden_state[0], model(TEXTS).last_hidden_state[0])
    rows = model.embeddings.positional_embedding[ids]
    assert torch.equal(model.embeddings(TEXTS, ids), model.embeddings.token_embedding(TEXTS) + rows)
    one_row = model(TEXTS, position_ids=torch.arange(8)[None])
    assert torch.equal(one_row.pooler_output, model(TEXTS).pooler_output)
    with pytest.raises(ValueError, match=r"position_ids has shape \[3, 5\]; it must be \[3, 8\]"):
        model(TEXTS, position_ids=ids[:, :5])
    for outside in (8, -1):
        with pytest.raises(IndexError):
            model(TEXTS, position_ids=torch.full((1, 8), outside))


def test_no_hidden_states_unless_asked():
    assert text_model()(TEXTS).hidden_states is None
    assert text_model(output_hidden_states=True)(TEXTS, output_hidden_states=False).hidden_states is None


def test_return_dict_false_gives_a_tuple():
    model = text_model()
    out = model(TEXTS, return_dict=False)
    assert type(out) is tuple
    assert len(out) == 2
    expected = model(TEXTS)
    assert torch.equal(out[0], expected.last_hidden_state)
    assert torch.equal(out[1], expected.pooler_output)


@pytest.mark.parametrize("kwargs", [{}, {"add_pooling_layer": True}, {"add_pooling_layer": False}], ids=str)
@pytest.mark.parametrize("how", ["class", "config", "initialised", "loaded"])
def test_pooling_layer(how, kwargs, tmp_path, monkeypatch):
    """open_clip 3 passes it, open_clip 4 does not; reading out has no weights, so it is done whatever is passed."""
    (text_model() if how == "loaded" else text_config()).save_pretrained(tmp_path)
    name_to_open_clip(monkeypatch, tmp_path)
    if how == "class":
        model = DiffCLIPTextModel(text_config(), **kwargs)
    elif how == "config":
        model = AutoModel.from_config(text_config(), **kwargs)
    else:
        model = AutoModel.from_pretrained(tmp_path, **kwargs)
    out = model(TEXTS)
    assert torch.equal(out.pooler_output, out.last_hidden_state[range(3), TEXTS.argmax(dim=-1)])
    assert "pooler" not in " ".join(model.state_dict())


def _text_encoder(folder, **kwargs):
    text_config(**kwargs).save_pretrained(folder)
    return HFTextEncoder(str(folder), 8, pooler_type="diffclip_text_pooler", proj_type="linear", pretrained=False)


# open_clip's main branch counts the projection among the unlocked layers, 3.3 never locks it
COUNTS_PROJECTION = hasattr(HFTextEncoder, "layer_groups")


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("unlocked", [0, 1, 2])
@pytest.mark.parametrize("freeze", [False, True])
def test_open_clips_lock_leaves_layer_norms_trainable_unless_asked_not_to(freeze, unlocked, version, tmp_path):
    """``--lock-text`` with and without ``--lock-text-freeze-layer-norm``, as of a tower of BERT's."""
    text = _text_encoder(tmp_path, attention_version=version)
    text.lock(unlocked, freeze_layer_norm=freeze)
    layers, tower = text.transformer.layers, text.transformer
    of_tower = max(unlocked - COUNTS_PROJECTION, 0)
    open_modules = [*layers[len(layers) - of_tower :], tower.ln_final] if of_tower else []
    if not freeze:
        open_modules += [norm for layer in layers for norm in (layer.ln_1, layer.ln_2)] + [tower.ln_final]
    expected = {id(parameter) for module in open_modules for parameter in module.parameters()}
    assert {id(parameter) for parameter in tower.parameters() if parameter.requires_grad} == expected
    assert text.proj.weight.requires_grad == (unlocked > 0 or not COUNTS_PROJECTION)


def test_layer_groups_are_the_layers_with_the_final_norm_in_the_last(tmp_path):
    """In open_clip's own text tower too; the groups are what its trainer locks and decays learning rates by."""
    model = text_model()
    names = list(model.state_dict())
    groups = [list(group.parameters()) for group in model.layer_groups]
    assert [len(group) for group in groups[:-1]] == [len(list(layer.parameters())) for layer in model.layers[:-1]]
    last = [*model.layers[-1].parameters(), *model.ln_final.parameters()]
    assert [id(parameter) for parameter in groups[-1]] == [id(parameter) for parameter in last]
    assert list(model.state_dict()) == names
    if COUNTS_PROJECTION:  # every parameter is in exactly one of the groups
        text = _text_encoder(tmp_path)
        grouped = [id(p) for _, members in text.layer_groups() for member in members for p in member.parameters()]
        assert sorted(grouped) == sorted(id(parameter) for parameter in text.parameters())


def test_names_of_parameters_are_those_of_the_state_dict():
    model = text_model()
    names = [name for name, _ in model.named_parameters()]
    assert names == list(model.state_dict())
    assert names[names.index("layers.0.ln_1.weight")].split(".") == ["layers", "0", "ln_1", "weight"]
    assert all(model.get_parameter(name) is parameter for name, parameter in model.named_parameters())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # open_clip calls this one
@pytest.mark.parametrize("version", [0, 1, 2])
def test_gradient_checkpointing_gives_the_same_gradients(version):
    model = text_model(attention_dropout=0.2, attention_version=version).train()

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


@pytest.mark.parametrize("version", [0, 1, 2])
def test_every_parameter_gets_a_gradient(version):
    model = text_model(attention_version=version)
    model(TEXTS).pooler_output.pow(3).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 0, name


@pytest.mark.parametrize("version", [0, 1, 2])
def test_compiles_without_graph_breaks(version):
    model = text_model(num_hidden_layers=1, attention_version=version)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    actual, expected = compiled(TEXTS), model(TEXTS)
    torch.testing.assert_close(actual.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)  # float32
    actual.pooler_output.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_resized_vocabulary():
    model = text_model()
    before = model(TEXTS).pooler_output
    model.resize_token_embeddings(60, mean_resizing=False)
    assert model.config.vocab_size == 60
    assert torch.equal(model(TEXTS).pooler_output, before)
    assert model(torch.full((1, 2), 59)).pooler_output.isfinite().all()
