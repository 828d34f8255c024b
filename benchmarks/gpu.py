"""Test and time everything on a GPU:  python benchmarks/gpu.py [--section tests ...] [--minutes 7]

Four sections: tests (tests/attention/test_cuda.py, and whole models against the CPU), models (throughput and memory of
whole models), attention (ways to compute one layer's attention) and training (the paper's models on the emoji).

Each section is a list of cells. A cell's figures are written when it is done, to OUTPUT/gpu.json and OUTPUT/gpu.md,
with hardware, versions, commit and date. The command ends with status 3 once --minutes are over and cells are left; the
same command goes on where it stopped. What cannot run on the machine is named with its reason.
`make gpu` runs it to the end.

What the figures decide: the table MEASURED in src/diffclip_openclip/attention/choice.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gpu_models
import torch
from provenance import commit

from diffclip_openclip.bench.outputs import machine
from diffclip_openclip.files import staged

SECTIONS: Mapping[str, Callable[[gpu_models.Options], Mapping[str, gpu_models.Cell]]] = {
    "tests": gpu_models.test_cells,
    "models": gpu_models.model_cells,
    "attention": gpu_models.attention_cells,
    "training": gpu_models.training_cells,
}
UNFINISHED = 3  # exit status: cells are left


def where(device: str) -> dict[str, Any]:
    """Return what figures depend on: hardware and versions."""
    found = {key: value for key, value in machine(device).items() if key != "date"}
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "capability": list(torch.cuda.get_device_capability(device)),
            "memory": properties.total_memory,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def stamp(device: str) -> dict[str, str]:
    """Return when and from which commit a cell's figures are."""
    return {"commit": commit(), "date": machine(device)["date"]}


def read(path: Path, device: str) -> dict[str, Any]:
    """Return what was measured before, or nothing measured yet.

    Raises:
        ValueError: the file is of other hardware or versions.
    """
    here = where(device)
    if not path.exists():
        return {"machine": here, "sections": {}}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if found["machine"] != json.loads(json.dumps(here)):
        raise ValueError(f"{path} is of {found['machine']}, and this is {here}; name another folder with --output")
    return found


def write(figures: Mapping[str, Any], output: Path) -> None:
    """Write the figures so far, as JSON and as Markdown."""
    output.mkdir(parents=True, exist_ok=True)
    for name, text in (("gpu.json", json.dumps(figures, indent=1) + "\n"), ("gpu.md", as_markdown(figures))):
        with staged(output / name, overwrite=True) as new:
            new.write_text(text, encoding="utf-8")


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the machine, and a table a section: a line a cell and row, with the cell's commit and date."""
    lines = ["# Figures of benchmarks/gpu.py", ""]
    lines += [f"- {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in figures["machine"].items()]
    for section, cells in figures["sections"].items():
        lines += ["", f"## {section}", "", "| cell | | figures | commit | date |", "| --- | --- | --- | --- | --- |"]
        for name, cell in cells.items():
            for row, values in cell["rows"].items():
                shown = ", ".join(f"{key} {_shown(value)}" for key, value in values.items())
                lines.append(f"| {name} | {row} | {shown} | {cell['commit']} | {cell['date']} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def run(sections: list[str], options: gpu_models.Options, minutes: float) -> bool:
    """Measure the cells that are not measured yet; return whether none is left."""
    figures, end = read(options.output / "gpu.json", options.device), time.monotonic() + 60 * minutes
    for section in sections:
        done = figures["sections"].setdefault(section, {})
        for name, cell in SECTIONS[section](options).items():
            if name in done:
                continue
            if time.monotonic() > end:
                return False
            print(f"{section}: {name}", flush=True)
            try:
                done[name] = {"rows": cell(), **stamp(options.device)}
            except subprocess.TimeoutExpired:  # what ran resumes by itself
                return False
            write(figures, options.output)
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all, in order")
    parser.add_argument("--device", default="cuda", help="torch's name; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no cell after them; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=8, help="counted turns; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--reduced", action="store_true", help="small sizes, to try the command itself, on a CPU too")
    args = parser.parse_args(argv)
    options = gpu_models.Options(args.device, args.rounds, args.output, args.reduced, args.minutes)
    try:
        finished = run(args.section, options, args.minutes)
    except (ValueError, RuntimeError, AssertionError) as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    if not finished:
        print(f"cells are left after {args.minutes} minutes; the same command goes on")
        return UNFINISHED
    print(f"done; see {args.output / 'gpu.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
