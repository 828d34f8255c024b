"""Write the figures of ``diffclip bench`` as a table, a JSON file that names the machine, and a plot."""

import contextlib
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from diffclip_openclip.bench.measure import BenchResult
from diffclip_openclip.extras import require
from diffclip_openclip.files import check_place, staged

_PACKAGES = ("diffclip-openclip", "open_clip_torch", "timm", "torch", "transformers")


def machine(device: str) -> dict[str, Any]:
    """Return where figures come from: processor or accelerator, threads, versions, date."""
    kind = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),  # of torch's threads
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output path before anything is measured; errors are those of :func:`write_outputs`."""
    if path.suffix != ".json":
        raise ValueError(f"{path} does not end in .json; the plot goes beside it, as .png")
    check_place(path, overwrite)
    check_place(path.with_suffix(".png"), overwrite)
    require("the plot", "plot", "matplotlib")


def write_outputs(measured: Sequence[BenchResult], *, command: str, path: Path, overwrite: bool = False) -> None:
    """Write the figures to ``path`` (JSON) and their plot beside it (PNG).

    Args:
        command: the command line that made them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``path`` does not end in .json.
        FileExistsError: one of the two exists, and ``overwrite`` is not given.
    """
    check_output(path, overwrite)
    rows = [asdict(row) for row in measured]
    content = {"command": command, "machine": machine(measured[0].setting.device), "rows": rows}
    with staged(path, overwrite) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with staged(path.with_suffix(".png"), overwrite) as new:
        plot(measured, new)


def table(measured: Sequence[BenchResult]) -> str:
    """Return the figures as a Markdown table."""
    lines = [
        "| pass | batch | pixels | model | ms | images/s | ratio | quartiles | peak MB |",
        "|---|---|---|---|" + "---:|" * 5,
    ]
    for row in measured:
        low, high = row.ratio_quartiles
        peak = "–" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}"
        lines.append(
            f"| {row.what} | {row.setting.batch_size} | {row.setting.image_size or ''} | {row.model} "
            f"| {1000 * statistics.median(row.seconds):.1f} | {row.images_per_second:.1f} "
            f"| {row.ratio:.3f} | {low:.3f} – {high:.3f} | {peak} |"
        )
    return "\n".join(lines)


def plot(measured: Sequence[BenchResult], path: Path) -> None:
    """Plot ratios to the first model with their quartiles, by model, or by batch or image size where these vary."""
    from matplotlib import pyplot

    passes = list(dict.fromkeys(row.what for row in measured))
    varying = [by for by in ("image_size", "batch_size") if len({getattr(row.setting, by) for row in measured}) > 1]
    figure, axes = pyplot.subplots(
        1, len(passes), figsize=(5 * len(passes), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for what, axis in zip(passes, axes[0], strict=True):
        for model in dict.fromkeys(row.model for row in measured):
            own = [row for row in measured if (row.model, row.what) == (model, what)]
            x = [str(getattr(row.setting, varying[0])) if varying else model for row in own]
            errors = [
                [row.ratio - row.ratio_quartiles[0] for row in own],
                [row.ratio_quartiles[1] - row.ratio for row in own],
            ]
            axis.errorbar(x, [row.ratio for row in own], errors, label=model, marker="o", capsize=3)
        axis.set(title=what, xlabel=varying[0].replace("_", " ") if varying else "")
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel(f"throughput over {measured[0].model}")
    if varying:
        axes[0, -1].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
