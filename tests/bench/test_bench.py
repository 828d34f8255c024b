"""``diffclip bench`` writes figures and a plot, and refuses bad input; no timing is asserted."""

import json
import subprocess
import time

import pytest
import torch

from diffclip_cli.main import main
from diffclip_openclip.bench import measure as bench

NANO = ["bench", "--model", "CLIP-nano-baseline", "--model", "DiffCLIP-nano", "--rounds", "2"]


def test_figures_and_plot(tmp_path, capsys):
    path = tmp_path / "figures.json"
    arguments = [*NANO, "--batch-size", "2", "4", "--image-size", "48", "60", "--output", str(path)]
    assert main(arguments) == 0
    written = json.loads(path.read_text())
    assert written["command"].startswith("diffclip bench --model CLIP-nano-baseline --model DiffCLIP-nano")
    assert written["machine"]["threads"] == torch.get_num_threads()
    assert written["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    rows = written["rows"]
    cells = {(r["model"], r["what"], r["setting"]["batch_size"], r["setting"]["image_size"]) for r in rows}
    assert len(cells) == len(rows) == 2 * 2 * 2 * 2
    for row in rows:
        assert len(row["seconds"]) == 2
        assert row["images_per_second"] == pytest.approx(row["setting"]["batch_size"] * 2 / sum(row["seconds"]))
        assert row["peak_bytes"] > 0
        assert row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
        if row["model"] == "CLIP-nano-baseline":
            assert row["ratio"] == 1.0
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("DiffCLIP-nano |") == 8
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--precision", "amp_bf16"],
        ["--precision", "pure_bf16"],
        ["--grad-checkpointing"],
        ["--forward-only"],
        ["--forward-only", "--busy", "1"],
    ],
    ids=lambda flags: flags[-1],
)
def test_flags(flags):
    assert main([*NANO, "--batch-size", "2", *flags]) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "DiffCLIP-X"], "knows no model 'DiffCLIP-X'; near: DiffCLIP-"),
        (["--device", "cuda:7"], "device 'cuda:7' cannot be used here"),
        (["--device", "potato"], "device 'potato' cannot be used here"),
        (["--rounds", "1"], "quartiles need at least 2"),
        (["--batch-size", "0"], "sizes must be positive, not 0"),
        (["--busy", "-1"], "busy is -1; it is a number of processes"),
        (["--output", "figures.txt"], "does not end in .json"),
    ],
)
def test_bad_input(flags, expected, capsys):
    assert main([*NANO, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_neighbours_run_meanwhile_and_end(monkeypatch):
    started, popen = [], subprocess.Popen

    def start(*arguments, **kwargs):
        started.append(popen(*arguments, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with bench._neighbours(2):
        time.sleep(0.2)
        assert [process.poll() for process in started] == [None, None]
    assert None not in [process.poll() for process in started]


def test_peak_is_what_was_held_at_once():
    held = torch.ones(1_000_000)

    def step():
        first = torch.ones(3_000_000)
        del first
        second = held + 1
        return second + torch.ones(2_000_000)[:1_000_000]

    # 12 MB; then 4 + 8 + 4 MB
    assert bench._peak_bytes(step, "cpu") == pytest.approx(16e6, rel=0.01)
