"""Model directories and repositories that would have code run, or that hold what no model was trained with."""

import json
import math
import re
import shutil
from dataclasses import field, make_dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPVisionCfg
from PIL import Image
from support.checkpoints import save_as_published
from support.images import encoded

from diffclip_cli.main import main
from diffclip_openclip.weights import foreign, hub
from diffclip_openclip.weights.directory import read_config, tokenizer_of
from diffclip_openclip.weights.foreign import check_preprocess_cfg, check_runs_nothing
from diffclip_openclip.weights.loading import load_model

CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedTokenizerFast as Base
Path(__file__).with_name("RAN").touch()
Path("MARK").touch()
class Evil(Base): pass
class EvilConfig(PretrainedConfig): pass
"""
TOKENIZER = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """DiffCLIP-nano in open_clip's form."""
    folder = tmp_path_factory.mktemp("foreign")
    checkpoint = save_as_published(open_clip.create_model("DiffCLIP-nano"), folder / "checkpoint.pt")
    assert main(["convert", str(checkpoint), str(folder / "OUT")]) == 0
    return folder / "OUT"


@pytest.fixture
def altered(directory, tmp_path, monkeypatch):
    """Make a copy of the directory with other JSON, and with code beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))

    def alter(changes: dict[str, Any], place: str = "DIR") -> Path:
        folder = Path(shutil.copytree(directory, tmp_path / place))
        (folder / "evil.py").write_text(CODE)
        config = json.loads((folder / "open_clip_config.json").read_text())
        if "hf_model_name" in config["model_cfg"]["text_cfg"]:
            config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder)
        for section, more in changes.items():
            if section.endswith(".json"):
                old = json.loads((folder / section).read_text()) if (folder / section).exists() else {}
                (folder / section).write_text(json.dumps(old | more))
            elif section == "":
                config["model_cfg"] |= more
            elif section == "preprocess_cfg":
                config["preprocess_cfg"] |= more
            else:
                config["model_cfg"][section] |= more
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return folder

    return alter


def _ran(folder: Path) -> list[Path]:
    return [*folder.rglob("RAN"), *folder.rglob("MARK"), *Path(hub.__file__).parent.glob("RAN")]


ATTACKS: dict[str, dict[str, Any]] = {
    "auto_map|trust_remote_code": {
        "text_cfg": {"hf_tokenizer_name": "evil", "tokenizer_kwargs": {"trust_remote_code": True}},
        "tokenizer_config.json": TOKENIZER,
    },
    "auto_map": {"text_cfg": {"hf_tokenizer_name": "evil"}, "tokenizer_config.json": TOKENIZER},
    "subfolder": {"text_cfg": {"hf_tokenizer_name": "evil", "tokenizer_kwargs": {"subfolder": "evil"}}},
    "has 'auto_map'": {"config.json": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}},
    "_attn_implementation": {"config.json": {"_attn_implementation": "owner/kernel"}},
    "attn_implementation": {"config.json": {"attn_implementation": {"": "sdpa", "text": "owner/kernel@main:f"}}},
    "timm_model_name": {"vision_cfg": {"timm_model_name": "hf-hub:owner/repo"}},
    "architecture is 'resnet50'": {
        "vision_cfg": {"timm_model_name": "local-dir:DIR"},
        "config.json": {"architecture": "resnet50", "model_args": {}, "pretrained_cfg": {}},
    },
    "depth 100000 in model_args": {
        "vision_cfg": {"timm_model_name": "local-dir:DIR"},
        "config.json": {"architecture": "vit_diffclip_v2", "model_args": {"depth": 100000}, "pretrained_cfg": {}},
    },
    "'block_fn' as model_args": {
        "vision_cfg": {"timm_model_name": "local-dir:DIR"},
        "config.json": {"architecture": "vit_diffclip_v2", "model_args": {"block_fn": "os.system"}},
    },
    "embed_dim": {"vision_cfg": {"image_size": 48}, "text_cfg": {}, "": {"embed_dim": 10**9}},
    "image_size": {"vision_cfg": {"image_size": 10**6}},
    "num_hidden_layers": {"config.json": {"num_hidden_layers": 10**7}},
    "num_labels": {"config.json": {"num_labels": 10**9}},
    "evil_cfg": {"text_cfg": {"evil_cfg": {}}},
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_directory_runs_nothing(name, altered, tmp_path, capsys):
    folder = altered(ATTACKS[name])
    (tmp_path / "image.png").write_bytes(encoded(Image.new("RGB", (8, 8)), "PNG"))
    with pytest.raises(ValueError, match=name):
        load_model(f"local-dir:{folder}")
    commands = (
        ["convert", str(folder), "OUT"],
        ["attend", "image.png", "--text", "a mug", "--model", f"local-dir:{folder}", "-o", "out.png"],
        ["warm-start", f"local-dir:{folder}", "OUT"],
        ["bench", "--model", f"local-dir:{folder}", "--rounds", "2", "--batch-size", "1", "--forward-only"],
        ["push", str(folder), "owner/repo"],
    )
    for command in commands:
        assert main(command) == 2, command
        assert re.search(name, capsys.readouterr().err)
    assert not _ran(tmp_path)
    assert not (tmp_path / "OUT").exists()


def test_no_arguments_are_passed_on_to_timm(altered, monkeypatch):
    """open_clip's main branch has a field for them, and timm takes ``checkpoint_path`` among them."""
    fields = [("timm_model_kwargs", dict, field(default_factory=dict))]
    newer = make_dataclass("CLIPVisionCfg", fields, bases=(CLIPVisionCfg,))
    monkeypatch.setitem(foreign._SECTIONS, "vision_cfg", newer)
    folder = altered({"vision_cfg": {"timm_model_kwargs": {"checkpoint_path": "evil.pt"}}})
    with pytest.raises(ValueError, match="vision_cfg has timm_model_kwargs"):
        read_config(folder)


def test_what_transformers_stumbles_over_is_one_line(altered, capsys):
    folder = altered({"config.json": {"dtype": "evil"}})
    for command in (["convert", str(folder), "OUT"], ["warm-start", f"local-dir:{folder}", "OUT"]):
        assert main(command) == 2
        assert "cannot be loaded" in capsys.readouterr().err.splitlines()[-1]


def test_a_text_tower_in_another_folder_runs_nothing(altered, tmp_path):
    folder = altered({})
    (folder / "text").mkdir()
    (folder / "text" / "evil.py").write_text(CODE)
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "text" / "config.json").write_text(json.dumps(config))
    whole = json.loads((folder / "open_clip_config.json").read_text())
    whole["model_cfg"]["text_cfg"]["hf_model_name"] = "DIR/text"  # from the working directory
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="auto_map"):
        load_model(f"local-dir:{folder}")
    assert not _ran(tmp_path)


def test_a_repository_runs_nothing(altered, tmp_path, monkeypatch):
    folder = altered(ATTACKS["auto_map|trust_remote_code"])
    monkeypatch.setattr(hub, "hf_hub_download", lambda repo_id, name: folder / name)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model("hf-hub:owner/repo")


def test_a_tokenizer_runs_nothing_and_asks_nothing(altered, tmp_path):
    """Also one that came to the hub after its config was read."""
    folder = altered(ATTACKS["auto_map"])
    with pytest.raises(ValueError, match="trust_remote_code"):
        tokenizer_of(f"local-dir:{folder}", {"text_cfg": {"hf_tokenizer_name": "evil"}})
    assert not _ran(tmp_path)


def test_a_tokenizer_of_transformers_is_taken(directory, altered):
    """The stock one that lies in the directory, with what open_clip's own models pass on."""
    kwargs = {"clean": "canonicalize"}
    folder = altered({"text_cfg": {"hf_tokenizer_name": "any", "tokenizer_kwargs": kwargs}})
    tokens = tokenizer_of(f"local-dir:{folder}", read_config(folder)[0])(["a mug"])
    assert tokens.tolist() == open_clip.get_tokenizer(f"local-dir:{directory}")(["a mug"]).tolist()


def test_keys_that_nobody_knows_are_not_written_on(altered, tmp_path):
    folder = altered({"config.json": {"note": "of a training script", "intermediate_size": 512}})
    assert main(["convert", str(folder), str(tmp_path / "OUT")]) == 0
    assert "note" not in json.loads((tmp_path / "OUT" / "config.json").read_text())


PREPROCESSING: list[dict[str, Any]] = [
    {"mean": "foo"},
    {"mean": [0.5, 0.5]},
    {"mean": [0.5, 0.5, math.nan]},
    {"mean": [0.5, 0.5, True]},
    {"std": [0.5, 0.5, 0]},
    {"std": [1, 1, math.inf]},
    {"std": [1, 1, 10**300]},
    {"std": -1},
    {"interpolation": "evil"},
    {"resize_mode": ["shortest"]},
    {"mode": "L"},
    {"size": [0, 224]},
    {"fill_color": "red"},
]


@pytest.mark.parametrize("given", PREPROCESSING, ids=str)
def test_preprocessing_that_no_model_was_trained_with(given, altered, tmp_path, capsys):
    folder = altered({"preprocess_cfg": given})
    (name,) = given
    with pytest.raises(ValueError, match=f"with {name} .*must be"):
        load_model(f"local-dir:{folder}")
    assert main(["convert", str(folder), str(tmp_path / "OUT")]) == 2
    assert f"prepares images with {name}" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["image_mean: [nan]", "image_mean: (1, 2)", "image_std: [0, 1, 1]", "image_std: inf"])
def test_preprocessing_of_a_run(line, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save_as_published(open_clip.create_model("DiffCLIP-nano"), run / "checkpoints" / "epoch_1.pt")
    (run / "params.txt").write_text(f"model: DiffCLIP-nano\n{line}\n")
    with pytest.raises(ValueError, match=r"params\.txt prepares images with"):
        load_model(f"DiffCLIP-nano,{run / 'checkpoints' / 'epoch_1.pt'}")


@pytest.mark.parametrize(
    "settings", [{"mean": 0.5, "std": 1}, {"mean": (0, 0, 0), "size": (48, 48), "fill_color": 0}, {"mean": None}]
)
def test_preprocessing_that_open_clip_has(settings):
    check_preprocess_cfg(settings | {"note": "which open_clip passes over"}, "x")


def test_names_are_found_at_any_depth():
    config: Any = {"auto_map": {}}
    for _ in range(5000):
        config = {"a": [config]}
    with pytest.raises(ValueError, match="auto_map"):
        check_runs_nothing(config, "x")
    check_runs_nothing({"attn_implementation": {"": None, "text": "sdpa"}, "_attn_implementation": "eager"}, "x")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("README.md", "link", "README.md is a link to .*which would be uploaded"),
        ("open_clip_model.safetensors", b"no weights", "neither PyTorch's format"),
        ("tokenizer.json", b"{", r"tokenizer\.json is no JSON"),
        ("README.md", b"\xff\xfe", "can't decode"),
    ],
)
def test_a_push_uploads_what_names_say_and_nothing_else(name, content, message, altered, tmp_path, capsys):
    folder = altered({})
    (tmp_path / "secret").write_text("mine")
    (folder / name).unlink()
    if content == "link":
        (folder / name).symlink_to(tmp_path / "secret")
    else:
        (folder / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        hub.push(folder, "owner/repo")


def test_what_is_to_be_evaluated_is_looked_through_too(tmp_path):
    """open_clip would have torch make it."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(b"\x80\x02c__builtin__\neval\nX\1\0\0\0001\x85R.")
    with pytest.raises(ValueError, match=r"cannot be loaded: .*wants to run or build __builtin__\.eval"):
        load_model(f"DiffCLIP-nano,{tmp_path / 'x.pt'}")
