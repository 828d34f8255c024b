"""Model directories: read by the hosts, moved, copied, and corrected."""

import json
import re
import shutil
import weakref
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import load_directory, same_function, save_as_published
from support.common import REPOSITORY
from transformers import AutoModel

from diffclip_cli.main import main
from diffclip_openclip.weights.directory import check_places


def _model(name="DiffCLIP-nano", seed=0):
    torch.manual_seed(seed)
    return open_clip.create_model(name).eval()


@pytest.fixture
def converted(tmp_path) -> Path:
    """DiffCLIP-nano in open_clip's form."""
    checkpoint = save_as_published(_model(), tmp_path / "checkpoint_best.pt")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    return tmp_path / "OUT"


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
        load_directory(moved)
    card, table = (moved / "README.md").read_text(), (REPOSITORY / "docs" / "install.md").read_text()
    quoted = (
        re.search(r'where that is gone: "(.+?) \.\.\."', card)[1],
        re.search(r"`OSError: (Repo .+?) \.\.\.`", table)[1],
    )
    assert all(str(failed.value).startswith(beginning) for beginning in quoted)
    assert "diffclip convert DIR DIR" in card
    assert main(["convert", str(moved), str(tmp_path / "COPY")]) == 0
    assert same_function(load_directory(tmp_path / "COPY"), _model())
    weights = (moved / "open_clip_model.safetensors").stat()
    assert main(["convert", str(moved), str(moved)]) == 0
    assert str(moved) in capsys.readouterr().out
    assert (moved / "open_clip_model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert same_function(load_directory(moved), _model())


def _lambda_inits(model):
    towers = model.visual.trunk.blocks, model.text.transformer.layers
    return [[layer.attn.lambda_init for layer in tower] for tower in towers]


def test_a_copy_is_read_by_its_own_text_config(converted, tmp_path):
    """Also when the original has been made again as another model, which open_clip would read."""
    copy = shutil.copytree(converted, tmp_path / "copy")
    checkpoint = save_as_published(_model(), tmp_path / "other.pt")
    assert main(["convert", str(checkpoint), str(converted), "--overwrite", "--variant", "dynamic"]) == 0
    assert _lambda_inits(load_directory(copy))[1] == pytest.approx(
        [0.2, 0.8 - 0.6 * 2.718281828459045**-0.3]
    )  # the original's
    with pytest.raises(ValueError, match=rf"was moved or copied from {converted}, .*: diffclip convert {copy} {copy}"):
        check_places(copy)
    assert main(["convert", str(copy), str(tmp_path / "AGAIN")]) == 0
    assert _lambda_inits(load_directory(tmp_path / "AGAIN")) == [[0.8] * 4, [0.8] * 2]
    assert main(["convert", str(copy), str(copy)]) == 0
    check_places(copy)
    assert _lambda_inits(load_directory(copy)) == [[0.8] * 4, [0.8] * 2]


def test_a_text_tower_of_another_place_by_intent(converted, tmp_path):
    """As open_clip itself writes directories: no text config of their own, but the place of one or a hub's name."""
    (converted / "config.json").rename(tmp_path / "config.json")
    shutil.move(converted, tmp_path / "moved")
    check_places(tmp_path / "moved")
    path = tmp_path / "moved" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "owner/repo"
    path.write_text(json.dumps(config))
    (tmp_path / "config.json").rename(tmp_path / "moved" / "config.json")
    check_places(tmp_path / "moved")


def test_a_plain_text_tower_needs_no_repair(tmp_path):
    checkpoint = save_as_published(_model("DiffCLIP-nano-vision"), tmp_path / "c.pt")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    shutil.move(tmp_path / "OUT", tmp_path / "moved")
    assert same_function(load_directory(tmp_path / "moved"), _model("DiffCLIP-nano-vision"))


def test_what_was_written_is_let_go_of_before_it_is_loaded_back(tmp_path, monkeypatch):
    """So that a model of 4 GB takes 4 and not 12; most tensors of the authors' files are not even copied."""
    from diffclip_openclip.weights import conversion, directory

    alive, create, load = [], directory.create_mapped, conversion.load_source

    def watched(*arguments):
        source = load(*arguments)
        alive.extend(weakref.ref(tensor) for tensor in source.state_dict.values())
        return source

    def counted(folder):
        assert len(alive) > 50
        assert not [reference for reference in alive if reference() is not None]
        return create(folder)

    monkeypatch.setattr(conversion, "load_source", watched)
    monkeypatch.setattr(directory, "create_mapped", counted)
    checkpoint = save_as_published(_model(), tmp_path / "checkpoint_best.pt")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    assert same_function(load_directory(tmp_path / "OUT"), _model())
