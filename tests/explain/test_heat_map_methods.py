"""Each method of heat maps follows its definition: attention that keeps its maps in the graph, and timm's own maps."""

import copy
import math

import numpy as np
import open_clip
import pytest
import timm
import torch
from support.explain_models import (
    GRID,
    IMAGE_KINDS,
    TIMM,
    clip,
    images,
    texts,
)
from torch import nn

from diffclip_openclip.explain import attention_maps, relevance
from diffclip_openclip.towers.timm_vit import TimmDifferentialAttention, TimmDifferentialAttentionV2


class _Slow(nn.Module):
    """Compute attention by its definition, one head after the other, and keep its maps."""

    def __init__(self, attention):
        super().__init__()
        self.of = attention

    def forward(self, x, *unused, **masks):
        assert masks.get("attn_mask") is None
        of = self.of
        if hasattr(of, "in_proj_weight"):
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
    nn.MultiheadAttention: _slow_plain,  # open_clip 3.3's
    open_clip.transformer.Attention: _slow_plain,  # that of its main branch
}


def _blocks(model):
    return model.visual.trunk.blocks if hasattr(model.visual, "trunk") else model.visual.transformer.resblocks


def _chefer(model, maps_of, image, text, start_layer, readout):
    """Compute R of one image and one text by the definition; ``maps_of(model)`` are the maps of the pass just done."""
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
