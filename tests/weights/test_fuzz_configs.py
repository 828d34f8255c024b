"""Random configs: a model that runs, or an error that names the field; never a crash from inside."""

import json
import math
from typing import Any

import open_clip
import pytest
import timm
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.fuzz import NAME, few, workplace
from timm.layers import Attention

from diffclip_openclip import DifferentialAttention

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
SIZES += ("max_position_embeddings",)
NO_NUMBER = st.sampled_from([None, "", "x", "2", [], [2], {}])
OUT_OF_RANGE = {
    **dict.fromkeys(SIZES, st.integers(-9, 0) | st.floats(-9, 9) | st.booleans() | NO_NUMBER),
    "hidden_act": st.sampled_from(["", "GELU", None, 3, ["gelu"], {}]),
    "layer_norm_eps": st.sampled_from([-1e-5, math.nan, math.inf]) | NO_NUMBER,
    "attention_dropout": st.sampled_from([-0.1, 1.0, 2, math.nan]) | NO_NUMBER,
    "attention_version": st.sampled_from([-1, 3, 1.5, math.nan]) | NO_NUMBER,
    "lambda_init": st.sampled_from([-0.1, 1, 1.5, math.nan, math.inf, "Dynamic"]) | NO_NUMBER,
    "projection_dim": st.integers(-9, 0) | st.booleans() | st.sampled_from(["", "2", [], {}]),
    "differential_layers": st.sampled_from([0, "0", [-1], [9], [True], [[0]], [None], {}]),
    "causal": st.sampled_from([0, 1]) | NO_NUMBER,
    "pooling": st.sampled_from(["none", "EOS", 0]) | NO_NUMBER,
}


@st.composite
def text_configs(draw: Any) -> dict[str, Any]:
    """Of small towers that can be built."""
    version = draw(st.sampled_from([0, 1, 2]))
    heads = draw(st.integers(1, 3)) * (2 if version == 1 else 1)
    return {
        "model_type": "diffclip_text",
        "vocab_size": draw(st.integers(1, 40)),
        "hidden_size": heads * draw(st.integers(1, 6)),
        "intermediate_size": draw(st.integers(1, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "max_position_embeddings": draw(st.integers(1, 9)),
        "hidden_act": draw(st.sampled_from(["quick_gelu", "gelu", "relu", "silu"])),
        "layer_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1])),
        "attention_dropout": draw(st.sampled_from([0, 0.1, 0.9])),
        "attention_version": version,
        "lambda_init": draw(st.sampled_from([0, 0.2, 0.8, "dynamic"])),
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
        "projection_dim": draw(st.none() | st.integers(1, 9)),
        "differential_layers": draw(st.sampled_from([None, [], [0]])),
        "causal": draw(st.booleans()),
        "pooling": draw(st.sampled_from(["argmax", "first", "last"])),
    }


def _build(text_config: dict[str, Any], tower: str = "vit_nano_patch12_diffclip_48", embed_dim: int = 8) -> Any:
    """As open_clip builds it from JSON."""
    with workplace() as folder:
        (folder / "text").mkdir()
        (folder / "text" / "config.json").write_text(json.dumps(text_config))
        text_cfg = open_clip.get_model_config(NAME)["text_cfg"] | {"hf_model_name": str(folder / "text")}
        vision_cfg = {"image_size": 48, "timm_model_name": tower, "timm_pool": "token", "timm_proj": "linear"}
        model_cfg = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
        return open_clip.create_model(f"local-dir:{folder}", pretrained_text=False).eval()


@few(15)
@given(config=text_configs(), embed_dim=st.integers(1, 20), variant=st.sampled_from(["", "_dynamic", "_v2"]))
def test_configs_that_can_be_built(config, embed_dim, variant):
    """Each field is heeded, and both towers give finite embeddings."""
    model = _build(config, f"vit_nano_patch12_diffclip{variant}_48", embed_dim)
    layers = model.text.transformer.layers
    plain = set(range(9)).difference(config["differential_layers"]) if config["differential_layers"] is not None else ()
    assert len(layers) == config["num_hidden_layers"]
    for depth, layer in enumerate(layers):
        assert layer.attn.num_heads == config["num_attention_heads"]
        assert layer.mlp.c_fc.weight.shape == (config["intermediate_size"], config["hidden_size"])
        assert isinstance(layer.attn, Attention) is (config["attention_version"] == 0 or depth in plain)
        if isinstance(layer.attn, DifferentialAttention):
            dynamic = config["lambda_init"] == "dynamic"
            expected = 0.8 - 0.6 * math.exp(-0.3 * depth) if dynamic else config["lambda_init"]
            assert layer.attn.lambda_init == pytest.approx(expected, abs=1e-12)
    tokens = torch.randint(config["vocab_size"], (3, config["max_position_embeddings"]))
    with torch.no_grad():
        features = [model.encode_image(torch.randn(3, 3, 48, 48)), model.encode_text(tokens)]
    for embedding in features:
        assert embedding.shape == (3, embed_dim)
        assert embedding.isfinite().all()


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.slow)])
def test_fields_out_of_range(count):
    """The message names the field, what it is and what it must be."""
    fields = st.sampled_from(sorted(OUT_OF_RANGE))
    bad = fields.flatmap(lambda field: st.tuples(st.just(field), OUT_OF_RANGE[field]))

    @few(count)
    @given(config=text_configs(), bad=bad)
    def run(config: dict[str, Any], bad: tuple[str, Any]) -> None:
        field, value = bad
        assume(not (isinstance(value, float) and value == config[field]))
        with pytest.raises(ValueError, match=f"{field} is .*must be") as error:
            _build(config | {field: value})
        assert repr(value) in str(error.value)

    run()


@few(30)
@given(config=text_configs(), heads=st.integers(1, 9), hidden_size=st.integers(1, 40))
def test_heads_that_do_not_divide_the_width(config, heads, hidden_size):
    odd = config["attention_version"] == 1 and heads % 2 and config["differential_layers"] != []
    assume(odd or hidden_size % heads)
    with pytest.raises(ValueError, match=rf"\bnum_heads (is )?{heads}; .*must be"):
        _build(config | {"num_attention_heads": heads, "hidden_size": hidden_size})


TOWER_ARGUMENTS = {
    "num_heads": st.integers(-2, 8),
    "embed_dim": st.integers(1, 12).map(lambda size: 4 * size) | st.integers(1, 40),
    "depth": st.integers(1, 3),
    "patch_size": st.integers(6, 16),
    "qkv_bias": st.booleans(),
    "qk_norm": st.booleans(),
    "scale_attn_norm": st.booleans(),
    "init_values": st.sampled_from([None, 0.1]),
    "drop_path_rate": st.sampled_from([0.0, 0.5]),
}


@few(60)
@given(
    name=st.sampled_from(["vit_nano_patch12_diffclip_48", "vit_nano_patch12_diffclip_v2_48"]),
    arguments=st.fixed_dictionaries({}, optional=TOWER_ARGUMENTS),
)
def test_image_towers_of_other_measures(name, arguments):
    heads, width = arguments.get("num_heads", 4), arguments.get("embed_dim", 128)
    refused = [
        heads < 1 or width % heads or (heads % 2 and "_v2_" not in name),
        arguments.get("qk_norm"),
        arguments.get("scale_attn_norm"),
    ]
    if any(refused):
        with pytest.raises(ValueError, match=r"num_heads|dim|qk_norm|scale_attn_norm"):
            timm.create_model(name, **arguments)
        return
    tower = timm.create_model(name, **arguments).eval()
    features = tower(torch.randn(2, 3, 48, 48))
    assert features.shape == (2, width)
    assert features.isfinite().all()
