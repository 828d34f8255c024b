"""Define the cells of gpu.py: tests, whole models, one layer's attention, and training on the emoji."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import gpu_attention
import open_clip
import torch
import torch.nn.functional as F

from diffclip_openclip.bench import measure

REPOSITORY = Path(__file__).resolve().parents[1]
Rows = dict[str, dict[str, Any]]  # figures by row of the table
Cell = Callable[[], Rows]
_TESTS_OF_A_CELL = 16
# least cosine of features with those of float32 on the CPU
_LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.99, "float16": 0.999}
# throughput and memory of a train step over the baseline's, which is the first model
_LEAST_RATIO, _MOST_MEMORY = {True: 0.98, False: 0.93}, 1.05  # by whether it is compiled


@dataclass(frozen=True)
class Options:
    """Hold what the command line asks for."""

    device: str
    rounds: int
    output: Path
    reduced: bool  # small sizes, to try the command itself
    minutes: float  # that one call may take, about


def models_of(size: str) -> tuple[str, ...]:
    """Return the models that are compared at one size, the baseline first."""
    return f"CLIP-{size}-baseline", f"DiffCLIP-{size}", f"DiffCLIP-{size}-vision", f"DiffCLIP-V2-{size}"


def test_cells(options: Options) -> dict[str, Cell]:
    """Return the tests that need a GPU, some in each cell, and each model's features beside the CPU's."""
    sizes = ["nano"] if options.reduced else ["B-16"]
    cells: dict[str, Cell] = {
        f"{name}, {dtype}": lambda name=name, dtype=dtype: compare_features(name, dtype, options.device)  # type: ignore[misc]
        for name, dtype in product([name for size in sizes for name in models_of(size)], _LEAST_COSINE)
    }
    tests = _pytest("--collect-only", "-q").stdout.splitlines()
    tests = [line for line in tests if "::" in line]
    if options.reduced:
        tests = tests[:: len(tests) - 1]
    for first in range(0, len(tests), _TESTS_OF_A_CELL):
        chunk = tests[first : first + _TESTS_OF_A_CELL]
        cells[f"tests {first + 1} to {first + len(chunk)}"] = lambda chunk=chunk: run_tests(chunk)  # type: ignore[misc]
    return cells


def _pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    tests = [] if any("::" in argument for argument in arguments) else ["tests/attention/test_cuda.py"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments, *tests]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def run_tests(tests: list[str]) -> Rows:
    """Return how many tests passed, failed and were skipped, and the last lines where one failed."""
    ran = _pytest("-q", "--tb=short", *tests)
    lines = ran.stdout.splitlines()
    row: dict[str, Any] = {"summary": lines[-1] if lines else ran.stderr[-200:], "passed": ran.returncode == 0}
    if ran.returncode:
        row["failed"] = "; ".join(line for line in lines if line.startswith(("FAILED", "ERROR")))[:2000]
    return {"pytest": row}


def compare_features(name: str, dtype: str, device: str) -> Rows:
    """Return the least cosine of a model's features on the device with those in float32 on the CPU."""
    torch.manual_seed(0)
    model: Any = open_clip.create_model(name, output_dict=True).eval()
    images, texts = torch.randn(4, 3, *model.visual.image_size), torch.randint(1, 49407, (4, model.context_length))
    kind = getattr(torch, dtype)
    with torch.no_grad():
        expected = model(images, texts)
        model.to(device)
        with torch.autocast(torch.device(device).type, kind, enabled=kind != torch.float32):
            found = model(images.to(device), texts.to(device))
    rows = {}
    for what in ("image_features", "text_features"):
        cosine = float(F.cosine_similarity(found[what].float().cpu(), expected[what]).min())
        rows[what] = {"cosine": cosine, "passed": cosine >= _LEAST_COSINE[dtype]}
    return rows


def model_cells(options: Options) -> dict[str, Cell]:
    """Return whole models by size, pixels, batch, precision and compilation, what matters most first."""
    if options.reduced:
        return {"nano": lambda: compare_models(models_of("nano"), measure.Setting(options.device, batch_size=2), 2)}
    cells: dict[str, Cell] = {}
    for size, pixels, batch_size, precision, compiled in product(
        ("B-16", "L-14", "H-14"), (None, 336), (256, 64), ("amp_bf16", "fp32"), (False, True)
    ):
        setting = measure.Setting(options.device, precision, compiled, False, batch_size, pixels)
        name = f"{size}, {pixels or 224} px, batch {batch_size}, {precision}, {'compiled' if compiled else 'eager'}"
        cells[name] = lambda size=size, setting=setting: compare_models(models_of(size), setting, options.rounds)  # type: ignore[misc]
    return cells


def compare_models(models: tuple[str, ...], setting: measure.Setting, rounds: int) -> Rows:
    """Return each model's throughput, its ratio to the first one's, and its memory; and whether targets are met."""
    rows: Rows = {}
    for what in measure.PASSES:
        try:
            found = measure.bench(models, [setting], rounds=rounds, passes=[what])
        except ValueError as error:  # memory is short
            rows[what] = {"skipped": str(error)[:300]}
            continue
        for row in found:
            memory = row.peak_bytes / found[0].peak_bytes if row.peak_bytes and found[0].peak_bytes else None
            met = row.ratio >= _LEAST_RATIO[setting.compile] and (memory is None or memory <= _MOST_MEMORY)
            rows[f"{row.model}, {what}"] = {
                "images/s": row.images_per_second,
                "ratio": row.ratio,
                "quartiles": list(row.ratio_quartiles),
                "peak bytes": row.peak_bytes,
                "memory": memory,
                "meets the targets": met,
            }
    return rows


def attention_cells(options: Options) -> dict[str, Cell]:
    """Return one layer's attention by tokens, head size and batch, in bfloat16."""
    lengths = [(50, False), (77, True), (197, False), (257, False), (577, False)]  # and whether they are causal
    head_dims, batch_sizes, dtype, heads = [64, 80], [256, 32], torch.bfloat16, 12
    if options.reduced:
        lengths, head_dims, batch_sizes, dtype, heads = [(7, False), (5, True)], [4], [2], torch.float32, 4
    cells: dict[str, Cell] = {}
    for (num_tokens, is_causal), head_dim, batch_size in product(lengths, head_dims, batch_sizes):
        layer = gpu_attention.Layer(num_tokens, head_dim, batch_size, is_causal, heads)
        cells[", ".join(f"{key} {value}" for key, value in asdict(layer).items())] = lambda layer=layer: (
            gpu_attention.measure(layer, device=options.device, dtype=dtype, rounds=options.rounds)
        )  # type: ignore[misc]
    return cells


def _finish(command: list[str], seconds: float) -> None:
    """Run a command, and end it with all that it started once the time is over.

    Raises:
        RuntimeError: it failed.
        TimeoutExpired: the time was over.
    """
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {errors[-2000:]}")


def training_cells(options: Options) -> dict[str, Cell]:
    """Return the comparison of examples/emoji, whose own runs are resumed; a seed's trainings in each cell."""
    script = REPOSITORY / "examples" / "emoji" / "compare.py"
    runs = options.output / "emoji"

    def train(seeds: list[int]) -> Rows:
        flags = ["--jobs", str(max(1, (os.cpu_count() or 1) // 2)), *(["--epochs", "1"] if options.reduced else [])]
        command = [sys.executable, str(script), "--seeds", *map(str, seeds), *flags, "--output", str(runs)]
        _finish(command, 60 * options.minutes)
        return {"compare.py": {"comparison": str(runs / "report" / "tables" / "training_runs.md"), "passed": True}}

    return {"seeds 0 and 1": lambda: train([0, 1]), "seeds 0 to 2": lambda: train([0, 1, 2])}
