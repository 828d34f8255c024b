"""How series look: the paper's colours, told apart without colour too, by lightness, hatch, marker and line."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffclip_openclip.report.entries import OTHER, Entry

INK = "#1a1a1a"


@dataclass(frozen=True)
class Style:
    """Fill of a bar with its hatch and the hatch's colour; marker and dashes of an outline, in matplotlib's terms."""

    color: str
    hatch: str
    hatch_color: str
    marker: str
    line: str


# blue, pink, purple and yellow as in the paper's Figures 1, 3, 4 and 5; the shades are ours, each of another lightness
STYLES = {
    "CLIP": Style("#376cb2", "", "white", "o", "-"),
    "DiffCLIP": Style("#f5a7c9", "///", INK, "s", "--"),
    "DiffCLIP*": Style("#4b1d73", "..", "white", "^", "-."),
    "DiffCLIP†": Style("#fbe48a", "xxx", INK, "D", ":"),
    OTHER: Style("#8e8e8e", "--", INK, "v", "-"),
}
_MORE_HATCHES = ("\\\\\\", "++", "oo", "**", "||")
_MORE_MARKERS = ("P", "X", "<", ">", "h")


def styles_of(entries: Sequence[Entry]) -> list[Style]:
    """A style for each; of several of one family, later ones have its colour, and a hatch and marker of their own."""
    styles: list[Style] = []
    for position, entry in enumerate(entries):
        earlier = [other.family for other in entries[:position]].count(entry.family)
        style = STYLES[entry.family]
        if earlier:
            place = (earlier - 1) % len(_MORE_HATCHES)
            style = replace(style, hatch=_MORE_HATCHES[place], marker=_MORE_MARKERS[place])
        styles.append(style)
    return styles
