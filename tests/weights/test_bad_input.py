"""Bad input to the commands: one line, exit status 2, nothing left behind, and nothing run."""

import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support.common import plain_environment, script

from diffclip_cli.main import main
from diffclip_openclip import to_reference
from diffclip_openclip.weights import directory
from diffclip_openclip.weights.architecture import recognize


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    return to_reference(open_clip.create_model("DiffCLIP-nano").state_dict())


@pytest.fixture(scope="module")
def bare(reference, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bare") / "reference.pt"
    torch.save({"state_dict": reference}, path)
    return path


def _fails(capsys, *arguments: str) -> str:
    """The one line that the command says before it ends with 2."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"diffclip {arguments[0]}: error: ")
    return line


def _write(content: object, name: str, folder: Path) -> Path:
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def _cut(reference, name, tmp_path):
    data = _write(reference, f"whole.{name}", tmp_path).read_bytes()
    (tmp_path / f"whole.{name}").unlink()
    return data[: len(data) // 2]


class _Payload:
    """Runs a shell command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


CASES = {
    "html.pt": (lambda ref, tmp: b"<!DOCTYPE html><html>Sign in</html>", "is an HTML page"),
    "empty.pt": (lambda ref, tmp: b"", "is empty"),
    "text.pt": (lambda ref, tmp: b"these are no weights, whatever their name says", "neither PyTorch's format"),
    "pointer.safetensors": (lambda ref, tmp: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "cut.pt": (lambda ref, tmp: _cut(ref, "pt", tmp), "cut short"),
    "cut.safetensors": (lambda ref, tmp: _cut(ref, "safetensors", tmp), "cut short"),
    "cut_head.safetensors": (lambda ref, tmp: _cut(ref, "safetensors", tmp)[:40], "cut short"),
    "tensor.pt": (lambda ref, tmp: torch.ones(3), "holds Tensor, not a state dict"),
    "nothing.pt": (lambda ref, tmp: {}, "not a state dict"),
    "mixed.pt": (lambda ref, tmp: {"state_dict": {"a": 3}}, "holds a int as 'a'"),
    "foreign.pt": (lambda ref, tmp: {"conv1.weight": torch.ones(3)}, "among them conv1.weight"),
    "openai.pt": (lambda ref, tmp: {"visual.conv1.weight": torch.ones(3)}, "diffclip warm-start"),
    "lacking.pt": (
        lambda ref, tmp: {k: v for k, v in ref.items() if k != "visual.blocks.2.attn.lambda_k2"},
        "missing visual.blocks.2.attn.lambda_k2",
    ),
    "renamed.pt": (
        lambda ref, tmp: {k.replace("blocks.1.norm1", "blocks.1.nrom1"): v for k, v in ref.items()},
        "unexpected visual.blocks.1.nrom1",
    ),
    "headless.pt": (
        lambda ref, tmp: {k: v for k, v in ref.items() if not k.startswith(("text_proj", "image_proj"))},
        "missing image_projection",
    ),
    "narrow.pt": (
        lambda ref, tmp: ref | {"visual.blocks.3.norm2.bias": torch.ones(7)},
        r"visual.blocks.3.norm2.bias has shape [7], expected [128]",
    ),
    "nan.pt": (
        lambda ref, tmp: ref | {"ln_final.bias": torch.full((128,), float("nan"))},
        "text.transformer.ln_final.bias has 128 values that are NaN",
    ),
    "large.pt": (
        lambda ref, tmp: ref | {"visual.pos_embed": torch.ones(1, 26, 128)},
        "26 position embeddings",
    ),
    "heads.pt": (
        lambda ref, tmp: {k: v[: len(v) // 2] if ".lambda_" in k or "diff_norm" in k else v for k, v in ref.items()},
        "8 heads; vit_nano_patch12_diffclip_48 has 4",
    ),
    "odd_heads.pt": (
        lambda ref, tmp: {
            k: torch.ones(128 if ".lambda_" in k else 256)
            if "transformer" in k and ("lambda" in k or "norm" in k)
            else v
            for k, v in ref.items()
        },
        "num_heads is 1",
    ),
    "shallow.pt": (
        lambda ref, tmp: {k: v for k, v in ref.items() if not k.startswith("visual.blocks.3.")},
        "there are: nano_patch12",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_checkpoint(name, reference, tmp_path, capsys):
    build, expected = CASES[name]
    path = _write(build(reference, tmp_path), name, tmp_path)
    assert expected in _fails(capsys, "convert", str(path), str(tmp_path / "OUT"))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_and_useless_paths(bare, tmp_path, capsys):
    out = str(tmp_path / "OUT")
    assert "there is no file" in _fails(capsys, "convert", str(tmp_path / "none.pt"), out)
    (tmp_path / "empty").mkdir()
    assert "has no open_clip_config.json" in _fails(capsys, "convert", str(tmp_path / "empty"), out)
    assert "there is no folder" in _fails(capsys, "convert", str(bare), str(tmp_path / "no" / "OUT"))
    assert "ends in .bin" in _fails(capsys, "convert", str(bare), str(tmp_path / "o.bin"), "--to", "reference")
    assert "hf://owner/repo" in _fails(capsys, "convert", "hf://owner", out)
    assert "lacks open_clip_config.json" in _fails(capsys, "push", str(tmp_path / "empty"), "owner/repo")
    assert "knows no model 'ViT-B-23'; near: ViT-B-32" in _fails(capsys, "warm-start", "ViT-B-23,x", out)
    assert "tag of ViT-B-32 (its tags: openai" in _fails(capsys, "warm-start", f"ViT-B-32,{tmp_path / 'none.pt'}", out)
    assert "does not hold the weights of ViT-B-32" in _fails(capsys, "warm-start", f"ViT-B-32,{bare}", out)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_directory_of_another_architecture(tmp_path, capsys):
    config = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "CLIP").mkdir()
    (tmp_path / "CLIP" / "open_clip_config.json").write_text(json.dumps(config))
    line = _fails(capsys, "convert", str(tmp_path / "CLIP"), str(tmp_path / "OUT"))
    assert f"diffclip warm-start local-dir:{tmp_path / 'CLIP'}" in line
    (tmp_path / "CLIP" / "open_clip_config.json").write_text("{}")
    assert "is not open_clip's" in _fails(capsys, "convert", str(tmp_path / "CLIP"), str(tmp_path / "OUT"))


def test_slips_small_tower_has_heads_that_weights_do_not_tell(tmp_path, capsys):
    state_dict = to_reference(open_clip.create_model("CLIP-S-16-baseline").state_dict())
    path = _write(state_dict, "slip.safetensors", tmp_path)
    assert "SLIP's has 12 heads and timm's 6" in _fails(capsys, "convert", str(path), str(tmp_path / "OUT"))
    assert list(tmp_path.iterdir()) == [path]


def test_a_variant_that_the_source_says_itself(bare, tmp_path, capsys):
    out = str(tmp_path / "OUT")
    assert main(["convert", str(bare), out]) == 0
    capsys.readouterr()
    assert "leave out --variant dynamic" in _fails(capsys, "convert", out, str(tmp_path / "B"), "--variant", "dynamic")


@pytest.mark.parametrize(("name", "variant"), [("CLIP-nano-baseline", "dynamic"), ("DiffCLIP-nano", "gelu")])
def test_a_variant_that_does_not_apply(name, variant, tmp_path, capsys):
    path = _write(to_reference(open_clip.create_model(name).state_dict()), "c.safetensors", tmp_path)
    line = _fails(capsys, "convert", str(path), str(tmp_path / "OUT"), "--variant", variant)
    assert f"--variant {variant} does not apply" in line
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_payload_is_refused_by_name_and_not_run(zipped, reference, tmp_path, capsys):
    mark, path = tmp_path / "mark", tmp_path / "payload.pt"
    content = {"state_dict": reference, "args": _Payload(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    line = _fails(capsys, "convert", str(path), str(tmp_path / "OUT"))
    assert f"wants to run or build {os.system.__module__}.system" in line
    assert list(tmp_path.iterdir()) == [path]
    # the payload is a real one
    pickle.loads(pickle.dumps(_Payload(mark)))
    assert mark.exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["convert", str(tmp_path / "none.pt"), str(tmp_path / "OUT"), "--debug"])


def test_failure_leaves_the_old_directory(bare, tmp_path, capsys, monkeypatch):
    out = tmp_path / "OUT"
    assert main(["convert", str(bare), str(out)]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(directory, "_verified", fail)
    assert main(["convert", str(bare), str(out), "--overwrite"]) == 130
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_loaded_tensor_that_differs_stops_the_conversion(bare, tmp_path, capsys, monkeypatch):
    save = directory.save_safetensors

    def save_another(state_dict, path):
        save(state_dict | {"logit_scale": state_dict["logit_scale"] + 1}, path)

    monkeypatch.setattr(directory, "save_safetensors", save_another)
    assert "logit_scale is another after loading" in _fails(capsys, "convert", str(bare), str(tmp_path / "OUT"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["--to", "reference"]], ids=["directory", "reference"])
def test_no_space_left(arguments, bare, tmp_path, capsys):
    """A limit on the size of files, which the kernel enforces as it would a full disk."""
    out = tmp_path / ("OUT.pt" if arguments else "OUT")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        line = _fails(capsys, "convert", str(bare), str(out), *arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "could not be written" in line
    assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_nothing(bare, tmp_path):
    code = (
        "import os, signal, sys, time\n"
        "from diffclip_openclip.weights import directory\n"
        "from diffclip_cli.main import main\n"
        "directory._verified = lambda *_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60))\n"
        f"main(['convert', {str(bare)!r}, {str(tmp_path / 'OUT')!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=plain_environment(), capture_output=True)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_console_script(tmp_path):
    """Also that status and message are the process's own."""
    command = [script("diffclip"), "convert", "none.pt", "OUT"]
    done = subprocess.run(command, cwd=tmp_path, env=plain_environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "diffclip convert: error: there is no file none.pt\n"
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["convert", "warm-start", "push", "export"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"diffclip {command} " in capsys.readouterr().out.split("example")[1]


@pytest.mark.parametrize("key", ["text.transformer.embeddings.positional_embedding", "visual.trunk.pos_embed"])
def test_an_empty_tensor_that_tells_a_size_is_named(key):
    state_dict = dict(open_clip.create_model("DiffCLIP-nano").state_dict())
    state_dict[key] = state_dict[key][..., :0, :]
    with pytest.raises(ValueError, match=f"{re.escape(key)} has shape .*0, 128.*, which holds no values"):
        recognize(state_dict)


def test_a_sharded_checkpoint_is_named_and_not_unpickled(tmp_path, capsys, monkeypatch):
    """As open_clip's main writes it, under ``model`` and ``optimizer``; gathered as the message says, it converts."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    sharded = tmp_path / "epoch_1"
    dcp.save({"model": open_clip.create_model("DiffCLIP-nano").state_dict(), "optimizer": {}}, checkpoint_id=sharded)
    with monkeypatch.context() as patched:
        patched.setattr(pickle, "load", lambda *_: pytest.fail("it was unpickled"))
        patched.setattr(pickle, "Unpickler", lambda *_: pytest.fail("it was unpickled"))
        line = _fails(capsys, "convert", str(sharded), str(tmp_path / "OUT"))
    assert f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {sharded} FILE.pt" in line
    dcp_to_torch_save(sharded, tmp_path / "FILE.pt")
    assert main(["convert", str(tmp_path / "FILE.pt"), str(tmp_path / "OUT"), "--preprocess", "slip"]) == 0
