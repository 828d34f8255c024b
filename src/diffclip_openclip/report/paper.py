"""Define the keys of all scores and the paper's means, and read the paper's own numbers (arXiv 2503.06626).

A key is ``<measure>/<data set>``: ``linear_probe/dtd``, ``few_shot/dtd``, ``image_retrieval@5/flickr30k``,
``zero_shot_7/imagenet1k`` (7 templates), ``zero_shot_80/imagenet1k`` (OpenAI's 80), ``mmvp/<pattern>``,
``pope_random/accuracy``. The key of a mean ends in ``/mean``, as in ``linear_probe/mean``.

``paper.json`` holds the transcription, and says which version of the paper it is of. Tables 1 to 3 are the paper's
text. Figures 3 and 4 were read off their vector graphics. Of DiffCLIP* and DiffCLIP† the paper gives only differences
to CLIP, in its text and above Figure 5's bars: their values here are CLIP's plus those, and count as derived. ``notes``
there say what in the paper's numbers does not add up; ``tests/report/test_paper_arithmetic.py`` computes them.

The paper names no templates for zero-shot classification. That it used the 7 is inferred from its authors' training
code, so its numbers have the keys of the 7, and :func:`paper_key` compares those of the 80 with them too.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from diffclip_openclip.data.catalog import (
    DATA_SETS,
    LINEAR_PROBE,
    MMVP_PAPER_PATTERNS,
    MMVP_PATTERNS,
    RECALL_AT,
    RETRIEVAL,
    SUGAR_CREPE_KINDS,
    ZERO_SHOT,
    known_data_set,
)
from diffclip_openclip.report.uncertainty import Interval, Outcomes, mean_interval, share_interval

# a result file's name of a set of templates -> the measure
TEMPLATE_MEASURES = {"paper-7": "zero_shot_7", "openai-80": "zero_shot_80"}
MMVP_PAIRS = 15  # of each pattern of MMVP-VLM
POPE_QUESTIONS = 3000  # of a category of POPE, half of them to be answered by yes
# a variant's name in this package, for keyboards without a dagger -> its name in the paper
_VARIANTS = {"DiffCLIP-dynamic": "DiffCLIP*", "DiffCLIP-vision": "DiffCLIP†"}


@dataclass(frozen=True)
class Score:
    """Hold a number and where it comes from."""

    value: float  # in percent
    source: str  # a place in the paper, a result file, or how the number was computed
    derived: bool = False  # the source does not give the number, but it follows from what the source gives
    difference: float | None = None  # to CLIP, where the source prints one
    interval: Interval | None = None  # of 95 %, where it is known
    outcomes: tuple[
        Outcomes, ...
    ] = ()  # what it is computed from: of one data set, or of all that a mean is taken over
    runs: tuple[float, ...] = ()  # the scores of several training runs, whose mean the value is
    seeds: tuple[int, ...] = ()  # of these runs, where each is known and is another
    is_other_size: bool = False  # the data are not of the published size


def members(measure: str, task: str) -> tuple[str, ...]:
    """Return the keys of ``measure`` for the data sets on which the paper shows a task, in its order."""
    return tuple(f"{measure}/{data_set.name}" for data_set in DATA_SETS if task in data_set.tasks)


def _means() -> dict[str, tuple[str, ...]]:
    means = {f"{measure}/mean": members(measure, LINEAR_PROBE) for measure in ("linear_probe", "few_shot")}
    means["zero_shot_own/mean"] = members("zero_shot_own", LINEAR_PROBE)
    for k in RECALL_AT:
        for measure in (f"image_retrieval@{k}", f"text_retrieval@{k}"):
            means[f"{measure}/mean"] = members(measure, RETRIEVAL)
    for measure in TEMPLATE_MEASURES.values():
        means[f"{measure}/mean"] = members(measure, ZERO_SHOT)
        means[f"{measure}/mean_without_imagenet"] = members(measure, ZERO_SHOT)[1:]
    means["sugar_crepe/mean"] = tuple(f"sugar_crepe/{kind}" for kind in SUGAR_CREPE_KINDS)
    means["mmvp/mean_7"] = tuple(f"mmvp/{pattern}" for pattern in MMVP_PAPER_PATTERNS)
    means["mmvp/mean_9"] = tuple(f"mmvp/{pattern}" for pattern in MMVP_PATTERNS)
    return means


MEANS = _means()  # key of a mean -> keys that it is taken over


def with_means(scores: Mapping[str, Score], derived: bool) -> dict[str, Score]:
    """Add the means whose members ``scores`` has all of, and to a mean that it has, the interval."""
    complete = dict(scores)
    for key, keys in MEANS.items():
        if all(member in scores for member in keys):
            own = [scores[member] for member in keys]
            mean = sum(score.value for score in own) / len(own)
            score = scores.get(key, Score(mean, f"mean of {len(keys)} values", derived))
            complete[key] = _with_uncertainty(score, own)
    return complete


def _with_uncertainty(mean: Score, own: Sequence[Score]) -> Score:
    """Give a mean its interval and what else follows from its members."""
    outcomes = tuple(one for score in own for one in score.outcomes) if all(score.outcomes for score in own) else ()
    intervals = [score.interval for score in own if score.interval]
    interval = mean.interval
    if len(intervals) == len(own):
        interval = mean_interval(mean.value, intervals)
    is_other_size = any(score.is_other_size for score in own)
    return replace(mean, interval=interval, outcomes=outcomes, is_other_size=is_other_size)


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


def paper_version() -> str:
    """Return which version of the paper the numbers are from, in sentences."""
    version: str = _transcription()["version"]
    return version


def paper_key(key: str) -> str:
    """Return the key of the paper's number that a score is compared with: the paper has zero-shot numbers once."""
    measure, _, rest = key.partition("/")
    return f"zero_shot_7/{rest}" if measure == "zero_shot_80" else key


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
        scores = {key: Score(scale * value, source, False, difference) for key, value, difference in numbers}
    else:
        pairs = zip(keys, differences, strict=True)
        scores = {key: Score(clip[key].value + number, source, True, number) for key, number in pairs}
    return {key: replace(score, interval=_test_set_interval(key, score.value)) for key, score in scores.items()}


def _test_set_interval(key: str, value: float) -> Interval | None:
    """Return the interval that the size of the test set alone gives; None where the score is no share of samples."""
    measure, _, name = key.partition("/")
    units = None
    if name in MMVP_PATTERNS:
        units = MMVP_PAIRS
    elif measure.startswith("pope_"):
        units = {"accuracy": POPE_QUESTIONS, "recall": POPE_QUESTIONS // 2}.get(name)
    elif measure != "few_shot" and (data_set := known_data_set(name)):
        units = data_set.splits["test"]  # of retrieval the images: captions of one image fail together
    return share_interval(round(value / 100 * units), units) if units else None
