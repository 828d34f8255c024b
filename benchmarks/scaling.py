"""Draw scaling.png from results/scaling-*.json:  python benchmarks/scaling.py

Three panels, of batch size, image size and model size; each point is one DiffCLIP's throughput over its own baseline's.
The commands behind the files are in them, and in README.md.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib import pyplot

FOLDER = Path(__file__).parent


def rows(name: str) -> list[dict[str, Any]]:
    """Return the differential models' rows of a result file."""
    figures = json.loads((FOLDER / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return [row for row in figures["rows"] if row["model"].startswith("DiffCLIP")]


def draw(axis: Any, points: list[tuple[Any, dict[str, Any]]], title: str) -> None:
    for what in dict.fromkeys(row["what"] for _, row in points):
        own = [(x, row) for x, row in points if row["what"] == what]
        ratios = [row["ratio"] for _, row in own]
        errors = [
            [ratio - row["ratio_quartiles"][0] for ratio, (_, row) in zip(ratios, own, strict=True)],
            [row["ratio_quartiles"][1] - ratio for ratio, (_, row) in zip(ratios, own, strict=True)],
        ]
        axis.errorbar([str(x) for x, _ in own], ratios, errors, marker="o", capsize=3, label=what)
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set(title=title)
    axis.legend()


def main() -> None:
    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    draw(axes[0], [(row["setting"]["batch_size"], row) for row in rows("scaling-batch")], "S/16, by batch size")
    draw(
        axes[1], [(row["setting"]["image_size"], row) for row in rows("scaling-pixels")], "B/16, by image size (pixels)"
    )
    sizes = ("S-16", "B-16", "L-14", "H-14")
    draw(axes[2], [(size, row) for size in sizes for row in rows(f"scaling-{size}")], "batch 1, by model size")
    axes[0].set_ylabel("throughput over the baseline")
    figure.savefig(FOLDER / "scaling.png", dpi=130)


if __name__ == "__main__":
    main()
