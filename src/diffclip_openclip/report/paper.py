"""Define the keys of all scores and the paper's means, and read the paper's own numbers (arXiv 2503.06626).

A key is ``<measure>/<data set>``: ``linear_probe/dtd``, ``few_shot/dtd``, ``image_retrieval@5/flickr30k``,
``zero_shot_7/imagenet1k`` (the paper's 7 templates), ``zero_shot_80/imagenet1k`` (OpenAI's 80), ``mmvp/<pattern>``,
``pope_random/accuracy``. The key of a mean ends in ``/mean``, as in ``linear_probe/mean``.

``paper.json`` holds the transcription. Tables 1 to 3 are the paper's text. Figures 3 and 4 were read off their vector
graphics. Of DiffCLIP* and DiffCLIP† (Figure 5) the text gives only differences to CLIP: their values here are CLIP's
plus those, and count as derived. ``notes`` there say what in the paper's numbers does not add up;
``tests/report/test_paper_arithmetic.py`` computes them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from diffclip_openclip.data.catalog import (
    DATA_SETS,
    LINEAR_PROBE,
    MMVP_PAPER_PATTERNS,
    MMVP_PATTERNS,
    RECALL_AT,
    RETRIEVAL,
    ZERO_SHOT,
)

# a result file's name of a set of templates -> the measure
TEMPLATE_MEASURES = {"paper-7": "zero_shot_7", "openai-80": "zero_shot_80"}
# a variant's name in this package, for keyboards without a dagger -> its name in the paper
_VARIANTS = {"DiffCLIP-dynamic": "DiffCLIP*", "DiffCLIP-vision": "DiffCLIP†"}


@dataclass(frozen=True)
class Score:
    """Hold a number and where it comes from."""

    value: float  # in percent
    source: str  # a place in the paper, a result file, or how the number was computed
    derived: bool = False  # the source does not give the number, but it follows from what the source gives
    difference: float | None = None  # to CLIP, where the source prints one


def members(measure: str, task: str) -> tuple[str, ...]:
    """Return the keys of ``measure`` for the data sets of a task, in the paper's order."""
    return tuple(f"{measure}/{data_set.name}" for data_set in DATA_SETS if task in data_set.tasks)


def _means() -> dict[str, tuple[str, ...]]:
    means = {f"{measure}/mean": members(measure, LINEAR_PROBE) for measure in ("linear_probe", "few_shot")}
    for k in RECALL_AT:
        for measure in (f"image_retrieval@{k}", f"text_retrieval@{k}"):
            means[f"{measure}/mean"] = members(measure, RETRIEVAL)
    for measure in TEMPLATE_MEASURES.values():
        means[f"{measure}/mean"] = members(measure, ZERO_SHOT)
        means[f"{measure}/mean_without_imagenet"] = members(measure, ZERO_SHOT)[1:]
    means["mmvp/mean_7"] = tuple(f"mmvp/{pattern}" for pattern in MMVP_PAPER_PATTERNS)
    means["mmvp/mean_9"] = tuple(f"mmvp/{pattern}" for pattern in MMVP_PATTERNS)
    return means


MEANS = _means()  # key of a mean -> keys that it is taken over


def with_means(scores: Mapping[str, Score], derived: bool) -> dict[str, Score]:
    """Add the means that ``scores`` lacks and whose members it has all of."""
    complete = dict(scores)
    for key, keys in MEANS.items():
        if key not in scores and all(member in scores for member in keys):
            mean = sum(scores[member].value for member in keys) / len(keys)
            complete[key] = Score(mean, f"mean of {len(keys)} values", derived)
    return complete


@dataclass(frozen=True)
class PaperRow:
    """Hold what the paper reports of one model with one pretraining."""

    pretraining: str  # CC3M or CC12M
    model: str  # CLIP, DiffCLIP, DiffCLIP* or DiffCLIP†
    scores: Mapping[str, Score]  # by key

    @property
    def name(self) -> str:
        """Return the row's name, as in ``CC12M/DiffCLIP``."""
        return f"{self.pretraining}/{self.model}"


def load_paper() -> dict[str, PaperRow]:
    """Return the paper's rows by name, ``CC3M/CLIP`` to ``CC12M/DiffCLIP†``."""
    scores: dict[str, dict[str, Score]] = {}
    for part in _transcription()["parts"]:
        for name in part.get("values", part.get("differences")):
            clip = scores.get(f"{name.partition('/')[0]}/CLIP", {})
            scores.setdefault(name, {}).update(_part_scores(part, name, clip))
    rows = {}
    for name, own in scores.items():
        pretraining, _, model = name.partition("/")
        rows[name] = PaperRow(pretraining, model, with_means(own, derived=True))
    return rows


def paper_notes(keys: Iterable[str]) -> list[str]:
    """Return what a reader of the paper's numbers of ``keys`` should know of them, a sentence each."""
    wanted = set(keys)
    return [note["text"] for note in _transcription()["notes"] if note["key"] in wanted]


def find_row(rows: Mapping[str, PaperRow], name: str) -> PaperRow:
    """Return the paper's row of that name; ``-vision`` and ``-dynamic`` stand for † and *.

    Raises:
        ValueError: the paper has no such row; lists those it has.
    """
    pretraining, _, model = name.partition("/")
    found = rows.get(f"{pretraining}/{_VARIANTS.get(model, model)}")
    if found is None:
        raise ValueError(f"the paper has no row {name!r}; its rows are {', '.join(rows)}")
    return found


def _transcription() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(files(__package__).joinpath("paper.json").read_text(encoding="utf-8"))
    return content


def _part_scores(part: Mapping[str, Any], name: str, clip: Mapping[str, Score]) -> dict[str, Score]:
    keys, source = part["keys"], f"{part['source']}, {name.replace('/', ' ')}"
    differences = part.get("differences", {}).get(name, [None] * len(keys))
    if "values" in part:
        scale = 100 / part["out_of"] if "out_of" in part else 1
        numbers = zip(keys, part["values"][name], differences, strict=True)
        return {key: Score(scale * value, source, False, difference) for key, value, difference in numbers}
    return {
        key: Score(clip[key].value + difference, source, True, difference)
        for key, difference in zip(keys, differences, strict=True)
    }
