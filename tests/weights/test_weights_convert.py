"""``diffclip convert``: what comes out of each kind of source, in the hosts' own hands."""

import argparse
import json
import re
import shutil
from pathlib import Path, PosixPath

import numpy as np
import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from support.common import REPOSITORY, run_host, run_python, script, train_arguments
from timm.models import VisionTransformer
from transformers import AutoModel

from diffclip_cli.main import main
from diffclip_openclip import model_names, to_reference
from diffclip_openclip.weights.architecture import packaged_architecture, recognize
from diffclip_openclip.weights.directory import check_text_place

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


def save_as_published(model, path: Path) -> Path:
    """As in the authors' repositories: everything that their training script kept."""
    arguments = argparse.Namespace(output_dir=PosixPath("/run/x"), lr=np.float32(5e-4), gpu=0, root=[PosixPath("a")])
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": np.float64(1e-5)}]}
    torch.save(
        {
            "epoch": 40,
            "state_dict": {f"module.{key}": tensor for key, tensor in to_reference(model.state_dict()).items()},
            "optimizer": optimizer,
            "scaler": {"scale": 65536.0},
            "best_acc1": np.float64(33.8),
            "args": arguments,
        },
        path,
    )
    return path


def _embeddings(model):
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(["a mug", "two lamps"])
    images = torch.rand(2, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


def _same_function(a, b):
    return all(torch.equal(x, y) for x, y in zip(_embeddings(a), _embeddings(b), strict=True))


def _load(folder):
    return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()


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
    assert {path.name for path in out.iterdir()} == (files | {"config.json"} if name == "DiffCLIP-nano" else files)
    loaded, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert _same_function(loaded.eval(), model)
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
    loaded = _load(tmp_path / "OUT")
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
    assert _same_function(_load(tmp_path / "AGAIN"), _model())


def test_half_precision_weights_stay_so(tmp_path):
    state_dict = {key: tensor.half() for key, tensor in to_reference(_model().state_dict()).items()}
    save_file(state_dict, tmp_path / "half.safetensors")
    assert main(["convert", str(tmp_path / "half.safetensors"), str(tmp_path / "OUT")]) == 0
    assert load_file(tmp_path / "OUT" / "open_clip_model.safetensors")["logit_scale"].dtype == torch.float16
    assert _load(tmp_path / "OUT").logit_scale.dtype == torch.float32


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
    ours = _load(out)
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
    described = run_python(code, tmp_path)
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
    assert _same_function(_load(tmp_path / "NEW"), _model(seed=3))
    assert json.loads((tmp_path / "NEW" / "open_clip_config.json").read_text())["preprocess_cfg"] == SLIP


def _write_run(folder: Path, model, name: str) -> Path:
    """A run of the trainer that was given ``--model NAME``; its checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text(f"model: {name}\npretrained: \n")
    torch.save({"state_dict": model.state_dict()}, folder / "checkpoints" / "epoch_1.pt")
    return folder / "checkpoints" / "epoch_1.pt"


@pytest.mark.parametrize("name", ["local-dir:/gone/DYN", "hf-hub:owner/dyn", "my-own-model"])
def test_a_run_of_a_model_that_is_not_here_needs_its_variant_said(name, tmp_path, capsys):
    checkpoint, out = _write_run(tmp_path / "run", _model("DiffCLIP-nano-dynamic"), name), tmp_path / "OUT"
    command = ["convert", str(checkpoint), str(out), "--preprocess", "openai"]
    assert main(command) == 2
    line = capsys.readouterr().err
    assert f"is of {name}, which cannot be found here" in line
    assert "--variant static" in line
    assert "--variant dynamic" in line
    assert not out.exists()
    assert main([*command, "--variant", "dynamic"]) == 0
    assert _same_function(_load(out), _model("DiffCLIP-nano-dynamic"))


@pytest.mark.parametrize("name", ["CLIP-nano-baseline", "DiffCLIP-V2-nano"])
def test_a_model_that_is_not_here_but_whose_weights_say_all(name, tmp_path):
    checkpoint = _write_run(tmp_path / "run", _model(name), "my-own-model")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    assert _same_function(_load(tmp_path / "OUT"), _model(name))


def test_a_runs_model_is_read_as_open_clip_reads_it(tmp_path):
    """A slash for a dash."""
    checkpoint = _write_run(tmp_path / "run", _model("DiffCLIP-nano-dynamic"), "DiffCLIP/nano-dynamic")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    assert _same_function(_load(tmp_path / "OUT"), _model("DiffCLIP-nano-dynamic"))


def test_siglip_run_keeps_its_bias(tmp_path):
    """--siglip gives the model a logit_bias that the packaged config does not have."""
    torch.manual_seed(0)
    model = open_clip.create_model("DiffCLIP-nano", init_logit_bias=-10.0)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "siglip.pt")
    assert main(["convert", str(tmp_path / "siglip.pt"), str(tmp_path / "OUT"), "--preprocess", "openai"]) == 0
    assert _load(tmp_path / "OUT").logit_bias.item() == -10.0


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
    assert run_python(code, tmp_path).splitlines() == ["['checkpoint', 'reference'] True", "False True"]


# --- the directory afterwards ---


def test_text_tower_loads_into_transformers(converted, tmp_path):
    text = AutoModel.from_pretrained(converted)
    expected = _model().text.transformer.state_dict()
    assert text.state_dict().keys() == expected.keys()
    assert all(torch.equal(text.state_dict()[key], tensor) for key, tensor in expected.items())
    text.save_pretrained(tmp_path / "text")
    assert load_file(tmp_path / "text" / "model.safetensors").keys() == expected.keys()
    again = AutoModel.from_pretrained(tmp_path / "text").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in expected.items())


def test_a_moved_directory_is_repaired_in_place_or_by_a_copy(converted, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.move(converted, moved)
    with pytest.raises(OSError, match=str(converted)) as failed:
        _load(moved)
    card, table = (moved / "README.md").read_text(), (REPOSITORY / "docs" / "install.md").read_text()
    quoted = (
        re.search(r'where that is gone: "(.+?) \.\.\."', card)[1],
        re.search(r"`OSError: (Repo .+?) \.\.\.`", table)[1],
    )
    assert all(str(failed.value).startswith(beginning) for beginning in quoted)
    assert "diffclip convert DIR DIR" in card
    assert main(["convert", str(moved), str(tmp_path / "COPY")]) == 0
    assert _same_function(_load(tmp_path / "COPY"), _model())
    weights = (moved / "open_clip_model.safetensors").stat()
    assert main(["convert", str(moved), str(moved)]) == 0
    assert str(moved) in capsys.readouterr().out
    assert (moved / "open_clip_model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert _same_function(_load(moved), _model())


def _lambda_inits(model):
    towers = model.visual.trunk.blocks, model.text.transformer.layers
    return [[layer.attn.lambda_init for layer in tower] for tower in towers]


def test_a_copy_is_read_by_its_own_text_config(converted, tmp_path):
    """Also when the original has been made again as another model, which open_clip would read."""
    copy = shutil.copytree(converted, tmp_path / "copy")
    checkpoint = save_as_published(_model(), tmp_path / "other.pt")
    assert main(["convert", str(checkpoint), str(converted), "--overwrite", "--variant", "dynamic"]) == 0
    assert _lambda_inits(_load(copy))[1] == pytest.approx([0.2, 0.8 - 0.6 * 2.718281828459045**-0.3])  # the original's
    with pytest.raises(ValueError, match=rf"was moved or copied from {converted}, .*: diffclip convert {copy} {copy}"):
        check_text_place(copy)
    assert main(["convert", str(copy), str(tmp_path / "AGAIN")]) == 0
    assert _lambda_inits(_load(tmp_path / "AGAIN")) == [[0.8] * 4, [0.8] * 2]
    assert main(["convert", str(copy), str(copy)]) == 0
    check_text_place(copy)
    assert _lambda_inits(_load(copy)) == [[0.8] * 4, [0.8] * 2]


def test_a_text_tower_of_another_place_by_intent(converted, tmp_path):
    """As open_clip itself writes directories: no text config of their own, but the place of one or a hub's name."""
    (converted / "config.json").rename(tmp_path / "config.json")
    shutil.move(converted, tmp_path / "moved")
    check_text_place(tmp_path / "moved")
    path = tmp_path / "moved" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "owner/repo"
    path.write_text(json.dumps(config))
    (tmp_path / "config.json").rename(tmp_path / "moved" / "config.json")
    check_text_place(tmp_path / "moved")


def test_a_plain_text_tower_needs_no_repair(tmp_path):
    checkpoint = save_as_published(_vision_only(), tmp_path / "c.pt")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    shutil.move(tmp_path / "OUT", tmp_path / "moved")
    assert _same_function(_load(tmp_path / "moved"), _vision_only())


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
