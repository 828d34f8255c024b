"""Record what examples/emoji/compare.py found:  python benchmarks/record_comparison.py OUTPUT --commit COMMIT

Reads the seeds that are complete, and writes results/emoji-comparison-EPOCHS.json. docs/compare.png follows from the
records of all numbers of epochs, and so does README.md's part about them, which page.py writes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from comparison_figure import draw
from comparison_records import MAIN_SCORE, read_records, record_path
from model_groups import ARMS, Comparison
from provenance import REPOSITORY

from diffclip_openclip.files import staged
from diffclip_openclip.report.curves import checkpoints_of, last_checkpoints
from diffclip_openclip.report.evaluated_models import group_runs, read_models
from diffclip_openclip.report.paper import Score

FIGURE = REPOSITORY / "docs" / "compare.png"


def collect(output: Path, commit: str, arms: Collection[str] = tuple(ARMS)) -> dict[str, Any]:
    """Read what compare.py made of the seeds that are complete in these arms.

    Raises:
        FileNotFoundError: compare.py has not written there.
        ValueError: the arms are without those that they are compared with, fewer than two seeds are complete, or the
            trainer had flags of its own, so that this is another comparison.
    """
    comparison = Comparison.read(output, arms)
    if comparison.flags:
        raise ValueError(
            f"{output} was trained with {' '.join(comparison.flags)}; only the quick start's settings are kept"
        )
    seeds = comparison.complete_seeds()
    if len(seeds) < 2:
        raise ValueError(f"complete in {', '.join(comparison.arms)} are {len(seeds)} seeds; two are needed at least")
    settings = json.loads((output / "settings.json").read_text())
    found = [_collect(comparison, results, names, seeds) for results, names in comparison.results().items()]
    return {"commit": commit, **settings, "seeds": seeds, "comparisons": found}


def _collect(comparison: Comparison, results: Path, names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Read the scores, the main one's curves and the wall times of models that have one baseline."""
    titles = [ARMS[name].title for name in names]
    groups = comparison.groups(names, seeds)
    every = read_models(results)
    last = {model.name: model for model in group_runs(last_checkpoints(every, ()), groups)}
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
        ARMS[name].title: [_seconds(comparison.folder(seed, name) / "seconds.json") for seed in seeds] for name in names
    }
    models = {ARMS[name].title: ARMS[name].model for name in names}
    return {"baseline": titles[0], "models": models, "scores": scores, "curves": curves, "seconds": seconds}


def _seconds(path: Path) -> int | None:
    """Return how long all attempts of a run took; None where one was killed, so that nobody knows."""
    attempts = json.loads(path.read_text())
    return None if None in attempts else round(sum(attempts))


def _by_seed(score: Score) -> list[float]:
    return [round(value, 4) for _, value in sorted(zip(score.seeds, score.runs, strict=True))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the folder that compare.py wrote")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help="default: all")
    parser.add_argument("--commit", required=True, help="of the code that trained")
    parser.add_argument("--overwrite", action="store_true", help="the record of as many epochs")
    args = parser.parse_args()
    try:
        record = collect(args.output, args.commit, args.arms)
        path = record_path(record["epochs"])
        with staged(path, args.overwrite) as new:
            new.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        parser.error(str(error))
    draw(read_records(), FIGURE)
    print(f"wrote {path} and {FIGURE}; python benchmarks/page.py writes the page")


if __name__ == "__main__":
    main()
