"""Model directories and runs of earlier versions: as 0.1.0 wrote them before directories had a tokenizer.

``data/`` has what they held beside weights, which are drawn here. PLACE stands for the directory's own path.
"""

import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from support.checkpoints import load_directory, same_function
from support.folders import tree
from transformers import AutoModel

from diffclip_cli.main import main
from diffclip_openclip.weights.loading import load_model

DATA = Path(__file__).parent / "data"
NAMES = {"diffclip-nano-dynamic": "DiffCLIP-nano-dynamic", "diffclip-nano-vision": "DiffCLIP-nano-vision"}
NEW = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}


def _model(name):
    torch.manual_seed(0)
    return open_clip.create_model(name).eval()


@pytest.fixture(params=NAMES)
def old(request, tmp_path):
    """The directory, and the model that is in it."""
    folder, model = shutil.copytree(DATA / request.param, tmp_path / "OLD"), _model(NAMES[request.param])
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text().replace("PLACE", str(folder)))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    return folder, model


def test_the_hosts_and_evaluate_read_it(old):
    folder, model = old
    assert same_function(load_directory(folder), model)
    loaded = load_model(f"local-dir:{folder}")
    assert same_function(loaded.model, model)
    assert loaded.architecture == NAMES[f"diffclip-{loaded.architecture.removeprefix('DiffCLIP-')}"]
    assert loaded.preprocess_cfg["interpolation"] == "bilinear"
    assert loaded.preprocess_cfg["mean"] == [0.485, 0.456, 0.406]
    assert isinstance(open_clip.get_tokenizer(f"local-dir:{folder}"), open_clip.SimpleTokenizer)


def test_transformers_reads_its_text_tower(tmp_path):
    model, folder = _model("DiffCLIP-nano-dynamic"), shutil.copytree(DATA / "diffclip-nano-dynamic", tmp_path / "OLD")
    save_file(model.state_dict(), folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    text = AutoModel.from_pretrained(folder).state_dict()
    expected = model.text.transformer.state_dict()
    assert text.keys() == expected.keys()
    assert all(torch.equal(text[key], tensor) for key, tensor in expected.items())


def test_convert_corrects_its_place_and_adds_nothing(old, tmp_path):
    folder, model = old
    moved = folder.rename(tmp_path / "MOVED")
    before = tree(moved)
    assert main(["convert", str(moved), str(moved)]) == 0
    assert {path: content for path, content in tree(moved).items() if path != "open_clip_config.json"} == {
        path: content for path, content in before.items() if path != "open_clip_config.json"
    }
    assert same_function(load_directory(moved), model)


def test_convert_makes_a_directory_of_today_of_it(old, tmp_path):
    folder, model = old
    assert main(["convert", str(folder), str(tmp_path / "NEW")]) == 0
    assert tree(tmp_path / "NEW").keys() == tree(folder).keys() | NEW
    assert same_function(load_directory(tmp_path / "NEW"), model)
    assert main(["convert", str(tmp_path / "NEW"), str(folder), "--overwrite"]) == 0
    assert tree(folder).keys() == tree(tmp_path / "NEW").keys()
    assert same_function(load_directory(folder), model)


def test_a_run_of_the_trainer(tmp_path):
    """Of open_clip_train 3.3.0, with all of its arguments."""
    run, model = shutil.copytree(DATA / "run", tmp_path / "run"), _model("DiffCLIP-nano")
    (run / "checkpoints").mkdir()
    checkpoint = run / "checkpoints" / "epoch_1.pt"
    torch.save({"epoch": 1, "name": "run", "state_dict": model.state_dict()}, checkpoint)
    loaded = load_model(f"DiffCLIP-nano,{checkpoint}")
    assert same_function(loaded.model, model)
    assert (loaded.preprocess_cfg["interpolation"], loaded.spec.label) == ("bilinear", "DiffCLIP-nano run epoch_1")
    assert main(["convert", str(checkpoint), str(tmp_path / "OUT")]) == 0
    assert same_function(load_directory(tmp_path / "OUT"), model)
