"""Speed and memory of open_clip models beside each other: the work of ``diffclip bench``.

Models take turns, so that a machine whose speed drifts slows all of them alike; what counts are each turn's ratios.
"""

import contextlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from diffclip_openclip.extras import require
from diffclip_openclip.files import check_place, staged

PASSES = ("forward", "train step")
_WARM_UP = 3  # turns that are not counted: compilation, allocator, caches
_PACKAGES = ("diffclip-openclip", "open_clip_torch", "timm", "torch", "transformers")


@dataclass(frozen=True)
class Setting:
    """What models are compared under.

    ``precision`` is "fp32", "amp_bf16" or "pure_bf16", open_clip's names; ``image_size`` is in pixels, None for each
    model's own.
    """

    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    grad_checkpointing: bool = False
    batch_size: int = 8
    image_size: int | None = None


@dataclass(frozen=True)
class Row:
    """One model's figures in one setting.

    ``seconds`` are the turns'. ``ratio`` is the throughput over the first model's: the median over turns, with the
    quartiles in ``ratio_quartiles``. ``peak_bytes`` is what a pass allocates at most, on top of what was there.
    """

    model: str
    what: str
    setting: Setting
    seconds: list[float]
    images_per_second: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    peak_bytes: int


def bench(models: Sequence[str], settings: Iterable[Setting], rounds: int, passes: Sequence[str] = PASSES) -> list[Row]:
    """Measure ``models`` against the first of them in each setting and pass.

    A train step is forward, contrastive loss, backward and a step of AdamW.

    Raises:
        ValueError: an unknown model, a device that is not there, or fewer than two rounds.
    """
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}; quartiles need at least 2")
    if unknown := [name for name in models if ":" not in name and name not in open_clip.list_models()]:
        raise ValueError(f"open_clip knows no model {', '.join(unknown)}; open_clip.list_models() lists all")
    return [row for setting in settings for what in passes for row in _compare(models, setting, what, rounds)]


def _compare(models: Sequence[str], setting: Setting, what: str, rounds: int) -> list[Row]:
    steps = [_step(name, setting, what) for name in models]
    peaks = [_peak_bytes(step, setting.device) for step in steps]
    seconds: list[list[float]] = [[] for _ in steps]
    title = f"{what}, batch {setting.batch_size}" + (f", {setting.image_size} px" if setting.image_size else "")
    for turn in tqdm(range(_WARM_UP + rounds), desc=title, leave=False):
        for times, step in zip(seconds, steps, strict=True):
            start = time.perf_counter()
            step()
            _wait(setting.device)
            if turn >= _WARM_UP:
                times.append(time.perf_counter() - start)
    rows = []
    for name, times, peak in zip(models, seconds, peaks, strict=True):
        ratios = [base / own for base, own in zip(seconds[0], times, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        throughput = setting.batch_size / statistics.median(times)
        rows.append(Row(name, what, setting, times, throughput, statistics.median(ratios), (low, high), peak))
    return rows


def _step(name: str, setting: Setting, what: str) -> Callable[[], object]:
    torch.manual_seed(0)
    device = torch.device(setting.device)
    precision = setting.precision if setting.precision == "pure_bf16" else "fp32"
    model: Any = open_clip.create_model(
        name, precision=precision, device=device, force_image_size=setting.image_size, output_dict=True
    )
    dtype = torch.bfloat16 if setting.precision == "pure_bf16" else torch.float32
    images = torch.randn(setting.batch_size, 3, *model.visual.image_size, device=device, dtype=dtype)
    texts = torch.randint(1, 49407, (setting.batch_size, model.context_length), device=device)
    if setting.grad_checkpointing:
        model.set_grad_checkpointing()
    run = torch.compile(model) if setting.compile else model
    autocast: Callable[[], Any] = contextlib.nullcontext
    if setting.precision == "amp_bf16":

        def autocast() -> Any:
            return torch.autocast(device.type, torch.bfloat16)

    if what == "forward":
        model.eval()

        def forward() -> object:
            with torch.no_grad(), autocast():
                return run(images, texts)

        return forward

    model.train()  # text towers made from a config are in evaluation mode, in which transformers checkpoints nothing
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    loss = open_clip.ClipLoss()

    def train_step() -> object:
        optimizer.zero_grad()
        with autocast():
            output = run(images, texts)
            value = loss(output["image_features"], output["text_features"], output["logit_scale"])
        value.backward()
        return optimizer.step()

    return train_step


def _wait(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_bytes(step: Callable[[], object], device: str) -> int:
    """What a step allocates at most on top of what was there, parameters and optimizer state being there already."""
    step()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        record.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    allocated = [change["Total Allocated"] for change in changes]
    return max(allocated) - (allocated[0] - changes[0]["Bytes"])


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """The profiler's C++ side logs its start and stop there, whatever its log level."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def settings_of(
    device: str,
    precision: str,
    compile: bool,
    grad_checkpointing: bool,
    batch_sizes: Sequence[int],
    image_sizes: Sequence[int | None],
) -> list[Setting]:
    """Every combination of batch and image size.

    Raises:
        ValueError: a size that is not positive, or a device that torch does not have here.
    """
    if bad := [size for size in (*batch_sizes, *image_sizes) if size is not None and size < 1]:
        raise ValueError(f"sizes must be positive, not {bad[0]}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's answers for no driver, and for a build without it
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return [
        Setting(device, precision, compile, grad_checkpointing, batch_size, image_size)
        for batch_size, image_size in product(batch_sizes, image_sizes)
    ]


def machine(device: str) -> dict[str, Any]:
    """Where figures come from: processor or accelerator, threads, versions, date."""
    kind = torch.device(device).type
    return {
        "device": torch.cuda.get_device_name(device) if kind == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_output(path: Path, overwrite: bool = False) -> None:
    """Refuse an output path before anything is measured; raises as :func:`save`."""
    if path.suffix != ".json":
        raise ValueError(f"{path} does not end in .json; the plot goes beside it, as .png")
    check_place(path, overwrite)
    check_place(path.with_suffix(".png"), overwrite)
    require("the plot", "plot", "matplotlib")


def save(rows: Sequence[Row], command: str, path: Path, overwrite: bool = False) -> None:
    """Write the figures to ``path`` (JSON) and their plot beside it (PNG).

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: ``path`` does not end in .json.
        FileExistsError: one of the two exists, and ``overwrite`` is not given.
    """
    check_output(path, overwrite)
    figures = {"command": command, "machine": machine(rows[0].setting.device), "rows": [asdict(row) for row in rows]}
    with staged(path, overwrite) as new:
        new.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    with staged(path.with_suffix(".png"), overwrite) as new:
        plot(rows, new)


def table(rows: Sequence[Row]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| pass | batch | pixels | model | ms | images/s | ratio | quartiles | peak MB |",
        "|---|---|---|---|" + "---:|" * 5,
    ]
    for row in rows:
        low, high = row.ratio_quartiles
        lines.append(
            f"| {row.what} | {row.setting.batch_size} | {row.setting.image_size or ''} | {row.model} "
            f"| {1000 * statistics.median(row.seconds):.1f} | {row.images_per_second:.1f} "
            f"| {row.ratio:.3f} | {low:.3f} – {high:.3f} | {row.peak_bytes / 1e6:.0f} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratios to the first model with their quartiles, by model, or by batch or image size where one of them varies."""
    from matplotlib import pyplot

    passes = list(dict.fromkeys(row.what for row in rows))
    varying = [by for by in ("image_size", "batch_size") if len({getattr(row.setting, by) for row in rows}) > 1]
    figure, axes = pyplot.subplots(
        1, len(passes), figsize=(5 * len(passes), 4), sharey=True, squeeze=False, layout="constrained"
    )
    for what, axis in zip(passes, axes[0], strict=True):
        for model in dict.fromkeys(row.model for row in rows):
            own = [row for row in rows if (row.model, row.what) == (model, what)]
            x = [str(getattr(row.setting, varying[0])) if varying else model for row in own]
            errors = [
                [row.ratio - row.ratio_quartiles[0] for row in own],
                [row.ratio_quartiles[1] - row.ratio for row in own],
            ]
            axis.errorbar(x, [row.ratio for row in own], errors, label=model, marker="o", capsize=3)
        axis.set(title=what, xlabel=varying[0].replace("_", " ") if varying else "")
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel(f"throughput over {rows[0].model}")
    if varying:
        axes[0, -1].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
