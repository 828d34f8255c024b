"""``diffclip lambdas`` tables and plots the lambda of every layer, over training where there is a run."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffclip_openclip.explain import lambdas, lambdas_over_training
from diffclip_openclip.explain.lambda_report import lambda_training_figure, lambdas_figure, show_lambdas


def _run(specs, folder, epochs=3):
    """Write a run's folder, with checkpoints as open_clip's trainer writes them."""
    state = torch.load(specs["DiffCLIP-nano"].partition(",")[2], weights_only=True)
    (folder / "checkpoints").mkdir(parents=True)
    for epoch in range(1, epochs + 1):
        for key in state:
            if key.endswith("lambda_q1"):
                state[key] += 0.1 * epoch
        torch.save({"epoch": epoch, "state_dict": state}, folder / "checkpoints" / f"epoch_{epoch}.pt")
    return folder


def test_lambdas_are_tabled_layer_by_layer(specs):
    path = specs["DiffCLIP-nano"].partition(",")[2]
    lines = show_lambdas(path)
    rows = [line.split() for line in lines[1:]]
    assert [row[:2] for row in rows] == [["image", str(i)] for i in range(4)] + [["text", "0"], ["text", "1"]]
    for row, layer in zip(rows, lambdas(path), strict=True):
        assert row[2] == f"{layer.lambda_:.4f}"
        lambda_, exp1, exp2, init = map(float, row[2:])
        assert lambda_ == pytest.approx(exp1 - exp2 + init, abs=2e-4)
        assert init == 0.8


def test_lambdas_over_a_run(specs, tmp_path):
    run = _run(specs, tmp_path / "run")
    lines = show_lambdas(str(run), tmp_path / "run.png")
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    epochs = lambdas_over_training(run)
    text = [row.lambda_ for row in epochs[2].layers if row.tower == "text"]
    assert f"{np.mean(text):.4f} ({min(text):.4f}, {max(text):.4f})" in lines[3]
    assert lines[5] == "after epoch 3:"
    assert lines[6:-1] == show_lambdas(str(run / "checkpoints" / "epoch_3.pt"))
    assert lines[-1] == str(tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as image:
        assert image.width > 1000


def test_lambda_plots_show_the_values(specs, tmp_path):
    run = lambdas_over_training(_run(specs, tmp_path / "run"))
    image, text = lambda_training_figure(run).axes
    assert [len(axis.lines) for axis in (image, text)] == [4, 2]
    expected = [row.lambda_ for epoch in run for row in epoch.layers if (row.tower, row.layer) == ("image", 2)]
    assert image.lines[2].get_ydata() == pytest.approx(expected)
    assert list(image.lines[2].get_xdata()) == [1, 2, 3]
    [axis] = lambdas_figure(run[0].layers).axes
    shown = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert shown["text tower"] == pytest.approx([row.lambda_ for row in run[0].layers if row.tower == "text"])
    assert list(shown["image: λ_init"]) == [0.8] * 4


def test_a_run_of_one_checkpoint_is_plotted_by_layer(specs, tmp_path):
    run = _run(specs, tmp_path / "run", epochs=1)
    lines = show_lambdas(str(run), tmp_path / "lambdas.svg")
    assert lines[0].startswith("tower")
    assert "image tower" in (tmp_path / "lambdas.svg").read_text()


def test_lambdas_refuse_what_cannot_be(specs, tmp_path):
    path = specs["DiffCLIP-nano"].partition(",")[2]
    with pytest.raises(ValueError, match=r"out\.json is no picture; end it in \.png or \.svg"):
        show_lambdas(path, tmp_path / "out.json")
    with pytest.raises(ValueError, match="neither tower has differential attention"):
        show_lambdas(specs["CLIP-nano-baseline"].partition(",")[2])
    with pytest.raises(FileNotFoundError):
        show_lambdas(str(tmp_path / "missing.pt"))
    (tmp_path / "out.png").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        show_lambdas(path, tmp_path / "out.png")
    show_lambdas(path, tmp_path / "out.png", overwrite=True)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
