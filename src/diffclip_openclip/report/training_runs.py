"""Make the table of models that are several training runs: intervals over runs, tests against the baseline, power.

The family of the correction is one score: all models that are compared with the same baseline in it.
"""

from collections.abc import Iterator, Sequence

from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.table_layouts import LAYOUTS, other_layout
from diffclip_openclip.report.tables import MISSING, Cell, Line, Table, signed
from diffclip_openclip.report.uncertainty import LEVEL, POWER, Difference, Interval, detectable, holm, runs_interval

RUNS_NAME = "training_runs"
_HEADS = ("Runs", "Mean", "95 %", "Difference", "95 %", "p", "p (Holm)", "Detectable")
_RECORD = (
    *("score", "model", "baseline", "runs", "mean", "mean low", "mean high", "difference"),
    *("difference low", "difference high", "by seed", "p", "p Holm", "comparisons", "detectable"),
)
_NOTES = (
    "95 %: Student's interval over training runs.",
    "Difference: to {baselines}, by Student's test of the differences seed by seed where both models have the same "
    "seeds, otherwise, or where they all differ alike, by Welch's test (w).",
    "p (Holm): corrected for the comparisons with the same baseline in the same score. "
    f"Below {LEVEL:g} a difference is beyond noise.",
    f"Detectable: the smallest true difference that such a test would find with a power of {100 * POWER:g} %, given "
    f"the number of runs and their deviation here, at the level of Holm's first step ({LEVEL:g} over the number of "
    "comparisons).",
)


def make_runs_table(ours: Sequence[Entry]) -> Table | None:
    """Return the table of all models that are several training runs; None if there are none."""
    grouped = [entry for entry in ours if any(score.runs for score in entry.scores.values())]
    if not grouped:
        return None
    layouts = (*LAYOUTS, other_layout(key for entry in grouped for key in entry.scores))
    columns = {
        column.key: f"{block.title}: {column.full_title}".strip(": ")
        for layout in layouts
        for block in layout.blocks
        for column in block.columns
    }
    rows = [row for key, title in columns.items() for row in _rows(title, [e for e in grouped if key in e.scores], key)]
    baselines = dict.fromkeys(entry.baseline.name for entry in grouped if entry.baseline)
    notes = tuple(note.format(baselines=" or ".join(baselines) or "none") for note in _NOTES)
    return Table(
        RUNS_NAME,
        "Training runs",
        "Percent, over training runs of the same model.",
        ("Score", "Model"),
        tuple(("", head) for head in _HEADS),
        tuple(line for line, _ in rows),
        notes,
        (_RECORD, *(record for _, record in rows)),
    )


def _rows(title: str, entries: Sequence[Entry], key: str) -> Iterator[tuple[Line, tuple[str, ...]]]:
    """Yield each model's line and record of one score."""
    differences = {entry.name: entry.certainty(key) for entry in entries}
    corrected = {}
    for base in dict.fromkeys(entry.baseline.name for entry in entries if entry.baseline):
        family = {e.name: d.p for e in entries if e.baseline and e.baseline.name == base and (d := differences[e.name])}
        for name, p in zip(family, holm(list(family.values())), strict=True):
            corrected[name] = (p, len(family))
    for entry in entries:
        yield _row(title, entry, key, differences[entry.name], *corrected.get(entry.name, (None, 0)))


def _row(
    title: str, entry: Entry, key: str, certainty: Difference | None, holms_p: float | None, comparisons: int
) -> tuple[Line, tuple[str, ...]]:
    score, difference = entry.scores[key], entry.difference(key)
    mean = runs_interval(score.runs)
    known: list[str] = [MISSING] * 5
    record: list[object] = [None] * 7
    if certainty is not None and difference is not None and holms_p is not None:
        between = Interval(difference - certainty.half, difference + certainty.half)
        smallest = detectable(certainty, comparisons)
        known = [
            f"{signed(difference, 1)}{'' if certainty.by_seed else ' w'}",
            f"{signed(between.low, 1)} to {signed(between.high, 1)}",
            *(_p(p) for p in (certainty.p, holms_p)),
            MISSING if smallest is None else f"{smallest:.1f}",
        ]
        record = [between.low, between.high, certainty.by_seed, certainty.p, holms_p, comparisons, smallest]
    cells = [str(len(score.runs)), f"{score.value:.1f}", f"{mean.low:.1f} to {mean.high:.1f}", *known]
    line = Line("ours", (title, entry.name), tuple(map(Cell, cells)))
    start = [title, entry.name, entry.baseline.name if entry.baseline else None, len(score.runs)]
    numbers = [*start, score.value, mean.low, mean.high, difference, *record]
    return line, tuple(_text(number) for number in numbers)


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(round(value, 4)) if isinstance(value, float) else str(value)
