"""Put the records of the emoji comparisons into words and tables, by the report's own functions."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provenance import REPOSITORY

from diffclip_openclip.models import MODELS
from diffclip_openclip.report.comparison import OTHER, Entry
from diffclip_openclip.report.paper import Score
from diffclip_openclip.report.table_formats import markdown
from diffclip_openclip.report.table_layouts import other_layout
from diffclip_openclip.report.tables import Table, make_tables
from diffclip_openclip.report.training_runs import make_runs_table
from diffclip_openclip.report.uncertainty import LEVEL, holm

RESULTS = REPOSITORY / "benchmarks" / "results"
MAIN_SCORE = "zero_shot_own/unseen-vendor"  # which was chosen before any result: what the quick start shows first

_CAPTION = (
    "Top-1 on the unseen vendor by epoch, means of {0} seeds; and the last epoch's difference to the same seed's "
    "baseline, with 95 % intervals over {0} seeds"
)

Record = dict[str, Any]  # settings, "commit", "seeds" and "comparisons"
Comparison = dict[str, Any]  # "baseline", "models", "scores", "curves", "seconds"; each by title, values by seed


def record_path(epochs: int) -> Path:
    """Return where the comparison of so many epochs is recorded."""
    return RESULTS / f"emoji-comparison-{epochs}.json"


def read_records() -> list[Record]:
    """Return the records of all numbers of epochs, that of the most epochs first."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("emoji-comparison-*.json")]
    return sorted(records, key=lambda record: -int(record["epochs"]))


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


def page_part(records: Sequence[Record]) -> str:
    """Return what the page says of the comparisons: the figure, and each one's tables."""
    parts = [f"![{_CAPTION.format(len(records[0]['seeds']))}](../docs/compare.png)"]
    everyone: list[Entry] = []
    for record in records:
        parts += [f"### {record['epochs']} epochs", _training(record)]
        for comparison in record["comparisons"]:
            entries = entries_of(comparison, record["seeds"])
            (table,) = (table for table in make_tables({}, entries, ()) if table.name == "other")
            main = [_with_main_score(entry, entries) for entry in entries]
            parts += [_lines(table), _summary(comparison, entries, record["seeds"])]
            parts += ["On the unseen vendor, top-1:", _lines(_runs_table(main))]
            everyone += main
    parts += ["\n".join(f"- {note}" for note in _runs_table(everyone).notes)]
    return "\n\n".join(parts)


def _runs_table(entries: Sequence[Entry]) -> Table:
    table = make_runs_table(entries)
    assert table is not None
    return table


def _training(record: Record) -> str:
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
