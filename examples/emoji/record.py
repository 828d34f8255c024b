"""Put the results of compare.py into the repository:  python examples/emoji/record.py OUTPUT

Reads the seeds that are complete, and writes benchmarks/results/emoji-comparison.json, docs/compare.png and the part of
benchmarks/README.md between its two marks. All numbers there follow from the JSON by the report's own functions.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import compare

from diffclip_openclip.models import MODELS
from diffclip_openclip.report.comparison import OTHER, Entry
from diffclip_openclip.report.curves import checkpoints_of, last_checkpoints
from diffclip_openclip.report.evaluated_models import group_runs, read_models
from diffclip_openclip.report.paper import Score
from diffclip_openclip.report.styles import RC, outline, styles_of
from diffclip_openclip.report.table_formats import markdown
from diffclip_openclip.report.table_layouts import other_layout
from diffclip_openclip.report.tables import Table, make_tables
from diffclip_openclip.report.training_runs import make_runs_table
from diffclip_openclip.report.uncertainty import LEVEL, holm

REPOSITORY = Path(__file__).resolve().parents[2]
RECORD = REPOSITORY / "benchmarks" / "results" / "emoji-comparison.json"
FIGURE = REPOSITORY / "docs" / "compare.png"
PAGE = REPOSITORY / "benchmarks" / "README.md"
BEGIN, END = "<!-- examples/emoji/record.py writes from here -->", "<!-- to here -->"
MAIN_SCORE = "zero_shot_own/unseen-vendor"  # which was chosen before any result: what the quick start shows first

_CAPTION = (
    "Top-1 on the unseen vendor by epoch, means of {0} seeds; and the last epoch's difference to the same seed's "
    "baseline, with 95 % intervals over {0} seeds"
)

Comparison = dict[str, Any]  # "baseline", "models", "scores", "curves", "seconds"; each by title, values by seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder that compare.py wrote")
    parser.add_argument(
        "--arms", nargs="+", choices=compare.ARMS, default=list(compare.ARMS), metavar="ARM", help="default: all"
    )
    parser.add_argument("--commit", help="of the code that trained; default: the one that is checked out")
    args = parser.parse_args()
    compare.check_arms(parser, args.arms)
    record = collect(args.output, args.commit, args.arms)
    RECORD.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(block_of(page), block(record)), encoding="utf-8")
    draw(record, FIGURE)
    print(block(record))


# from the results to the record


def collect(output: Path, commit: str | None = None, arms: Collection[str] = tuple(compare.ARMS)) -> dict[str, Any]:
    """Read what compare.py made of the seeds that are complete in these arms."""
    settings = json.loads((output / "settings.json").read_text())
    known = ("epochs", "continued_epochs", "points", "flags")
    comparison = compare.Comparison(output, **{key: settings[key] for key in known}, arms=arms)
    evaluated = {path.parent.name for path in output.glob("runs/seed*/done")}
    seeds = sorted(seed for name in evaluated if "-" not in name if comparison.is_complete(seed := int(name[4:])))
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = commit or subprocess.run(head, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()
    comparisons = []
    for results, names in comparison.results().items():
        groups = comparison.groups(names, seeds)
        every = read_models(results)
        last = {model.name: model for model in group_runs(last_checkpoints(every, ()), groups)}
        titles = [compare.ARMS[name].title for name in names]
        scores: dict[str, dict[str, list[float]]] = {}
        for title in titles:
            for key, score in last[title].scores.items():
                scores.setdefault(key, {})[title] = _by_seed(score)
        curves: dict[str, dict[str, list[float]]] = {title: {} for title in titles}
        for entry in checkpoints_of(every, groups):
            title = re.sub(r" epoch_\d+$", "", entry.name)
            if title in curves and MAIN_SCORE in entry.scores:
                curves[title][str(entry.epoch)] = _by_seed(entry.scores[MAIN_SCORE])
        seconds = {
            compare.ARMS[name].title: [_seconds(comparison.folder(seed, name) / "seconds.json") for seed in seeds]
            for name in names
        }
        models = {compare.ARMS[name].title: compare.ARMS[name].model for name in names}
        found = {"baseline": titles[0], "models": models, "scores": scores, "curves": curves, "seconds": seconds}
        comparisons.append(found)
    return {"commit": commit, **settings, "seeds": seeds, "comparisons": comparisons}


def _seconds(path: Path) -> int | None:
    """Return how long all attempts of a run took; None where one was killed, so that nobody knows."""
    attempts = json.loads(path.read_text())
    return None if None in attempts else round(sum(attempts))


def _by_seed(score: Score) -> list[float]:
    return [round(value, 4) for _, value in sorted(zip(score.seeds, score.runs, strict=True))]


# from the record to the page


def entries_of(comparison: Comparison, seeds: list[int]) -> list[Entry]:
    """Return the models as the report has them, the baseline first."""
    entries: list[Entry] = []
    for title, model in comparison["models"].items():
        scores = {
            key: Score(statistics.mean(values[title]), "", runs=tuple(values[title]), seeds=tuple(seeds))
            for key, values in comparison["scores"].items()
        }
        family = MODELS[model].family or OTHER
        entries.append(Entry(title, family, scores, is_ours=True, baseline=entries[0] if entries else None))
    return entries


def block(record: dict[str, Any]) -> str:
    """Return the part of the page, with its marks."""
    parts = [BEGIN, f"![{_CAPTION.format(len(record['seeds']))}](../docs/compare.png)"]
    parts.append(_training(record))
    for comparison in record["comparisons"]:
        entries = entries_of(comparison, record["seeds"])
        (table,) = (table for table in make_tables({}, entries, ()) if table.name == "other")
        runs = make_runs_table([_with_main_score(entry, entries) for entry in entries])
        assert runs is not None
        parts += [_lines(table), _summary(comparison, entries, record["seeds"])]
        parts += ["On the unseen vendor, top-1:", _lines(runs), "\n".join(f"- {note}" for note in runs.notes)]
    return "\n\n".join([*parts, END])


def _training(record: dict[str, Any]) -> str:
    """Say what was trained, and how long it took."""
    epochs, minutes = f"{record['epochs']} epochs", [_median_minutes(own) for own in record["comparisons"]]
    took = f"a run took {minutes[0]} minutes"
    if len(minutes) > 1:
        epochs += f", {record['continued_epochs']} when continued"
        took += f", {minutes[1]} when continued"
    return f"Trained: {epochs}; {len(record['seeds'])} seeds; commit {record['commit']}; {took} (medians)."


def _median_minutes(comparison: Comparison) -> str:
    known = [seconds for own in comparison["seconds"].values() for seconds in own if seconds is not None]
    return f"{statistics.median(known) / 60:.1f}" if known else "an unknown number of"


def block_of(page: str) -> str:
    """Return the part of a page that the record writes."""
    return page[page.index(BEGIN) : page.index(END) + len(END)]


def _with_main_score(entry: Entry, entries: list[Entry]) -> Entry:
    scores = {MAIN_SCORE: entry.scores[MAIN_SCORE]}
    base = entries[0] if entry.baseline else None
    return Entry(entry.name, entry.family, scores, is_ours=True, baseline=base and _with_main_score(base, entries))


def _lines(table: Table) -> str:
    return "\n".join(line for line in markdown(table).splitlines() if line.startswith("|"))


def _summary(comparison: Comparison, entries: list[Entry], seeds: list[int]) -> str:
    """Say which differences are beyond noise, and how often a model is above the baseline with the same seed."""
    baseline, titles = comparison["baseline"], [entry.name for entry in entries[1:]]
    words = {column.key: block.title for block in other_layout(comparison["scores"]).blocks for column in block.columns}
    beyond: dict[str, list[str]] = {}  # by model and direction, the scores
    for key, name in words.items():
        found = [(entry, certainty.p) for entry in entries[1:] if (certainty := entry.certainty(key))]
        for (entry, _), p in zip(found, holm([p for _, p in found]), strict=True):
            if p < LEVEL:
                direction = "above" if (entry.difference(key) or 0) > 0 else "below"
                beyond.setdefault(f"{entry.name} is {direction} it", []).append(name)
    count, clear = len(words) * len(titles), sum(map(len, beyond.values()))
    named = "".join(f"\n- {what} in {len(names)}: {'; '.join(names)}" for what, names in sorted(beyond.items()))
    pairs = [f"{title} in {sum(_above(comparison, title, key) for key in words)}" for title in titles]
    return (
        f"Corrected within each score, {clear} of the {count} differences to {baseline} are beyond noise"
        f"{':' if named else '.'}{named}\n\n"
        f"Of the {len(words) * len(seeds)} pairs of a score and a seed, a model is above {baseline} so often: "
        f"{', '.join(pairs)}."
    )


def _above(comparison: Comparison, title: str, key: str) -> int:
    values = comparison["scores"][key]
    return sum(own > base for own, base in zip(values[title], values[comparison["baseline"]], strict=True))


# the figure


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw the main score over training, and beside it the last checkpoints' differences to their baseline."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    comparisons = record["comparisons"]
    names = [title for comparison in comparisons for title in comparison["models"]]
    has_curves = any(len(curve) > 1 for comparison in comparisons for curve in comparison["curves"].values())
    with matplotlib.rc_context(RC):
        size = 6.875 if has_curves else 3.4, 0.9 + 0.2 * len(names)
        figure, axes = plt.subplots(1, 1 + has_curves, figsize=size, layout="constrained", squeeze=False)
        *left, right = axes[0]
        row, looks = 0, _looks(comparisons[0], record["seeds"])
        for at, comparison in enumerate(comparisons):
            start = 0 if at == 0 else record["epochs"]
            entries = entries_of(comparison, record["seeds"])
            for entry in entries:
                look = looks[comparison["models"][entry.name]]
                if at and entry.baseline is None:  # is not to look like the model that it goes on from
                    look |= {"linestyle": ":"}
                curve = comparison["curves"][entry.name]
                epochs = [start + int(epoch) for epoch in curve]
                for axis in left:
                    axis.plot(epochs, [statistics.mean(values) for values in curve.values()], **look, linewidth=1.1)
                difference, certainty = entry.difference(MAIN_SCORE) or 0.0, entry.certainty(MAIN_SCORE)
                error = [certainty.half] if certainty else None
                right.errorbar([difference], [row], xerr=error, ecolor="black", elinewidth=0.7, capsize=1.5, **look)
                row += 1
        right.set_yticks(range(len(names)), names)
        right.invert_yaxis()
        right.axvline(0, color="black", linewidth=0.6)
        right.set_xlabel("difference to the baseline, points; 95 %")
        for axis in left:
            axis.set_xlabel("epochs, those of the start included")
            axis.set_ylabel("unseen vendor, top-1, percent")
        for axis in (*left, right):
            axis.grid(alpha=0.3, linewidth=0.5)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=220)
        plt.close(figure)


def _looks(comparison: Comparison, seeds: list[int]) -> dict[str, dict[str, Any]]:
    """Return matplotlib's arguments for each model, by open_clip's name; grey where the paper has none."""
    entries, shades = entries_of(comparison, seeds), iter(("#8e8e8e", "#c8c8c8", "#404040"))
    return {
        comparison["models"][entry.name]: outline(style)
        | {"markersize": 3.5, "markeredgewidth": 0.5}
        | ({"color": next(shades)} if entry.family == OTHER else {})
        for entry, style in zip(entries, styles_of(entries), strict=True)
    }


if __name__ == "__main__":
    main()
