"""Key maps between the authors' checkpoints and open_clip's models."""

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import diffclip_openclip  # noqa: F401  registers the models
from diffclip_openclip import from_reference, to_reference
from diffclip_openclip.weights.layouts import Layout, detect

# (image tower differential, text tower differential)
VARIANTS = {"DiffCLIP": (True, True), "DiffCLIP-vision": (True, False), "CLIP": (False, False)}


def _reference_shapes(image, text, C=8, heads=2, depth=2, M=12, patch=2, tokens=5, E=6, text_C=4, text_heads=2, V=11):
    """Every key of the authors' layout with its shape, written out."""
    text_M, context, text_depth = text_C * 3, 7, depth + 1

    def differential(prefix, C, heads):
        d = C // heads
        shapes = {f"{prefix}.lambda_{x}": (d,) for x in ("q1", "k1", "q2", "k2")}
        for x in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{prefix}.{x}.weight": (C, C), f"{prefix}.{x}.bias": (C,)}
        return shapes | {f"{prefix}.diff_norm.weight": (2 * d,)}

    shapes = {
        "logit_scale": (),
        "image_projection": (C, E),
        "text_projection": (text_C, E),
        "positional_embedding": (context, text_C),
        "token_embedding.weight": (V, text_C),
        "ln_final.weight": (text_C,),
        "ln_final.bias": (text_C,),
        "visual.cls_token": (1, 1, C),
        "visual.pos_embed": (1, tokens, C),
        "visual.patch_embed.proj.weight": (C, 3, patch, patch),
        "visual.patch_embed.proj.bias": (C,),
        "visual.norm.weight": (C,),
        "visual.norm.bias": (C,),
    }
    for i in range(depth):
        block = f"visual.blocks.{i}"
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.weight": (C,), f"{block}.{norm}.bias": (C,)}
        shapes |= {f"{block}.mlp.fc1.weight": (M, C), f"{block}.mlp.fc1.bias": (M,)}
        shapes |= {f"{block}.mlp.fc2.weight": (C, M), f"{block}.mlp.fc2.bias": (C,)}
        if image:
            shapes |= differential(f"{block}.attn", C, heads)
        else:
            shapes |= {f"{block}.attn.qkv.weight": (3 * C, C), f"{block}.attn.qkv.bias": (3 * C,)}
            shapes |= {f"{block}.attn.proj.weight": (C, C), f"{block}.attn.proj.bias": (C,)}
    for i in range(text_depth):
        block = f"transformer.resblocks.{i}"
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{norm}.weight": (text_C,), f"{block}.{norm}.bias": (text_C,)}
        shapes |= {f"{block}.mlp.c_fc.weight": (text_M, text_C), f"{block}.mlp.c_fc.bias": (text_M,)}
        shapes |= {f"{block}.mlp.c_proj.weight": (text_C, text_M), f"{block}.mlp.c_proj.bias": (text_C,)}
        if text:
            shapes |= differential(f"{block}.attn", text_C, text_heads)
        else:
            shapes |= {
                f"{block}.attn.in_proj_weight": (3 * text_C, text_C),
                f"{block}.attn.in_proj_bias": (3 * text_C,),
            }
            shapes |= {f"{block}.attn.out_proj.weight": (text_C, text_C), f"{block}.attn.out_proj.bias": (text_C,)}
    return shapes


def _reference(image=True, text=True, **sizes):
    return {key: torch.randn(shape) for key, shape in _reference_shapes(image, text, **sizes).items()}


def _equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _nano(image, text, seed=0):
    """A nano-sized open_clip model with each tower differential or plain."""
    torch.manual_seed(seed)
    if image == text:
        return open_clip.create_model("DiffCLIP-nano" if image else "CLIP-nano-baseline").eval()
    differential, plain = (open_clip.get_model_config(name) for name in ("DiffCLIP-nano", "CLIP-nano-baseline"))
    config = plain | {"vision_cfg": (differential if image else plain)["vision_cfg"]}
    config |= {"text_cfg": (differential if text else plain)["text_cfg"]}
    return open_clip.CustomTextCLIP(**{k: v for k, v in config.items() if k != "custom_text"}).eval()


# --- names ---


def test_names_of_a_differential_image_block():
    ours = from_reference(_reference())
    assert sorted(key for key in ours if key.startswith("visual.trunk.blocks.1.")) == [
        "visual.trunk.blocks.1.attn.lambda_k1",
        "visual.trunk.blocks.1.attn.lambda_k2",
        "visual.trunk.blocks.1.attn.lambda_q1",
        "visual.trunk.blocks.1.attn.lambda_q2",
        "visual.trunk.blocks.1.attn.proj.bias",
        "visual.trunk.blocks.1.attn.proj.weight",
        "visual.trunk.blocks.1.attn.qkv.bias",
        "visual.trunk.blocks.1.attn.qkv.weight",
        "visual.trunk.blocks.1.attn.sub_norm.weight",
        "visual.trunk.blocks.1.mlp.fc1.bias",
        "visual.trunk.blocks.1.mlp.fc1.weight",
        "visual.trunk.blocks.1.mlp.fc2.bias",
        "visual.trunk.blocks.1.mlp.fc2.weight",
        "visual.trunk.blocks.1.norm1.bias",
        "visual.trunk.blocks.1.norm1.weight",
        "visual.trunk.blocks.1.norm2.bias",
        "visual.trunk.blocks.1.norm2.weight",
    ]


def test_names_of_a_plain_image_block():
    ours = from_reference(_reference(image=False, text=False))
    assert sorted(key for key in ours if key.startswith("visual.trunk.blocks.0.attn.")) == [
        "visual.trunk.blocks.0.attn.proj.bias",
        "visual.trunk.blocks.0.attn.proj.weight",
        "visual.trunk.blocks.0.attn.qkv.bias",
        "visual.trunk.blocks.0.attn.qkv.weight",
    ]


def test_names_of_a_differential_text_tower():
    ours = from_reference(_reference())
    assert sorted(key for key in ours if key.startswith("text.") and ".layers." not in key) == [
        "text.proj.weight",
        "text.transformer.embeddings.positional_embedding",
        "text.transformer.embeddings.token_embedding.weight",
        "text.transformer.ln_final.bias",
        "text.transformer.ln_final.weight",
    ]
    assert sorted(key for key in ours if key.startswith("text.transformer.layers.2.")) == [
        "text.transformer.layers.2.attn.lambda_k1",
        "text.transformer.layers.2.attn.lambda_k2",
        "text.transformer.layers.2.attn.lambda_q1",
        "text.transformer.layers.2.attn.lambda_q2",
        "text.transformer.layers.2.attn.proj.bias",
        "text.transformer.layers.2.attn.proj.weight",
        "text.transformer.layers.2.attn.qkv.bias",
        "text.transformer.layers.2.attn.qkv.weight",
        "text.transformer.layers.2.attn.sub_norm.weight",
        "text.transformer.layers.2.ln_1.bias",
        "text.transformer.layers.2.ln_1.weight",
        "text.transformer.layers.2.ln_2.bias",
        "text.transformer.layers.2.ln_2.weight",
        "text.transformer.layers.2.mlp.c_fc.bias",
        "text.transformer.layers.2.mlp.c_fc.weight",
        "text.transformer.layers.2.mlp.c_proj.bias",
        "text.transformer.layers.2.mlp.c_proj.weight",
    ]


def test_names_of_a_plain_text_tower():
    ours = from_reference(_reference(text=False))
    assert sorted(key for key in ours if key.startswith("text.") and ".resblocks." not in key) == [
        "text.ln_final.bias",
        "text.ln_final.weight",
        "text.positional_embedding",
        "text.text_projection",
        "text.token_embedding.weight",
    ]
    assert sorted(key for key in ours if key.startswith("text.transformer.resblocks.0.")) == [
        "text.transformer.resblocks.0.attn.in_proj_bias",
        "text.transformer.resblocks.0.attn.in_proj_weight",
        "text.transformer.resblocks.0.attn.out_proj.bias",
        "text.transformer.resblocks.0.attn.out_proj.weight",
        "text.transformer.resblocks.0.ln_1.bias",
        "text.transformer.resblocks.0.ln_1.weight",
        "text.transformer.resblocks.0.ln_2.bias",
        "text.transformer.resblocks.0.ln_2.weight",
        "text.transformer.resblocks.0.mlp.c_fc.bias",
        "text.transformer.resblocks.0.mlp.c_fc.weight",
        "text.transformer.resblocks.0.mlp.c_proj.bias",
        "text.transformer.resblocks.0.mlp.c_proj.weight",
    ]


def test_values_land_where_they_belong():
    """Names alone would not notice two tensors of one shape changing places."""
    reference = _reference()
    ours = from_reference(reference)
    assert torch.equal(ours["visual.head.proj.weight"], reference["image_projection"].t())
    assert torch.equal(ours["text.proj.weight"], reference["text_projection"].t())
    for here, there in (
        ("visual.trunk.blocks.1.attn", "visual.blocks.1.attn"),
        ("text.transformer.layers.2.attn", "transformer.resblocks.2.attn"),
    ):
        q, k, v = ours[f"{here}.qkv.weight"].chunk(3)
        for tensor, x in ((q, "q"), (k, "k"), (v, "v")):
            assert torch.equal(tensor, reference[f"{there}.{x}_proj.weight"])
        assert torch.equal(ours[f"{here}.proj.weight"], reference[f"{there}.out_proj.weight"])
        assert torch.equal(ours[f"{here}.sub_norm.weight"], reference[f"{there}.diff_norm.weight"])
        for x in ("q1", "k1", "q2", "k2"):
            assert torch.equal(ours[f"{here}.lambda_{x}"], reference[f"{there}.lambda_{x}"])
    assert torch.equal(ours["visual.trunk.blocks.0.norm2.bias"], reference["visual.blocks.0.norm2.bias"])
    assert torch.equal(ours["text.transformer.layers.0.ln_1.bias"], reference["transformer.resblocks.0.ln_1.bias"])
    plain = _reference(text=False)
    assert torch.equal(from_reference(plain)["text.text_projection"], plain["text_projection"])


# --- which layout it is ---


def test_each_layout_is_detected():
    model = _nano(True, True)
    ours = model.state_dict()
    with torch.device("meta"):
        openai = open_clip.create_model("ViT-B-32", device="meta").state_dict()
    for state_dict, layout in (
        (to_reference(ours), Layout.AUTHORS),
        (ours, Layout.OURS),
        (model.visual.trunk.state_dict(), Layout.TIMM),
        (openai, Layout.OPENAI),
        (model.text.transformer.state_dict(), None),
        ({}, None),
    ):
        assert detect(state_dict) is layout
        assert detect({f"module.{key}": tensor for key, tensor in state_dict.items()}) is layout
        cut = {key: tensor for key, tensor in state_dict.items() if ".0." not in key}  # what lacks is named later
        assert detect(cut) is layout


# --- round trips ---


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_exact(variant, prefix):
    reference = _reference(*VARIANTS[variant])
    ours = from_reference({prefix + key: tensor for key, tensor in reference.items()})
    assert _equal(to_reference(ours), reference)
    assert _equal(from_reference(to_reference(ours)), ours)


@settings(deadline=None, max_examples=40)
@given(
    variant=st.sampled_from([*VARIANTS.values(), (False, True)]),
    prefix=st.sampled_from(["", "module."]),
    sizes=st.fixed_dictionaries(
        {
            "depth": st.sampled_from([1, 2, 11]),  # 11: two digits
            "M": st.integers(1, 9),
            "patch": st.integers(1, 3),
            "tokens": st.integers(1, 9),
            "E": st.integers(1, 9),
            "V": st.integers(1, 9),
        }
    ),
    heads=st.sampled_from([2, 4]),
    head_dim=st.integers(1, 3),
    text_head_dim=st.integers(1, 3),
)
def test_round_trip_at_any_size(variant, prefix, sizes, heads, head_dim, text_head_dim):
    widths = {"C": heads * head_dim, "heads": heads, "text_C": 2 * text_head_dim}
    reference = _reference(*variant, **sizes, **widths)
    ours = from_reference({prefix + key: tensor for key, tensor in reference.items()})
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in reference.values())
    assert _equal(to_reference(ours), reference)


@pytest.mark.parametrize("variant", VARIANTS)
def test_loads_strictly_into_open_clips_model(variant):
    model, other = (_nano(*VARIANTS[variant], seed=seed) for seed in (0, 1))
    images = torch.randn(2, 3, *model.visual.image_size)
    text = torch.randint(1, 1000, (2, model.context_length))
    reference = to_reference(model.state_dict())
    assert reference.keys() == _reference_shapes(*VARIANTS[variant], depth=0).keys() | {
        key for key in reference if ".blocks." in key or ".resblocks." in key
    }
    with torch.no_grad():
        expected = model.encode_image(images), model.encode_text(text)
        assert not torch.equal(other.encode_text(text), expected[1])
        other.load_state_dict(from_reference(reference), strict=True)
        assert torch.equal(other.encode_image(images), expected[0])
        assert torch.equal(other.encode_text(text), expected[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept(dtype):
    reference = {key: tensor.to(dtype) for key, tensor in _reference().items()}
    ours = from_reference(reference)
    assert {t.dtype for t in ours.values()} == {dtype}
    assert _equal(to_reference(ours), reference)


# --- errors ---


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_extra_and_misshapen_keys_are_all_listed(variant, prefix):
    state_dict = _reference(*VARIANTS[variant])
    del state_dict["visual.blocks.1.norm1.bias"], state_dict["ln_final.weight"]
    state_dict["visual.blocks.0.attn.surprise"] = torch.zeros(1)
    state_dict["optimizer"] = torch.zeros(1)
    state_dict["visual.blocks.1.mlp.fc2.bias"] = torch.zeros(9)
    state_dict["transformer.resblocks.0.ln_1.weight"] = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="6 problems") as error:
        from_reference({prefix + key: tensor for key, tensor in state_dict.items()})
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(lines) == [
        "misshapen transformer.resblocks.0.ln_1.weight has shape [2, 2], expected [4]",
        "misshapen visual.blocks.1.mlp.fc2.bias has shape [9], expected [8]",
        "missing ln_final.weight",
        "missing visual.blocks.1.norm1.bias",
        "unexpected optimizer",
        "unexpected visual.blocks.0.attn.surprise",
    ]


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_extra_and_misshapen_keys_of_our_layout_are_all_listed(variant):
    state_dict = from_reference(_reference(*VARIANTS[variant]))
    del state_dict["logit_scale"]
    state_dict["logit_bias"] = torch.zeros(())
    state_dict["visual.head.proj.weight"] = torch.zeros(6, 9)
    with pytest.raises(ValueError, match="3 problems") as error:
        to_reference(state_dict)
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(lines) == [
        "misshapen visual.head.proj.weight has shape [6, 9], expected [6, 8]",
        "missing logit_scale",
        "unexpected logit_bias",
    ]


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("visual.blocks.0.attn.lambda_q2", (3,)),  # not the other vectors' size
        ("visual.blocks.1.attn.diff_norm.weight", (2,)),  # not twice the head's size
        ("visual.blocks.0.attn.k_proj.weight", (4, 8)),
        ("visual.patch_embed.proj.weight", (8, 3, 2, 3)),
        ("visual.cls_token", (1, 2, 8)),
        ("logit_scale", (1,)),
    ],
)
def test_each_misshapen_tensor_is_found(key, shape):
    state_dict = _reference(heads=4)  # image heads of size 2
    assert shape != tuple(state_dict[key].shape)
    expected = list(state_dict[key].shape)
    state_dict[key] = torch.zeros(shape)
    with pytest.raises(ValueError, match="misshapen") as error:
        from_reference(state_dict)
    (line,) = str(error.value).splitlines()[1:]
    assert line.strip() == f"misshapen {key} has shape {list(shape)}, expected {expected}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_towers_of_different_embedding_sizes_are_refused(variant):
    state_dict = _reference(*VARIANTS[variant])
    state_dict["text_projection"] = torch.zeros(4, 7)  # image_projection is (8, 6)
    with pytest.raises(ValueError, match="misshapen text_projection"):
        from_reference(state_dict)


def test_a_whole_missing_block_is_noticed():
    state_dict = _reference(depth=3)
    state_dict = {key: tensor for key, tensor in state_dict.items() if not key.startswith("visual.blocks.1.")}
    with pytest.raises(ValueError, match=r"missing visual\.blocks\.1\.attn\.lambda_q1"):
        from_reference(state_dict)


@pytest.mark.parametrize("convert", [from_reference, to_reference])
def test_empty_state_dict_is_refused(convert):
    with pytest.raises(ValueError, match="missing logit_scale"):
        convert({})


def test_the_other_layout_is_refused():
    reference = _reference()
    with pytest.raises(ValueError, match="unexpected"):
        to_reference(reference)
    with pytest.raises(ValueError, match="unexpected"):
        from_reference(from_reference(reference))


# --- memory ---


def _awkward(tensor):
    """The same values in the strides that a channels_last or transposed tensor has."""
    backwards = tuple(reversed(range(tensor.dim())))
    return tensor.permute(backwards).contiguous().permute(backwards)


def _state_dict(convert, strides):
    """What ``convert`` takes, of a model in which every kind of row occurs, with the strides asked for."""
    state_dict = _reference(*VARIANTS["DiffCLIP-vision"])
    if convert is to_reference:
        state_dict = from_reference(state_dict)
    if strides == "permuted":
        state_dict = {key: _awkward(tensor) for key, tensor in state_dict.items()}
    elif strides == "one storage":  # as flattened parameters of a trainer leave them
        flat = torch.cat([tensor.flatten() for tensor in state_dict.values()])
        parts = flat.split([tensor.numel() for tensor in state_dict.values()])
        state_dict = {key: part.view(state_dict[key].shape) for key, part in zip(state_dict, parts, strict=True)}
    return state_dict


@pytest.mark.parametrize("strides", ["contiguous", "permuted", "one storage"])
@pytest.mark.parametrize("convert", [from_reference, to_reference])
def test_safetensors_can_save_the_results(convert, strides, tmp_path):
    converted = convert(_state_dict(convert, strides))
    path = tmp_path / "weights.safetensors"
    save_file(converted, path)
    assert _equal(load_file(path), converted)


@pytest.mark.parametrize("convert", [from_reference, to_reference])
def test_results_share_no_memory_with_the_input(convert):
    state_dict = _state_dict(convert, "contiguous")
    before = {key: tensor.clone() for key, tensor in state_dict.items()}
    for tensor in convert(state_dict).values():
        tensor.zero_()
    assert _equal(state_dict, before)
