"""ONNX files of both towers."""

import json
import re
import shutil
import sys

import onnx
import onnxruntime
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from diffclip_openclip.registration import config_dir
from diffclip_openclip.weights import onnx as export
from diffclip_openclip.weights.onnx import export_onnx

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def _write_open_clip(folder, name):
    """An open_clip directory with the weights of a new model."""
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    with torch.no_grad():  # a new model's image embeddings differ by less than the comparison would see
        for parameter in model.visual.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    model_cfg = open_clip.get_model_config(name)
    if "hf_model_name" in model_cfg["text_cfg"]:
        shutil.copy(config_dir() / "text" / name / "config.json", folder)
        model_cfg["text_cfg"]["hf_model_name"] = str(folder)
    preprocess_cfg = {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "shortest"}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return _write_open_clip(tmp_path_factory.mktemp("nano") / "model", "DiffCLIP-nano")


@pytest.fixture(scope="module")
def exported(model_folder):
    """The model, and the folder with its export."""
    output = model_folder.parent / "onnx"
    for line, name in zip(export_onnx(model_folder, output), ("image.onnx", "text.onnx"), strict=True):
        assert re.fullmatch(rf"{output / name} differs from PyTorch by at most \d(\.\d)?e-0[678]", line)
    return open_clip.create_model(f"local-dir:{model_folder}").eval(), output


def _run(path, inputs):
    return torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {k: v.numpy() for k, v in inputs.items()})[0])


def _check_towers(model, folder):
    """Batch sizes that the export itself does not try, and captions instead of random tokens."""
    images = torch.rand(5, 3, 48, 48)
    texts = open_clip.get_tokenizer("DiffCLIP-nano", context_length=16)(["a mug", "", "the face of a cat, smiling"] * 2)
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True), model.encode_text(texts, normalize=True)
    actual = _run(folder / "image.onnx", {"pixel_values": images}), _run(folder / "text.onnx", {"input_ids": texts})
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-5)
        torch.testing.assert_close(a.norm(dim=-1), torch.ones(len(a)))
        assert (a[0] - a[1]).abs().max() > 1e-2


def test_towers(exported):
    _check_towers(*exported)


def test_inputs_and_outputs(exported):
    for name, given, got in [
        ("image", ("pixel_values", "tensor(float)", [3, 48, 48]), ("image_embeds", "tensor(float)", [128])),
        ("text", ("input_ids", "tensor(int64)", [16]), ("text_embeds", "tensor(float)", [128])),
    ]:
        session = onnxruntime.InferenceSession(exported[1] / f"{name}.onnx")
        for nodes, (node_name, dtype, shape) in [(session.get_inputs(), given), (session.get_outputs(), got)]:
            assert [(node.name, node.type, node.shape[1:]) for node in nodes] == [(node_name, dtype, shape)]
            assert isinstance(nodes[0].shape[0], str)  # free


def test_metadata(exported):
    model, folder = exported
    for name in ("image", "text"):
        metadata = onnxruntime.InferenceSession(folder / f"{name}.onnx").get_modelmeta().custom_metadata_map
        assert json.loads(metadata.pop("logit_scale")) == model.logit_scale.exp().item()
        assert metadata == {
            "image_mean": json.dumps(MEAN),
            "image_std": json.dumps(STD),
            "image_size": "[48, 48]",
            "interpolation": "bilinear",
            "resize_mode": "shortest",
            "context_length": "16",
        }


def test_files_are_valid_and_tell_nothing_of_the_machine(exported):
    assert {path.name for path in exported[1].iterdir()} == {"image.onnx", "text.onnx"}
    for path in exported[1].iterdir():
        onnx.checker.check_model(path, full_check=True)
        assert b".py" not in path.read_bytes()


def test_plain_model_with_weights_in_a_file_of_their_own(monkeypatch, tmp_path):
    """As models of more than 2 GB have them."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
    folder = _write_open_clip(tmp_path / "model", "CLIP-nano-baseline")
    output = folder / "onnx"
    export_onnx(folder, output)
    assert {path.name for path in output.iterdir()} == {
        *("image.onnx", "image.onnx.data", "text.onnx", "text.onnx.data")
    }
    _check_towers(open_clip.create_model(f"local-dir:{folder}").eval(), output)


@pytest.mark.parametrize("value", [0.1, float("nan")])
def test_difference_from_pytorch_is_refused(value, exported, model_folder):
    encoder = export._Encoder(open_clip.create_model(f"local-dir:{model_folder}").eval(), "encode_image")
    with torch.no_grad():
        encoder.model.visual.head.proj.weight[0] = value
    with pytest.raises(ValueError, match=r"image\.onnx differs from PyTorch by .* at batch size 1, more than 0\.0001"):
        export._compare(exported[1] / "image.onnx", encoder, torch.rand(3, 3, 48, 48))


def test_nothing_stays_of_a_failed_export(monkeypatch, model_folder, tmp_path):
    output = tmp_path / "onnx"
    output.mkdir()
    for name in ("image.onnx", "text.onnx"):
        (output / name).write_text("old")
    monkeypatch.setattr(export, "_write", lambda path, *_: path.write_text("new"))

    def compare(path, *_):
        if path.name == "text.onnx":
            raise ValueError("different")
        return 0.0

    monkeypatch.setattr(export, "_compare", compare)
    with pytest.raises(ValueError, match="different"):
        export_onnx(model_folder, output, overwrite=True)
    assert {path.name: path.read_text() for path in output.iterdir()} == {"image.onnx": "old", "text.onnx": "old"}
    with pytest.raises(FileExistsError, match=r"onnx exists; .*--overwrite"):
        export_onnx(model_folder, output)
    monkeypatch.setattr(export, "_compare", lambda *_: 0.0)
    export_onnx(model_folder, output, overwrite=True)
    assert {path.name: path.read_text() for path in output.iterdir()} == {"image.onnx": "new", "text.onnx": "new"}
    assert list(tmp_path.iterdir()) == [output]


def test_a_moved_or_copied_directory_is_named(model_folder, tmp_path):
    """Of a copy, open_clip would export the original's text tower under the copy's weights."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    with pytest.raises(
        ValueError, match=rf"moved or copied from {model_folder}, .*: diffclip convert {folder} {folder}"
    ):
        export_onnx(folder, tmp_path / "out")
    config = (folder / "open_clip_config.json").read_text()
    (folder / "open_clip_config.json").write_text(config.replace(str(model_folder), "/old/place"))
    with pytest.raises(ValueError, match="moved or copied from /old/place"):
        export_onnx(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named(package, monkeypatch, model_folder, tmp_path):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package} .*pip install 'diffclip-openclip\[export\]'"):
        export_onnx(model_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_missing_files_are_named(lost, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / lost).unlink()
    with pytest.raises(FileNotFoundError, match=lost):
        export_onnx(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
