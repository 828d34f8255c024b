"""Say how series look: in the paper's colours, and apart without colour by lightness, hatch, marker and line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffclip_openclip.report.comparison import OTHER, Entry

INK = "#1a1a1a"
RC: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib's own, so that figures are the same everywhere
    "font.size": 7,
    "axes.linewidth": 0.6,
    "axes.titlesize": 7.5,
    "axes.titleweight": "bold",
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,  # text stays text, which conferences ask for
    "svg.hashsalt": "diffclip",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a label may hold dollar signs
}


@dataclass(frozen=True)
class Style:
    """Describe how a series looks, in matplotlib's terms."""

    color: str  # of a bar's fill, and of an outline
    hatch: str  # of a bar
    hatch_color: str
    marker: str  # of an outline
    line: str  # dashes of an outline


# blue, pink, purple and yellow as in the paper's Figures 1, 3, 4 and 5; the shades are ours, each of another lightness
STYLES = {
    "CLIP": Style("#376cb2", "", "white", "o", "-"),
    "DiffCLIP": Style("#f5a7c9", "////", INK, "s", "--"),
    "DiffCLIP*": Style("#4b1d73", "...", "white", "^", "-."),
    "DiffCLIP†": Style("#fbe48a", "xxxx", INK, "D", ":"),
    OTHER: Style("#8e8e8e", "---", INK, "v", "-"),
}
_MORE_HATCHES = ("\\\\\\\\", "+++", "oo", "**", "|||")
_MORE_MARKERS = ("P", "X", "<", ">", "h")


def styles_of(entries: Sequence[Entry]) -> list[Style]:
    """Return a style for each entry; those of one family share its colour and differ in hatch and marker."""
    styles: list[Style] = []
    for position, entry in enumerate(entries):
        earlier = [other.family for other in entries[:position]].count(entry.family)
        style = STYLES[entry.family]
        if earlier:
            index = (earlier - 1) % len(_MORE_HATCHES)
            style = replace(style, hatch=_MORE_HATCHES[index], marker=_MORE_MARKERS[index])
        styles.append(style)
    return styles


def outline(style: Style) -> dict[str, Any]:
    """Return matplotlib's arguments for a line with markers, in a panel as in its legend."""
    return {"color": style.color, "linestyle": style.line, "marker": style.marker, "markeredgecolor": INK}


def name_of(entry: Entry) -> str:
    """Return an entry's name in a legend, the same for all pretrainings."""
    return entry.name if entry.is_ours else f"{entry.name} (paper)"
