"""What outputs take the place of: the same command's own old ones, and nothing else."""

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from support.checkpoints import save_as_published
from support.folders import tree
from support.report_results import save_nothing

from diffclip_cli.main import main
from diffclip_openclip import files, to_reference
from diffclip_openclip.explain.attend import show_attention
from diffclip_openclip.explain.lambda_report import show_lambdas
from diffclip_openclip.report.command import report

ENDINGS = {"convert --to timm": ".safetensors", "attend": ".png"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.create_model("DiffCLIP-nano").eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory) -> Path:
    return save_as_published(model, tmp_path_factory.mktemp("published") / "reference.pt")


@pytest.fixture
def run(model, tmp_path) -> Path:
    """A training run, with the one copy of its checkpoint."""
    folder = tmp_path / "run.png"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text("model: DiffCLIP-nano\npretrained: \n")
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "checkpoints" / "epoch_1.pt")
    return folder


def _main_refuses(capsys, folder: Path, expected: str, *arguments: object) -> None:
    before = tree(folder)
    assert main([*map(str, arguments), "--overwrite"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert tree(folder) == before


def test_no_command_replaces_a_run(run, checkpoint, model, tmp_path, capsys):
    source = run / "checkpoints" / "epoch_1.pt"
    for command in (
        ["convert", source, run],
        ["convert", checkpoint, run],
        ["convert", checkpoint, run / "checkpoints"],
        ["warm-start", f"CLIP-nano-baseline,{checkpoint}", run],
        ["report", run, "--output", run],
        ["report", "--paper-only", "--output", run],
    ):
        _main_refuses(capsys, tmp_path, "is not just a", *command)
    (tmp_path / "run.pt").symlink_to(run)
    Image.new("RGB", (48, 48)).save(tmp_path / "photo.png")
    for command in (
        ["convert", checkpoint, tmp_path / "run.pt", "--to", "reference"],
        ["attend", tmp_path / "photo.png", "--text", "a", "--model", f"DiffCLIP-nano,{source}", "-o", run],
        ["lambdas", checkpoint, "-o", run],
    ):
        _main_refuses(capsys, tmp_path, "is a directory, which no file takes the place of", *command)


def test_no_command_writes_to_a_name_that_is_no_text(run, checkpoint, tmp_path, capsys):
    """Tell so before models are loaded, and not by what a library says of it."""
    source, out = run / "checkpoints" / "epoch_1.pt", tmp_path / "\udcff"
    (tmp_path / "classes" / "a").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "classes" / "a"):
        Image.new("RGB", (48, 48)).save(folder / "photo.png")
    for command in (
        ["convert", checkpoint, out],
        ["convert", checkpoint, f"{out}.safetensors", "--to", "timm"],
        ["warm-start", f"CLIP-nano-baseline,{checkpoint}", out],
        ["report", "--paper-only", "--output", out],
        ["attend", tmp_path / "photo.png", "--text", "a", "--model", f"DiffCLIP-nano,{source}", "-o", f"{out}.png"],
        ["lambdas", checkpoint, "-o", f"{out}.png"],
        ["bench", "--output", f"{out}.json"],
        ["data", "folder", "dots", "--source", tmp_path / "classes", "--data", out],
    ):
        _main_refuses(capsys, tmp_path, "is not UTF-8", *command)


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("command", ["convert", "convert --to timm", "warm-start", "report", "attend", "data"])
def test_what_comes_to_out_while_a_command_works_stays(kind, command, run, checkpoint, tmp_path, monkeypatch, capsys):
    source, out = run / "checkpoints" / "epoch_1.pt", tmp_path / f"out{ENDINGS.get(command, '')}"
    (tmp_path / "classes" / "a").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "classes" / "a"):
        Image.new("RGB", (48, 48)).save(folder / "photo.png")
    plain = tmp_path / "plain.pt"
    torch.save(open_clip.create_model("CLIP-nano-baseline").state_dict(), plain)
    arguments = {
        "convert": ["convert", checkpoint, out],
        "convert --to timm": ["convert", checkpoint, out, "--to", "timm"],
        "warm-start": ["warm-start", f"CLIP-nano-baseline,{plain}", out, "--preprocess", "slip"],
        "report": ["report", "--paper-only", "--output", out],
        "attend": ["attend", tmp_path / "photo.png", "--maps", "--model", f"DiffCLIP-nano,{source}", "-o", out],
        "data": ["data", "folder", "dots", "--source", tmp_path / "classes", "--data", tmp_path],
    }[command]
    place = tmp_path / "dots" / "test" if command == "data" else out
    mine = place if kind == "file" else place / "note.txt"

    def flushed(_: Path) -> None:  # the last step but one
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")

    monkeypatch.setattr(files, "_flush", flushed)
    monkeypatch.setattr("diffclip_openclip.report.command.save_figures", save_nothing)
    assert main([str(argument) for argument in arguments]) == 2
    assert str(place) in capsys.readouterr().err.splitlines()[-1]
    assert mine.read_text() == "mine"
    assert [path for path in place.parent.iterdir() if path.name.startswith(".")] == []


def test_convert_replaces_a_model_directory(model, checkpoint, tmp_path):
    """Also a larger one, with what `diffclip export` has added, and by a link; see the report's own test for others."""
    out = tmp_path / "OUT"
    (tmp_path / "link").symlink_to(out)
    assert main(["convert", str(checkpoint), str(out), "--variant", "dynamic"]) == 0
    (out / "onnx").mkdir()
    for name in ("image.onnx", "text.onnx", "text.onnx.data"):
        (out / "onnx" / name).write_bytes(b"of the old weights")
    assert main(["convert", str(checkpoint), str(tmp_path / "link"), "--overwrite"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in out.iterdir()} == {
        *("README.md", "config.json", "open_clip_config.json", "open_clip_model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"),
    }
    loaded = open_clip.create_model(f"local-dir:{tmp_path / 'link'}")
    assert [layer.attn.lambda_init for layer in loaded.text.transformer.layers] == [0.8, 0.8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "link"]


def test_convert_keeps_what_it_did_not_write(checkpoint, tmp_path, capsys):
    out = tmp_path / "OUT"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    capsys.readouterr()
    for name in ("tower.safetensors", "onnx/notes.txt"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
        _main_refuses(capsys, out, f"it has {name} in it", "convert", checkpoint, out)
        (out / name).unlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    _main_refuses(capsys, tmp_path, "it has no open_clip_config.json", "convert", checkpoint, tmp_path / "mine")


def test_convert_and_warm_start_keep_their_source(model, checkpoint, tmp_path, capsys):
    """A directory's weights alone would come back as the static variant; a warm start would end what it starts from."""
    out, plain = tmp_path / "OUT", tmp_path / "PLAIN"
    assert main(["convert", str(checkpoint), str(out), "--variant", "dynamic"]) == 0
    baseline = tmp_path / "baseline.pt"
    torch.save(to_reference(open_clip.create_model("CLIP-nano-baseline").state_dict()), baseline)
    assert main(["convert", str(baseline), str(plain)]) == 0
    capsys.readouterr()
    file, copy = out / "open_clip_model.safetensors", shutil.copy(checkpoint, tmp_path / "copy.pt")
    for command in (
        ["convert", file, out, "--preprocess", "slip"],
        ["convert", copy, copy, "--to", "reference"],
        ["convert", file, file, "--to", "timm"],
        ["warm-start", f"local-dir:{plain}", plain],
        ["warm-start", f"CLIP-nano-baseline,{plain / 'open_clip_model.safetensors'}", plain],
    ):
        _main_refuses(capsys, tmp_path, "is what is read", *command)
    assert main(["convert", str(out), str(out), "--overwrite"]) == 0  # corrects its path


def test_attend_keeps_its_photo(checkpoint, tmp_path):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (48, 48)).save(photo)
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    before = photo.read_bytes()
    with pytest.raises(FileExistsError, match=r"photo\.png is what is read"):
        show_attention([photo], texts=["a mug"], models=[f"local-dir:{tmp_path / 'OUT'}"], out=photo, overwrite=True)
    assert photo.read_bytes() == before


def test_lambdas_into_an_empty_directory(checkpoint, tmp_path):
    (tmp_path / "plot.png").mkdir()
    with pytest.raises(FileExistsError, match="is a directory, which no file takes the place of"):
        show_lambdas(str(checkpoint), tmp_path / "plot.png", overwrite=True)


def test_a_report_replaces_a_report_and_no_results(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    report(None, out, paper_only=True)
    first = tree(out)
    (out / "index.html").write_text("old")
    report(None, out, paper_only=True, overwrite=True)
    assert tree(out) == first
    for name in ("figures/mine.png", "tables/mine.md", "DiffCLIP-1a/few_shot/dtd.json"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        before = tree(out)
        with pytest.raises(
            FileExistsError, match=f"out is not just a report: it has {name.removesuffix('/few_shot/dtd.json')} in it"
        ):
            report(None, out, paper_only=True, overwrite=True)
        assert tree(out) == before
        (out / name).unlink()
