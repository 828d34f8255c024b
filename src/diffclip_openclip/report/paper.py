"""The paper's numbers (arXiv 2503.06626), each with its place there; transcribed in paper.json.

Tables 1 to 3 are the paper's text, Figures 3 and 4 were read off their vector graphics. Of DiffCLIP* and DiffCLIP†
(Figure 5) only differences to CLIP are in the text: their values here are CLIP's plus those, and marked as derived.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from diffclip_openclip.report.scores import Score, with_means

# what the variants are called in this package, for keyboards without a dagger
_ALIASES = {"DiffCLIP-dynamic": "DiffCLIP*", "DiffCLIP-vision": "DiffCLIP†"}


@dataclass(frozen=True)
class PaperRow:
    """A model of the paper with all that the paper says of it; ``scores`` by the keys of :mod:`.scores`."""

    pretraining: str
    model: str
    scores: Mapping[str, Score]

    @property
    def name(self) -> str:
        return f"{self.pretraining}/{self.model}"


def load_paper() -> dict[str, PaperRow]:
    """The paper's rows by name, ``CC3M/CLIP`` to ``CC12M/DiffCLIP†``."""
    text = files(__package__).joinpath("paper.json").read_text(encoding="utf-8")
    scores: dict[str, dict[str, Score]] = {}
    for part in json.loads(text)["parts"]:
        for name in part.get("values", part.get("differences")):
            clip = scores.get(f"{name.partition('/')[0]}/CLIP", {})
            scores.setdefault(name, {}).update(_scores(part, name, clip))
    return {name: _row(name, own) for name, own in scores.items()}


def _row(name: str, scores: Mapping[str, Score]) -> PaperRow:
    pretraining, _, model = name.partition("/")
    return PaperRow(pretraining, model, with_means(scores, derived=True))


def _scores(part: Mapping[str, Any], name: str, clip: Mapping[str, Score]) -> dict[str, Score]:
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


def find_row(rows: Mapping[str, PaperRow], name: str) -> PaperRow:
    """The paper's row of that name; ``-vision`` and ``-dynamic`` stand for † and *.

    Raises:
        ValueError: the paper has no such row; lists those it has.
    """
    pretraining, _, model = name.partition("/")
    found = rows.get(f"{pretraining}/{_ALIASES.get(model, model)}")
    if found is None:
        raise ValueError(f"the paper has no row {name!r}; its rows are {', '.join(rows)}")
    return found
