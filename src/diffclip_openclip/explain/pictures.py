"""Relevance over images, as the paper's Figure 2 arranges it.

Colours. Relevance and single maps take ``inferno``: its lightness only grows, so it survives grey print and every kind
of colour blindness, over the image in grey so that hue means relevance alone. ``jet``, the protocol of the paper's
Figure 2 (hila-chefer/Transformer-MM-Explainability@58eaea8:CLIP_explainability.ipynb), survives neither: choose it to
lay a picture beside theirs. Differences take ``RdBu_r`` centred at 0: white is none, red where A1 prevails, blue where
lambda A2 does; the two hues differ for the colour-blind too.

Shape legend: T texts, H x W pixels of a view.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffclip_openclip.explain.looks import TextLook
from diffclip_openclip.explain.relevance import upsample
from diffclip_openclip.explain.views import Pixels
from diffclip_openclip.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORMAP, PAPER_COLORMAP, SIGNED_COLORMAP = "inferno", "jet", "RdBu_r"
COLOUR_SHARE = 0.65  # of the colour in an overlay; the rest is the image in grey
Floats = np.ndarray[Any, np.dtype[np.float32]]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CELL = 2.1  # inches


def check_colormap(name: str) -> None:
    """Refuse a colour map that matplotlib does not have.

    Raises:
        ValueError: it has none of that name.
        ImportError: matplotlib is not installed.
    """
    require("a picture", "plot", "matplotlib")
    import matplotlib

    if name not in matplotlib.colormaps:
        raise ValueError(
            f"matplotlib has no colour map {name!r}; take {COLORMAP!r}, or {PAPER_COLORMAP!r} as the paper"
        )


def overlay(picture: Pixels, heat_HW: Floats, colormap: str = COLORMAP) -> Floats:
    """A heat map in [0, 1], (H, W), in colours over a picture, (H, W, 3): (H, W, 3) in [0, 1].

    With "jet" as the source does it: the sum of image and colours, divided by its maximum.
    """
    import matplotlib

    colours = matplotlib.colormaps[colormap](heat_HW)[..., :3]
    if colormap == PAPER_COLORMAP:
        mixed = colours + picture / 255
        return (mixed / mixed.max()).astype(np.float32)
    grey = (picture @ np.array(_LUMA) / 255)[..., None]
    return (COLOUR_SHARE * colours + (1 - COLOUR_SHARE) * grey).astype(np.float32)


def heat(look: TextLook, text: int) -> Floats:
    """The relevance of the look's text of that index, in its picture's pixels, stretched to [0, 1]: (H, W)."""
    return upsample(look.found.maps[:, text : text + 1], look.picture.shape[:2])[0, 0].float().cpu().numpy()


def answer(look: TextLook, text: int) -> str:
    """The similarity of the look's text of that index, and whether its map is empty: "similarity 0.213"."""
    empty = "" if look.found.maps[:, text].any() else ", no relevance"
    return f"similarity {look.found.similarity[0, text]:.3f}{empty}"


def relevance_figure(
    blocks: Sequence[Sequence[TextLook]],
    models: Sequence[str],
    texts: Sequence[str],
    colormap: str = COLORMAP,
    caption: str = "",
) -> "Figure":
    """The paper's Figure 2: for each image the image, a column a model and a row a text, with cosine similarities.

    Each map is stretched from its own minimum to its own maximum, so colours compare places within a map only.

    Args:
        blocks: for each image the look of each model.
        models: their titles.
        caption: a line below the pictures.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    rows, columns = len(blocks) * len(texts), 1 + len(blocks[0])
    figure = Figure(figsize=(_CELL * columns + 1.0, (_CELL + 0.3) * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for block, looks in enumerate(blocks):
        first = block * len(texts)
        axes[first, 0].imshow(looks[0].picture)
        for column, (look, model) in enumerate(zip(looks, models, strict=True), start=1):
            _write(axes[first, column].set_title, model)
            for line, axis in enumerate(axes[first : first + len(texts), column]):
                axis.imshow(overlay(look.picture, heat(look, line), colormap))
                axis.set_xlabel(answer(look, line), fontsize=8, labelpad=2)
        for line, text in enumerate(texts):
            _write(axes[first + line, 1].set_ylabel, text)
    bar = figure.colorbar(ScalarMappable(cmap=colormap), ax=axes, ticks=[0, 1], shrink=min(0.9, 2 / rows), aspect=15)
    bar.ax.set_yticklabels(["min", "max"], fontsize=8)
    bar.set_label("relevance within a map", fontsize=8)
    _write(figure.supxlabel, caption, width=24 * columns)
    return figure


def _write(place: Any, text: str, width: int = 26) -> None:
    # as it stands: a "$" is a dollar, not mathematics
    place(textwrap.fill(text, width), fontsize=8 if width > 26 else 9, parse_math=False)
