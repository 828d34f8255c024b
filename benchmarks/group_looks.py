"""Say how groups of models look in the benchmarks' figures: as in the report, with colours for the paper's others."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

from diffclip_openclip.models import MODELS
from diffclip_openclip.report.comparison import OTHER, Entry
from diffclip_openclip.report.styles import outline, styles_of

_MORE_COLORS = "#8e8e8e", "#2f7d4f", "#b5651d", "#b03a48"  # of models that the paper does not have, as lines cross


def family(model: str | None) -> str:
    """Return the paper's name for a model's kind, or that of all others."""
    known = MODELS.get(model or "")
    return (known.family if known else None) or OTHER


def looks_of(models: Mapping[str, str | None]) -> dict[str, dict[str, Any]]:
    """Return matplotlib's arguments for each group's line and markers.

    Args:
        models: open_clip's name for the model of each group. Of groups with one model, the later are dotted.
    """
    first: dict[str, str] = {}
    for group, model in models.items():
        first.setdefault(model or group, group)
    entries = [Entry(group, family(models[group]), {}, is_ours=True) for group in first.values()]
    colors = cycle(_MORE_COLORS)
    own: dict[str, dict[str, Any]] = {}
    for entry, style in zip(entries, styles_of(entries), strict=True):
        color = next(colors) if entry.family == OTHER else style.color
        own[entry.name] = outline(style) | {"color": color, "markersize": 3, "markeredgewidth": 0.4}
    return {
        group: own[group] if group in own else own[first[model or group]] | {"linestyle": ":"}
        for group, model in models.items()
    }
