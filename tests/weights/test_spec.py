"""The grammar of models and weights: every form, in the commands that take it."""

import shutil

import open_clip
import pytest
import torch
from support.checkpoints import load_directory, same_function, write_run

from diffclip_cli.main import main
from diffclip_openclip.weights.loading import load_model
from diffclip_openclip.weights.source import load_source
from diffclip_openclip.weights.spec import ModelSpec, parse_run, parse_source, parse_spec


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return open_clip.create_model("DiffCLIP-nano-dynamic").eval()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("logs") / "run", model, "DiffCLIP-nano-dynamic")


@pytest.fixture(scope="module")
def directory(checkpoint):
    out = checkpoint.parents[1] / "OUT"
    assert main(["convert", str(checkpoint), str(out)]) == 0
    return out


def test_every_form_is_read(checkpoint, directory):
    for text, expected in {
        f"DiffCLIP-nano-dynamic,{checkpoint}": ModelSpec("DiffCLIP-nano-dynamic", str(checkpoint)),
        f"DiffCLIP/nano-dynamic,{checkpoint}": ModelSpec("DiffCLIP-nano-dynamic", str(checkpoint)),
        "ViT-B-32,openai": ModelSpec("ViT-B-32", "openai"),
        f"local-dir:{directory}": ModelSpec(f"local-dir:{directory}"),
        str(directory): ModelSpec(f"local-dir:{directory}"),
        "hf-hub:owner/repo": ModelSpec("hf-hub:owner/repo"),
    }.items():
        assert parse_spec(text) == parse_spec(text, needs_weights=False) == expected
        assert expected.has_weights
        assert parse_spec(str(expected)) == expected
    for text, expected in {
        f"DiffCLIP-nano-dynamic,{checkpoint}": ModelSpec("DiffCLIP-nano-dynamic", str(checkpoint)),
        str(checkpoint): ModelSpec("", str(checkpoint)),
        str(directory): ModelSpec("", str(directory)),
        f"local-dir:{directory}": ModelSpec("", str(directory)),
        "hf://owner/repo@v1/file.pt": ModelSpec("", "hf://owner/repo@v1/file.pt"),
        "hf-hub:owner/repo": ModelSpec("", "hf://owner/repo"),
        "no/such.pt": ModelSpec("", "no/such.pt"),
    }.items():
        assert parse_source(text) == expected


def test_a_run_is_a_model_for_each_of_its_checkpoints(checkpoint, tmp_path):
    run = checkpoint.parents[1]
    expected = ModelSpec("DiffCLIP-nano-dynamic", str(checkpoint))
    assert list(parse_run(str(run)).values()) == list(parse_run(f"{expected.name},{run}").values()) == [expected]
    assert parse_run(str(checkpoint)) == parse_run("ViT-B-32,openai") == {}
    with pytest.raises(ValueError, match="is of DiffCLIP-nano-dynamic, not of DiffCLIP-nano"):
        parse_run(f"DiffCLIP-nano,{run}")
    with pytest.raises(ValueError, match="it is a run's folder, so give one of its checkpoints"):
        parse_spec(str(run))
    bare = shutil.copytree(checkpoint.parent, tmp_path / "bare")
    with pytest.raises(ValueError, match="does not say its model"):
        parse_run(str(bare))


def test_a_bare_name_is_a_model_where_weights_are_optional_and_a_path_elsewhere(directory, tmp_path, monkeypatch):
    """As after ``diffclip convert checkpoint.pt DiffCLIP-nano``."""
    monkeypatch.chdir(tmp_path)
    assert parse_spec("DiffCLIP-nano", needs_weights=False) == ModelSpec("DiffCLIP-nano")
    with pytest.raises(ValueError, match="DiffCLIP-nano names no weights; give DiffCLIP-nano,CHECKPOINT"):
        parse_spec("DiffCLIP-nano")
    shutil.copytree(directory, "DiffCLIP-nano")
    assert main(["convert", "DiffCLIP-nano", "DiffCLIP-nano"]) == 0
    assert parse_spec("DiffCLIP-nano", needs_weights=False) == ModelSpec("DiffCLIP-nano")
    assert parse_spec("DiffCLIP-nano") == ModelSpec("local-dir:DiffCLIP-nano")
    assert parse_source("DiffCLIP-nano") == ModelSpec("", "DiffCLIP-nano")
    assert load_model("DiffCLIP-nano").architecture == "DiffCLIP-nano-dynamic"


@pytest.mark.parametrize("needs_weights", [True, False])
def test_a_colon_is_answered_with_what_to_write(needs_weights):
    for text, instead in {"ViT-B-32:openai": "ViT-B-32,openai", "ViT-B/32:a.pt": "ViT-B/32,a.pt"}.items():
        with pytest.raises(ValueError, match=f"weights are named behind a comma: {instead}$"):
            parse_spec(text, needs_weights=needs_weights)
    with pytest.raises(ValueError, match="no model 'ViT-B-23'; near: ViT-B-32"):
        parse_spec("ViT-B-23,openai", needs_weights=needs_weights)


@pytest.mark.parametrize("command", ["warm-start", "convert", "evaluate", "attend", "bench", "lambdas"])
def test_commands_refuse_alike(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = {
        "evaluate": ["--data", ".", "--output", "R", "--model"],
        "attend": ["x.png", "--text", "a", "-o", "a.png", "--model"],
        "bench": ["--model"],
    }.get(command, [])
    if command == "attend":
        (tmp_path / "x.png").write_bytes(b"")
        monkeypatch.setattr("diffclip_openclip.explain.attend.read_image", lambda path: None)
    out = ["OUT"] if command in ("warm-start", "convert") else []
    assert main([command, *arguments, "DiffCLIP-nano,none.pt", *out]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "'none.pt' is neither a file nor a pretrained tag of DiffCLIP-nano (it has no pretrained tags)" in line


def test_convert_takes_a_named_model(model, checkpoint, tmp_path):
    """Which tells what weights and a lost run do not."""
    bare = shutil.copy(checkpoint, tmp_path / "bare.pt")
    out = tmp_path / "OUT"
    assert main(["convert", f"DiffCLIP-nano-dynamic,{bare}", str(out), "--preprocess", "slip"]) == 0
    assert same_function(load_directory(out), model)
    assert f"DiffCLIP-nano-dynamic,{bare}" in (out / "README.md").read_text()
    with pytest.raises(ValueError, match="DiffCLIP-nano-dynamic says which variant it is; leave out --variant static"):
        load_source(f"DiffCLIP-nano-dynamic,{bare}", "static")
    with pytest.raises(ValueError, match=r"warm-start ViT-B-32,openai OUT` makes it"):
        load_source("ViT-B-32,openai")
    with pytest.raises(ValueError, match="do not fit the architecture"):
        main(["convert", f"CLIP-nano-baseline,{bare}", str(tmp_path / "B"), "--preprocess", "slip", "--debug"])


def test_bench_takes_weights(checkpoint, directory, tmp_path, capsys):
    arguments = ["bench", "--rounds", "2", "--batch-size", "2", "--forward-only"]
    spec = f"DiffCLIP-nano-dynamic,{checkpoint}"
    assert main([*arguments, "--model", spec, "--model", str(directory)]) == 0
    said = capsys.readouterr().out
    assert f"| {spec} |" in said
    assert f"| {directory} |" in said
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    assert main([*arguments, "--model", f"DiffCLIP-nano,{cut}"]) == 2
    assert f"{cut} is cut short or damaged" in capsys.readouterr().err
