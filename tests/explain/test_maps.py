"""Attention maps of every kind of tower are right, and looking at them leaves no trace."""

import inspect

import numpy as np
import open_clip
import pytest
import timm
import torch
from support.explain_models import IMAGE_KINDS, TEXT_KINDS, TIMM, clip, hooks_of, images, plain_clip, randomized, texts
from support.golden_model import golden_model, inputs, load
from torch import nn

from diffclip_openclip.explain.attention_formulas import (
    _open_clip_hides_where_true,
    is_supported,
    weighted_difference,
    write_out,
)
from diffclip_openclip.explain.maps import LayerMaps, attention_layers, attention_maps, recorded, tokens_of

# timm's classes that keep their map for a moment, before its dropout, if they are not fused
KEEPS_ITS_MAP = [kind for kind in TIMM if kind not in ("v1", "v2")]


def _encode(model, tower):
    return model.encode_image(images()) if tower == "image" else model.encode_text(texts())


_KINDS = [
    *(pytest.param("image", clip, {"image": kind}, id=f"image {kind}") for kind in IMAGE_KINDS),
    *(pytest.param("text", clip, {"text": kind}, id=f"text {kind}") for kind in TEXT_KINDS),
    pytest.param("text", plain_clip, {}, id="text of open_clip's CLIP"),
]


@pytest.mark.parametrize(("tower", "build", "kinds"), _KINDS)
def test_maps_make_the_outputs_of_the_modules(tower, build, kinds):
    model = build(**kinds)
    attention = attention_layers(model, tower)
    with torch.no_grad(), recorded(model, attention) as calls:
        _encode(model, tower)
        for module in attention:
            written_out = write_out(module, *calls[module].args, **calls[module].kwargs)
            output = written_out.output(weighted_difference(*written_out[:3]))
            torch.testing.assert_close(output, calls[module].output, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("tower", "build", "kinds"), _KINDS)
def test_rows_are_shares(tower, build, kinds):
    model = build(**kinds)
    maps = attention_maps(model, **({"image": images()} if tower == "image" else {"text": texts()}))
    assert [(layer.tower, layer.layer) for layer in maps] == [(tower, 0), (tower, 1)]
    for layer in maps:
        kind = kinds.get(tower)
        assert (layer.a2 is not None) == (kind in ("v1", "v2", "timm's differential"))
        for each in (layer.a1, layer.a2):
            if each is not None:
                assert each.shape[:2] == (3 if tower == "image" else 2, 2 if kind == "v1" else 4)
                assert each.min() >= 0
                torch.testing.assert_close(each.sum(-1), torch.ones_like(each[..., 0]), rtol=0, atol=1e-14)
                assert not each.requires_grad


@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_texts_do_not_look_ahead(kind):
    for layer in attention_maps(clip(text=kind), text=texts()):
        for each in (layer.a1, layer.a2):
            if each is not None:
                assert torch.equal(each, each.tril())
                assert (each.diagonal(dim1=-2, dim2=-1) > 0).any()


@pytest.mark.parametrize("kind", KEEPS_ITS_MAP)
def test_maps_are_those_that_timm_makes(kind):
    model = clip(kind)
    maps = attention_maps(model, images())
    for layer, module in zip(maps, attention_layers(model, "image"), strict=True):
        module.fused_attn = False
        seen = []
        module.attn_drop.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model.encode_image(images())
        own = [layer.a1] if layer.a2 is None else [layer.a1, layer.a2]
        for which, each in enumerate(own):
            torch.testing.assert_close(each, seen[0][:, which :: len(own)], rtol=0, atol=1e-13)


def _weights_of_host(module, call):
    """Attention weights from the module's own slow path: torch's in open_clip 3.3, open_clip's in its main branch."""
    if isinstance(module, nn.MultiheadAttention):
        return module(*call.args, **call.kwargs | {"need_weights": True, "average_attn_weights": False})[1]
    module.use_sdpa = False
    seen = []
    with module.attn_drop.register_forward_hook(lambda module, args, output: seen.append(output)):
        module(*call.args, **call.kwargs)
    return seen[0]


@pytest.mark.parametrize(("tower", "build"), [("image", lambda: clip("open_clip")), ("text", plain_clip)])
def test_maps_are_those_that_the_host_makes(tower, build):
    model = build()
    attention = attention_layers(model, tower)
    with torch.no_grad(), recorded(model, attention) as calls:
        _encode(model, tower)
    given = {"image": images()} if tower == "image" else {"text": texts()}
    for module, layer in zip(attention, attention_maps(model, **given), strict=True):
        torch.testing.assert_close(layer.a1, _weights_of_host(module, calls[module]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("for_heads", [False, True])
@pytest.mark.parametrize("host", ["torch", "open_clip"])
def test_boolean_masks_mean_what_they_mean_to_the_module(host, for_heads):
    """True hides in torch and in open_clip 3.3, and shows in open_clip's main branch; its output tells which."""
    mask = torch.tensor([[False, True, True], [False, False, True], [False, True, False]])
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    if host == "torch":
        module, args = nn.MultiheadAttention(8, 2, batch_first=True, bias=False), (x, x, x)
    else:
        module, args = open_clip.transformer.Attention(8, 2), (x,)
    module = module.double().eval()
    given = mask.expand(4, 3, 3) if for_heads else mask  # batch times heads
    written_out = write_out(module, *args, attn_mask=given)
    seen = written_out.a1 > 0
    assert torch.equal(seen, (~mask).expand_as(seen)) or (
        host == "open_clip" and torch.equal(seen, mask.expand_as(seen))
    )
    output = module(*args, attn_mask=given)
    output = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(written_out.output(written_out.a1), output, rtol=1e-12, atol=1e-12)


def test_cosine_attention_of_open_clip():
    """Against its definition, since open_clip 3.3's own forward fails with it: softmax(exp(scale) cos(q, k)) v."""
    attention = open_clip.transformer.Attention(8, 2, scaled_cosine=True).double().eval()
    randomized(attention, 0)
    with torch.no_grad():
        attention.logit_scale[1] = 9.0  # above logit_scale_max
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    q, k, v = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
    maps = []
    for head, part in enumerate((slice(0, 4), slice(4, 8))):
        cosine = nn.functional.cosine_similarity(q[:, :, None, part], k[:, None, :, part], dim=-1)
        maps.append((cosine * attention.logit_scale[head].clamp(max=attention.logit_scale_max).exp()).softmax(-1))
    written_out = write_out(attention, x)
    torch.testing.assert_close(written_out.a1, torch.stack(maps, dim=1), rtol=0, atol=1e-13)
    out = torch.cat([maps[0] @ v[..., :4], maps[1] @ v[..., 4:]], dim=-1)
    torch.testing.assert_close(written_out.output(written_out.a1), attention.out_proj(out), rtol=1e-12, atol=1e-12)


def test_asking_open_clip_about_masks_draws_nothing():
    _open_clip_hides_where_true.cache_clear()
    before = torch.random.get_rng_state()
    _open_clip_hides_where_true()
    assert torch.equal(torch.random.get_rng_state(), before)


def _takes(module, argument):
    return argument in inspect.signature(module).parameters


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (timm.layers.Attention, {"gated": True, "qkv_bias": True}),
        (timm.layers.Attention, {"attn_head_dim": 6, "dim_out": 5}),
        (timm.layers.AttentionRope, {"gated": True}),
        (timm.layers.AttentionRope, {"num_kv_heads": 2, "qkv_fused": False}),
        (timm.layers.DiffAttention, {"dual_lambda": True, "qk_norm": True, "scale_norm": True}),
    ],
)
@pytest.mark.parametrize("masked", ["bool", "float", "causal", None])
def test_other_attention_of_timm(module, arguments, masked):
    for argument in arguments:
        if not _takes(module, argument):
            pytest.skip(f"this timm's {module.__name__} has no {argument}")
    attention = randomized(module(16, 4, **arguments), 0).double().eval()
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    may_look = torch.rand(5, 5, generator=torch.Generator().manual_seed(0)).round().bool() | torch.eye(5).bool()
    added = torch.zeros(5, 5, dtype=torch.float64).masked_fill(~may_look, -torch.inf)
    kwargs = {"bool": {"attn_mask": may_look}, "float": {"attn_mask": added}, "causal": {"is_causal": True}}
    kwargs = kwargs.get(masked, {})
    written_out = write_out(attention, x, **kwargs)
    assert written_out.a1.shape == (2, 4, 5, 5)
    output = written_out.output(weighted_difference(*written_out[:3]))
    torch.testing.assert_close(output, attention(x, **kwargs), rtol=1e-12, atol=1e-12)


def test_golden_maps(tmp_path):
    arrays = load("tiny_static_maps")
    model = golden_model("tiny_static", tmp_path).double().eval()
    image, text = inputs("tiny_static")
    seen = {}
    for layer in attention_maps(model, image[:1].double(), text[:1]):
        name = f"{'visual.blocks' if layer.tower == 'image' else 'transformer.resblocks'}.{layer.layer}"
        seen |= {f"{name}/a1": layer.a1, f"{name}/a2": layer.a2}
    assert list(seen) == sorted(seen, key=lambda name: name.startswith("transformer"))  # image layers first
    assert seen.keys() == arrays.keys()
    for key, expected in arrays.items():
        np.testing.assert_allclose(seen[key], expected, rtol=0, atol=1e-6, err_msg=key)  # stored in float32


def test_lambda_and_the_difference():
    maps = LayerMaps("image", 0, torch.tensor([[[[0.75, 0.25]]]]), torch.tensor([[[[0.5, 0.5]]]]), torch.tensor(0.5))
    assert maps.attention.tolist() == [[[[0.5, 0.0]]]]
    assert LayerMaps("image", 0, maps.a1, None, None).attention is maps.a1


def test_lambda_is_a_scalar_in_version_1_and_of_each_token_in_version_2():
    first, second = attention_maps(clip("v1"), images())[1], attention_maps(clip("v2"), images())[1]
    # lambda_init of DiffCLIP*'s second layer, 0.8 - 0.6 exp(-0.3)
    assert first.lambda_.shape == ()
    assert first.lambda_.item() == pytest.approx(clip("v1").visual.trunk.blocks[1].attn.compute_lambda().item())
    assert second.lambda_.shape == (3, 4, 13, 1)
    assert second.lambda_.min() > 0
    assert second.lambda_.max() < 1
    assert second.lambda_.std() > 0.01
    row_sums = second.attention.sum(-1, keepdim=True)
    torch.testing.assert_close(row_sums, 1 - second.lambda_, rtol=0, atol=1e-13)


def test_wanted_layers():
    model = clip("v1", "v2")
    every = attention_maps(model, images(), texts())
    assert [(m.tower, m.layer) for m in every] == [("image", 0), ("image", 1), ("text", 0), ("text", 1)]
    some = attention_maps(model, images(), texts(), layers=iter([-1]))
    assert [(m.tower, m.layer) for m in some] == [("image", 1), ("text", 1)]
    assert torch.equal(some[0].a1, every[1].a1)
    assert torch.equal(some[1].a2, every[3].a2)
    assert [m.layer for m in attention_maps(model, images(), layers=[1, -2, 1])] == [1, 0]
    assert attention_maps(model, images(), layers=[]) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["v1", "v2", "plain", "open_clip"])
def test_lower_precision(kind, dtype):
    model = clip(kind, "v1" if kind == "v1" else "open_clip", dtype=dtype)
    maps = attention_maps(model, images(dtype=dtype), texts())
    exact = attention_maps(model.double(), images(dtype=dtype).double(), texts())
    for layer, reference in zip(maps, exact, strict=True):
        assert layer.attention.dtype == layer.a1.dtype == dtype
        # Two layers' roundings of tensors that are kept, in units of the dtype's; and those of sums, which are float32
        # in any order: norms and projections of 32 and 128 terms, scores of 8 and values of 17, some 300 terms a layer.
        error = (layer.attention.double() - reference.attention).abs().max()
        assert error < 16 * torch.finfo(dtype).eps + 2 * 300 * torch.finfo(torch.float32).eps / 2


def test_nothing_is_left_behind():
    model = clip("v1", "v1")
    model.train()
    model.visual.trunk.blocks[0].eval()  # as with a locked tower
    model.logit_scale.grad = torch.ones_like(model.logit_scale)
    modes = [module.training for module in model.modules()]
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = model.eval().encode_image(images()), model.encode_text(texts())
    for module, training in zip(model.modules(), modes, strict=True):
        module.training = training
    attention_maps(model, images(), texts())
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == 0
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    grads = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert grads == {"logit_scale"}
    after = model.eval().encode_image(images()), model.encode_text(texts())
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[1], after[1])


def test_nothing_is_left_behind_by_a_failure():
    model = clip("v1").train()

    def fail(module, args):
        raise ArithmeticError("mid-way")

    with (
        model.visual.trunk.blocks[1].mlp.register_forward_pre_hook(fail),
        pytest.raises(ArithmeticError, match="mid-way"),
    ):
        attention_maps(model, images())
    assert hooks_of(model) == 0
    assert all(module.training for module in model.modules())


def test_dropout_does_not_reach_the_maps():
    model = clip("plain", "v1")
    expected = attention_maps(model, images(), texts())
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.text.transformer.layers[0].attn.attn_drop_p = 0.5
    model.train()
    for layer, reference in zip(attention_maps(model, images(), texts()), expected, strict=True):
        assert torch.equal(layer.a1, reference.a1)


def test_compiled_models_show_their_maps_and_stay_compiled():
    compiled = []

    def backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    model = clip("v1")
    expected = attention_maps(model, images())
    wrapped = torch.compile(model, backend=backend)
    for each in (wrapped, model):
        if each is model:
            model.visual.compile(backend=backend)
        with torch.no_grad():
            each(images(), texts())
        graphs = len(compiled)
        assert graphs > 0
        maps = attention_maps(each, images())
        assert [torch.equal(one.a2, other.a2) for one, other in zip(maps, expected, strict=True)] == [True, True]
        with torch.no_grad():
            each(images(), texts())
        assert len(compiled) == graphs


def test_tokens():
    tokens = tokens_of(clip("plain with norms"), images())
    assert tokens == ((3, 4), 3, slice(0, 1))  # a class token and two registers
    assert tokens_of(clip("plain averaged"), images()) == ((3, 4), 0, slice(0, None))
    assert tokens_of(clip("plain averaged with prefix"), images()) == ((3, 4), 1, slice(0, None))
    assert tokens_of(clip("open_clip"), images()) == ((3, 4), 1, slice(0, 1))
    assert tokens_of(clip("open_clip averaged"), images()) == ((3, 4), 1, slice(1, None))


def test_bad_input():
    model = clip("v1")
    with pytest.raises(ValueError, match="give image, text or both"):
        attention_maps(model)
    with pytest.raises(ValueError, match=r"image has shape \[3, 24, 32\]; give preprocessed images, \(B, 3, H, W\)"):
        attention_maps(model, images()[0])
    with pytest.raises(ValueError, match=r"text has shape \[9\]"):
        attention_maps(model, text=texts()[0])
    for index in (2, -3):
        with pytest.raises(ValueError, match=f"no layer {index}: the image tower has 2, from 0 to 1"):
            attention_maps(model, images(), layers=[0, index])


class _Scaled(timm.layers.Attention):
    """Compute something else than the base class."""

    def forward(self, x, attn_mask=None, is_causal=False):
        return 2 * super().forward(x, attn_mask, is_causal)


def test_unknown_attention_is_refused_rather_than_guessed():
    resnet = open_clip.CLIP(
        16,
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        {"context_length": 9, "vocab_size": 50, "width": 8, "heads": 1, "layers": 1},
    )
    with pytest.raises(ValueError, match=r"image tower of CLIP \(ModifiedResNet\) is not a transformer"):
        attention_maps(resnet, torch.zeros(1, 3, 32, 32))
    assert len(attention_maps(resnet, text=texts())) == 1  # its text tower has some

    model = clip("plain")
    model.visual.trunk = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0)
    with pytest.raises(ValueError, match=r"TimmModel with SwinTransformer.*supported are .*timm's Attention"):
        attention_maps(model, torch.zeros(1, 3, 224, 224))

    model = clip("plain")
    model.visual.trunk.blocks[1].attn = _Scaled(32, 4)
    with pytest.raises(ValueError, match="TimmModel with VisionTransformer"):
        attention_maps(model, images())
    assert not is_supported(_Scaled(32, 4))
    with pytest.raises(ValueError, match="attention maps of Linear cannot be written out"):
        write_out(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"image tower of VisionTransformer \(missing\)"):
        attention_maps(timm.create_model("vit_nano_patch12_diffclip_48"), torch.zeros(1, 3, 48, 48))
