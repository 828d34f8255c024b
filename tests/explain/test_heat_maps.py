"""Heat maps find what is known to be there, and computing them leaves no trace."""

import pytest
import timm
import torch
import torch.nn.functional as F
from support.explain_models import (
    EMBED_DIM,
    SIZE,
    clip,
    hooks_of,
    images,
    plain_clip,
    randomized,
    texts,
)

from diffclip_openclip.attention.choice import fits_in_cache
from diffclip_openclip.explain import relevance, upsample
from diffclip_openclip.towers.timm_vit import TimmDifferentialAttention

METHODS = ("chefer", "rollout", "gradcam")


def test_similarity_is_the_cosine():
    model = clip("v1", "v1")
    found = relevance(model, images(), texts()).similarity
    with torch.no_grad():
        image, text = model.encode_image(images()), model.encode_text(texts())
    for b in range(3):
        for t in range(2):
            expected = image[b] @ text[t] / (image[b].norm() * text[t].norm())
            assert found[b, t].item() == pytest.approx(expected.item(), abs=1e-13)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["v1", "v2", "open_clip"])
def test_together_is_one_at_a_time(kind, method):
    model = clip(kind)
    together = relevance(model, images(), texts(), method)
    for b in range(3):
        for t in range(2):
            alone = relevance(model, images()[b : b + 1], texts()[t : t + 1], method)
            torch.testing.assert_close(alone.maps[0, 0], together.maps[b, t], rtol=1e-9, atol=1e-13)
            torch.testing.assert_close(alone.similarity[0, 0], together.similarity[b, t], rtol=0, atol=1e-13)


def test_many_images_whose_maps_are_made_block_by_block():
    model = clip("v1")
    image = images(800)
    assert not fits_in_cache(800, 4, 13)
    assert fits_in_cache(400, 4, 13)
    together = relevance(model, image, texts(), start_layer=0)
    halves = [relevance(model, half, texts(), start_layer=0) for half in image.chunk(2)]
    torch.testing.assert_close(together.maps, torch.cat([half.maps for half in halves]), rtol=1e-9, atol=1e-12)


def _patterns():
    """Draw twelve patches, (12, 3 * 8 * 8), that are orthonormal."""
    noise = torch.randn(192, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(noise).Q.T


def _looks_for_the_first_pattern(attn_layer):
    """Build a CLIP of one block whose class token looks at the patch with the first pattern and reads it out.

    Pattern i is embedded as the i-th unit vector, which the layer norm turns into u_i. All queries of the first map are
    u_0 and keys are u_i, so that the first pattern's is chosen; values are u_0 for that one and about w for the others.
    """
    width = 32
    trunk = timm.create_model(
        "vit_base_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=width,
        depth=1,
        num_heads=2,
        num_classes=0,
        attn_layer=attn_layer,
    ).double()
    for name, parameter in trunk.named_parameters():
        if "norm" not in name:
            parameter.data.zero_()
    unit = torch.eye(width, dtype=torch.float64)
    u, own, w = (F.layer_norm(unit[i], [width]) for i in (0, 12, 13))
    trunk.patch_embed.proj.weight.data[:12] = _patterns().view(12, 3, 8, 8)
    trunk.cls_token.data[..., 12] = 1.0
    attention = trunk.blocks[0].attn
    first_map = width if attn_layer == "attn" else width // 2
    attention.qkv.bias.data[:first_map] = 4 * u[:first_map]
    attention.qkv.weight.data[width:] = torch.cat([unit, torch.outer(u - w, u) / width])
    attention.qkv.bias.data[2 * width :] = w
    attention.proj.weight.data.copy_(unit)
    model = clip("plain")
    model.visual.trunk = trunk.eval()
    # the larger the share of u in the class token, the nearer the image is to the text
    t = model.encode_text(texts()[:1], True)[0].detach()
    across = F.normalize(unit[0, :EMBED_DIM] - t[0] * t, dim=0)
    model.visual.head.proj.weight.data = torch.outer(t, u) + torch.outer(across, own)
    return model


@pytest.mark.parametrize(
    ("attn_layer", "method"),
    [
        ("attn", "chefer"),
        ("attn", "rollout"),
        ("attn", "gradcam"),
        (TimmDifferentialAttention, "chefer"),
        (TimmDifferentialAttention, "rollout"),
    ],
)
def test_the_patch_that_is_looked_at_is_found(attn_layer, method):
    model = _looks_for_the_first_pattern(attn_layer)
    places = torch.arange(12)
    at_place = _patterns()[(places - places[:, None]) % 12]  # in image b, pattern 0 is at place b
    image = F.fold(at_place.transpose(1, 2), SIZE, kernel_size=8, stride=8)

    def found():
        return relevance(model, image, texts()[:1], method).maps.flatten(1).argmax(1) == places

    assert found().all()
    # and it is the weights that find it, not the image: otherwise it is one patch in twelve
    by_chance = [found() for seed in range(20) if randomized(model.visual, seed)]
    assert torch.cat(by_chance).double().mean() < 0.2


def test_upsampling_by_hand():
    found = upsample(torch.tensor([[[[0.0, 4.0]], [[2.0, 2.0]]]]), (1, 4))
    # bilinear between the centres of two pixels each: 0, 1, 3, 4 of 4
    assert found.tolist() == [[[[0.0, 0.25, 0.75, 1.0]], [[0.0] * 4]]]
    assert upsample(torch.rand(2, 3, 4, 5), 32).shape == (2, 3, 32, 32)
    each = upsample(100 * torch.rand(2, 3, 4, 5) - 50, (7, 9))
    assert torch.equal(each.amin((-2, -1)), torch.zeros(2, 3))
    assert torch.equal(each.amax((-2, -1)), torch.ones(2, 3))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 7e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upsampling_does_not_stretch_rounding(value, dtype):
    maps = torch.full((1, 1, 3, 3), value, dtype=dtype)
    if value == 0.1:
        assert F.interpolate(maps, 32, mode="bilinear").unique().numel() > 1
    assert torch.equal(upsample(maps, 32), torch.zeros(1, 1, 32, 32, dtype=dtype))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(method):
    model = clip("v1", "v1").train()
    model.text.eval()
    model.logit_scale.requires_grad = False
    model.visual.head.proj.weight.grad = torch.ones_like(model.visual.head.proj.weight)
    modes = [module.training for module in model.modules()]
    image = images()
    relevance(model, image, texts(), method)
    assert not image.requires_grad
    assert image.grad is None
    assert torch.equal(image, images())
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == 0
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["visual.head.proj.weight"]
    assert torch.equal(model.visual.head.proj.weight.grad, torch.ones_like(model.visual.head.proj.weight))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["logit_scale"]
    assert torch.is_grad_enabled()


def test_nothing_is_left_behind_by_a_failure():
    model = clip("v1").train()

    def fail(module, args):
        raise ArithmeticError("mid-way")

    with (
        model.visual.trunk.norm.register_forward_pre_hook(fail),
        pytest.raises(ArithmeticError, match="mid-way"),
    ):
        relevance(model, images(), texts())
    assert hooks_of(model) == 0
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["v1", "v2", "plain", "open_clip"])
def test_wherever_it_is_called(kind, method):
    model = clip(kind)
    expected = relevance(model, images(), texts(), method).maps
    with torch.no_grad():
        assert torch.equal(relevance(model, images(), texts(), method).maps, expected)
    with torch.inference_mode():
        assert torch.equal(relevance(model, images(), texts(), method).maps, expected)
    model.set_grad_checkpointing()
    assert torch.equal(relevance(model.train(), images(), texts(), method).maps, expected)
    for parameter in model.parameters():
        parameter.requires_grad = False
    frozen = relevance(model, images(), texts(), method).maps
    torch.testing.assert_close(frozen, expected, rtol=1e-11, atol=1e-13)  # torch multiplies in another order


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["v1", "v2", "plain"])
def test_lower_precision(kind, method):
    model = clip(kind, dtype=torch.bfloat16)
    low = relevance(model, images(dtype=torch.bfloat16), texts(), method)
    exact = relevance(model.double(), images(dtype=torch.bfloat16).double(), texts(), method)
    assert low.maps.dtype == low.similarity.dtype == torch.float32
    assert low.maps.min() >= 0
    error = (low.maps.double() - exact.maps).norm() / exact.maps.norm()
    assert error < 8 * torch.finfo(torch.bfloat16).eps
    assert relevance(model.float(), images(dtype=torch.float32), texts(), method).maps.dtype == torch.float32


def test_open_clips_own_clip():
    model = plain_clip()
    found = relevance(model, images(), texts())
    assert found.maps.shape == (3, 2, 3, 4)
    assert found.similarity.shape == (3, 2)
    with pytest.raises(ValueError, match="no layer 2: the image tower has 2"):
        relevance(model, images(), texts(), start_layer=2)


def test_sizes_that_the_model_takes():
    model = clip("plain")
    model.visual.trunk = timm.create_model(
        "vit_base_patch16_diffclip_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        num_classes=0,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    ).double()
    for size, grid in (((16, 56), (2, 7)), ((30, 41), (4, 6))):
        for method in METHODS:
            found = relevance(model, torch.randn(1, 3, *size, dtype=torch.float64), texts(), method)
            assert found.maps.shape == (1, 2, *grid)


def test_bad_input():
    model = clip("v1")
    with pytest.raises(ValueError, match="method is 'lime'; it must be one of 'chefer', 'rollout', 'gradcam'"):
        relevance(model, images(), texts(), "lime")
    with pytest.raises(ValueError, match="start_layer is 0, but 'gradcam' reads the last layer alone"):
        relevance(model, images(), texts(), "gradcam", 0)
    with pytest.raises(ValueError, match=r"image has shape \[3, 24, 32\]"):
        relevance(model, images()[0], texts())
    with pytest.raises(ValueError, match=r"text has shape \[9\]"):
        relevance(model, images(), texts()[0])


def test_other_pooling():
    model = clip("plain")
    model.visual.trunk = timm.create_model(
        "vit_base_patch16_siglip_224", img_size=(24, 32), patch_size=8, embed_dim=32, depth=2, num_heads=4
    ).double()
    for method in ("chefer", "rollout"):
        with pytest.raises(ValueError, match=f"neither by a class token nor by their mean, so '{method}' cannot"):
            relevance(model, images(), texts(), method)
    assert relevance(model, images(), texts(), "gradcam").maps.shape == (3, 2, 3, 4)
