"""The image tower as a transformers model, and as a tower of TinyLLaVA."""

import importlib.util
import json
import sys
from types import ModuleType

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.common import REPOSITORY, run_python
from transformers import AutoConfig, AutoImageProcessor, AutoModel, CLIPVisionConfig, CLIPVisionModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from diffclip_openclip import DiffCLIPVisionConfig, DiffCLIPVisionModel
from diffclip_openclip.towers.configs import register_configs
from diffclip_openclip.towers.vision import image_processor_from_open_clip

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NANO, PLAIN = "vit_nano_patch12_diffclip_48", "vit_nano_patch12_plain_48"
TOKENS, WIDTH, DEPTH = 17, 128, 4


def _write_open_clip(folder, name, **preprocess):
    """An open_clip directory with the weights of a new model; that model."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model(name).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess_cfg = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "shortest"} | preprocess
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return model


@pytest.fixture(scope="module", params=["DiffCLIP-nano", "CLIP-nano-baseline"])
def open_clip_model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("open_clip")
    return _write_open_clip(folder, request.param), folder


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory):
    """A DiffCLIP tower and its preprocessing, as the example's README saves them."""
    folder = tmp_path_factory.mktemp("clip-tower")
    _write_open_clip(folder / "open_clip", "DiffCLIP-nano")
    DiffCLIPVisionModel.from_open_clip(folder / "open_clip").save_pretrained(folder / "tower")
    image_processor_from_open_clip(folder / "open_clip").save_pretrained(folder / "tower")
    return folder / "tower"


def _model(name=NANO, seed=0):
    torch.manual_seed(seed)
    return DiffCLIPVisionModel(DiffCLIPVisionConfig(name)).eval()


def _images(batch=2, seed=0):
    return torch.randn(batch, 3, 48, 48, generator=torch.Generator().manual_seed(seed))


def _assert_same(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


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
    _assert_same(tower.trunk, model.visual.trunk)
    torch.testing.assert_close(tower(_images()).pooler_output, model.visual.trunk(_images()))


def test_save_and_load_is_exact(open_clip_model, tmp_path):
    tower = DiffCLIPVisionModel.from_open_clip(open_clip_model[1])
    tower.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    torch.manual_seed(1)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is DiffCLIPVisionModel
    assert loaded.config.timm_model_name == tower.config.timm_model_name
    _assert_same(loaded, tower)
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
    _write_open_clip(tmp_path, "DiffCLIP-nano")
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
    _write_open_clip(tmp_path, "DiffCLIP-nano")
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
    _write_open_clip(tmp_path, "DiffCLIP-nano", resize_mode="longest")
    with pytest.raises(ValueError, match=r"resize_mode 'longest'.*only 'shortest'"):
        image_processor_from_open_clip(tmp_path)


# --- TinyLLaVA ---


class _StandInTower(torch.nn.Module):
    """What a TinyLLaVA v1 tower inherits (53f12c7:tinyllava/model/vision_tower/base.py), as far as it is used here."""

    def __init__(self, cfg):
        super().__init__()
        self.config = cfg

    def load_model(self, name):
        self._vision_tower = self._vision_tower.from_pretrained(name).requires_grad_(False)

    def forward(self, images, vision_feature_layer=-2):
        return self._vision_tower(images, output_hidden_states=True).hidden_states[vision_feature_layer][:, 1:]


@pytest.fixture
def factory(monkeypatch):
    """A stand-in for TinyLLaVA v1's factory, with the towers that it has and the example's; name -> class."""
    towers = {"clip": "CLIP", "siglip": "SigLIP", "dinov2": "DINOv2", "mof": "MoF"}

    def register_vision_tower(name):
        return lambda tower: towers.setdefault(name, tower)

    modules = {f"tinyllava{part}": ModuleType(f"tinyllava{part}") for part in ("", ".model", ".model.vision_tower")}
    modules["tinyllava.model.vision_tower"].register_vision_tower = register_vision_tower
    modules["tinyllava.model.vision_tower.base"] = base = ModuleType("base")
    base.VisionTower = _StandInTower
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    path = REPOSITORY / "examples" / "llava" / "tinyllava_tower.py"
    spec = importlib.util.spec_from_file_location("tinyllava_tower", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))

    def find(name):
        matching = [tower for known, tower in towers.items() if known in name.split(":")[0].lower()]
        return matching[-1]  # the last match wins

    return find


def test_tinyllava_tower(factory, tower_folder):
    assert "clip" in str(tower_folder)  # what is behind the colon must not matter
    name = f"diffattn_vit:{tower_folder}"
    config = AutoConfig.from_pretrained(name.split(":")[-1])
    assert config.hidden_size == WIDTH
    config.model_name_or_path = name.split(":")[-1]
    tower = factory(name)(config)
    tower.load_model(config.model_name_or_path)
    reference = AutoModel.from_pretrained(tower_folder)
    _assert_same(tower._vision_tower, reference)
    images = tower._image_processor(Image.new("RGB", (60, 50), "teal"), return_tensors="pt")["pixel_values"]
    for layer in ({}, {"vision_feature_layer": -1}):
        features = tower(images, **layer)
        assert features.shape == (1, TOKENS - 1, config.hidden_size)
    assert torch.equal(tower(images), reference(images, output_hidden_states=True).hidden_states[-2][:, 1:])
    assert factory("openai/clip-vit-large") == "CLIP"


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
    output = run_python(code, tmp_path).splitlines()[-1]
    assert output == "128 DiffCLIPVisionModel CLIPImageProcessor"
