"""Choose what Figures 1, 3, 4 and 5 show: the paper's numbers, and ours in a panel of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from diffclip_openclip.data.catalog import MMVP_PAPER_PATTERNS
from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.table_layouts import OOD, SIX_TASKS, Column

_OOD = (*OOD.columns[:-2], Column("Average", OOD.columns[-2].key))
_PATTERNS = tuple(Column(pattern, f"mmvp/{pattern}") for pattern in MMVP_PAPER_PATTERNS)
_TASKS_NOTE = "Zero-shot OOD: mean of the five ImageNet sets. Retrieval: Recall@5. ImageNet: the paper's 7 templates."
_DERIVED_NOTE = "≈, broken outline: the paper's text gives the difference to CLIP; drawn is CLIP's value plus it."
_OOD_NOTE = (
    "Average: of the five sets, ImageNet among them, as in the paper. Templates: the paper's 7. The paper's values are "
    "read off its figure (±0.1)."
)
_MMVP_NOTE = (
    "Percent of each pattern's pairs; chance is 25. The paper's values are read off its figure (hits out of 15)."
)


@dataclass(frozen=True)
class Panel:
    """Describe one picture within a figure."""

    title: str
    columns: tuple[Column, ...]  # groups of bars, or spokes of a radar
    entries: tuple[Entry, ...]  # bars in each group, or outlines of a radar; at least one
    top: float = 0.0  # highest value of its scale, in percent

    @property
    def is_ours(self) -> bool:
        """Tell whether it shows models of ours; no panel mixes them with the paper's."""
        return self.entries[0].is_ours


@dataclass(frozen=True)
class Figure:
    """Describe a figure."""

    name: str  # of its files
    title: str
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]  # below it
    is_radar: bool = False  # otherwise grouped bars


def make_figures(paper: Mapping[str, Entry], ours: Sequence[Entry]) -> list[Figure]:
    """Choose the entries of all figures.

    A model of ours stands in the figures of one pretraining: its counterpart's in the paper, or else its baseline's.
    Without either it stands in all figures.
    """
    cc3m, cc12m = ([entry for entry in paper.values() if entry.pretraining == name] for name in ("CC3M", "CC12M"))
    ours3, ours12 = ([entry for entry in ours if _pretraining(entry) in (None, name)] for name in ("CC3M", "CC12M"))
    pair = [entry for entry in cc12m if entry.family in ("CLIP", "DiffCLIP")]
    return [
        _figure(
            "figure1",
            "Figure 1. CC3M pretraining: CLIP and DiffCLIP across six tasks",
            SIX_TASKS,
            {"The paper, CC3M": cc3m, "Ours": ours3},
            _TASKS_NOTE,
        ),
        _figure(
            "figure3",
            "Figure 3. Zero-shot ImageNet and its variants",
            _OOD,
            {"The paper, CC3M": cc3m, "The paper, CC12M": pair, "Ours": ours},
            _OOD_NOTE,
        ),
        _figure(
            "figure4",
            "Figure 4. MMVP-VLM, the seven patterns that the paper shows",
            _PATTERNS,
            {"The paper, CC12M": pair, "Ours": ours12},
            _MMVP_NOTE,
            is_radar=True,
        ),
        _figure(
            "figure5",
            "Figure 5. CC12M pretraining: four variants across six tasks",
            SIX_TASKS,
            {"The paper, CC12M": cc12m, "Ours": ours12},
            f"{_TASKS_NOTE} {_DERIVED_NOTE}",
        ),
    ]


def _pretraining(entry: Entry) -> str | None:
    return entry.pretraining or (entry.baseline.pretraining if entry.baseline else None)


def _figure(
    name: str,
    title: str,
    columns: tuple[Column, ...],
    entries: Mapping[str, Sequence[Entry]],
    note: str,
    is_radar: bool = False,
) -> Figure:
    """Return a figure of the entries that have a score to draw; a radar's entries must have all of them."""
    enough = all if is_radar else any
    panels = []
    for panel, candidates in entries.items():
        if drawn := tuple(e for e in candidates if enough(column.key in e.scores for column in columns)):
            panels.append(Panel(panel, columns, drawn))
    missing = [text for panel in panels for text in _missing(panel)]
    notes = (note, f"Not drawn, as not known: {'; '.join(missing)}.") if missing else (note,)
    return Figure(name, title, tuple(_scaled(panels)), notes, is_radar)


def _missing(panel: Panel) -> Iterator[str]:
    for entry in panel.entries:
        if titles := [column.title for column in panel.columns if column.key not in entry.scores]:
            yield f"{', '.join(titles)} of {entry.title}"


def _scaled(panels: Sequence[Panel]) -> Iterator[Panel]:
    """Yield the panels on a common scale; one whose values fill less than half of it gets a scale of its own."""
    highest = [
        max(
            entry.scores[column.key].value
            for entry in panel.entries
            for column in panel.columns
            if column.key in entry.scores
        )
        for panel in panels
    ]
    for panel, own in zip(panels, highest, strict=True):
        if own < max(highest) / 2:
            yield replace(panel, title=f"{panel.title} (own scale)", top=max(own, 1.0))
        else:
            yield replace(panel, top=max(*highest, 1.0))
