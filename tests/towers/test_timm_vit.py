"""The image towers as timm models."""

import functools
import logging
import math
import re

import pytest
import timm
import torch
from support.common import run_warm
from timm.layers import Attention, QuickGELU
from timm.models import group_parameters
from timm.optim import param_groups_weight_decay

import diffclip_openclip  # noqa: F401  registers the towers
from diffclip_openclip import DifferentialAttention, DifferentialAttentionV2
from diffclip_openclip.models import TWIN

# (embed_dim, depth, num_heads): ViT (arXiv 2010.11929, table 1; H/14 with 16 heads), DeiT-S (arXiv 2012.12877, table 1)
SIZES = {
    "vit_small_patch16": (384, 12, 6),
    "vit_base_patch16": (768, 12, 12),
    "vit_base_patch32": (768, 12, 12),
    "vit_large_patch16": (1024, 24, 16),
    "vit_large_patch14": (1024, 24, 16),
    "vit_huge_patch14": (1280, 32, 16),
}
# towers with version 2 attention -> timm's, which they are in everything else
PLAIN_OF = {f"{size}_diffclip_v2_224": f"{size}_224" for size in SIZES} | {
    f"{size}_{layout}_diffclip_v2_224": f"{size}_{layout}_224"
    for size in ("vit_base_patch32", "vit_base_patch16", "vit_large_patch14")
    for layout in ("clip", "clip_quickgelu")
}
TOWERS = [
    *(f"{size}_{kind}_224" for size in SIZES for kind in ("diffclip", "diffclip_dynamic")),
    *PLAIN_OF,
    *timm.list_models("vit_nano_*"),
    "vit_base_patch16_gated_224",
    "vit_base_patch16_half_heads_224",
]
(NANO,) = timm.list_models("vit_nano_*_diffclip_[0-9]*")
(NANO_DYNAMIC,) = timm.list_models("vit_nano_*_diffclip_dynamic_[0-9]*")
(NANO_V2,) = timm.list_models("vit_nano_*_diffclip_v2_*")
(NANO_PLAIN,) = timm.list_models("vit_nano_*_plain_*")


def _nano(seed=0, name=NANO, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


@functools.cache
def _on_meta(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0)


def _images(model, batch=2, seed=0):
    torch.manual_seed(seed)
    return torch.randn(batch, 3, *model.patch_embed.img_size)


def _gradients(model, images):
    model.zero_grad()
    torch.manual_seed(1)
    out = model(images)
    (out * torch.randn_like(out)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def _inputs_of(module):
    """The shapes of ``module``'s inputs, one for each of its calls."""
    shapes = []
    module.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


# --- registration ---


def test_there_is_a_nano_tower_of_every_kind():
    # static, dynamic, version 2, the plain one of the baseline, and the two controls
    assert len(timm.list_models("vit_nano_*")) == 6


def test_no_other_towers_are_registered():
    assert {name for name in timm.list_models() if "diffclip" in name} == {TWIN} | {
        name for name in TOWERS if "diffclip" in name
    }


@pytest.mark.parametrize("name", TOWERS)
def test_registered_with_a_default_cfg(name, caplog):
    assert timm.is_model(name)
    assert name in timm.list_models()
    cfg = timm.models.get_pretrained_cfg(name)
    assert cfg is not None
    with torch.device("meta"), caplog.at_level(logging.WARNING):
        model = timm.create_model(name)
    assert not caplog.records  # timm warns of a model without default_cfg, and of kwargs it does not know
    assert model.pretrained_cfg["architecture"] == name
    assert cfg.input_size == (3, *model.patch_embed.img_size)
    assert model.num_classes == cfg.num_classes == 0
    assert isinstance(model.get_submodule(cfg.classifier), torch.nn.Identity)
    assert model.get_parameter(f"{cfg.first_conv}.weight").shape[1] == 3
    assert timm.data.resolve_model_data_config(model)["input_size"] == cfg.input_size


@pytest.mark.parametrize("name", TOWERS)
def test_name_gives_patch_and_image_size(name):
    patch_size, img_size = re.fullmatch(r"vit_[a-z]+_patch(\d+)_\w*?(\d+)", name).groups()
    model = _on_meta(name)
    assert model.patch_embed.patch_size == (int(patch_size),) * 2
    assert model.patch_embed.img_size == (int(img_size),) * 2


@pytest.mark.parametrize("kind", ["diffclip", "diffclip_dynamic"])
@pytest.mark.parametrize("size", SIZES)
def test_dimensions(size, kind):
    embed_dim, depth, num_heads = SIZES[size]
    model, plain = _on_meta(f"{size}_{kind}_224"), _on_meta(f"{size}_224")
    assert (model.embed_dim, model.num_features, len(model.blocks)) == (embed_dim, embed_dim, depth)
    for block in model.blocks:
        assert isinstance(block.attn, DifferentialAttention)
        assert (block.attn.num_heads, block.attn.head_dim) == (num_heads, embed_dim // num_heads)
        assert block.mlp.fc1.out_features == 4 * embed_dim
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, embed_dim)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert count == depth * (4 + 2) * (embed_dim // num_heads)  # four lambda vectors and the sub_norm


def test_nano_towers_differ_in_attention_only():
    plain = _nano(name=NANO_PLAIN)
    differential = _nano()
    assert not any("lambda" in name for name, _ in plain.named_parameters())
    own = re.compile(r"attn\.(lambda_[qk][12]|sub_norm\.weight)$")
    shapes = {n: p.shape for n, p in differential.named_parameters() if not own.search(n)}
    assert shapes == {n: p.shape for n, p in plain.named_parameters()}


@pytest.mark.parametrize("name", PLAIN_OF)
def test_version_2_dimensions(name):
    embed_dim, depth, num_heads = SIZES[re.match(r"vit_[a-z]+_patch\d+", name)[0]]
    model, plain = _on_meta(name), _on_meta(PLAIN_OF[name])
    assert (model.embed_dim, model.num_features, len(model.blocks)) == (embed_dim, embed_dim, depth)
    for block in model.blocks:
        assert isinstance(block.attn, DifferentialAttentionV2)
        assert (block.attn.num_heads, block.attn.head_dim) == (num_heads, embed_dim // num_heads)
    assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, embed_dim)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert count == depth * (embed_dim + 1 + num_heads) * embed_dim  # second queries with their bias, and lambda_proj


def _without_attention(model):
    """Every module outside of the attention with what decides what it computes."""
    return [
        (
            name,
            next(cls for cls in type(module).__mro__ if "forward" in vars(cls)),
            getattr(module, "eps", None),
            {n: p.shape for n, p in module.named_parameters(recurse=False)},
        )
        for name, module in model.named_modules()
        if not re.search(r"\.attn\b", name)
    ]


@pytest.mark.parametrize("name", PLAIN_OF)
def test_version_2_towers_differ_from_timms_in_attention_only(name):
    assert _without_attention(_on_meta(name)) == _without_attention(_on_meta(PLAIN_OF[name]))


@pytest.mark.parametrize("layout", ["clip", "clip_quickgelu"])
def test_openai_layout_as_openai_has_it(layout):
    model = _on_meta(f"vit_base_patch32_{layout}_diffclip_v2_224")
    assert isinstance(model.norm_pre, torch.nn.LayerNorm)
    assert model.patch_embed.proj.bias is None
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    for block in model.blocks:
        assert type(block.mlp.act) is (torch.nn.GELU if layout == "clip" else QuickGELU)


@pytest.mark.parametrize("name", PLAIN_OF)
def test_preprocessing_of_version_2(name):
    cfg = timm.models.get_pretrained_cfg(name)
    if "_clip_" in name:
        openai = timm.models.get_pretrained_cfg("vit_base_patch32_clip_224.openai")
        assert (cfg.mean, cfg.std, cfg.interpolation) == (openai.mean, openai.std, "bicubic")
    else:
        v1 = timm.models.get_pretrained_cfg(name.replace("_v2", ""))
        assert (cfg.mean, cfg.std, cfg.interpolation) == (v1.mean, v1.std, "bilinear")


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        (NANO_V2, NANO_PLAIN),
        *((f"vit_base_patch32_{k}_diffclip_v2_224", f"vit_base_patch32_{k}_224") for k in ("clip", "clip_quickgelu")),
    ],
)
def test_version_2_starts_exactly_from_the_plain_tower(name, plain):
    """Its queries for both maps, no lambda_proj and twice proj.weight: 2 (1 - sigmoid(0)) = 1."""
    sizes = {"depth": 2, "num_classes": 0}
    plain = _nano(name=plain, **sizes).double().eval()
    weights = plain.state_dict()
    for i, block in enumerate(plain.blocks):
        C, H = plain.embed_dim, block.attn.num_heads
        for kind in ("weight", "bias"):
            q, k, v = weights[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            both = q.view(H, 1, C // H, -1).expand(-1, 2, -1, -1).reshape(2 * C, *q.shape[1:])
            weights[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([both, k, v])
        weights[f"blocks.{i}.attn.lambda_proj.weight"] = torch.zeros(H, C)
        weights[f"blocks.{i}.attn.proj.weight"] = 2 * weights[f"blocks.{i}.attn.proj.weight"]
    model = _nano(seed=1, name=name, **sizes).double().eval()
    model.load_state_dict(weights)
    images = _images(model).double()
    assert isinstance(plain.blocks[0].attn, Attention)
    torch.testing.assert_close(model(images), plain(images), rtol=0, atol=1e-12)


def test_foreign_model_of_the_same_name_is_refused(tmp_path):
    (tmp_path / "foreign.py").write_text(f"""
from timm.models import register_model
__all__ = []
@register_model
def {NANO}(pretrained=False, **kwargs): ...
""")
    module = "diffclip_openclip.towers.timm_vit"
    code = f"import foreign\ntry:\n    import {module}\nexcept ValueError as error:\n    print(error)"
    said = run_warm(code, tmp_path)
    assert NANO in said
    assert "foreign" in said


# --- what the tower computes ---


def test_token_pooling_reads_the_class_token():
    model = _nano().eval()
    images = _images(model)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 1 + model.patch_embed.num_patches, model.embed_dim)
    assert torch.equal(model(images), tokens[:, 0])


@pytest.mark.parametrize("tower", [NANO, NANO_V2])
def test_every_parameter_gets_a_gradient(tower):
    for name, gradient in _gradients(_nano(name=tower), _images(_nano())).items():
        assert gradient.abs().max() > 0, name


def test_lambda_init_by_block():
    assert [block.attn.lambda_init for block in _nano().blocks] == [0.8] * len(_nano().blocks)
    dynamic = _nano(name=NANO_DYNAMIC, depth=4)
    # 0.8 - 0.6 exp(-0.3 l)
    assert [block.attn.lambda_init for block in dynamic.blocks] == pytest.approx(
        [0.2, 0.355509, 0.470713, 0.556058], abs=1e-6
    )


def test_layer_norm_eps_and_architecture():
    model = _nano()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * len(model.blocks) + 1
    assert {norm.eps for norm in norms} == {1e-5}
    assert isinstance(model.norm, torch.nn.LayerNorm)
    assert isinstance(model.norm_pre, torch.nn.Identity)
    assert model.patch_embed.proj.bias is not None
    for block in model.blocks:
        assert isinstance(block.mlp.act, torch.nn.GELU)
        assert block.mlp.act.approximate == "none"
        assert block.attn.qkv.bias is not None


def test_initialisation():
    model = _nano()
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.cls_token.abs().max() < 1e-5
    for block in model.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            # torch.nn.Linear's own: uniform within 1 / sqrt(fan_in), bias too; timm's would be std 0.02 and zero
            bound = linear.in_features**-0.5
            assert 0.99 * bound < linear.weight.abs().max() <= bound
            assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
            assert 0.9 * bound < linear.bias.abs().max() <= bound
        assert (block.attn.sub_norm.weight == 1).all()
    vectors = torch.cat([p for n, p in model.named_parameters() if ".lambda_" in n])
    assert vectors.std().item() == pytest.approx(0.1, rel=0.15)


def test_initialisation_of_version_2_is_timms():
    model = _nano(name=NANO_V2)
    for block in model.blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.03)
            assert (linear.bias == 0).all()
        assert block.attn.lambda_proj.weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_initialised_after_the_meta_device():
    with torch.device("meta"):
        model = timm.create_model(NANO)
    model.to_empty(device="cpu")
    for p in model.parameters():
        torch.nn.init.constant_(p, math.nan)
    torch.manual_seed(0)
    model.init_weights()
    for name, p in model.named_parameters():
        assert p.isfinite().all(), name
    assert model.blocks[0].attn.qkv.weight.abs().max() <= model.embed_dim**-0.5
    assert 0 < model.blocks[0].attn.lambda_q1.abs().max() < 1


@pytest.mark.parametrize("tower", [NANO, NANO_V2])
def test_dtype_argument_is_every_parameters(tower):
    model = _nano(name=tower, dtype=torch.bfloat16)
    for name, p in model.named_parameters():
        assert p.dtype == torch.bfloat16, name
    assert model(_images(model).bfloat16()).dtype == torch.bfloat16


# --- timm's features ---


def test_forward_intermediates():
    model = _nano().eval()
    images = _images(model)
    grid, depth = model.patch_embed.grid_size, len(model.blocks)
    final, maps = model.forward_intermediates(images)
    assert torch.equal(final, model.forward_features(images))
    assert [m.shape for m in maps] == [(2, model.embed_dim, *grid)] * depth
    tokens = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    for as_map, as_tokens in zip(maps, tokens, strict=True):
        assert torch.equal(as_map.flatten(2).transpose(1, 2), as_tokens)
    ((last, prefix),) = model.forward_intermediates(
        images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    assert torch.equal(torch.cat([prefix, last], dim=1), final)


def test_features_only():
    model = _nano(features_only=True, out_indices=(0, 2)).eval()
    images = torch.randn(2, 3, *model.model.patch_embed.img_size)
    features = model(images)
    expected = model.model.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    assert len(features) == 2
    for feature, intermediate in zip(features, expected, strict=True):
        assert torch.equal(feature, intermediate)
    assert model.feature_info.channels() == [features[0].shape[1]] * 2
    assert model.feature_info.reduction() == [model.model.patch_embed.patch_size[0]] * 2


def test_set_input_size():
    model = _nano().eval()
    patch, before = model.patch_embed.patch_size[0], model.pos_embed.detach().clone()
    size = model.patch_embed.img_size[0] + 2 * patch
    model.set_input_size(img_size=(size, size))
    tokens = 1 + (size // patch) ** 2
    assert model.pos_embed.shape == (1, tokens, model.embed_dim)
    assert torch.equal(model.pos_embed[:, 0], before[:, 0])  # the class token's is not resampled
    assert model.forward_features(torch.randn(2, 3, size, size)).shape == (2, tokens, model.embed_dim)


def test_reset_classifier():
    model = _nano().eval()
    images = _images(model)
    pooled = model(images)
    model.reset_classifier(7)
    assert torch.equal(model(images), model.get_classifier()(pooled))
    assert model(images).shape == (2, 7)
    model.reset_classifier(0, global_pool="avg")
    assert torch.equal(model(images), model.forward_features(images)[:, 1:].mean(dim=1))


def test_patch_dropout_drops_patches_in_training_only():
    model = _nano(patch_drop_rate=0.5)
    patches = model.patch_embed.num_patches
    shapes = _inputs_of(model.blocks[0])
    model.train()(_images(model))
    model.eval()(_images(model))
    assert [shape[1] for shape in shapes] == [1 + patches // 2, 1 + patches]


def test_drop_path_skips_a_block_in_training_only():
    model = _nano(drop_path_rate=1.0)  # grows linearly to 1 in the last block
    last = model.blocks[-1]
    x = torch.randn(2, 5, model.embed_dim)
    assert torch.equal(last.train()(x), x)
    assert not torch.isclose(last.eval()(x), x).all(dim=-1).any()


@pytest.mark.parametrize("tower", [NANO, NANO_V2])
def test_dropout_arguments_reach_the_attention(tower):
    model = _nano(name=tower, attn_drop_rate=0.25, proj_drop_rate=0.125)
    assert {block.attn.attn_drop.p for block in model.blocks} == {0.25}
    assert {block.attn.proj_drop.p for block in model.blocks} == {0.125}


@pytest.mark.parametrize("tower", [NANO, NANO_V2])
@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher_covers_every_parameter(coarse, tower):
    model = _nano(name=tower)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(groups) == len(model.blocks) + 1
    for i, block in enumerate(model.blocks):
        assert {f"blocks.{i}.attn.{name}" for name, _ in block.attn.named_parameters()} <= set(groups[i + 1])


def test_no_weight_decay():
    model = _nano()
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() & names == {"pos_embed", "cls_token"}
    groups = param_groups_weight_decay(model, 0.1, model.no_weight_decay())
    ids = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert {n for n, p in model.named_parameters() if id(p) in ids and "blocks.0.attn" in n} == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
    }


@pytest.mark.parametrize("tower", [NANO, NANO_V2])
def test_gradient_checkpointing_gives_the_same_gradients(tower):
    model = _nano(name=tower)
    images = _images(model)
    expected = _gradients(model, images)
    model.set_grad_checkpointing()
    calls = _inputs_of(model.blocks[0].attn)
    actual = _gradients(model, images)
    assert len(calls) == 2  # once more in the backward pass
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("tower", [NANO, NANO_V2])
def test_torchscript_is_equal(tower):
    model = _nano(name=tower).eval()
    scripted = torch.jit.script(model)
    assert torch.equal(scripted(_images(model)), model(_images(model)))


# --- errors ---


def test_pretrained_weights_are_refused():
    with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {NANO}"):
        timm.create_model(NANO, pretrained=True)


@pytest.mark.parametrize(
    ("kwargs", "parts"),
    [
        ({"qk_norm": True}, ["qk_norm is True", "scale_attn_norm False", "must be False"]),
        ({"scale_attn_norm": True}, ["qk_norm is False", "scale_attn_norm True", "must be False"]),
        ({"num_heads": 3}, ["num_heads is 3", "must be positive and even"]),
        ({"embed_dim": 100, "num_heads": 8}, ["100", "8", "multiple"]),
        ({"model_name": NANO_V2, "qk_norm": True}, ["qk_norm is True", "scale_attn_norm False", "must be False"]),
        ({"model_name": NANO_V2, "num_heads": 3}, ["dim is 128", "num_heads 3", "multiple"]),
    ],
)
def test_bad_overrides_are_refused(kwargs, parts):
    with pytest.raises(ValueError, match="must be") as error:
        timm.create_model(**({"model_name": NANO} | kwargs))
    for part in parts:
        assert part in str(error.value)
