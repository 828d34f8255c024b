"""The package's public face, and the sizes of the models it ships."""

import importlib.metadata

import open_clip
import pytest
import torch
from support.common import run_python
from torch.utils._python_dispatch import TorchDispatchMode

import diffclip_openclip
from diffclip_openclip import DifferentialAttention, DifferentialAttentionV2

VERSION_2 = [name for name in diffclip_openclip.model_names() if name.startswith("DiffCLIP-V2-")]
VERSION_1 = [name for name in diffclip_openclip.model_names() if name.startswith("DiffCLIP-") and name not in VERSION_2]
BASELINES = [name for name in diffclip_openclip.model_names() if name.endswith("-baseline")]
CONTROLS = [name for name in diffclip_openclip.model_names() if name.endswith(("-gated", "-half-heads"))]


@pytest.fixture(scope="module")
def model_of():
    """open_clip's model by name, on the meta device, each built once."""
    models = {}

    def build(name):
        if name not in models:
            with torch.device("meta"):
                models[name] = open_clip.create_model(name, device="meta")
        return models[name]

    return build


def _num_parameters(model):
    return sum(p.numel() for p in model.parameters())


def _baseline_of(name):
    size = name.removeprefix("DiffCLIP-").removeprefix("V2-").removesuffix("-vision").removesuffix("-dynamic")
    return size if size.startswith("ViT-") else f"CLIP-{size}-baseline"  # ViT-B-32 and the like are open_clip's own


def test_public_names():
    assert set(diffclip_openclip.__all__) == {
        "DiffCLIPTextConfig",
        "DiffCLIPTextModel",
        "DiffCLIPVisionConfig",
        "DiffCLIPVisionModel",
        "DifferentialAttention",
        "DifferentialAttentionV2",
        "differential_attention_reference",
        "differential_attention_v2_reference",
        "from_reference",
        "model_names",
        "register",
        "to_reference",
    }
    for name in diffclip_openclip.__all__:
        assert callable(getattr(diffclip_openclip, name))


def test_version_is_that_of_the_distribution():
    assert diffclip_openclip.__version__ == importlib.metadata.version("diffclip-openclip")


def test_every_model_name_is_known_to_open_clip():
    groups = (VERSION_1, VERSION_2, BASELINES, CONTROLS)
    assert sorted(name for group in groups for name in group) == diffclip_openclip.model_names()
    assert set(diffclip_openclip.model_names()) <= set(open_clip.list_models())


def test_parameter_counts_of_the_papers_models(model_of):
    baseline = _num_parameters(model_of("CLIP-B-16-baseline"))
    assert baseline == 149_619_969
    assert _num_parameters(model_of("DiffCLIP-B-16")) == 149_629_185 == baseline + 9_216
    assert _num_parameters(model_of("DiffCLIP-B-16-dynamic")) == 149_629_185
    assert _num_parameters(model_of("DiffCLIP-B-16-vision")) == baseline + 9_216 // 2


@pytest.mark.parametrize("name", VERSION_1)
def test_differential_attention_adds_six_head_sizes_a_layer(name, model_of):
    """Four lambda vectors of the head's size and a norm of twice that, and nothing else that has parameters."""
    model, baseline = model_of(name), model_of(_baseline_of(name))
    layers = [m for m in model.modules() if isinstance(m, DifferentialAttention)]
    expected = sum(4 * layer.head_dim + 2 * layer.head_dim for layer in layers)
    assert _num_parameters(model) - _num_parameters(baseline) == expected

    image_layers = len(model.visual.trunk.blocks)
    text_layers = 0 if name.endswith("-vision") else len(model.text.transformer.layers)
    assert len(layers) == image_layers + text_layers
    assert image_layers == len(baseline.visual.trunk.blocks)
    assert text_layers in (0, len(baseline.text.transformer.resblocks))


@pytest.mark.parametrize("name", VERSION_2)
def test_version_2_adds_the_second_queries_and_lambda_a_layer(name, model_of):
    model, baseline = model_of(name), model_of(_baseline_of(name))
    layers = [m for m in model.modules() if isinstance(m, DifferentialAttentionV2)]
    expected = 0
    for layer in layers:
        C = layer.num_heads * layer.head_dim
        expected += C * C + C + layer.num_heads * C
    assert _num_parameters(model) - _num_parameters(baseline) == expected
    assert len(layers) == len(model.visual.trunk.blocks) + len(model.text.transformer.layers)
    assert not any(isinstance(m, DifferentialAttention) for m in model.modules())


@pytest.mark.parametrize("name", [name for name in VERSION_2 if name.startswith("DiffCLIP-V2-ViT-")])
def test_version_2_of_openclips_models_has_their_sizes_and_activation(name, model_of):
    model, plain = model_of(name), model_of(_baseline_of(name))
    quick = open_clip.get_model_config(_baseline_of(name)).get("quick_gelu", False)
    image, text = plain.visual.transformer.resblocks, plain.transformer.resblocks
    for block, plain_block in zip(model.visual.trunk.blocks, image, strict=True):
        assert block.attn.num_heads == plain_block.attn.num_heads
        assert type(block.mlp.act).__name__ == type(plain_block.mlp.gelu).__name__ == ("QuickGELU" if quick else "GELU")
        assert block.norm1.eps == plain_block.ln_1.eps
    for layer, plain_block in zip(model.text.transformer.layers, text, strict=True):
        assert (layer.attn.num_heads, layer.attn.head_dim) == (plain_block.attn.num_heads, plain_block.attn.head_dim)
        assert layer.mlp.c_fc.out_features == plain_block.mlp.c_fc.out_features
        assert ("Quick" in type(layer.mlp.act).__name__) == quick
    assert isinstance(model.visual.trunk.norm_pre, torch.nn.LayerNorm)
    assert model.context_length == plain.context_length
    assert model.text.output_dim == plain.text_projection.shape[1]


@pytest.mark.parametrize("name", VERSION_1)
def test_lambda_init_is_the_names(name, model_of):
    model = model_of(name)
    for tower in [model.visual] if name.endswith("-vision") else [model.visual, model.text]:
        actual = [m.lambda_init for m in tower.modules() if isinstance(m, DifferentialAttention)]
        if name.endswith("-dynamic"):
            assert actual[:3] == pytest.approx([0.2, 0.355509, 0.470713][: len(actual)], abs=1e-6)
            assert actual == sorted(actual)
        else:
            assert set(actual) == {0.8}


@pytest.mark.parametrize("name", [*VERSION_1, "DiffCLIP-V2-B-16", "DiffCLIP-V2-nano"])
def test_heads_and_widths_are_the_baselines(name, model_of):
    model, baseline = model_of(name), model_of(_baseline_of(name))
    for block, plain in zip(model.visual.trunk.blocks, baseline.visual.trunk.blocks, strict=True):
        assert (block.attn.num_heads, block.attn.head_dim) == (plain.attn.num_heads, plain.attn.head_dim)
    if not name.endswith("-vision"):
        for layer, plain in zip(model.text.transformer.layers, baseline.text.transformer.resblocks, strict=True):
            assert (layer.attn.num_heads, layer.attn.head_dim) == (plain.attn.num_heads, plain.attn.head_dim)
            assert layer.mlp.c_fc.out_features == plain.mlp.c_fc.out_features
    assert model.context_length == baseline.context_length
    assert model.visual.image_size == baseline.visual.image_size


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_have_plain_attention_and_quick_gelu_in_the_text_tower(name, model_of):
    model = model_of(name)
    assert not any("lambda" in key or "sub_norm" in key for key in model.state_dict())
    assert not any(isinstance(m, DifferentialAttention | DifferentialAttentionV2) for m in model.modules())
    assert type(model.visual.trunk).__name__ == "VisionTransformer"
    assert isinstance(model.visual.trunk.norm_pre, torch.nn.Identity)
    for block in model.visual.trunk.blocks:
        assert isinstance(block.mlp.act, torch.nn.GELU)
    for block in model.text.transformer.resblocks:
        assert type(block.mlp.gelu).__name__ == "QuickGELU"


@pytest.mark.parametrize("name", diffclip_openclip.model_names())
def test_forward_and_backward_on_the_meta_device(name, model_of):
    model = model_of(name)
    embed_dim = open_clip.get_model_config(name)["embed_dim"]
    images = torch.empty(2, 3, *model.visual.image_size, device="meta")
    text = torch.empty(2, model.context_length, dtype=torch.int64, device="meta")
    image_embed, text_embed = model.encode_image(images), model.encode_text(text)
    assert image_embed.shape == text_embed.shape == (2, embed_dim)
    (image_embed * text_embed * model.logit_scale).sum().backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
    assert model.logit_scale.shape == ()
    assert model.visual.head.proj.bias is None


def test_version_2_learns_which_text_belongs_to_which_image():
    torch.manual_seed(0)
    model = open_clip.create_model("DiffCLIP-V2-nano").train()
    images = torch.randn(8, 3, *model.visual.image_size)
    text = open_clip.get_tokenizer("DiffCLIP-V2-nano")([f"picture number {i}" for i in range(8)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = open_clip.ClipLoss()
    losses = []
    for _ in range(12):
        loss = loss_of(*model(images, text)[:3])
        optimizer.zero_grad()
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5  # ln 8 = 2.08 of eight equally likely texts
    assert losses[-1] < 0.5


def test_importing_open_clip_stays_light(tmp_path):
    """What takes long to import, or to define, is left to those who build a model."""
    code = (
        "import open_clip, sys\n"
        "assert 'diffclip_openclip.registration' in sys.modules\n"
        "heavy = {'transformers.modeling_utils', 'diffclip_openclip.attention.cpu', 'diffclip_cli.main'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code, tmp_path).splitlines()[-1] == "[]"


class _DrawnValues(TorchDispatchMode):
    """Counts the values that random initialisation draws."""

    drawn = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("uniform_", "normal_", "normal") and args[0].device.type != "meta":
            self.drawn += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["DiffCLIP-nano", "DiffCLIP-B-16-dynamic"])
def test_no_weight_is_drawn_twice(name):
    with _DrawnValues() as counter:
        model = open_clip.create_model(name)
    num_values = sum(parameter.numel() for parameter in model.parameters())
    assert 0.9 * num_values < counter.drawn <= num_values
