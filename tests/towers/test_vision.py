"""The image tower as a transformers model."""

import json

import accelerate
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.common import run_warm
from support.vision_towers import DEPTH, MEAN, STD, TOKENS, WIDTH, assert_same_weights, write_open_clip, write_tower
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionConfig, CLIPVisionModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from diffclip_openclip import DiffCLIPVisionConfig, DiffCLIPVisionModel
from diffclip_openclip.towers.configs import register_configs
from diffclip_openclip.towers.vision import image_processor_from_open_clip

NANO, PLAIN = "vit_nano_patch12_diffclip_48", "vit_nano_patch12_plain_48"
NANO_V2 = "vit_nano_patch12_diffclip_v2_48"


@pytest.fixture(scope="module", params=["DiffCLIP-nano", "CLIP-nano-baseline"])
def open_clip_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    return write_open_clip(folder, request.param), folder


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory):
    return write_tower(tmp_path_factory.mktemp("clip-tower"))


def _model(name=NANO, seed=0):
    torch.manual_seed(seed)
    return DiffCLIPVisionModel(DiffCLIPVisionConfig(name)).eval()


def _images(batch=2, seed=0):
    return torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


# --- configuration ---


def test_sizes_are_those_of_the_tower():
    names = ("hidden_size", "image_size", "patch_size", "num_hidden_layers", "num_attention_heads")
    for tower, sizes in [
        ("vit_base_patch16_diffclip_224", (768, 224, 16, 12, 12)),
        ("vit_huge_patch14_diffclip_dynamic_224", (1280, 224, 14, 32, 16)),
        (PLAIN, (128, 48, 12, 4, 4)),
    ]:
        assert tuple(getattr(DiffCLIPVisionConfig(tower), name) for name in names) == sizes
    assert DiffCLIPVisionConfig().timm_model_name == "vit_base_patch16_diffclip_224"


def test_sizes_cannot_contradict_the_tower():
    with pytest.raises(AttributeError, match="hidden_size"):
        DiffCLIPVisionConfig(NANO, hidden_size=64)


def test_unknown_tower_is_refused():
    with pytest.raises(ValueError, match=r"timm has no model 'vit_none'; timm\.list_models"):
        DiffCLIPVisionConfig("vit_none")


@pytest.mark.parametrize("name", ["resnet18", "vit_base_patch16_siglip_224", "vit_small_patch14_reg4_dinov2"])
def test_towers_without_just_a_class_token_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is not a timm VisionTransformer with a class token and no other"):
        _ = DiffCLIPVisionConfig(name).hidden_size


def test_another_model_type_is_not_overwritten(monkeypatch):
    class Foreign(PretrainedConfig):
        model_type = "diffclip_vision"

    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "diffclip_vision", Foreign)
    with pytest.raises(ValueError, match=rf"another model type 'diffclip_vision', from {__name__}"):
        register_configs()
    assert isinstance(AutoConfig.for_model("diffclip_vision"), Foreign)


# --- what the tower gives ---


@pytest.mark.parametrize("name", [NANO, PLAIN])
def test_hidden_states_and_outputs(name):
    model, images = _model(name), _images()
    out = model(images, output_hidden_states=True)
    assert [tuple(state.shape) for state in out.hidden_states] == [(2, TOKENS, WIDTH)] * (DEPTH + 1)
    states = []
    for block in model.trunk.blocks:
        block.register_forward_hook(lambda _, args, output: states.extend([args[0], output]))
    final = model.trunk.forward_features(images)  # timm's own way through the tower
    assert torch.equal(out.hidden_states[0], states[0])
    for mine, timms in zip(out.hidden_states[1:], states[1::2], strict=True):
        assert torch.equal(mine, timms)
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])
    torch.testing.assert_close(out.pooler_output, final[:, 0])


def test_outputs_mean_what_they_mean_in_transformers_clip():
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=48, patch_size=12
    )
    clip = CLIPVisionModel(config).eval()
    for model in (clip, _model()):
        out = model(_images(), output_hidden_states=True)
        norm = clip.post_layernorm if model is clip else model.trunk.norm
        assert len(out.hidden_states) == model.config.num_hidden_layers + 1
        assert out.hidden_states[0].shape == (2, TOKENS, model.config.hidden_size)
        assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
        torch.testing.assert_close(out.pooler_output, norm(out.last_hidden_state[:, 0]))


def test_hidden_states_are_given_if_asked_for():
    model = _model()
    assert model(_images()).hidden_states is None
    model.config.output_hidden_states = True
    assert len(model(_images()).hidden_states) == DEPTH + 1
    assert model(_images(), output_hidden_states=False).hidden_states is None
    state, pooled = model(_images(), output_hidden_states=False, return_dict=False)
    assert (state.shape, pooled.shape) == ((2, TOKENS, WIDTH), (2, WIDTH))


@pytest.mark.parametrize("name", [NANO, NANO_V2, PLAIN])
@pytest.mark.parametrize("by", ["argument", "config"])
def test_attentions_are_the_weighted_maps_and_change_no_state(by, name):
    options = {"output_attentions": True} if by == "config" else {}
    torch.manual_seed(0)
    model = DiffCLIPVisionModel(DiffCLIPVisionConfig(name, **options)).eval()
    out = model(_images(), output_attentions=True) if by == "argument" else model(_images())
    plain = model(_images(), output_attentions=False, output_hidden_states=True)
    assert plain.attentions is None
    assert torch.equal(out.last_hidden_state, plain.last_hidden_state)
    assert torch.equal(out.pooler_output, plain.pooler_output)
    heads = 2 if name == NANO else 4
    assert [tuple(weights.shape) for weights in out.attentions] == [(2, heads, TOKENS, TOKENS)] * DEPTH
    for block, state, weights in zip(model.trunk.blocks, plain.hidden_states, out.attentions, strict=False):
        normed = block.norm1(state)
        if name == PLAIN:  # from the maps to the layer's output
            v = block.attn.qkv(normed).chunk(3, dim=-1)[2].unflatten(-1, (heads, -1)).transpose(1, 2)
            attended = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        else:
            attended = block.attn.attend_with(normed, weights)
        torch.testing.assert_close(attended, block.attn(normed), rtol=1e-4, atol=1e-5)


def test_towers_without_maps_refuse_attentions():
    model = _model(PLAIN)
    model.trunk.blocks[1] = torch.nn.Identity()
    with pytest.raises(ValueError, match="output_attentions is given, and the maps of Identity are not to be had"):
        model(_images(), output_attentions=True)


@pytest.mark.parametrize("name", [NANO, PLAIN])
@pytest.mark.parametrize("size", [(48, 48), (72, 48), (24, 96)])
def test_position_embedding_is_interpolated_as_timm_does(size, name):
    model = _model(name)
    images = torch.randn(2, 3, *size)
    out = model(images, interpolate_pos_encoding=True)
    plain = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    plain.load_state_dict(model.trunk.state_dict())
    torch.testing.assert_close(out.pooler_output, plain(images))
    assert out.last_hidden_state.shape == (2, 1 + size[0] * size[1] // 144, WIDTH)
    if size == (48, 48):
        assert torch.equal(out.pooler_output, model(images).pooler_output)


def test_parts_of_patches_are_refused():
    with pytest.raises(ValueError, match=r"50 x 48 pixels; with interpolate_pos_encoding .* whole patches of 12 x 12"):
        _model()(torch.zeros(1, 3, 50, 48), interpolate_pos_encoding=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flash_attention_2"])
def test_attention_implementations(implementation):
    config = DiffCLIPVisionConfig(NANO, attn_implementation=implementation)
    if implementation == "flash_attention_2":
        with pytest.raises(ValueError, match=r"attn_implementation is 'flash_attention_2'.*wider than its keys"):
            DiffCLIPVisionModel(config)
        return
    torch.manual_seed(0)
    model = DiffCLIPVisionModel(config).eval()
    assert model.config._attn_implementation == implementation
    assert torch.equal(model(_images()).pooler_output, _model()(_images()).pooler_output)


@pytest.mark.parametrize("context", [lambda: torch.device("meta"), accelerate.init_empty_weights])
def test_nothing_is_materialised_on_the_meta_device(context):
    with context():
        model = AutoModel.from_config(DiffCLIPVisionConfig(NANO))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@pytest.mark.parametrize("name", [NANO, NANO_V2])
def test_one_dtype_for_all_parameters(name, tmp_path):
    _model(name).save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    new = AutoModel.from_config(DiffCLIPVisionConfig(name), dtype=torch.bfloat16)
    for model in (loaded, new):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert model(_images()).pooler_output.dtype == torch.bfloat16


def test_compiles_without_graph_breaks():
    model = _model()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    actual, expected = compiled(_images(), output_hidden_states=True), model(_images(), output_hidden_states=True)
    for a, b in zip(actual.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32, another order of summation


@pytest.mark.parametrize("shape", [(3, 224, 224), (3, 48, 60)])
def test_other_image_sizes_are_refused(shape):
    with pytest.raises(ValueError, match=rf"{shape[1]} x {shape[2]} pixels.*takes 48 x 48"):
        _model()(torch.zeros(1, *shape))


def test_images_take_the_dtype_of_the_weights():
    out = _model().bfloat16()(_images())
    assert out.last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model = _model().train()

    def gradients():
        model.zero_grad()
        model(_images()).pooler_output.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    expected = gradients()
    calls = []
    model.trunk.blocks[0].attn.register_forward_pre_hook(lambda *_: calls.append(1))
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    actual = gradients()
    assert len(calls) == 2  # once more in the backward pass
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


# --- from open_clip, saving and loading ---


def test_from_open_clip_is_the_same_tower(open_clip_model):
    model, folder = open_clip_model
    tower = DiffCLIPVisionModel.from_open_clip(folder)
    assert not tower.training
    assert_same_weights(tower.trunk, model.visual.trunk)
    torch.testing.assert_close(tower(_images()).pooler_output, model.visual.trunk(_images()))


def test_save_and_load_is_exact(open_clip_model, tmp_path):
    tower = DiffCLIPVisionModel.from_open_clip(open_clip_model[1])
    tower.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    torch.manual_seed(1)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DiffCLIPVisionModel
    assert loaded.config.timm_model_name == tower.config.timm_model_name
    assert_same_weights(loaded, tower)
    a, b = (model(_images(), output_hidden_states=True) for model in (loaded, tower))
    assert all(torch.equal(x, y) for x, y in zip(a.hidden_states, b.hidden_states, strict=True))
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_from_config_is_initialised_as_timm_does():
    torch.manual_seed(0)
    model = AutoModel.from_config(DiffCLIPVisionConfig(NANO))
    attn = model.trunk.blocks[0].attn
    assert model.trunk.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert 0 < attn.lambda_q1.abs().max() < 0.6
    assert (attn.sub_norm.weight == 1).all()
    # PyTorch's own for linear layers, uniform with standard deviation 1 / sqrt(3 fan_in)
    assert attn.qkv.weight.std().item() == pytest.approx((3 * WIDTH) ** -0.5, rel=0.05)


def test_missing_weights_are_refused(tmp_path):
    _model().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["trunk.blocks.1.attn.lambda_q1"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"lacks 1 weights of {NANO}: trunk\.blocks\.1\.attn\.lambda_q1"):
        AutoModel.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    write_open_clip(tmp_path, "DiffCLIP-nano")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = PLAIN
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"(?s)does not hold a {PLAIN}.*lambda_q1"):
        DiffCLIPVisionModel.from_open_clip(tmp_path)


def test_other_image_towers_are_refused(tmp_path):
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32")}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"open_clip's own.*'patch_size': 32.*timm_model_name"):
        DiffCLIPVisionModel.from_open_clip(tmp_path)


@pytest.mark.parametrize("lost", ["open_clip_config.json", "open_clip_model.safetensors"])
def test_missing_files_are_named(lost, tmp_path):
    write_open_clip(tmp_path, "DiffCLIP-nano")
    (tmp_path / lost).rename(tmp_path / "open_clip_model.bin")
    with pytest.raises(FileNotFoundError, match=f"no .*{lost}; .*diffclip convert"):
        DiffCLIPVisionModel.from_open_clip(tmp_path)


# --- preprocessing ---


def test_image_processor_is_found_and_prepares_as_open_clip(tower_folder):
    processor = AutoImageProcessor.from_pretrained(tower_folder)
    assert json.loads((tower_folder / "preprocessor_config.json").read_text())["resample"] == 2
    picture = Image.radial_gradient("L").resize((96, 64)).convert("RGB")
    actual = processor(picture, return_tensors="pt")["pixel_values"]
    transform = open_clip.image_transform(48, False, mean=MEAN, std=STD, interpolation="bilinear")
    assert actual.shape == (1, 3, 48, 48)
    # torchvision and PIL round to whole grey levels each in its own place
    torch.testing.assert_close(actual[0], transform(picture), rtol=0, atol=1.01 / 255 / min(STD))


def test_resizing_that_transformers_does_not_have_is_refused(tmp_path):
    write_open_clip(tmp_path, "DiffCLIP-nano", resize_mode="longest")
    with pytest.raises(ValueError, match=r"resize_mode 'longest'.*only 'shortest'"):
        image_processor_from_open_clip(tmp_path)


def test_importing_the_package_is_enough_for_auto_classes(tower_folder, tmp_path):
    """As TinyLLaVA v2 and other users of ``AutoModel`` need it."""
    code = (
        "import diffclip_openclip\n"
        "from transformers import AutoConfig, AutoImageProcessor, AutoModel\n"
        f"folder = {str(tower_folder)!r}\n"
        "config, model = AutoConfig.from_pretrained(folder), AutoModel.from_pretrained(folder)\n"
        "processor = AutoImageProcessor.from_pretrained(folder)\n"
        "print(config.hidden_size, type(model).__name__, type(processor).__name__)\n"
    )
    output = run_warm(code, tmp_path).splitlines()[-1]
    assert output == "128 DiffCLIPVisionModel CLIPImageProcessor"
