"""``diffclip evaluate`` on what cannot be evaluated: settings, models, data, packages."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support.common import write_tar
from support.evaluation_data import arguments, result_files

from diffclip_cli.main import main
from diffclip_openclip.evaluation.evaluator import Compute


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "the batch size is 0; it must be 1 or more"),
        ({"workers": -1}, "there are to be -1 workers"),
        ({"device": "mps"}, "torch finds no device 'mps' here"),
    ],
)
def test_settings_that_cannot_be(settings, message, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        Compute(**settings)


@pytest.mark.parametrize(("free", "workers"), [(64 << 20, 1), (200 << 20, 4), (1 << 30, 8), (0, 0)])
def test_as_many_workers_as_shared_memory_has_room_for(free, workers, monkeypatch):
    """Docker gives 64 MB, which is three batches of 32 images of 224 x 224."""
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    compute = Compute(workers=8, batch_size=32).fitted_to_shared_memory(3 * 224 * 224 * 4)
    assert compute == Compute(workers=workers, batch_size=32)
    assert Compute(workers=0).fitted_to_shared_memory(1 << 40).workers == 0


@pytest.mark.parametrize("wrong", ["NOSUCH", "local-dir:{},x", "DiffCLIP-nano-dynamic,{}/checkpoints/epoch_2.pt"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_wrong_model_is_told_before_anything_runs(some, spec, checkpoint, wrong, more, tmp_path, capsys):
    command_line = arguments(spec, some, tmp_path / "RESULTS")
    assert main(["evaluate", *command_line, *more, "--model", wrong.format(checkpoint.parents[1])]) == 2
    captured = capsys.readouterr()
    assert "diffclip evaluate: error: " in captured.err
    assert captured.out == ""
    assert not (tmp_path / "RESULTS").exists()


def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(suite, spec, checkpoint, tmp_path, capsys):
    for name in ("mmvp", "flickr8k"):
        shutil.copytree(suite / name, tmp_path / "data" / name)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    command_line = arguments(f"DiffCLIP-nano,{cut}", tmp_path / "data", tmp_path / "RESULTS")
    assert main(["evaluate", *command_line, "--model", spec]) == 2
    captured = capsys.readouterr()
    assert "2 of 4 failed" in captured.err
    assert f"{cut} cannot be loaded" in captured.err
    assert captured.out.count("failed: ") == 1
    assert {path.stem for path in result_files(tmp_path / "RESULTS")} == {"mmvp", "flickr8k"}


def test_no_data_at_all(spec, tmp_path, capsys):
    assert main(["evaluate", *arguments(spec, tmp_path, tmp_path / "RESULTS")]) == 2
    assert "has none of the paper's data sets; see docs/data.md" in capsys.readouterr().err


def test_a_failure_does_not_stop_the_others(suite, spec, tmp_path, capsys):
    for name in ("pets", "mmvp", "flickr8k"):
        shutil.copytree(suite / name, tmp_path / "data" / name)
    write_tar(tmp_path / "data" / "pets" / "train" / "0.tar", [("a.webp", b"no image"), ("a.cls", b"0")])
    assert main(["evaluate", *arguments(spec, tmp_path / "data", tmp_path / "RESULTS")]) == 2
    assert "1 of 3 failed" in capsys.readouterr().err
    assert {path.stem for path in (tmp_path / "RESULTS").rglob("*.json")} == {"mmvp", "flickr8k"}


def test_packages_of_the_extra_are_named(tmp_path):
    code = (
        "import sys; sys.modules['webdataset'] = None\n"
        "from diffclip_cli.main import main\n"
        "main(['evaluate', '--model', 'a', '--data', 'b', '--output', 'c'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "needs webdataset" in done.stderr
    assert "pip install 'diffclip-openclip[eval]'" in done.stderr
