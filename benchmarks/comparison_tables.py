"""Put the records of the emoji comparisons into words and tables, by the report's own functions."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence

from comparison_records import MAIN_SCORE, Compared, Record, entries_of
from model_groups import ARMS

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.table_formats import markdown
from diffclip_openclip.report.table_layouts import other_layout
from diffclip_openclip.report.tables import Table, make_tables
from diffclip_openclip.report.training_runs import make_runs_table
from diffclip_openclip.report.uncertainty import LEVEL, holm

_CAPTION = (
    "Top-1 on the unseen vendor by epoch, means over seeds; and the last epoch's difference to the same seed's "
    "baseline, with 95 % intervals over seeds"
)


def page_part(records: Sequence[Record]) -> str:
    """Return what the page says of the comparisons: the figure, and each one's command and tables."""
    parts = [f"![{_CAPTION}](../docs/compare.png)"]
    everyone: list[Entry] = []
    for record in records:
        parts += [f"### {record['epochs']} epochs", _training(record)]
        for compared in record["comparisons"]:
            entries = entries_of(compared, record["seeds"])
            (table,) = (table for table in make_tables({}, entries, ()) if table.name == "other")
            main = [_with_main_score(entry, entries) for entry in entries]
            parts += [_lines(table), _summary(compared, entries)]
            parts += ["On the unseen vendor, top-1:", _lines(_runs_table(main))]
            everyone += main
    parts += ["\n".join(f"- {note}" for note in _runs_table(everyone).notes)]
    return "\n\n".join(parts)


def _runs_table(entries: Sequence[Entry]) -> Table:
    table = make_runs_table(entries)
    assert table is not None
    return table


def _training(record: Record) -> str:
    """Say what was trained, by which command, and how long it took."""
    minutes = [_median_minutes(own) for own in record["comparisons"]]
    continued = f", {record['continued_epochs']} more when continued" if len(minutes) > 1 else ""
    took = f"a run took {minutes[0]} minutes{f', {minutes[1]} when continued' if len(minutes) > 1 else ''}"
    titles = [title for own in record["comparisons"] for title in own["models"]]
    arms = [name for name, arm in ARMS.items() if arm.title in titles]
    command = ["--epochs", str(record["epochs"]), "--continued-epochs", str(record["continued_epochs"])]
    command += ["--points", str(record["points"]), "--seeds", *map(str, record["seeds"])]
    command += ["--arms", *arms] if len(arms) < len(ARMS) else []
    return (
        f"Trained: {record['epochs']} epochs{continued}; {len(record['seeds'])} seeds; commit {record['commit']}; "
        f"{took} (medians).\n\n```bash\npython examples/emoji/compare.py {shlex.join(command)} --output OUTPUT\n```"
    )


def _median_minutes(compared: Compared) -> str:
    known = [seconds for own in compared["seconds"].values() for seconds in own if seconds is not None]
    return f"{statistics.median(known) / 60:.1f}" if known else "an unknown number of"


def _with_main_score(entry: Entry, entries: list[Entry]) -> Entry:
    scores = {MAIN_SCORE: entry.scores[MAIN_SCORE]}
    base = entries[0] if entry.baseline else None
    return Entry(entry.name, entry.family, scores, is_ours=True, baseline=base and _with_main_score(base, entries))


def _lines(table: Table) -> str:
    return "\n".join(line for line in markdown(table).splitlines() if line.startswith("|"))


def _summary(compared: Compared, entries: list[Entry]) -> str:
    """Say which differences are beyond noise."""
    baseline = entries[0].name
    words = {column.key: block.title for block in other_layout(compared["scores"]).blocks for column in block.columns}
    beyond: dict[str, list[str]] = {}  # by model and direction, the scores
    for key, name in words.items():
        found = [(entry, certainty.p) for entry in entries[1:] if (certainty := entry.certainty(key))]
        for (entry, _), p in zip(found, holm([p for _, p in found]), strict=True):
            if p < LEVEL:
                direction = "above" if (entry.difference(key) or 0) > 0 else "below"
                beyond.setdefault(f"{entry.name} is {direction} it", []).append(name)
    count, clear = len(words) * len(entries[1:]), sum(map(len, beyond.values()))
    named = "".join(f"\n- {what} in {len(names)}: {'; '.join(names)}" for what, names in sorted(beyond.items()))
    return (
        f"Corrected within each score, not over scores, {clear} of the {count} differences to {baseline} are beyond "
        f"noise{':' if named else '.'}{named}"
    )
