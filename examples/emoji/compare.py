"""Does it learn better? The paper's four models at equal budget, several seeds:  python examples/emoji/compare.py

Trains each with the quick start's settings, evaluates each with clip_benchmark, and writes the mean and the spread over
seeds: OUTPUT/comparison.json, .md and .png. About 6 minutes a model and seed on two CPU cores. An interrupted run
continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from quickstart import EPOCHS, evaluate, prepare_environment, train
from report import SPLITS, Split, result_file

# paper's name -> open_clip's
MODELS = {
    "CLIP": "CLIP-nano-baseline",
    "DiffCLIP": "DiffCLIP-nano",
    "DiffCLIP*": "DiffCLIP-nano-dynamic",
    "DiffCLIP†": "DiffCLIP-nano-vision",
}


def read_results(output: Path, seeds: list[int]) -> list[dict[str, Any]]:
    """A row for each split, metric and model, with the seeds' values in per cent."""
    rows = []
    for split in SPLITS:
        for key, title, chance in split.metrics:
            for paper_name, model in MODELS.items():
                values = [_metric(output / f"seed{seed}", model, split, key) for seed in seeds]
                row = {"split": split.title, "metric": title, "chance": 100 * chance, "model": paper_name}
                rows.append(row | {"values": values})
    return rows


def _metric(runs: Path, model: str, split: Split, key: str) -> float:
    return 100 * float(json.loads(result_file(runs, model, split.name).read_text())["metrics"][key])


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """Mean ± standard deviation over seeds, a column a model."""
    lines = ["| zero-shot on | metric | chance | " + " | ".join(MODELS) + " |"]
    lines.append("| --- | --- | ---: | " + " | ".join(["---:"] * len(MODELS)) + " |")
    for first in range(0, len(rows), len(MODELS)):
        group = rows[first : first + len(MODELS)]
        cells = [f"{statistics.mean(r['values']):.1f} ± {statistics.stdev(r['values']):.1f}" for r in group]
        head = f"| {group[0]['split']} | {group[0]['metric']} | {group[0]['chance']:.2g} % | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], output: Path) -> None:
    """A panel a metric: each seed a point, each model's mean a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [rows[first : first + len(MODELS)] for first in range(0, len(rows), len(MODELS))]
    columns = 3
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), layout="constrained")
    for axis, group in zip(axes.flat, groups, strict=False):
        for place, row in enumerate(group):
            color = f"C{place}"
            axis.hlines(statistics.mean(row["values"]), place - 0.3, place + 0.3, color=color, linewidth=2)
            axis.plot([place] * len(row["values"]), row["values"], "o", color=color, alpha=0.7, markersize=5)
        axis.set_xticks(range(len(group)), [row["model"] for row in group])
        axis.set_title(f"{group[0]['split']}: {group[0]['metric']}", fontsize=9)
        axis.set_ylabel("%")
        axis.grid(axis="y", alpha=0.3)
    for axis in list(axes.flat)[len(groups) :]:
        axis.axis("off")
    temporary = output.with_name(f".{output.name}")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(output)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="at least two; default: 0 1 2")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s, the quick start's")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"), help="default: %(default)s")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error(f"--seeds has {len(args.seeds)}; a spread needs at least two")

    prepare_environment()
    for seed in args.seeds:
        for model in MODELS.values():
            runs = args.output / f"seed{seed}"
            checkpoint = train(model, runs, args.epochs, seed)
            if not all(result_file(runs, model, split.name).exists() for split in SPLITS):
                evaluate(model, checkpoint, runs)
    rows = read_results(args.output, args.seeds)
    settings = {"seeds": args.seeds, "epochs": args.epochs, "models": MODELS}
    (args.output / "comparison.json").write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")
    (args.output / "comparison.md").write_text(as_markdown(rows) + "\n", encoding="utf-8")
    draw(rows, args.output / "comparison.png")
    print(as_markdown(rows))


if __name__ == "__main__":
    main()
