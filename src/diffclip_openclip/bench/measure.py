"""Measure speed and memory of open_clip models beside each other: the work of ``diffclip bench``.

Models take turns, so that a machine whose speed drifts slows all of them alike. What counts are each turn's ratios.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from diffclip_openclip.weights.foreign import loading_errors
from diffclip_openclip.weights.loading import checked_config
from diffclip_openclip.weights.spec import parse_spec

PASSES = ("forward", "train step")
_WARM_UP = 3  # turns that are not counted: compilation, allocator, caches


@dataclass(frozen=True)
class Setting:
    """Describe what models are compared under."""

    device: str = "cpu"  # torch's name
    precision: str = "fp32"  # open_clip's name: "fp32", "amp_bf16" or "pure_bf16"
    compile: bool = False  # torch.compile the models
    grad_checkpointing: bool = False
    batch_size: int = 8
    image_size: int | None = None  # in pixels; None for each model's own
    busy: int = 0  # processes that compute beside the models, each a core's worth, as data loaders do


@dataclass(frozen=True)
class BenchResult:
    """Hold one model's figures of one pass in one setting."""

    model: str
    what: str  # one of PASSES
    setting: Setting
    seconds: list[float]  # of each turn
    images_per_second: float
    ratio: float  # throughput over the first model's, median over turns
    ratio_quartiles: tuple[float, float]
    peak_bytes: int | None  # what a pass allocates at most on top of what was there; None where torch does not tell


def bench(
    models: Sequence[str], settings: Iterable[Setting], *, rounds: int, passes: Sequence[str] = PASSES
) -> list[BenchResult]:
    """Measure ``models`` against the first of them in each setting and pass.

    A train step is forward, contrastive loss, backward and a step of AdamW.

    Args:
        models: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that open_clip builds; weights are
            optional.
        rounds: turns of each model that are counted.
        passes: of :data:`PASSES`.

    Raises:
        ValueError: a model is unknown, cannot run in a setting or has weights of another one, or there are fewer than
            two rounds.
        FileNotFoundError: a directory or checkpoint file is not there.
    """
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}; quartiles need at least 2")
    for model in models:
        parse_spec(model, needs_weights=False)
    return [found for setting in settings for what in passes for found in _compare(models, setting, what, rounds)]


def _compare(models: Sequence[str], setting: Setting, what: str, rounds: int) -> list[BenchResult]:
    torch.compiler.reset()  # a second size would be compiled for any size, which is slower
    try:
        steps = [_step(name, setting, what) for name in models]
        peaks = [_peak_bytes(step, setting.device) for step in steps]
    except RuntimeError as error:  # torch's answer where memory is short, or a layer cannot have such a size
        raise ValueError(f"{', '.join(models)} cannot run with {setting}: {error}") from error
    seconds: list[list[float]] = [[] for _ in steps]
    title = f"{what}, batch {setting.batch_size}" + (f", {setting.image_size} px" if setting.image_size else "")
    with _neighbours(setting.busy):
        for turn in tqdm(range(_WARM_UP + rounds), desc=title, leave=False):
            for times, step in zip(seconds, steps, strict=True):
                start = time.perf_counter()
                step()
                _wait(setting.device)
                if turn >= _WARM_UP:
                    times.append(time.perf_counter() - start)
    found = []
    for name, times, peak in zip(models, seconds, peaks, strict=True):
        ratios = [base / own for base, own in zip(seconds[0], times, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        throughput = setting.batch_size / statistics.median(times)
        found.append(BenchResult(name, what, setting, times, throughput, statistics.median(ratios), (low, high), peak))
    return found


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[None]:
    """Keep so many other processes busy in the body."""
    # a killed process leaves no neighbour behind: their input ends with it
    watch = "threading.Thread(target=lambda: sys.stdin.read() or os._exit(0)).start()"
    command = [sys.executable, "-S", "-c", f"import os, sys, threading; {watch}\nwhile True: pass"]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _step(name: str, setting: Setting, what: str) -> Callable[[], object]:
    torch.manual_seed(0)
    device = torch.device(setting.device)
    half = setting.precision == "pure_bf16"
    spec = parse_spec(name, needs_weights=False)
    checked_config(spec)
    with loading_errors(name) if spec.has_weights else contextlib.nullcontext():
        model: Any = open_clip.create_model(
            spec.name,
            pretrained=spec.pretrained or None,
            precision=setting.precision if half else "fp32",
            device=device,
            force_image_size=setting.image_size,
            output_dict=True,
        )
    dtype = torch.bfloat16 if half else torch.float32
    images = torch.randn(setting.batch_size, 3, *model.visual.image_size, device=device, dtype=dtype)
    texts = torch.randint(1, min(49407, model.vocab_size), (setting.batch_size, model.context_length), device=device)
    if setting.grad_checkpointing:
        model.set_grad_checkpointing()
    # text towers made from a config are in evaluation mode, in which transformers checkpoints nothing
    model.train(what != "forward")
    run = torch.compile(model, dynamic=False) if setting.compile else model
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "amp_bf16")

    def forward() -> Any:
        with autocast:
            return run(images, texts)

    return torch.no_grad()(forward) if what == "forward" else _train_step(model, forward, autocast)


def _train_step(model: Any, forward: Callable[[], Any], autocast: torch.autocast) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    loss = open_clip.ClipLoss()

    def train_step() -> object:
        optimizer.zero_grad()
        output = forward()
        with autocast:
            value = loss(output["image_features"], output["text_features"], output["logit_scale"])
        value.backward()
        return optimizer.step()

    return train_step


def _wait(device: str) -> None:
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_bytes(step: Callable[[], object], device: str) -> int | None:
    """Return what a step allocates at most on top of what was there; None where torch does not tell."""
    step()  # makes the optimizer's state, which is not to count
    kind = torch.device(device).type
    if kind not in ("cpu", "cuda"):
        return None
    if kind == "cuda":
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
    """Keep stderr quiet in the body."""
    # the profiler's C++ side logs its start and stop there, whatever its log level
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def settings_of(
    *,
    device: str,
    precision: str,
    compile: bool,
    grad_checkpointing: bool,
    batch_sizes: Sequence[int],
    image_sizes: Sequence[int | None],
    busy: int = 0,
) -> list[Setting]:
    """Return a setting for every combination of batch and image size.

    Raises:
        ValueError: a size is not positive, ``busy`` is negative, or torch does not have the device here.
    """
    if bad := [size for size in (*batch_sizes, *image_sizes) if size is not None and size < 1]:
        raise ValueError(f"sizes must be positive, not {bad[0]}")
    if busy < 0:
        raise ValueError(f"busy is {busy}; it is a number of processes, 0 or more")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch's answers for no driver, and for a build without it
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return [
        Setting(device, precision, compile, grad_checkpointing, batch_size, image_size, busy)
        for batch_size, image_size in product(batch_sizes, image_sizes)
    ]
