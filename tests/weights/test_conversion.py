"""``diffclip convert``: what comes out of each kind of source, in the hosts' own hands."""

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import load_directory, same_function, save_as_published, write_run
from support.common import run_host, run_warm, script, train_arguments
from timm.models import VisionTransformer

from diffclip_cli.main import main
from diffclip_openclip import model_names, to_reference
from diffclip_openclip.weights.architecture import packaged_architecture, recognize

SLIP = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "resize_mode": "shortest",
}


def _model(name="DiffCLIP-nano", seed=0):
    torch.manual_seed(seed)
    return open_clip.create_model(name).eval()


def _vision_only():
    """DiffCLIP†."""
    return _model("DiffCLIP-nano-vision")


@pytest.fixture
def converted(tmp_path) -> Path:
    """DiffCLIP-nano in open_clip's form."""
    checkpoint = save_as_published(_model(), tmp_path / "checkpoint_best.pt")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    return tmp_path / "OUT"


# --- what a state dict is recognised as ---


@pytest.mark.parametrize("name", model_names())
def test_every_packaged_model_is_recognised_by_its_shapes(name):
    architecture = packaged_architecture(name)
    with torch.device("meta"):
        state_dict = open_clip.create_model(name, device="meta").state_dict()
    assert recognize(state_dict, architecture.variant) == architecture
    assert architecture.name == name


def test_v2_in_openais_layout_needs_its_activation_said():
    with torch.device("meta"):
        state_dict = open_clip.create_model("DiffCLIP-V2-ViT-B-32", device="meta").state_dict()
    with pytest.raises(ValueError, match=r"--variant gelu or --variant quickgelu"):
        recognize(state_dict)


# --- the authors' layout ---


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (_model, "DiffCLIP-nano"),
        (lambda: _model("CLIP-nano-baseline"), "CLIP-nano-baseline"),
        (_vision_only, "DiffCLIP-nano-vision"),
    ],
    ids=["DiffCLIP", "CLIP", "DiffCLIP-vision"],
)
def test_authors_checkpoint(build, name, tmp_path):
    model, out = build(), tmp_path / "OUT"
    checkpoint = save_as_published(model, tmp_path / "checkpoint_best.pt")
    assert main(["convert", str(checkpoint), str(out)]) == 0
    files = {"README.md", "open_clip_config.json", "open_clip_model.safetensors"}
    files |= {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    assert {path.name for path in out.iterdir()} == (files | {"config.json"} if name == "DiffCLIP-nano" else files)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert same_function(loaded.eval(), model)
    assert open_clip.get_tokenizer(f"local-dir:{out}").context_length == model.context_length
    assert json.loads((out / "open_clip_config.json").read_text())["preprocess_cfg"] == SLIP
    described = str(preprocess)
    assert "Resize(size=48, interpolation=bilinear" in described
    assert "CenterCrop(size=(48, 48))" in described
    assert "mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]" in described
    assert name in (out / "README.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"OUT", "checkpoint_best.pt"}


def test_dynamic_variant(tmp_path):
    model = _model()
    checkpoint = save_as_published(model, tmp_path / "c.pt")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT"), "--variant", "dynamic"]) == 0
    loaded = load_directory(tmp_path / "OUT")
    expected = [0.8 - 0.6 * 2.718281828459045 ** (-0.3 * depth) for depth in range(4)]
    assert [block.attn.lambda_init for block in loaded.visual.trunk.blocks] == pytest.approx(expected)
    assert [layer.attn.lambda_init for layer in loaded.text.transformer.layers] == pytest.approx(expected[:2])
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_to_reference_and_back(converted, tmp_path, ending):
    file = tmp_path / f"reference.{ending}"
    assert main(["convert", str(converted), str(file), "--to", "reference"]) == 0
    expected = to_reference(_model().state_dict())
    if ending == "pt":
        written = torch.load(file, weights_only=True)["state_dict"]
        expected = {f"module.{key}": tensor for key, tensor in expected.items()}
    else:
        written = load_file(file)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in expected.items())
    assert main(["convert", str(file), str(tmp_path / "AGAIN")]) == 0
    assert same_function(load_directory(tmp_path / "AGAIN"), _model())


def test_half_precision_weights_stay_so(tmp_path):
    state_dict = {key: tensor.half() for key, tensor in to_reference(_model().state_dict()).items()}
    save_file(state_dict, tmp_path / "half.safetensors")
    assert main(["convert", str(tmp_path / "half.safetensors"), str(tmp_path / "OUT")]) == 0
    assert load_file(tmp_path / "OUT" / "open_clip_model.safetensors")["logit_scale"].dtype == torch.float16
    assert load_directory(tmp_path / "OUT").logit_scale.dtype == torch.float32


# --- timm ---


def test_image_tower_loads_into_timm(converted, tmp_path):
    tower = tmp_path / "tower.safetensors"
    assert main(["convert", str(converted), str(tower), "--to", "timm"]) == 0
    trunk = _model().visual.trunk
    loaded = timm.create_model("vit_nano_patch12_diffclip_48", checkpoint_path=str(tower)).eval()
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(loaded(images), trunk(images))
        (features,) = loaded.forward_intermediates(images, indices=[-2], intermediates_only=True)
    assert features.shape == (2, 128, 4, 4)


def test_timm_vit_with_diff_attention(tmp_path):
    """timm's own class; its LayerNorm eps of 1e-6 is the one thing that differs."""
    torch.manual_seed(0)
    theirs = VisionTransformer(
        img_size=48, patch_size=12, embed_dim=128, depth=4, num_heads=2, num_classes=10, attn_layer="diff"
    ).eval()
    torch.save({"state_dict": theirs.state_dict(), "arch": "vit"}, tmp_path / "vit.pth")
    out = tmp_path / "OUT"
    assert main(["convert", str(tmp_path / "vit.pth"), str(out), "--preprocess", "slip"]) == 0
    ours = load_directory(out)
    assert "head.weight" in (out / "README.md").read_text()
    for module in theirs.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(ours.visual.trunk(images), theirs.forward_features(images)[:, 0])


# --- open_clip's training checkpoints ---


def test_training_checkpoint_in_the_hosts_own_commands(train_shard, eval_root, tmp_path):
    """Trainer, conversion, factory and benchmark as a user runs them: unchanged, without importing this package."""
    flags = ["--image-mean", "0.1", "0.2", "0.3", "--image-interpolation", "bilinear", "--epochs", "1"]
    run_host([script("open_clip_train"), *train_arguments(train_shard), *flags], tmp_path)
    checkpoint, out = tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt", tmp_path / "OUT"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    assert (out / "open_clip_model.safetensors").stat().st_size < checkpoint.stat().st_size / 2
    code = (
        "import open_clip, sys\n"
        f"model, _, preprocess = open_clip.create_model_and_transforms('local-dir:{out}')\n"
        f"open_clip.get_tokenizer('local-dir:{out}')(['a mug'])\n"
        "print(preprocess)"
    )
    described = run_warm(code, tmp_path)
    assert "mean=[0.1, 0.2, 0.3]" in described
    assert "std=[0.26862954, 0.26130258, 0.27577711]" in described
    assert "interpolation=bilinear" in described
    result = tmp_path / "result.json"
    benchmark = [script("clip_benchmark"), "eval", "--model", f"local-dir:{out}", "--dataset", "wds/groups"]
    benchmark += ["--dataset_root", str(eval_root / "groups"), "--task", "zeroshot_classification"]
    run_host([*benchmark, "--output", str(result), "--num_workers", "0"], tmp_path)
    assert 0 <= json.loads(result.read_text())["metrics"]["acc1"] <= 1


def test_run_on_a_converted_directory_keeps_its_preprocessing(converted, tmp_path):
    """As after ``open_clip_train --model local-dir:OUT``, with the wrappers that DDP and torch.compile leave."""
    folder = tmp_path / "logs" / "run" / "checkpoints"
    folder.mkdir(parents=True)
    state_dict = {f"module._orig_mod.{key}": tensor for key, tensor in _model(seed=3).state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state_dict, "optimizer": {}}, folder / "epoch_1.pt")
    params = {f"image_{field}": None for field in SLIP} | {"model": f"local-dir:{converted}", "pretrained": ""}
    params |= {"force_image_size": None, "force_context_length": None}
    (folder.parent / "params.txt").write_text("".join(f"{key}: {value}\n" for key, value in sorted(params.items())))
    assert main(["convert", str(folder / "epoch_1.pt"), str(tmp_path / "NEW")]) == 0
    assert same_function(load_directory(tmp_path / "NEW"), _model(seed=3))
    assert json.loads((tmp_path / "NEW" / "open_clip_config.json").read_text())["preprocess_cfg"] == SLIP


@pytest.mark.parametrize("name", ["local-dir:/gone/DYN", "hf-hub:owner/dyn", "my-own-model"])
def test_a_run_of_a_model_that_is_not_here_needs_its_variant_said(name, tmp_path, capsys):
    checkpoint, out = write_run(tmp_path / "run", _model("DiffCLIP-nano-dynamic"), name), tmp_path / "OUT"
    command = ["convert", str(checkpoint), str(out), "--preprocess", "openai"]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert f"is of {name}, which cannot be found here" in line
    assert "--variant static" in line
    assert "--variant dynamic" in line
    assert not out.exists()
    assert main([*command, "--variant", "dynamic"]) == 0
    assert same_function(load_directory(out), _model("DiffCLIP-nano-dynamic"))


@pytest.mark.parametrize("name", ["CLIP-nano-baseline", "DiffCLIP-V2-nano", "CLIP-nano-gated"])
def test_a_model_that_is_not_here_but_whose_weights_say_all(name, tmp_path):
    checkpoint = write_run(tmp_path / "run", _model(name), "my-own-model")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    assert same_function(load_directory(tmp_path / "OUT"), _model(name))


def test_a_runs_model_is_read_as_open_clip_reads_it(tmp_path):
    """A slash for a dash."""
    checkpoint = write_run(tmp_path / "run", _model("DiffCLIP-nano-dynamic"), "DiffCLIP/nano-dynamic")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    assert same_function(load_directory(tmp_path / "OUT"), _model("DiffCLIP-nano-dynamic"))


def test_siglip_run_keeps_its_bias(tmp_path):
    """--siglip gives the model a logit_bias that the packaged config does not have."""
    torch.manual_seed(0)
    model = open_clip.create_model("DiffCLIP-nano", init_logit_bias=-10.0)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "siglip.pt")
    assert main(["convert", str(tmp_path / "siglip.pt"), str(tmp_path / "OUT"), "--preprocess", "openai"]) == 0
    assert load_directory(tmp_path / "OUT").logit_bias.item() == -10.0


def test_the_number_of_heads_is_told_said_or_noted(tmp_path, capsys):
    """It is in no weight: a run's model tells it, or an option does; else the usual one is taken, aloud."""
    model = _model("CLIP-nano-half-heads")
    of_run, out = write_run(tmp_path / "run", model, "CLIP-nano-half-heads"), tmp_path / "OUT"
    assert main(["convert", str(of_run), str(out)]) == 0
    assert "number of heads" not in capsys.readouterr().out
    assert same_function(load_directory(out), model)
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    for arguments, is_right in ((["--variant", "half-heads"], True), ([], False)):
        command = ["convert", str(tmp_path / "bare.pt"), str(out), "--preprocess", "openai", "--overwrite"]
        assert main([*command, *arguments]) == 0
        assert ("weights do not tell the number of heads" in capsys.readouterr().out) != is_right
        assert same_function(load_directory(out), model) == is_right


@pytest.mark.parametrize("name", ["CLIP-nano-gated", "CLIP-nano-half-heads"])
def test_controls_are_not_in_the_authors_layout(name, tmp_path, capsys):
    checkpoint = write_run(tmp_path / "run", _model(name), name)
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT.pt"), "--to", "reference"]) == 2
    assert "which the authors' layout does not" in capsys.readouterr().err


def test_plain_attention_in_a_text_tower_of_another_size_is_refused(tmp_path, capsys):
    weights = _model("CLIP-nano-gated").state_dict()
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith("text.transformer.layers.1.")}
    torch.save(weights, tmp_path / "bare.pt")
    assert main(["convert", str(tmp_path / "bare.pt"), str(tmp_path / "OUT"), "--preprocess", "slip"]) == 2
    assert "plain attention, whose number of heads weights do not tell" in capsys.readouterr().err


def test_a_bare_checkpoint_must_have_its_preprocessing_said(tmp_path, capsys):
    torch.save(_model().state_dict(), tmp_path / "bare.pt")
    assert main(["convert", str(tmp_path / "bare.pt"), str(tmp_path / "OUT")]) == 2
    assert "--preprocess slip" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "bare.pt"), str(tmp_path / "OUT"), "--preprocess", "openai"]) == 0
    assert "bicubic" in (tmp_path / "OUT" / "open_clip_config.json").read_text()


def test_public_names_are_functions_and_load_nothing_unasked(tmp_path):
    """Also after modules of the package were imported, and not before they are needed."""
    code = (
        "import sys, diffclip_openclip\n"
        "loaded = {name.rpartition('.')[2] for name in sys.modules if name.startswith('diffclip_openclip.weights.')}\n"
        "from diffclip_openclip.weights import conversion, warm_starting\n"
        "from diffclip_openclip import weights\n"
        "print(sorted(loaded), all(callable(getattr(weights, name)) for name in weights.__all__))\n"
        "print(hasattr(weights, 'nothing'), weights.convert is conversion.convert)"
    )
    assert run_warm(code, tmp_path).splitlines() == ["['checkpoint', 'layouts'] True", "False True"]


def test_arguments_that_do_not_apply_are_refused(converted, tmp_path, capsys):
    before = (converted / "open_clip_config.json").read_bytes()
    for arguments, said in (
        ([str(converted), str(converted), "--preprocess", "slip"], "name another OUT"),
        ([str(converted), str(converted), "--variant", "dynamic"], "name another OUT"),
        (
            [str(converted), str(tmp_path / "t.pt"), "--to", "timm", "--preprocess", "slip"],
            "leave out --preprocess slip",
        ),
    ):
        assert main(["convert", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert (converted / "open_clip_config.json").read_bytes() == before
    assert not (tmp_path / "t.pt").exists()
