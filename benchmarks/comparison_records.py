"""Read the records of the emoji comparisons, in results/: one for each number of epochs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from group_looks import family
from provenance import REPOSITORY

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.paper import Score

RESULTS = REPOSITORY / "benchmarks" / "results"
MAIN_SCORE = "zero_shot_own/unseen-vendor"  # which was chosen before any result: what the quick start shows first

Record = Mapping[str, Any]  # settings, "commit", "seeds" and "comparisons", each with a baseline of its own
Compared = Mapping[str, Any]  # "baseline", "models", "scores", "curves", "seconds"; each by title, values by seed


def record_path(epochs: int) -> Path:
    """Return where the comparison of so many epochs is recorded."""
    return RESULTS / f"emoji-comparison-{epochs}.json"


def read_records() -> list[Record]:
    """Return the records of all numbers of epochs, that of the most epochs first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("emoji-comparison-*.json")]
    return sorted(records, key=lambda record: -int(record["epochs"]))


def entries_of(compared: Compared, seeds: list[int]) -> list[Entry]:
    """Return the models as the report has them, the baseline first."""
    entries: list[Entry] = []
    for title, model in compared["models"].items():
        scores = {
            key: Score(statistics.mean(values[title]), "", runs=tuple(values[title]), seeds=tuple(seeds))
            for key, values in compared["scores"].items()
        }
        entries.append(Entry(title, family(model), scores, is_ours=True, baseline=entries[0] if entries else None))
    return entries
