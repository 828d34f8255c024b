"""Make README.md's tables of what attention_inside.py and fragility.py measured of the emoji comparison's models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attention_inside import MEASURES, over_layers
from group_outputs import cell, estimate_of, markdown, names_of
from model_groups import ARMS, Estimate, difference

Rows = Sequence[Mapping[str, Any]]
ByGroup = Mapping[str, Estimate]

BASELINE, CONTINUED, HALF_HEADS = (ARMS[name].title for name in ("baseline", "continued", "half-heads"))
_V1 = [ARMS[name].title for name in ("diffclip", "dynamic", "vision")]
_UNTABLED = "spread of lambda"  # is in the JSON
_COMPARED_WITH = f"of models that go on from CLIP: to {CONTINUED}; ns: the 95 % interval has 0"
_SYMBOLS = {"A1": "A₁", "A2": "A₂", "lambda": "λ"}
# quantity, disturbance and size -> words
_FRAGILITY = {
    ("accuracy", "clean", 0): "correct",
    **{("accuracy", "attack", size): f"correct under the attack, {size}/255" for size in (1, 2, 4)},
    **{("flipped", "attack", size): f"flipped by the attack, {size}/255" for size in (1, 2, 4)},
    ("flipped", "noise", 4): "flipped by noise, 4/255",
    ("flipped", "attack on CLIP", 4): "flipped by the attack on a CLIP, 4/255",
    ("flipped", "attack on DiffCLIP", 4): "flipped by the attack on a DiffCLIP, 4/255",
}


def inside_part(rows: Rows) -> str:
    """Return the means over each tower's layers, and the differences that the text speaks of."""
    found, groups = over_layers(rows), names_of(rows)
    means = [
        [f"{tower}: {_words(measure)}", *(cell(found[tower, measure].get(group), 2) for group in groups)]
        for tower in ("image", "text")
        for measure in MEASURES
        if measure != _UNTABLED
    ]
    compared = [group for group in groups if group not in (BASELINE, CONTINUED)]
    differences = []
    for tower in ("image", "text"):
        sinks, of_a1, cka = (found[tower, measure] for measure in ("sink", "sink of A1", "CKA of heads"))
        a_group_each = {
            "sink, to that of CLIP": [_to(sinks, group, _reference(group)) for group in compared],
            "sink, to that of its A₁": [
                difference(sinks[group], of_a1[group]) if group in of_a1 else None for group in compared
            ],
            "CKA of heads, to as many heads": [
                None  # it has none of its own number to compare it with
                if group == HALF_HEADS
                else _to(cka, group, HALF_HEADS if group in _V1 and group in of_a1 else _reference(group))
                for group in compared
            ],
        }
        differences += [
            [f"{tower}: {what}", *(cell(own, 2, signed=True) for own in cells)] for what, cells in a_group_each.items()
        ]
    return "\n\n".join(
        [
            markdown(["mean over layers", *groups], means),
            f"Differences, seed by seed ({_COMPARED_WITH}):",
            markdown(["mean over layers", *compared], differences),
        ]
    )


def fragility_part(rows: Rows) -> str:
    """Return the shares, and their differences to CLIP."""
    groups = names_of(rows)
    found: dict[tuple[str, str, int], dict[str, Estimate]] = {key: {} for key in _FRAGILITY}
    for row in rows:
        if (key := (row["quantity"], row["disturbed"], row["size"])) in found:
            found[key][row["group"]] = estimate_of(row)
    shares = [[words, *(cell(found[key].get(group), 1, 100) for group in groups)] for key, words in _FRAGILITY.items()]
    compared = [group for group in groups if group not in (BASELINE, CONTINUED)]
    differences = [
        [words, *(cell(_to(found[key], group, _reference(group)), 1, 100, signed=True) for group in compared)]
        for key, words in _FRAGILITY.items()
    ]
    return "\n\n".join(
        [
            markdown(["percent", *groups], shares),
            f"Differences to CLIP, seed by seed ({_COMPARED_WITH}):",
            markdown(["points", *compared], differences),
        ]
    )


def _reference(group: str) -> str:
    """Return the CLIP that a model is compared with: of those that go on from it, the one that goes on as it is."""
    return CONTINUED if any(arm.title == group and arm.is_continued for arm in ARMS.values()) else BASELINE


def _to(estimates: ByGroup, group: str, base: str) -> Estimate | None:
    return difference(estimates[group], estimates[base]) if group in estimates and base in estimates else None


def _words(measure: str) -> str:
    return " ".join(_SYMBOLS.get(word, word) for word in measure.split())
