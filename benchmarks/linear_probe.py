"""Measure how long a sweep's linear probes take:  python benchmarks/linear_probe.py

Fits the probe of `diffclip evaluate` for 36 values of C (7 coarse and 29 fine ones around C = 1, of which the search
visits about half), all on one matrix of 10,000 x 768 features: pixels of the embedded emoji, real images whose
eight groups a linear probe learns in part, as it does with a trained model's features.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from diffclip_openclip.evaluation.features import Features
from diffclip_openclip.evaluation.linear_probe import COARSE, fit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "emoji"))

import paper_suite

SIDE = 16  # pixels, 16 x 16 x 3 = 768 features


def features(count: int) -> Features:
    """Return pixels of all vendors' emoji and of their mirror images, centred and scaled to variance 1."""
    groups = sorted({concept["group"] for concept in paper_suite.concepts()})
    group_of = {concept["hexcode"]: groups.index(concept["group"]) for concept in paper_suite.concepts()}
    rows, labels = [], []
    for vendor in (*paper_suite.NAMES, "fluent"):
        for code, data in paper_suite.images(vendor).items():
            image = Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE))
            rows += [np.asarray(kind, dtype=np.float32).ravel() for kind in (image, ImageOps.mirror(image))]
            labels += [group_of[code]] * 2
    pixels = torch.from_numpy(np.stack(rows))[:count]
    return Features((pixels - pixels.mean(0)) / pixels.std(0).clamp_min(1e-3), torch.tensor(labels)[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="images; default: %(default)s")
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    args = parser.parse_args()
    data = features(args.count)
    costs = [*COARSE, *(10 ** (4 * i / 28 - 2) for i in range(29))]
    seconds = []
    for C in costs:
        start = time.perf_counter()
        fit(data, 8, C)
        seconds.append(time.perf_counter() - start)
        print(f"C = {C:9.3g}: {seconds[-1]:6.2f} s", flush=True)
    print(f"{len(costs)} probes of {len(data.labels)} x {data.features.shape[1]} features: {sum(seconds):.1f} s")
    if args.output is not None:
        machine = {"cores": os.cpu_count(), "processor": platform.processor(), "torch": torch.__version__}
        entry = {"machine": machine, "shape": list(data.features.shape), "C": costs, "seconds": seconds}
        args.output.write_text(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main()
