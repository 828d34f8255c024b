"""Choose what Figures 1, 3, 4 and 5 show: the paper's numbers, and ours beside them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffclip_openclip.data.catalog import MMVP_PAPER_PATTERNS
from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.table_layouts import OOD, SIX_TASKS, Column, other_layout

_OOD = (*OOD.columns[:-2], Column("Average", OOD.columns[-2].key))
_PATTERNS = tuple(Column(pattern, f"mmvp/{pattern}") for pattern in MMVP_PAPER_PATTERNS)
_SCALES_NOTE = "Each panel has a scale of its own."
_TASKS_NOTE = (
    f"Zero-shot OOD: mean of the five ImageNet sets. Retrieval: Recall@5. ImageNet: 7 templates. {_SCALES_NOTE}"
)
_DERIVED_NOTE = "≈, broken outline: the paper gives the difference to CLIP; drawn is CLIP's value plus it."
_OOD_NOTE = (
    "Average: of the five sets, ImageNet among them, as in the paper. 7 templates, which the paper's numbers are "
    "inferred to be of. The paper's values are read off its figure (±0.1)."
)
_MMVP_NOTE = "Percent of each pattern's pairs. The paper's values are read off its figure (hits out of 15)."
EPOCHS_NAME = "epochs"
OTHERS_NAME = "other_data"
_ERROR_NOTE = "Whiskers of ours: 95 % intervals over test samples."
_PAPER_ERROR_NOTE = "Whiskers of the paper's values: 95 % intervals that the size of the test sets alone gives."
_RUNS_NOTE = "Whiskers of several training runs: their standard deviation."


@dataclass(frozen=True)
class Panel:
    """Describe one picture within a figure."""

    title: str
    columns: tuple[Column, ...]  # groups of bars, or spokes of a radar
    entries: tuple[Entry, ...]  # bars in each group, or outlines of a radar; at least one


@dataclass(frozen=True)
class Figure:
    """Describe a figure."""

    name: str  # of its files
    title: str
    # "tasks": a small panel for each column; "groups": a wide panel of groups of bars; "radar"; "curves": over epochs
    kind: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]  # below it

    @property
    def caption(self) -> str:
        """Return title and notes as running text."""
        return " ".join((f"{self.title}.", *self.notes))


def make_figures(paper: Mapping[str, Entry], ours: Sequence[Entry], checkpoints: Sequence[Entry] = ()) -> list[Figure]:
    """Choose the entries of all figures.

    A model of ours stands in the figures of one pretraining: its counterpart's in the paper, or else its baseline's.
    Without either it stands in all figures.

    Args:
        checkpoints: of runs of which several were evaluated, for a figure over epochs.
    """
    cc3m, cc12m = ([entry for entry in paper.values() if entry.pretraining == name] for name in ("CC3M", "CC12M"))
    ours3, ours12 = ([entry for entry in ours if _pretraining(entry) in (None, name)] for name in ("CC3M", "CC12M"))
    pair = [entry for entry in cc12m if entry.family in ("CLIP", "DiffCLIP")]
    groups = {"The paper, CC3M": cc3m, "The paper, CC12M": pair, "Ours": ours}
    radars = {"The paper, CC12M": pair, "Ours": ours12}
    return [
        _tasks("figure1", "Figure 1. CC3M pretraining: CLIP and DiffCLIP across six tasks", [*cc3m, *ours3]),
        _several("figure3", "Figure 3. Zero-shot ImageNet and its variants", "groups", _OOD, groups, _OOD_NOTE),
        _several(
            "figure4",
            "Figure 4. MMVP-VLM, the seven patterns that the paper shows",
            "radar",
            _PATTERNS,
            radars,
            _MMVP_NOTE,
        ),
        _tasks("figure5", "Figure 5. CC12M pretraining: four variants across six tasks", [*cc12m, *ours12]),
        *_others(ours),
        *_over_epochs(checkpoints),
    ]


def _pretraining(entry: Entry) -> str | None:
    return entry.pretraining or (entry.baseline.pretraining if entry.baseline else None)


def _tasks(name: str, title: str, entries: Sequence[Entry]) -> Figure:
    """Return a figure with a panel for each of the six tasks, in which the same entries stand."""
    drawn = tuple(entry for entry in entries if any(column.key in entry.scores for column in SIX_TASKS))
    panels = tuple(Panel(column.title, (column,), drawn) for column in SIX_TASKS)
    notes = (_TASKS_NOTE, _DERIVED_NOTE) if any(_has_derived(entry) for entry in drawn) else (_TASKS_NOTE,)
    whole = Panel("", SIX_TASKS, drawn)
    return Figure(name, title, "tasks", panels, (*notes, *_error_notes([whole]), *_missing_notes([whole])))


def _several(
    name: str, title: str, kind: str, columns: tuple[Column, ...], entries: Mapping[str, Sequence[Entry]], note: str
) -> Figure:
    """Return a figure with a panel for each group of entries; an outline of a radar must have all of its spokes."""
    enough = all if kind == "radar" else any
    panels = []
    for panel, candidates in entries.items():
        if drawn := tuple(e for e in candidates if enough(column.key in e.scores for column in columns)):
            panels.append(Panel(panel, columns, drawn))
    errors = () if kind == "radar" else _error_notes(panels)
    return Figure(name, title, kind, tuple(panels), (note, *errors, *_missing_notes(panels)))


def _other_columns(entries: Sequence[Entry]) -> list[Column]:
    """Return a column for each score of data sets that the paper does not have."""
    blocks = other_layout(key for entry in entries for key in entry.scores).blocks
    return [Column(block.title, block.columns[0].key) for block in blocks]


def _others(ours: Sequence[Entry]) -> Iterator[Figure]:
    """Yield a figure with a panel for each score of data sets that the paper does not have, if there are such."""
    columns = tuple(_other_columns(ours))
    drawn = tuple(entry for entry in ours if any(column.key in entry.scores for column in columns))
    if drawn:
        whole = Panel("", columns, drawn)
        notes = (f"Percent. {_SCALES_NOTE}", *_error_notes([whole]), *_missing_notes([whole]))
        panels = tuple(Panel(column.title, (column,), drawn) for column in columns)
        yield Figure(OTHERS_NAME, "Other data sets", "tasks", panels, notes)


def _over_epochs(checkpoints: Sequence[Entry]) -> Iterator[Figure]:
    """Yield a figure with a panel for each score that there is of several checkpoints."""
    panels = []
    for column in (*SIX_TASKS, Column("MMVP-VLM (paper's 7)", "mmvp/mean_7"), *_other_columns(checkpoints)):
        drawn = tuple(entry for entry in checkpoints if column.key in entry.scores)
        if len({entry.epoch for entry in drawn}) > 1:
            panels.append(Panel(column.title, (column,), drawn))
    if panels:
        notes = (
            "A line is a training run, or the mean of several (--group).",
            "Each panel has a scale of its own, which need not begin at 0.",
        )
        yield Figure(
            EPOCHS_NAME, "Over the epochs of training", "curves", tuple(panels), (*notes, *_error_notes(panels))
        )


def _has_derived(entry: Entry) -> bool:
    return any(column.key in entry.scores and entry.scores[column.key].derived for column in SIX_TASKS)


def _error_notes(panels: Sequence[Panel]) -> tuple[str, ...]:
    scores = [
        (entry.is_ours, score)
        for panel in panels
        for entry in panel.entries
        for column in panel.columns
        if (score := entry.scores.get(column.key))
    ]
    notes = {
        _PAPER_ERROR_NOTE: any(score.interval for is_ours, score in scores if not is_ours),
        _ERROR_NOTE: any(score.interval for is_ours, score in scores if is_ours),
        _RUNS_NOTE: any(score.runs for _, score in scores),
    }
    return tuple(note for note, applies in notes.items() if applies)


def _missing_notes(panels: Sequence[Panel]) -> tuple[str, ...]:
    missing = "; ".join(text for panel in panels for text in _missing(panel))
    return (f"Not drawn, as not known: {missing}.",) if missing else ()


def _missing(panel: Panel) -> Iterator[str]:
    for entry in panel.entries:
        if titles := [column.title for column in panel.columns if column.key not in entry.scores]:
            yield f"{', '.join(titles)} of {entry.title}"
