"""Measure what the start-up hook costs an interpreter without open_clip:  python benchmarks/startup.py

Starts the interpreters of two new virtual environments in turn, with the hook's files and without; whole-process
medians. Run it in an environment that has the package installed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

PTH = "diffclip_openclip_autoload.pth"


def start(python: Path) -> float:
    begin = time.perf_counter()
    subprocess.run([python, "-c", "pass"], check=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        pythons = {}
        for name in ("without", "with"):
            root = Path(folder, name)
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", root], check=True)
            site = Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))
            if name == "with":
                import diffclip_openclip_autoload as hook

                for path in (Path(hook.__file__), Path(hook.__file__).with_name(PTH)):
                    (site / path.name).write_bytes(path.read_bytes())
            pythons[name] = root / ("Scripts" if os.name == "nt" else "bin") / "python"
            start(pythons[name])  # writes the byte code
        seconds: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(args.repeats):
            for name, python in pythons.items():
                seconds[name].append(start(python))
    pairs = [with_ - without for without, with_ in zip(seconds["without"], seconds["with"], strict=True)]
    for name, values in seconds.items():
        print(f"{name:8} the hook: {1000 * statistics.median(values):6.2f} ms")
    print(f"difference, median of {args.repeats} pairs: {1000 * statistics.median(pairs):.2f} ms")


if __name__ == "__main__":
    main()
