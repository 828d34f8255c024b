"""Models as commands name them: what is loaded, its label, hash and architecture; names that lead nowhere."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from support.common import IS_OPEN_CLIP_3, run_python
from support.evaluation_data import write_directory, write_run
from support.hub_stand_in import HubStandIn

from diffclip_openclip.weights.directory import write_place
from diffclip_openclip.weights.loading import LoadedModel, load_model
from diffclip_openclip.weights.spec import ModelSpec, architecture_of_spec, parse_spec


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    return write_directory(tmp_path_factory.mktemp("directories"))


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_model(f"DiffCLIP-nano,{checkpoint}")


def test_preprocessing_is_the_runs(loaded):
    assert loaded.preprocess_cfg["mean"] == [0.1, 0.2, 0.3]
    assert loaded.preprocess_cfg["size"] == (48, 48)
    assert loaded.spec.label == "DiffCLIP-nano a-run epoch_2"


def test_hash_follows_weights_architecture_and_preprocessing(loaded, checkpoint, tmp_path):
    same = shutil.copytree(checkpoint.parents[1], tmp_path / "copy") / "checkpoints" / "epoch_2.pt"
    assert load_model(f"DiffCLIP-nano,{same}").sha256 == loaded.sha256
    (tmp_path / "copy" / "params.txt").unlink()
    hashes = {loaded.sha256, load_model(f"DiffCLIP-nano,{same}").sha256}
    hashes.add(load_model(f"DiffCLIP-nano-dynamic,{same}").sha256)  # lambda_init is no weight
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"]["logit_scale"] += 1
    torch.save(state, same)
    hashes.add(load_model(f"DiffCLIP-nano,{same}").sha256)
    assert len(hashes) == 4


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("DiffCLIP-nan", ValueError, "near: DiffCLIP-nano"),
        ("DiffCLIP-nano", ValueError, "names no weights; give DiffCLIP-nano,CHECKPOINT"),
        ("DiffCLIP-nano,none.pt", FileNotFoundError, "neither a file nor a pretrained tag"),
        ("ViT-B-32,laion9", FileNotFoundError, "its tags: openai"),
        ("local-dir:/none", FileNotFoundError, "no directory /none"),
        ("local-dir:/tmp,openai", ValueError, "local-dir:/tmp brings its own weights; leave out 'openai'$"),
        ("hf-hub:a/b,openai", ValueError, "hf-hub:a/b brings its own weights; leave out 'openai'$"),
        ("local-dir:", ValueError, "Empty path"),
        ("/tmp", ValueError, "no model '/tmp'; it is a directory, so give local-dir:/tmp"),
        (__file__, ValueError, f"it is a file, so give the model that it is of, too: NAME,{__file__}"),
        ("hf://a/b", ValueError, "no model 'hf://a/b'; give hf-hub:a/b if .* diffclip convert hf://a/b DIR"),
        ("./DiffCLIP-nano", ValueError, r"no model '\./DiffCLIP-nano'; near: DiffCLIP-nano"),
    ],
)
def test_names_that_lead_nowhere(spec, error, message):
    with pytest.raises(error, match=message):
        parse_spec(spec)
    with pytest.raises(error, match=message):
        load_model(spec)


@pytest.mark.parametrize("place", ["OUT", "OUT/", "./OUT/.", "{}/OUT/", "my, OUT"])
def test_a_directory_is_called_by_its_name(directory, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("OUT", "my, OUT"):
        shutil.copytree(directory, name)
        write_place(Path(name))
    spec = f"local-dir:{place.format(tmp_path)}"
    assert parse_spec(spec).label == load_model(spec).spec.label == place.strip("./").rpartition("/")[2]


def test_a_checkpoint_behind_a_directory(directory, checkpoint):
    """Of a run that started from it, say."""
    with pytest.raises(ValueError, match="brings its own weights") as error:
        parse_spec(f"local-dir:{directory},{checkpoint}")
    assert f"name its architecture, DiffCLIP-nano-dynamic,{checkpoint}; or make" in str(error.value)
    assert f"diffclip convert {checkpoint} DIR" in str(error.value)


def test_a_directory_that_was_copied_or_moved(directory, tmp_path):
    """open_clip would take the text tower's lambda_init from the original."""
    copy = shutil.copytree(directory, tmp_path / "copy")
    with pytest.raises(ValueError, match=f"copied from .*diffclip convert {copy} {copy}"):
        load_model(f"local-dir:{copy}")
    write_place(copy)
    assert load_model(f"local-dir:{copy}").sha256 == load_model(f"local-dir:{directory}").sha256
    copy.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="moved"):
        load_model(f"local-dir:{tmp_path / 'moved'}")


def test_a_directory_without_weights(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    write_place(copy)
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(OSError, match=f"{copy} has a config.json and no weights"):
        load_model(f"local-dir:{copy}")


def test_a_runs_checkpoint_by_another_name_than_the_runs(checkpoint, directory, tmp_path):
    run = shutil.copytree(checkpoint.parents[1], tmp_path / "run")
    path, params = run / "checkpoints" / "epoch_2.pt", run / "params.txt"
    with pytest.raises(ValueError, match=r"is of DiffCLIP-nano, not of DiffCLIP-nano-dynamic; name that model"):
        load_model(f"DiffCLIP-nano-dynamic,{path}")
    params.write_text(f"model: local-dir:{directory}\n")
    parse_spec(f"DiffCLIP-nano-dynamic,{path}")  # the directory's architecture
    for name, wrong in {
        f"local-dir:{directory}": "DiffCLIP-nano",
        "local-dir:/gone": "DiffCLIP-nano-dynamic",  # nothing tells whether it is
        "hf-hub:owner/model": "DiffCLIP-nano",
        "my-own": "DiffCLIP-nano",
    }.items():
        params.write_text(f"model: {name}\n")
        with pytest.raises(ValueError, match=f"is of {name}, not of {wrong}; .*diffclip convert"):
            parse_spec(f"{wrong},{path}")
    params.write_text("model: ViT-B/32\n")
    parse_spec(f"ViT-B-32,{path}")


def test_architecture_is_that_of_the_weights(directory, loaded, tmp_path):
    assert loaded.architecture == "DiffCLIP-nano"
    assert load_model(f"local-dir:{directory}").architecture == "DiffCLIP-nano-dynamic"
    other = shutil.copytree(directory, tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"intermediate_size": 64}
    (other / "config.json").write_text(json.dumps(config))
    assert architecture_of_spec(ModelSpec(f"local-dir:{other}")) is None


def test_architecture_of_a_model_on_the_hub(directory, tmp_path):
    with HubStandIn(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home", token=hub.token)
        code = (
            "from diffclip_cli.main import main\n"
            "from diffclip_openclip.weights.loading import load_model\n"
            f"main(['push', {str(directory)!r}, 'owner/repo'])\n"
            "model = load_model('hf-hub:owner/repo')\n"
            "print(model.architecture, model.spec.label, model.sha256)"
        )
        printed = run_python(code, tmp_path, **environment).split()
    assert printed[-3:] == ["DiffCLIP-nano-dynamic", "repo", load_model(f"local-dir:{directory}").sha256]


def test_weights_of_another_size_are_told_in_short(checkpoint, tmp_path, monkeypatch):
    """torch's own message has a line for each tensor."""
    monkeypatch.chdir(tmp_path)
    tensors = torch.load(checkpoint, weights_only=True)["state_dict"]
    torch.save({key: tensor[: len(tensor) // 2] if tensor.ndim else tensor for key, tensor in tensors.items()}, "x.pt")
    with pytest.raises(ValueError, match=r"size mismatch for .* and \d+ more such lines") as told:
        load_model("DiffCLIP-nano,x.pt")
    assert len(str(told.value)) < 1000


def test_weights_of_another_model(checkpoint, tmp_path):
    bare = shutil.copy(checkpoint, tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="cannot be loaded; are these weights that model's"):
        load_model(f"CLIP-nano-baseline,{bare}")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(f"DiffCLIP-nano,{cut}")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("DiffCLIP-nano", "0a87b8b213003405"),
        ("DiffCLIP-V2-nano", "9f2ac81d74632dfb"),
        # open_clip's main branch has other modules in a plain text tower, so features of one are computed anew there
        *([("CLIP-nano-baseline", "6d4d393d176f2c85")] if IS_OPEN_CLIP_3 else []),
    ],
)
def test_the_hash_is_that_of_earlier_versions(name, start):
    """Under which they kept features and results."""
    model = open_clip.create_model(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    assert LoadedModel(ModelSpec(name), model, None, None, {"mean": 0.5}).sha256.startswith(start)
