"""``diffclip warm-start``: the differential model computes what the plain CLIP does, and then learns."""

import gc
import json
import weakref
from copy import deepcopy
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from support.common import run_host, script, train_arguments
from support.small_clips import embeddings, perturbed, small
from transformers import PretrainedConfig

from diffclip_cli.main import main
from diffclip_openclip.weights import directory, warm_starting
from diffclip_openclip.weights.checkpoint import save_safetensors
from diffclip_openclip.weights.directory import PREPROCESS, write_directory
from diffclip_openclip.weights.twins import skeleton, twin_of

_LONG = pytest.mark.slow  # each builds two models of 150 to 430 million parameters in float64
SOURCES = {
    "CLIP-nano-baseline": "DiffCLIP-V2-nano",
    "ViT-B-32": "DiffCLIP-V2-ViT-B-32",
    "ViT-B-32-quickgelu": "DiffCLIP-V2-ViT-B-32-quickgelu",
    "ViT-B-16": "DiffCLIP-V2-ViT-B-16",
    "ViT-B-16-quickgelu": "DiffCLIP-V2-ViT-B-16-quickgelu",
    "ViT-L-14": "DiffCLIP-V2-ViT-L-14",
    "ViT-L-14-quickgelu": "DiffCLIP-V2-ViT-L-14-quickgelu",
    "CLIP-B-16-baseline": "DiffCLIP-V2-B-16",
}


def _source(name: str):
    """A plain CLIP of that architecture with weights far from their initial symmetry."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, force_custom_text=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 0:
                parameter += 0.02 * torch.randn_like(parameter)
    return model


def _twin(name: str):
    model_cfg = open_clip.get_model_config(name)
    return twin_of(skeleton(model_cfg), model_cfg)


@torch.no_grad()
def _embeddings(model, dtype):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *model.visual.image_size, generator=generator, dtype=torch.float64).to(dtype)
    tokens = torch.randint(1, 49406, (3, model.context_length), generator=generator)
    tokens[0, 5], tokens[1, 1], tokens[2, -1] = 49407, 49407, 49407
    return F.normalize(model.encode_image(images)), F.normalize(model.encode_text(tokens))


@pytest.mark.parametrize("name", SOURCES)
def test_twins_that_have_a_name(name):
    assert _twin(name).architecture.name == SOURCES[name]


@pytest.mark.parametrize(
    "name", [name if name == "CLIP-nano-baseline" else pytest.param(name, marks=_LONG) for name in SOURCES]
)
def test_embeddings_are_the_sources(name):
    source, twin = _source(name), _twin(name)
    model = open_clip.create_model(SOURCES[name]).eval()
    model.load_state_dict(twin.weights(source.state_dict()))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-10)):
        for old, new in zip(_embeddings(source.to(dtype), dtype), _embeddings(model.to(dtype), dtype), strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=tolerance)


def _write_source(tmp_path: Path, name: str = "CLIP-nano-baseline"):
    source = _source(name)
    state_dict = {f"module.{key}": tensor for key, tensor in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state_dict}, tmp_path / "epoch_3.pt")
    return source, tmp_path / "epoch_3.pt"


def test_command(tmp_path, capsys):
    source, path = _write_source(tmp_path)
    out = tmp_path / "OUT"
    arguments = ["warm-start", f"CLIP-nano-baseline,{path}", str(out)]
    assert main(arguments) == 2
    assert "--preprocess" in capsys.readouterr().err
    assert main([*arguments, "--preprocess", "slip"]) == 0
    said = capsys.readouterr().out
    assert "DiffCLIP-V2-nano; its embeddings differ" in said
    assert "layers that became differential: image 0 to 3, text 0 to 1" in said
    assert f"open_clip_train --model local-dir:{out}" in said
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert "interpolation=bilinear" in str(preprocess)
    for old, new in zip(_embeddings(source, torch.float32), _embeddings(model.eval(), torch.float32), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-4)
    assert {path.name for path in tmp_path.iterdir()} == {"OUT", "epoch_3.pt"}


def test_from_a_converted_directory(tmp_path):
    """SLIP's CLIP in the authors' layout, through open_clip's form, to V2."""
    source, path = _write_source(tmp_path)
    assert main(["convert", str(path), str(tmp_path / "CLIP"), "--preprocess", "slip"]) == 0
    assert main(["warm-start", f"local-dir:{tmp_path / 'CLIP'}", str(tmp_path / "OUT")]) == 0
    config = json.loads((tmp_path / "OUT" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == PREPROCESS["slip"]
    new = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    torch.testing.assert_close(_embeddings(new, torch.float32), _embeddings(source, torch.float32), rtol=0, atol=1e-4)


def test_a_pretrained_tag_brings_its_own_activation_and_preprocessing(tmp_path, monkeypatch):
    """A tag of QuickGELU weights under a GELU name, whose mismatch open_clip only warns of (open_clip#771)."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", small("ViT-B-32", vocab_size=49408))
    weights = tmp_path / "openai.pt"
    torch.save(open_clip.create_model("ViT-B-32").state_dict(), weights)
    monkeypatch.setattr(warm_starting, "download_pretrained", lambda *_: str(weights))
    assert main(["warm-start", "ViT-B-32,openai", str(tmp_path / "OUT")]) == 0
    text_and_image = json.loads((tmp_path / "OUT" / "config.json").read_text())
    assert text_and_image["model_args"]["act_layer"] == text_and_image["hidden_act"] == "quick_gelu"
    config = json.loads((tmp_path / "OUT" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == {**PREPROCESS["openai"]}


def test_another_image_size_is_open_clips(tmp_path, monkeypatch):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", model_cfg := small("ViT-B-32", vocab_size=49408))
    weights = tmp_path / "weights.pt"
    torch.save(perturbed(model_cfg).state_dict(), weights)
    options = ["--force-image-size", "96", "--preprocess", "openai"]
    assert main(["warm-start", f"ViT-B-32,{weights}", str(tmp_path / "OUT"), *options]) == 0
    old = open_clip.create_model("ViT-B-32", str(weights), force_image_size=96, force_custom_text=True).eval()
    new = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    assert new.visual.image_size == (96, 96)
    torch.testing.assert_close(embeddings(new), embeddings(old), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", ["0", "-224", "100000"])
def test_image_sizes_that_no_model_has_are_refused(size, tmp_path, capsys):
    assert main(["warm-start", "ViT-B-32,openai", str(tmp_path / "OUT"), f"--force-image-size={size}"]) == 2
    assert f"--force-image-size is {size}; it must be" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ViT-L-14,openai", "ViT-B-16-SigLIP,webli"])
def test_images_smaller_than_a_patch_are_refused_without_weights(name, tmp_path, capsys):
    assert main(["warm-start", name, str(tmp_path / "OUT"), "--force-image-size", "8"]) == 2
    assert "pixels; 8 is less than one" in capsys.readouterr().err


def test_a_run_with_other_sizes(tmp_path, monkeypatch):
    """params.txt says to which sizes the trainer was told to make the model."""
    model_cfg = small("ViT-B-32", vocab_size=49408)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-B-32", model_cfg)
    larger = deepcopy(model_cfg)
    larger["vision_cfg"]["image_size"], larger["text_cfg"]["context_length"] = 96, 12
    checkpoint = tmp_path / "run" / "checkpoints" / "epoch_1.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": perturbed(larger).state_dict()}, checkpoint)
    (tmp_path / "run" / "params.txt").write_text("model: ViT-B-32\nforce_image_size: [96]\nforce_context_length: 12\n")
    assert main(["warm-start", f"ViT-B-32,{checkpoint}", str(tmp_path / "OUT")]) == 0
    new = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    torch.testing.assert_close(embeddings(new), embeddings(perturbed(larger)), rtol=0, atol=1e-12)


def _run(folder: Path, trained, **params) -> Path:
    checkpoint = folder / "checkpoints" / "epoch_1.pt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"state_dict": trained.state_dict()}, checkpoint)
    (folder / "params.txt").write_text("".join(f"{name}: {value}\n" for name, value in params.items()))
    return checkpoint


def test_a_run_with_siglips_loss_keeps_its_bias(tmp_path):
    """--siglip gives the model a logit_bias that the named config does not have."""
    model = open_clip.create_model("CLIP-nano-baseline", init_logit_bias=-9.0)
    checkpoint = _run(tmp_path / "run", model, model="CLIP-nano-baseline", siglip=True)
    assert main(["warm-start", f"CLIP-nano-baseline,{checkpoint}", str(tmp_path / "OUT")]) == 0
    assert open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").logit_bias.item() == -9.0


def test_an_image_tower_of_timm_that_stays_cannot_keep_another_size(tmp_path, capsys):
    model = open_clip.create_model("CLIP-nano-baseline", force_image_size=96)
    checkpoint = _run(tmp_path / "run", model, model="CLIP-nano-baseline", force_image_size=96)
    source = f"CLIP-nano-baseline,{checkpoint}"
    assert main(["warm-start", source, str(tmp_path / "OUT"), "--layers", "text"]) == 2
    assert "its image tower is timm's for 48 pixels; it keeps the size 96 only with layers" in capsys.readouterr().err
    assert main(["warm-start", source, str(tmp_path / "OUT")]) == 0


def test_a_run_that_resizes_a_twin_with_a_name(tmp_path, monkeypatch):
    """The name is of one size, so the directory of the trained model has none."""
    torch.save(_source("CLIP-nano-baseline").state_dict(), tmp_path / "weights.pt")
    start = tmp_path / "START"
    source = f"CLIP-nano-baseline,{tmp_path / 'weights.pt'}"
    assert main(["warm-start", source, str(start), "--preprocess", "slip"]) == 0
    model = open_clip.create_model(f"local-dir:{start}", force_image_size=96).eval()
    checkpoint = _run(tmp_path / "run", model, model=f"local-dir:{start}", force_image_size=96)
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    new = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    assert new.visual.image_size == (96, 96)
    assert all(map(torch.equal, embeddings(new), embeddings(model)))


def test_an_option_that_weights_do_not_show_is_noticed(tmp_path):
    """QuickGELU weights read as GELU's: same tensors, another function."""
    model_cfg = small("ViT-B-32", vocab_size=49408)
    source, twin = perturbed(model_cfg | {"quick_gelu": True}), twin_of(skeleton(model_cfg), model_cfg)
    with pytest.raises(ValueError, match="embeddings differ by"):
        write_directory(
            tmp_path / "OUT",
            state_dict=twin.weights(source.state_dict()),
            architecture=twin.architecture,
            preprocess_cfg=PREPROCESS["openai"],
            card="",
            check=warm_starting._comparison(source, twin),
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50,openai", "its image tower is open_clip's ModifiedResNet; supported are"),
        ("EVA02-B-16,merged2b_s8b_b131k", "RoPE"),
        ("xlm-roberta-base-ViT-B-32,laion5b_s13b_b90k", "its text tower is transformers' 'xlm-roberta-base'"),
    ],
)
def test_others_are_refused_before_weights_are_fetched(name, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(warm_starting, "download_pretrained", lambda *_: pytest.fail("weights were fetched"))
    assert main(["warm-start", name, str(tmp_path / "OUT")]) == 2
    said = capsys.readouterr().err
    assert f"{name} has no warm start: " in said
    assert reason in said


def test_the_two_queries_part():
    """Their gradients are opposite at the start, so a few steps of contrastive training make them differ."""
    model = open_clip.create_model("DiffCLIP-V2-nano")
    model.load_state_dict(_twin("CLIP-nano-baseline").weights(_source("CLIP-nano-baseline").state_dict()))
    attentions = [block.attn for block in model.visual.trunk.blocks] + [x.attn for x in model.text.transformer.layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, tokens = torch.randn(8, 3, 48, 48), torch.randint(1, 49407, (8, 16))
    loss = open_clip.ClipLoss()

    def queries(qkv: torch.Tensor, num_heads: int) -> tuple[torch.Tensor, ...]:
        return qkv[: len(qkv) // 2].unflatten(0, (num_heads, 2, -1)).unbind(1)

    for step in range(3):
        optimizer.zero_grad()
        loss(*model(images, tokens)).backward()
        if step == 0:
            for attention in attentions:
                first, second = queries(attention.qkv.weight.grad, attention.num_heads)
                assert first.norm() > 0
                torch.testing.assert_close(second, -first / 2, rtol=1e-3, atol=1e-6 * float(first.abs().max()))
                assert attention.lambda_proj.weight.grad.norm() > 0
        optimizer.step()
    for attention in attentions:
        first, second = queries(attention.qkv.weight, attention.num_heads)
        assert (first - second).norm() > 1e-2 * first.norm()


def test_training_continues_with_the_unchanged_trainer(train_shard, tmp_path):
    _, path = _write_source(tmp_path)
    out = tmp_path / "OUT"
    assert main(["warm-start", f"CLIP-nano-baseline,{path}", str(out), "--preprocess", "slip"]) == 0
    arguments = train_arguments(train_shard)
    arguments[arguments.index("DiffCLIP-nano")] = f"local-dir:{out}"
    run_host([script("open_clip_train"), *arguments, "--epochs", "1", "--lr", "1e-3"], tmp_path)
    checkpoint = tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt"
    assert main(["convert", str(checkpoint), str(tmp_path / "TRAINED")]) == 0
    trained = open_clip.create_model(f"local-dir:{tmp_path / 'TRAINED'}").state_dict()
    start = open_clip.create_model(f"local-dir:{out}").state_dict()
    assert trained.keys() == start.keys()
    assert (trained["visual.trunk.blocks.0.attn.lambda_proj.weight"] != 0).any()
    config = json.loads((tmp_path / "TRAINED" / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == PREPROCESS["slip"]


def test_from_the_hub(tmp_path, monkeypatch):
    """A plain CLIP in a repository of open_clip's form, whose config is read before its weights are fetched."""
    model_cfg = small("ViT-L-14-336", vocab_size=49408)
    torch.save(perturbed(model_cfg).state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS["slip"]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("diffclip_openclip.weights.hub.hf_hub_download", lambda _, file: tmp_path / file)
    fetched = str(tmp_path / "open_clip_pytorch_model.bin")
    monkeypatch.setattr(warm_starting, "download_pretrained_from_hf", lambda _: fetched)
    assert main(["warm-start", "hf-hub:owner/repo", str(tmp_path / "OUT")]) == 0
    new = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'OUT'}")[0].eval()
    torch.testing.assert_close(embeddings(new), embeddings(perturbed(model_cfg)), rtol=0, atol=1e-12)
    assert open_clip.get_model_preprocess_cfg(new)["interpolation"] == "bilinear"


@pytest.mark.parametrize(("first", "then"), [("image", "text"), ("text", "image")])
def test_the_other_tower_of_a_pushed_one(first, then, tmp_path, monkeypatch):
    """Towers that are read from a repository are read from its files, too, where one of them stays."""
    model_cfg = small("ViT-L-14-336", vocab_size=49408)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-14-336", model_cfg)
    torch.save(perturbed(model_cfg).state_dict(), tmp_path / "weights.pt")
    half, source = tmp_path / "HALF", f"ViT-L-14-336,{tmp_path / 'weights.pt'}"
    assert main(["warm-start", source, str(half), "--layers", first, "--preprocess", "openai"]) == 0
    config = directory.config_at(half, "owner/repo")
    (half / "open_clip_config.json").write_text(json.dumps(config))
    for module in ("diffclip_openclip.weights.hub", "diffclip_openclip.weights.spec"):
        monkeypatch.setattr(f"{module}.hf_hub_download", lambda _, file, **__: str(half / file))
    monkeypatch.setattr("timm.models._hub.download_from_hf", lambda _, file, **__: str(half / file))
    read = PretrainedConfig.get_config_dict
    monkeypatch.setattr(
        "transformers.PretrainedConfig.get_config_dict",
        staticmethod(lambda place, **options: read(half if place == "owner/repo" else place, **options)),
    )
    weights = str(half / "open_clip_model.safetensors")
    monkeypatch.setattr(warm_starting, "download_pretrained_from_hf", lambda _: weights)
    assert main(["warm-start", "hf-hub:owner/repo", str(tmp_path / "OUT"), "--layers", then]) == 0
    new = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    torch.testing.assert_close(embeddings(new), embeddings(perturbed(model_cfg)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.safetensors", "model.safetensors"])
def test_a_directory_whose_weights_have_another_of_open_clips_names(name, tmp_path):
    model_cfg = small("ViT-L-14-336", vocab_size=49408)
    save_safetensors(perturbed(model_cfg).state_dict(), tmp_path / name)
    config = {"model_cfg": model_cfg | {"custom_text": True}, "preprocess_cfg": PREPROCESS["slip"]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert main(["warm-start", f"local-dir:{tmp_path}", f"{tmp_path}-OUT"]) == 0


def test_the_source_is_let_go_of_before_its_twin_is_loaded(tmp_path, monkeypatch):
    """So that a model of 4 GB takes less than 6."""
    _, path = _write_source(tmp_path)
    alive, skeleton_of, create = [], warm_starting.skeleton, directory.create_mapped

    def watched(model_cfg):
        model = skeleton_of(model_cfg)
        alive.append(weakref.ref(model))
        return model

    def counted(folder):
        gc.collect()
        assert [reference() for reference in alive] == [None]
        return create(folder)

    monkeypatch.setattr(warm_starting, "skeleton", watched)
    monkeypatch.setattr(directory, "create_mapped", counted)
    assert main(["warm-start", f"CLIP-nano-baseline,{path}", str(tmp_path / "OUT"), "--preprocess", "slip"]) == 0
