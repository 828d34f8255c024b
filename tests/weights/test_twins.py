"""The twin of a CLIP, described from its config and modules: which families have one, and that it computes the same."""

import re

import open_clip
import pytest
import torch
from support.small_clips import built, embeddings, perturbed, small, small_timm

from diffclip_openclip.attention import DifferentialAttentionV2
from diffclip_openclip.weights.twins import Layers, skeleton, twin_of

FAMILIES = (
    *("ViT-L-14-336", "ViT-H-14", "ViT-bigG-14", "ViT-L-14-336-quickgelu", "ViT-H-14-378-quickgelu"),
    *("ViT-H-14-worldwide-quickgelu", "ViT-L-14-CLIPA-336", "MobileCLIP-B", "MobileCLIP2-L-14", "ViTamin-S"),
    *("ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP2-378", "ViT-gopt-16-SigLIP2-256", "vit_medium_patch16_gap_256"),
    # timm's alone: registers and layer scale, and these with SwiGLU
    *("vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2"),
)


def _twin(model_cfg, layers="all", **kwargs):
    return twin_of(skeleton(model_cfg), model_cfg, Layers.parse(layers), **kwargs)


def _assert_same(model_cfg, twin, folder):
    source, new = perturbed(model_cfg), built(twin.architecture, folder)
    new.load_state_dict(twin.weights(source.state_dict()))
    old = embeddings(source)
    for expected, found in zip(old, embeddings(new), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (expected[0] - expected[1]).abs().max() > 1e-2  # weights that are felt
    return new


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_the_sources(name, tmp_path):
    model_cfg = small(name)
    twin = _twin(model_cfg)
    new = _assert_same(model_cfg, twin, tmp_path)
    attention = [block.attn for block in (*new.visual.trunk.blocks, *new.text.transformer.layers)]
    assert all(isinstance(module, DifferentialAttentionV2) for module in attention)
    assert len(attention) == 6


def test_pooling_of_timm_that_is_no_projection(tmp_path):
    model_cfg = small("ViT-B-16-SigLIP")
    tower, _ = small_timm("vit_base_patch16_224")
    model_cfg["vision_cfg"] |= {"timm_model_name": tower, "timm_pool": "avgmax"}
    _assert_same(model_cfg, _twin(model_cfg), tmp_path)


@pytest.mark.slow  # 4 s: two blocks of the widest models
def test_a_slice_of_the_largest(tmp_path):
    model_cfg = open_clip.get_model_config("ViT-bigG-14")
    model_cfg["vision_cfg"] |= {"layers": 1, "image_size": 28}
    model_cfg["text_cfg"] |= {"layers": 1, "vocab_size": 60}
    _assert_same(model_cfg, _twin(model_cfg), tmp_path)


@pytest.mark.parametrize(
    ("name", "size"), [("ViT-L-14-336", (336, 336)), ("ViT-H-14", (224, 224)), ("ViT-bigG-14", (224, 224))]
)
def test_shapes_of_large_ones(name, size, tmp_path):
    model_cfg = open_clip.get_model_config(name)
    source = skeleton(model_cfg)
    twin = twin_of(source, model_cfg)
    new = built(twin.architecture, tmp_path, "meta")
    assert new.visual.image_size == size
    assert {key: tensor.shape for key, tensor in new.state_dict().items()} == {
        key: tensor.shape for key, tensor in twin.weights(source.state_dict()).items()
    }


@pytest.mark.parametrize(
    ("layers", "image", "text"),
    [
        ("all", [0, 1, 2], [0, 1, 2]),
        ("image", [0, 1, 2], []),
        ("text", [], [0, 1, 2]),
        ("1:", [1, 2], [1, 2]),
        ("-1:", [2], [2]),
        ("image:2:", [2], []),
        ("text:0:", [], [0, 1, 2]),
    ],
)
@pytest.mark.parametrize("name", ["ViT-L-14-336-quickgelu", "ViT-B-16-SigLIP2"])
def test_layers_are_chosen(name, layers, image, text, tmp_path):
    model_cfg = small(name)
    twin = _twin(model_cfg, layers)
    new = _assert_same(model_cfg, twin, tmp_path)
    found = {"image": [], "text": []}
    for key in new.state_dict():
        if match := re.match(r"(visual|text)\..*\.(\d+)\.attn\.lambda_proj", key):
            found["image" if match[1] == "visual" else "text"].append(int(match[2]))
    assert found == {"image": image, "text": text}
    told = (f"{tower} {f'{own[0]} to 2' if own else 'none'}" for tower, own in found.items())
    assert twin.chosen_layers() == ", ".join(told)


@pytest.mark.parametrize("text", ["", "none", "6", "images", "6:9", ":", "image:", "image:6", "all,text"])
def test_unknown_layers_are_refused(text):
    with pytest.raises(ValueError, match=r"--layers is .* must be all, image or text"):
        Layers.parse(text)


def test_layers_that_no_tower_has_are_refused():
    with pytest.raises(ValueError, match="no layer 7 or behind it in the image or text tower"):
        _twin(small("ViT-H-14"), "7:")


@pytest.mark.parametrize("name", ["ViT-L-14-336", "ViT-B-16-SigLIP"])
def test_image_sizes(name, tmp_path):
    """open_clip resizes its own towers as it loads them, and timm's afterwards."""
    model_cfg = small(name)
    size = 3 * model_cfg["vision_cfg"]["image_size"] // 2
    source = perturbed(model_cfg)
    if "timm_model_name" in model_cfg["vision_cfg"]:
        twin = _twin(model_cfg, image_size=size)
        source.visual.set_input_size(size)
    else:
        model_cfg["vision_cfg"]["image_size"] = size
        twin, source = _twin(model_cfg), perturbed(model_cfg)
    new = built(twin.architecture, tmp_path)
    assert new.visual.image_size == (size, size)
    new.load_state_dict(twin.weights(source.state_dict()))
    torch.testing.assert_close(embeddings(new), embeddings(source), rtol=0, atol=1e-12)


REFUSED = {
    "RN50": "image tower is open_clip's ModifiedResNet",
    "convnext_base": "image tower is timm's ConvNeXt",
    "EVA02-B-16": r"image tower is timm's Eva, whose attention rotates queries and keys by their position \(RoPE\)",
    "coca_ViT-B-32": "it is a CoCa",
    "xlm-roberta-base-ViT-B-32": "text tower is transformers' 'xlm-roberta-base'",
    "vit_relpos_medium_patch16_cls_224": "image tower is timm's VisionTransformerRelPos",
    "DiffCLIP-nano": "has TimmDifferentialAttention in its blocks",
    "DiffCLIP-V2-nano": "has TimmDifferentialAttentionV2 in its blocks",
}


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_with_the_reason_before_anything_is_fetched(name):
    with pytest.raises(ValueError, match=rf"{REFUSED[name]}.*; supported are open_clip's own ViTs and timm's"):
        _twin(open_clip.get_model_config(name))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vision_cfg": {"qk_norm": True}}, "CustomResidualAttentionBlock"),
        ({"vision_cfg": {"attentional_pool": True}}, "attentional pooling"),
        ({"vision_cfg": {"norm_kwargs": {"bias": False}}}, "LayerNorms without weight or bias"),
        ({"text_cfg": {"norm_kwargs": {"elementwise_affine": False}}}, "LayerNorms without weight or bias"),
        ({"vision_cfg": {"pos_embed_type": "sin_cos_2d"}}, "position embedding that is not learned"),
        ({"text_cfg": {"embed_cls": True}}, "class embedding"),
        ({"text_cfg": {"ls_init_value": 0.1}}, "LayerScale"),
        ({"text_cfg": {"pool_type": "none"}}, "gives its tokens out"),
        ({"text_cfg": {"proj_type": "none", "width": 12}}, "gives 12 features, not embed_dim 8"),
    ],
)
def test_options_that_a_twin_has_not_are_refused(options, reason):
    model_cfg = small("ViT-L-14-336")
    for section, more in options.items():
        model_cfg[section] |= more
    with pytest.raises(ValueError, match=reason):
        _twin(model_cfg)


@pytest.mark.parametrize("option", ["qk_norm", "scale_attn_norm"])
def test_norms_inside_attention_are_refused(option):
    model_cfg = small("vit_base_patch16_224", **{option: True})
    with pytest.raises(ValueError, match="in its attention, which version 2 attention has not"):
        _twin(model_cfg)


@pytest.mark.slow  # a minute: all models on the meta device, and the twins of 98
def test_every_model_of_open_clip_has_a_twin_or_a_reason(tmp_path):
    reasons = {}
    for name in open_clip.list_models():
        model_cfg = open_clip.get_model_config(name)
        try:
            source = skeleton(model_cfg)
            twin = twin_of(source, model_cfg)
        except ValueError as error:
            reasons[name] = str(error)
            continue
        shapes = {key: tensor.shape for key, tensor in twin.weights(source.state_dict()).items()}
        new = built(twin.architecture, tmp_path / name, "meta")
        assert {key: tensor.shape for key, tensor in new.state_dict().items()} == shapes, name
    families = re.compile(
        r"ViT-|ViTamin|MobileCLIP2?-(B|L-14)$|CLIP-.*-(baseline|half-heads)$|vit_medium_patch16_gap_256$"
    )
    assert reasons.keys() == {name for name in open_clip.list_models() if not families.match(name)}
    explained = "; supported are open_clip's own ViTs and timm's VisionTransformer as image towers"
    assert [name for name, reason in reasons.items() if explained not in reason] == []
