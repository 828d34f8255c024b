"""A training run's folder, as open_clip's trainer writes it."""

from pathlib import Path

import pytest
import torch

from diffclip_openclip.weights.directory import PREPROCESS
from diffclip_openclip.weights.runs import TrainingRun


def _run(folder: Path, params: str, *epochs: str) -> TrainingRun:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text(params)
    for epoch in epochs:
        torch.save({"epoch": 7, "state_dict": {"a": torch.ones(1)}}, folder / "checkpoints" / f"epoch_{epoch}.pt")
    return TrainingRun.at(folder)


def test_a_run_is_found_by_any_of_its_paths(tmp_path):
    run = _run(tmp_path / "my-run", "model: ViT-B-32\nlr: 0.001\nimage_mean: [0.1, 0.2, 0.3]\nname: my: run\n", "1")
    assert run == TrainingRun.at(run.checkpoint_folder)
    assert run == TrainingRun.of_checkpoint(run.checkpoint_folder / "epoch_1.pt")
    assert run.is_there
    assert run.name == "my-run"
    assert run.model == "ViT-B-32"
    assert run.params == {"model": "ViT-B-32", "lr": 0.001, "image_mean": [0.1, 0.2, 0.3], "name": "my: run"}


def test_checkpoints_that_lie_elsewhere_are_of_a_run_of_which_nothing_is_known(tmp_path):
    (tmp_path / "params.txt").write_text("model: ViT-B-32\n")
    folder = tmp_path / "kept"
    folder.mkdir()
    torch.save({"state_dict": {"a": torch.ones(1)}}, folder / "epoch_3.pt")
    run = TrainingRun.of_checkpoint(folder / "epoch_3.pt")
    assert (run.name, run.model, run.params, run.preprocess_cfg) == ("", None, {}, None)
    assert run.checkpoints() == {3: folder / "epoch_3.pt"}
    assert TrainingRun.at(folder).is_there
    assert not TrainingRun.at(tmp_path / "none").is_there


def test_checkpoints_come_in_order_and_the_latest_counts_once(tmp_path):
    run = _run(tmp_path / "a", "", "10", "9", "latest", "best")
    folder = run.checkpoint_folder
    assert list(run.checkpoints().items()) == [
        (7, folder / "epoch_latest.pt"),
        (9, folder / "epoch_9.pt"),
        (10, folder / "epoch_10.pt"),
    ]
    run = _run(tmp_path / "b", "", "7", "latest")
    assert list(run.checkpoints()) == [7]
    assert run.checkpoints()[7].name == "epoch_7.pt"
    with pytest.raises(FileNotFoundError, match=r"there is no epoch_1\.pt or the like, nor epoch_latest\.pt, in"):
        _run(tmp_path / "c", "").checkpoints()


def test_preprocessing(tmp_path):
    """What was given counts before the pretrained tag's, and that before the trainer's own."""
    assert _run(tmp_path / "a", "model: DiffCLIP-nano\n").preprocess_cfg == PREPROCESS["openai"]
    given = "model: DiffCLIP-nano\nimage_mean: [0.5, 0.5, 0.5]\nimage_std: None\nimage_interpolation: bilinear\n"
    expected = PREPROCESS["openai"] | {"mean": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    assert _run(tmp_path / "b", given).preprocess_cfg == expected
    tagged = _run(tmp_path / "c", "model: ViT-B-32\npretrained: openai\nimage_std: [1, 1, 1]\n").preprocess_cfg
    assert tagged == PREPROCESS["openai"] | {"mean": tagged["mean"], "std": [1, 1, 1]}
    assert _run(tmp_path / "d", "model: local-dir:/gone\n").preprocess_cfg is None


@pytest.mark.parametrize("value", ["(" * 50_000, "-" * 50_000, "[" * 200, "{[]: 1}", "1" * 5000, "10" + "0" * 400])
def test_params_that_python_cannot_read_are_text(value, tmp_path):
    params = _run(tmp_path / "a", f"model: DiffCLIP-nano\nnote: {value}\n").params
    assert params["model"] == "DiffCLIP-nano"
    assert str(params["note"]) == value


def test_params_as_large_as_no_trainer_writes_them(tmp_path):
    with pytest.raises(ValueError, match=r"params\.txt has \d+ bytes; the trainer writes no more than"):
        _run(tmp_path / "a", "model: x\n" * 200_000).params  # noqa: B018
