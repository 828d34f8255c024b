"""What ``warm-start`` writes for a model that has no name: SigLIP's, which is read from a place, with its tokenizer."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from PIL import Image
from support.common import run_host, script, train_arguments
from support.small_clips import embeddings, perturbed, small
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from diffclip_cli.main import main
from diffclip_openclip.towers.vision import DiffCLIPVisionModel
from diffclip_openclip.weights import warm_starting
from diffclip_openclip.weights.foreign import check_open_clip_config
from diffclip_openclip.weights.hub import push
from diffclip_openclip.weights.loading import load_model

NAME = "ViT-B-16-SigLIP"
TEXTS = ["a mug", "two lamps, a chair"]


def _write_tokenizer(folder: Path) -> None:
    words = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", "a", "mug", "two", "lamps", "chair"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Iterator[Path]:
    """A small SigLIP that open_clip knows by its name, with a pretrained tag."""
    folder = tmp_path_factory.mktemp("siglip")
    _write_tokenizer(folder / "tokenizer")
    model_cfg = small(NAME)
    model_cfg["text_cfg"]["hf_tokenizer_name"] = str(folder / "tokenizer")
    weights = perturbed(model_cfg).state_dict()
    torch.save(weights, folder / "weights.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip.factory._MODEL_CONFIGS, NAME, model_cfg)
        patch.setattr(warm_starting, "download_pretrained", lambda _: str(folder / "weights.pt"))
        yield folder


@pytest.fixture(scope="module")
def written(source) -> Path:
    assert main(["warm-start", f"{NAME},webli", str(source / "OUT"), "--layers", "1:"]) == 0
    return source / "OUT"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_open_clip_loads_it(written, source):
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{written}")
    old = open_clip.create_model(NAME, str(source / "weights.pt"))
    for expected, found in zip(embeddings(old.eval()), embeddings(model.eval()), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    settings = open_clip.get_model_preprocess_cfg(model)
    assert (tuple(settings["mean"]), settings["resize_mode"]) == ((0.5, 0.5, 0.5), "squash")
    assert "mean=[0.5, 0.5, 0.5]" in str(preprocess)
    tokens = open_clip.get_tokenizer(f"local-dir:{written}")(TEXTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(NAME)(TEXTS))
    assert torch.equal(tokens[0], torch.tensor([3, 4, 1, 0, 0, 0, 0, 0, 0]))
    assert sorted(path.name for path in written.iterdir()) == [
        *("README.md", "config.json", "open_clip_config.json", "open_clip_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    ]


def test_transformers_loads_its_text_tower_and_tokenizer(written):
    tower = AutoModel.from_pretrained(written).eval()
    tokens = AutoTokenizer.from_pretrained(written)(TEXTS, padding="max_length", max_length=9, return_tensors="pt")
    model = open_clip.create_model(f"local-dir:{written}").eval()
    torch.testing.assert_close(tower(tokens["input_ids"]).pooler_output, model.encode_text(tokens["input_ids"]))
    assert [hasattr(layer.attn, "lambda_proj") for layer in tower.layers] == [False, True, True]


def test_commands_take_it(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 60), (200, 30, 90)).save("photo.png")
    model = ["--model", f"local-dir:{written}"]
    assert main(["attend", "photo.png", "--text", "a mug", "-o", "out.png", "--method", "gradcam", *model]) == 0
    assert main(["bench", "--rounds", "2", "--batch-size", "1", "--forward-only", *model]) == 0
    assert main(["lambdas", str(written)]) == 2
    assert "version 2 of differential attention has no lambda of its own" in capsys.readouterr().err
    assert main(["convert", str(written), "AGAIN"]) == 0
    again = open_clip.create_model(f"local-dir:{tmp_path / 'AGAIN'}").eval()
    old = open_clip.create_model(f"local-dir:{written}").eval()
    assert all(map(torch.equal, embeddings(again), embeddings(old)))
    assert torch.equal(open_clip.get_tokenizer("local-dir:AGAIN")(TEXTS), open_clip.get_tokenizer(NAME)(TEXTS))
    assert main(["convert", str(written), "tower.safetensors", "--to", "timm"]) == 0
    arguments = json.loads((written / "config.json").read_text())["model_args"]
    assert f"**{arguments}" in capsys.readouterr().out
    tower = timm.create_model("vit_diffclip_v2", checkpoint_path="tower.safetensors", num_classes=0, **arguments)
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(tower.double().eval()(images), old.visual(images))
    assert main(["warm-start", str(written), "TWICE"]) == 2
    assert "has TimmDifferentialAttentionV2 in its blocks" in capsys.readouterr().err


@pytest.mark.parametrize("tag", ["webli", "FILE"])
def test_another_image_size_is_open_clips(tag, source, tmp_path):
    name = f"{NAME},{tag if tag == 'webli' else source / 'weights.pt'}"
    options = ["--force-image-size", "48", "--preprocess", "openai"]
    assert main(["warm-start", name, str(tmp_path / "OUT"), *options]) == 0
    old = open_clip.create_model(NAME, str(source / "weights.pt"), force_image_size=48).eval()
    new = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    assert new.visual.image_size == (48, 48)
    torch.testing.assert_close(embeddings(new), embeddings(old), rtol=0, atol=1e-12)


def test_a_moved_one_is_repaired_as_a_whole(written, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(written, moved)
    with pytest.raises(ValueError, match=rf"moved or copied from {written}, .* text tower; .*diffclip convert {moved}"):
        load_model(f"local-dir:{moved}")
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(moved)
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"moved or copied from {written}, .* image tower"):
        load_model(f"local-dir:{moved}")
    capsys.readouterr()
    assert main(["convert", str(moved), str(moved)]) == 0
    assert f"names {moved} as the place of the text and the image tower" in capsys.readouterr().out
    config = json.loads((moved / "open_clip_config.json").read_text())["model_cfg"]
    assert config["text_cfg"]["hf_model_name"] == str(moved)
    assert config["vision_cfg"]["timm_model_name"] == f"local-dir:{moved}"
    assert load_model(f"local-dir:{moved}").architecture is None


def test_on_the_hub_both_towers_are_at_the_repository(written, monkeypatch):
    pushed = {}

    class Api:
        def create_repo(self, *_, **__):
            pass

        def create_commit(self, repo_id, operations, **_):
            pushed.update({operation.path_in_repo: operation.path_or_fileobj for operation in operations})
            return type("Commit", (), {"commit_url": "address"})

    monkeypatch.setattr("diffclip_openclip.weights.hub.HfApi", Api)
    assert push(written, "owner/repo") == "address"
    config = json.loads(pushed["open_clip_config.json"])
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "owner/repo"
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == "hf-hub:owner/repo"
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < pushed.keys()
    beside = json.loads((written / "config.json").read_text())
    assert check_open_clip_config(config, "hf://owner/repo", beside=beside)
    with pytest.raises(ValueError, match="timm_model_name 'hf-hub:owner/repo'"):  # of another repository
        check_open_clip_config(config, "hf://other/repo")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_classes": 10**12}, "num_classes 1000000000000; it must be 0"),  # a head of terabytes
        ({"pretrained_cfg": {"num_classes": 10**9}}, "num_classes 1000000000; it must be 0"),
        ({"pretrained_cfg": {"input_size": [3, 10**6, 10**6]}}, "input_size .* must be 3, height and width"),
        ({"pretrained_cfg": {"url": "https://localhost/x.pth"}}, "has 'url' as pretrained_cfg"),
        ({"pretrained_cfg": []}, r"has \[\] as pretrained_cfg"),
        ({"model_args": {"base": "vit_diffclip_v2.tag"}}, "base 'vit_diffclip_v2.tag' .* and not this one"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "has 'checkpoint_path' as model_args"),
        ({"architecture": "vit_base_patch16_224"}, "architecture is 'vit_base_patch16_224'"),
    ],
)
def test_what_timm_would_take_from_a_foreign_config_is_refused(more, message, written):
    config = json.loads((written / "open_clip_config.json").read_text())
    beside = json.loads((written / "config.json").read_text())
    assert check_open_clip_config(config, "PATH", beside=beside)
    with pytest.raises(ValueError, match=f"PATH.*{message}"):
        check_open_clip_config(config, "PATH", beside=beside | more)


@pytest.mark.parametrize("base", ["resnet18", "mixer_s32_224"])
def test_a_base_that_is_no_vit_is_refused(base):
    with pytest.raises(ValueError, match=f"base is '{base}'.* must be one of timm's VisionTransformer"):
        timm.create_model("vit_diffclip_v2", base=base)


def _portable(folder: Path) -> None:
    """Name timm's own ViT in place of the small one, which only this process knows."""
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] |= {"base": "vit_base_patch16_siglip_224", "embed_dim": 48, "depth": 3, "num_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow  # 25 s: the trainer in a process of its own
def test_it_is_trained_by_the_unchanged_trainer(written, train_shard, tmp_path):
    out = tmp_path / "OUT"
    shutil.copytree(written, out)
    _portable(out)
    assert main(["convert", str(out), str(out)]) == 0
    arguments = train_arguments(train_shard)
    arguments[arguments.index("DiffCLIP-nano")] = f"local-dir:{out}"
    more = ["--siglip", "--epochs", "1", "--lr", "1e-3", "--force-image-size", "48"]
    run_host([script("open_clip_train"), *arguments, *more], tmp_path)
    assert main(["convert", str(tmp_path / "logs/run/checkpoints/epoch_1.pt"), str(tmp_path / "TRAINED")]) == 0
    trained = open_clip.create_model(f"local-dir:{tmp_path / 'TRAINED'}")
    assert trained.visual.image_size == (48, 48)
    start = open_clip.create_model(f"local-dir:{out}").state_dict()
    for tower in ("visual.trunk.blocks.1", "text.transformer.layers.2"):
        key = f"{tower}.attn.lambda_proj.weight"
        assert (trained.state_dict()[key] != start[key]).any()


@pytest.mark.parametrize("layers", ["all", "image"])
@pytest.mark.parametrize("size", [28, [28, 42]])
def test_the_processors_in_transformers(layers, size, tmp_path, monkeypatch):
    """transformers takes a config.json with timm's keys for timm's alone; a rectangle has no image processor."""
    model_cfg = small("ViT-L-14-336", vocab_size=49408)
    model_cfg["vision_cfg"]["image_size"] = size
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-L-14-336", model_cfg)
    torch.save(perturbed(model_cfg).state_dict(), tmp_path / "weights.pt")
    out, source = tmp_path / "OUT", f"ViT-L-14-336,{tmp_path / 'weights.pt'}"
    assert main(["warm-start", source, str(out), "--preprocess", "openai", "--layers", layers]) == 0
    tokens = AutoTokenizer.from_pretrained(out)(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(tokens["input_ids"], open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS))
    assert (out / "preprocessor_config.json").is_file() == (size == 28)
    if size == 28:
        image = Image.effect_noise((60, 40), 80).convert("RGB")
        pixels = AutoImageProcessor.from_pretrained(out)(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, open_clip.create_model_and_transforms(f"local-dir:{out}")[2](image))


def test_the_image_tower_in_transformers(tmp_path):
    """Of a CLIP whose tower has a class token, as LLaVA-style models need it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            open_clip.factory._MODEL_CONFIGS, "ViT-L-14-336", model_cfg := small("ViT-L-14-336", vocab_size=49408)
        )
        torch.save(perturbed(model_cfg).state_dict(), tmp_path / "weights.pt")
        source = f"ViT-L-14-336,{tmp_path / 'weights.pt'}"
        assert main(["warm-start", source, str(tmp_path / "OUT"), "--preprocess", "openai"]) == 0
    tower = DiffCLIPVisionModel.from_open_clip(tmp_path / "OUT")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'OUT'}").eval()
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(tower(images).pooler_output, model.visual.trunk(images))
    tower.save_pretrained(tmp_path / "tower")
    again = DiffCLIPVisionModel.from_pretrained(tmp_path / "tower").eval()
    assert torch.equal(again(images).pooler_output, tower(images).pooler_output)
    assert (tmp_path / "OUT" / "preprocessor_config.json").is_file()


@pytest.mark.slow  # 15 s: both towers through torch.export
def test_it_is_exported(written):
    assert main(["export", str(written), "--format", "onnx"]) == 0
    shutil.rmtree(written / "onnx")
