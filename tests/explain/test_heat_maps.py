"""Heat maps against Chefer's own way, a copy of the model that keeps its maps in the graph, and known answers."""

import copy
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from support.explain_models import (
    EMBED_DIM,
    GRID,
    IMAGE_KINDS,
    SIZE,
    TIMM,
    clip,
    hooks_of,
    images,
    plain_clip,
    randomized,
    texts,
)
from torch import nn

from diffclip_openclip.attention.cpu import fits_in_cache
from diffclip_openclip.explain import attention_maps, relevance, upsample
from diffclip_openclip.towers.timm_vit import TimmDifferentialAttention, TimmDifferentialAttentionV2

METHODS = ("chefer", "rollout", "gradcam")


class _Slow(nn.Module):
    """Attention by its definition, one head after the other, which keeps its maps."""

    def __init__(self, attention):
        super().__init__()
        self.of = attention

    def forward(self, x, *unused, **masks):
        assert masks.get("attn_mask") is None
        of = self.of
        if isinstance(of, nn.MultiheadAttention):
            weight, bias, projection = of.in_proj_weight, of.in_proj_bias, of.out_proj
        else:
            weight, bias, projection = of.qkv.weight, of.qkv.bias, of.proj
        maps, values, finish = _BY_DEFINITION[type(of)](of, x, x @ weight.T + bias)
        self.maps = torch.stack(maps, dim=1)
        heads = [finish(self.maps[:, i] @ value) for i, value in enumerate(values)]
        output = torch.cat(heads, dim=-1) @ projection.weight.T + projection.bias
        return (output, None) if isinstance(of, nn.MultiheadAttention) else output


def _softmax(query, key):
    scores = torch.einsum("bnd,bmd->bnm", query, key) / math.sqrt(query.shape[-1])
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def _slow_plain(attention, x, projected):
    q, k, v = (part.split(x.shape[-1] // attention.num_heads, -1) for part in projected.chunk(3, -1))
    return [_softmax(q[i], k[i]) for i in range(len(q))], v, lambda out: out


def _slow_v1(attention, x, projected):
    C, d = x.shape[-1], attention.head_dim
    q, k, v = projected.split([C, C, C], -1)
    q, k, v = q.split(d, -1), k.split(d, -1), v.split(2 * d, -1)
    dot = [(getattr(attention, f"lambda_q{i}") * getattr(attention, f"lambda_k{i}")).sum() for i in (1, 2)]
    if isinstance(attention, timm.layers.DiffAttention):
        dot = [each.float() for each in dot]  # as timm does
    lambda_ = dot[0].exp() - dot[1].exp() + attention.lambda_init
    maps = [_softmax(q[2 * p], k[2 * p]) - lambda_ * _softmax(q[2 * p + 1], k[2 * p + 1]) for p in range(len(v))]

    def finish(out):
        normed = out / (out.square().mean(-1, keepdim=True) + 1e-5).sqrt() * attention.sub_norm.weight
        return (1 - attention.lambda_init) * normed

    return maps, v, finish


def _slow_v2(attention, x, projected):
    C, d = x.shape[-1], attention.head_dim
    q, k, v = (part.split(d, -1) for part in projected.split([2 * C, C, C], -1))
    weight = 1 / (1 + (-x @ attention.lambda_proj.weight.T).exp())
    maps = [_softmax(q[2 * h], k[h]) - weight[..., h : h + 1] * _softmax(q[2 * h + 1], k[h]) for h in range(len(v))]
    return maps, v, lambda out: out


_BY_DEFINITION = {
    TimmDifferentialAttention: _slow_v1,
    TimmDifferentialAttentionV2: _slow_v2,
    timm.layers.Attention: _slow_plain,
    timm.layers.DiffAttention: _slow_v1,
    nn.MultiheadAttention: _slow_plain,
}


def _blocks(model):
    return model.visual.trunk.blocks if hasattr(model.visual, "trunk") else model.visual.transformer.resblocks


def _chefer(model, maps_of, image, text, start_layer, readout):
    """R of one image and one text, by the definition; ``maps_of(model)`` are the maps of the pass just done."""
    logit = model.logit_scale.exp() * (model.encode_image(image, True) * model.encode_text(text, True)).sum()
    maps = maps_of(model)[start_layer:]
    gradients = torch.autograd.grad(logit, maps)
    r = torch.eye(maps[0].shape[-1], dtype=torch.float64)
    for each, gradient in zip(maps, gradients, strict=True):
        assert (gradient * each < 0).any()  # so that the clamp has something to do
        r = r + (gradient * each).clamp(min=0)[0].mean(0) @ r
    rows, num_prefix = readout
    return r[rows].mean(0)[num_prefix:].reshape(GRID).detach()


# the rows that are read out, and how many tokens are before the patches, where it is not the class token alone
_READOUT = {
    "plain with norms": (slice(0, 1), 3),  # a class token and two registers
    "plain averaged": (slice(0, None), 0),
    "plain averaged with prefix": (slice(0, None), 1),
    "open_clip averaged": (slice(1, None), 1),
}


def _expected(kind, model, maps_of, start_layer):
    pairs = [(image, text) for image in images().split(1) for text in texts().split(1)]
    readout = _READOUT.get(kind, (slice(0, 1), 1))
    found = [_chefer(model, maps_of, image, text, start_layer, readout) for image, text in pairs]
    return torch.stack(found).unflatten(0, (3, 2))


@pytest.mark.parametrize("start_layer", [0, -1])
@pytest.mark.parametrize(
    "kind", ["v1", "v2", "plain", "plain post-norm", "timm's differential", "open_clip", "open_clip averaged"]
)
def test_chefer_against_attention_by_its_definition(kind, start_layer):
    model = clip(kind)
    slow = copy.deepcopy(model)
    for block in _blocks(slow):
        block.attn = _Slow(block.attn)
    expected = _expected(kind, slow, lambda model: [block.attn.maps for block in _blocks(model)], start_layer)
    found = relevance(model, images(), texts(), start_layer=start_layer)
    assert found.maps.dtype == torch.float64
    torch.testing.assert_close(found.maps, expected, rtol=1e-10, atol=1e-12)
    if start_layer == -1:
        assert torch.equal(found.maps, relevance(model, images(), texts()).maps)


@pytest.mark.parametrize("kind", [kind for kind in TIMM if kind.startswith(("plain", "eva", "rotary"))])
def test_chefer_against_the_maps_that_timm_makes(kind):
    model = clip(kind)
    unfused = copy.deepcopy(model)
    seen = []
    for block in _blocks(unfused):
        block.attn.fused_attn = False
        # through which timm's maps go where they are not fused
        block.attn.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output))

    def maps_of(model):
        maps, seen[:] = list(seen), []
        return maps

    found = relevance(model, images(), texts(), start_layer=0).maps
    torch.testing.assert_close(found, _expected(kind, unfused, maps_of, 0), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("start_layer", [None, 1])
def test_rollout_against_the_product_of_all_maps(kind, start_layer):
    model = clip(kind)
    found = relevance(model, images(), texts(), "rollout", start_layer).maps
    rolled = np.eye(attention_maps(model, images())[0].a1.shape[-1])
    for layer in attention_maps(model, images())[start_layer or 0 :]:
        shares = layer.attention.numpy().clip(min=0).mean(axis=1)
        shares = shares / shares.sum(axis=-1, keepdims=True)
        rolled = (0.5 * shares + 0.5 * np.eye(shares.shape[-1])) @ rolled
    if "averaged" in kind:
        first = 0 if "prefix" in kind else rolled.shape[-1] - 12
        row, num_prefix = rolled[:, first:].mean(axis=1), rolled.shape[-1] - 12
    else:
        row, num_prefix = rolled[:, 0], rolled.shape[-1] - 12
    expected = row[:, num_prefix:].reshape(3, *GRID)
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-12)
    assert torch.equal(found[:, 0], found[:, 1])


def test_rollout_of_queries_that_look_nowhere_is_themselves():
    model = clip("v1")
    for block in _blocks(model):
        block.attn.qkv.weight.data[:32].zero_()  # both maps uniform
        block.attn.qkv.bias.data[:32].zero_()
        for name, value in (("lambda_q1", 1.0), ("lambda_k1", 1.0), ("lambda_q2", 0.0)):
            getattr(block.attn, name).data.fill_(value)  # lambda is more than 1
    assert all((layer.attention < 0).all() for layer in attention_maps(model, images()))
    assert torch.equal(relevance(model, images(), texts(), "rollout").maps, torch.zeros(3, 2, *GRID).double())


@pytest.mark.parametrize("kind", ["v1", "v2", "plain", "plain with norms", "plain averaged", "eva rotary"])
def test_gradcam_against_the_first_norm_of_the_last_block(kind):
    model = clip(kind)
    found = relevance(model, images(), texts(), "gradcam").maps
    kept = []
    hook = _blocks(model)[-1].norm1.register_forward_hook(lambda module, args, output: kept.append(output))
    with hook:
        features = model.encode_image(images(), True)
    logits = model.logit_scale.exp() * features @ model.encode_text(texts(), True).T
    for b in range(3):
        for t in range(2):
            (gradient,) = torch.autograd.grad(logits[b, t], kept[0], retain_graph=True)
            gradient, tokens = gradient[b, -12:].numpy(), kept[0][b, -12:].detach().numpy()
            expected = [max(0.0, sum(gradient.mean(axis=0) * token)) for token in tokens]
            np.testing.assert_allclose(found[b, t].flatten(), expected, rtol=1e-10, atol=1e-12)
    assert (found > 0).any()
    assert (found == 0).any()


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
    """Twelve patches, (12, 3 * 8 * 8), that are orthonormal."""
    noise = torch.randn(192, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(noise).Q.T


def _looks_for_the_first_pattern(attn_layer):
    """A CLIP of one block whose class token looks at the patch with the first pattern and reads it out.

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
