"""``diffclip bench``: what it writes and refuses. No timing is asserted."""

import json
import sys

import pytest
import torch
from support.common import REPOSITORY, run_host, simulates_cuda

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
    [["--precision", "amp_bf16"], ["--precision", "pure_bf16"], ["--grad-checkpointing"], ["--forward-only"]],
    ids=lambda flags: flags[-1],
)
def test_flags(flags):
    assert main([*NANO, "--batch-size", "2", *flags]) == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--model", "DiffCLIP-X"], "knows no model DiffCLIP-X"),
        (["--device", "cuda:7"], "device 'cuda:7' cannot be used here"),
        (["--device", "potato"], "device 'potato' cannot be used here"),
        (["--rounds", "1"], "quartiles need at least 2"),
        (["--batch-size", "0"], "sizes must be positive, not 0"),
        (["--output", "figures.txt"], "does not end in .json"),
    ],
)
def test_bad_input(flags, expected, capsys):
    assert main([*NANO, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_peak_is_what_was_held_at_once():
    held = torch.ones(1_000_000)

    def step():
        first = torch.ones(3_000_000)
        del first
        second = held + 1
        return second + torch.ones(2_000_000)[:1_000_000]

    # 12 MB; then 4 + 8 + 4 MB
    assert bench._peak_bytes(step, "cpu") == pytest.approx(16e6, rel=0.01)


COUNT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import kernel_count
plain, differential = (kernel_count.count(name, 2) for name in ("CLIP-nano-baseline", "DiffCLIP-nano"))
print(json.dumps([differential.calls - plain.calls, differential.bytes - plain.bytes]))
"""


@simulates_cuda
def test_accelerators_run_no_kernels_over_heads_but_these(tmp_path):
    """Counted in a pass of CUDA tensors without data, under autocast: no copy, nothing in float32."""
    printed = run_host([sys.executable, "-c", COUNT, str(REPOSITORY / "benchmarks")], tmp_path).stdout
    calls, size = json.loads(printed.splitlines()[-1])
    layers, heads = 4, 2 * 17 * 128 * 2  # batch, tokens, C, bytes
    assert calls["addcmul"] == calls["_fused_rms_norm"] == calls["_scaled_dot_product_efficient_attention"] == layers
    weight_and_statistics = 2 * 64 + 2 * 17 * 2 * 4  # 2 d in half precision; samples, tokens, pairs
    assert size["_fused_rms_norm"] == layers * (2 * heads + weight_and_statistics)
    assert size["addcmul"] == layers * (3 * heads + 2)  # and lambda
    assert all(
        size[name] < layers * heads
        for name in size.keys() - {"addcmul", "_fused_rms_norm", "_scaled_dot_product_efficient_attention"}
    )
