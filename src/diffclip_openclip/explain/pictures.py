"""Draw relevance over images, as the paper's Figure 2 arranges it, and the attention maps of every layer and head.

Colours. Relevance and single maps take ``inferno``: its lightness only grows, so it survives grey print and every kind
of colour blindness. The image below is grey, so that hue means relevance alone. ``jet``, the protocol of the paper's
Figure 2 (hila-chefer/Transformer-MM-Explainability@58eaea8:CLIP_explainability.ipynb), survives neither: choose it to
lay a picture beside theirs. Differences take ``RdBu_r`` centred at 0: white is none, red where A1 prevails, blue where
lambda A2 does. The two hues differ for the colour-blind too.

Shape legend: T texts, H x W pixels of a view, L layers, h heads (pairs of them in DiffCLIP's attention), N tokens,
y x x grid of patches.
"""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffclip_openclip.explain.heat_maps import upsample
from diffclip_openclip.explain.images import ImageMaps, ImageRelevance, Pixels
from diffclip_openclip.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORMAP, PAPER_COLORMAP, SIGNED_COLORMAP = "inferno", "jet", "RdBu_r"
_OVERLAY_SHARE = 0.65  # of the colour in an overlay; the rest is the image in grey
Floats = np.ndarray[Any, np.dtype[np.float32]]
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_CELL = 2.1  # inches, of a picture with relevance
_IMAGE, _PANEL, _BAR, _TITLE = 1.6, 0.42, 1.1, 0.9  # inches, beside maps: the image, a panel, a colour bar, titles
_PANEL_PIXELS = 28  # so that the lines between panels are thin
_PERCENTILE = 99.5  # where a colour bar ends: single tokens with most of a row's attention would darken all others


def check_colormap(name: str) -> None:
    """Refuse a colour map that matplotlib does not have.

    Raises:
        ValueError: there is none of that name.
        ImportError: matplotlib is not installed.
    """
    require("a picture", "plot", "matplotlib")
    import matplotlib

    if name not in matplotlib.colormaps:
        raise ValueError(
            f"matplotlib has no colour map {name!r}; take {COLORMAP!r}, or {PAPER_COLORMAP!r} as the paper"
        )


# relevance over images


def relevance_figure(
    blocks: Sequence[Sequence[ImageRelevance]],
    models: Sequence[str],
    texts: Sequence[str],
    *,
    colormap: str = COLORMAP,
    caption: str = "",
) -> "Figure":
    """Draw the paper's Figure 2: for each image the image, a column a model and a row a text, with cosine similarities.

    Each map is stretched from its own minimum to its own maximum, so colours compare places within a map only.

    Args:
        blocks: for each image the relevance that each model finds.
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
    for block, by_model in enumerate(blocks):
        first = block * len(texts)
        axes[first, 0].imshow(by_model[0].picture)
        for column, (found, model) in enumerate(zip(by_model, models, strict=True), start=1):
            _write(axes[first, column].set_title, model)
            for line, axis in enumerate(axes[first : first + len(texts), column]):
                axis.imshow(overlay(found.picture, heat(found, line), colormap))
                axis.set_xlabel(answer(found, line), fontsize=8, labelpad=2)
        for line, text in enumerate(texts):
            _write(axes[first + line, 1].set_ylabel, text)
    bar = figure.colorbar(ScalarMappable(cmap=colormap), ax=axes, ticks=[0, 1], shrink=min(0.9, 2 / rows), aspect=15)
    bar.ax.set_yticklabels(["min", "max"], fontsize=8)
    bar.set_label("relevance within a map", fontsize=8)
    _write(figure.supxlabel, caption, width=24 * columns)
    return figure


def _write(put: Any, text: str, width: int = 26) -> None:
    # as it stands: a "$" is a dollar, not mathematics
    put(textwrap.fill(text, width), fontsize=8 if width > 26 else 9, parse_math=False)


def overlay(picture: Pixels, heat_HW: Floats, colormap: str = COLORMAP) -> Floats:
    """Lay a heat map in colours over a picture.

    With "jet" it is done as in the source of the paper's figure: the sum of image and colours, divided by its maximum.

    Args:
        picture: (H, W, 3) in 0..255.
        heat_HW: in [0, 1].

    Returns:
        (H, W, 3) in [0, 1].
    """
    import matplotlib

    colours = matplotlib.colormaps[colormap](heat_HW)[..., :3]
    if colormap == PAPER_COLORMAP:
        mixed = colours + picture / 255
        return (mixed / mixed.max()).astype(np.float32)
    grey = (picture @ np.array(_LUMA) / 255)[..., None]
    return (_OVERLAY_SHARE * colours + (1 - _OVERLAY_SHARE) * grey).astype(np.float32)


def heat(found: ImageRelevance, text: int) -> Floats:
    """Return the relevance of the text of that index in the picture's pixels, stretched to [0, 1]: (H, W)."""
    maps = found.relevance.maps[:, text : text + 1]
    return upsample(maps, found.picture.shape[:2])[0, 0].float().cpu().numpy()


def answer(found: ImageRelevance, text: int) -> str:
    """Return the similarity of the text of that index, and whether its map is empty: ``similarity 0.213``."""
    empty = "" if found.relevance.maps[:, text].any() else ", no relevance"
    return f"similarity {found.relevance.similarity[0, text]:.3f}{empty}"


# maps of every layer and head


def maps_figure(images: Sequence[ImageMaps], titles: Sequence[str]) -> "Figure":
    """Draw what the class token attends to in every layer (rows) and head (columns): A1, A2 and A1 - lambda A2.

    Each image and model has a row of pictures; plain attention has one map. Towers that average tokens show the mean of
    these tokens' rows. What goes to the class token itself is not shown. A1 and A2 share a scale. Colour bars end where
    99.5 % of the entries do.
    """
    from matplotlib.figure import Figure

    heights = [max(_IMAGE, _PANEL * len(maps.layers)) + _TITLE for maps in images]
    widths = [[_IMAGE, *_mosaic_widths(maps)] for maps in images]
    width = max(sum(row) for row in widths)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(images), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, maps, title, row in zip(parts, images, titles, widths, strict=True):
        part.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
        # the last place is empty: it makes panels as large in every row
        axes = part.subplots(1, len(row) + 1, width_ratios=[*row, width - sum(row) + 1e-3])
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].imshow(maps.picture)
        _draw_maps(part, axes[1:], maps)
    return figure


def _mosaic_widths(maps: ImageMaps) -> list[float]:
    return [_PANEL * maps.layers[0].a1.shape[1] + _BAR] * (3 if maps.differential else 1)


def _draw_maps(part: Any, axes: Sequence[Any], maps: ImageMaps) -> None:
    ticks = [str(layer.layer) for layer in maps.layers]
    one = read_out_rows(maps, [layer.a1 for layer in maps.layers])
    if not maps.differential:
        _draw_mosaic(part, axes[0], one, "A", ticks, _end(one))
        return
    two = read_out_rows(maps, [layer.a2 for layer in maps.layers if layer.a2 is not None])
    difference = read_out_rows(maps, [layer.attention for layer in maps.layers])
    end = max(_end(one), _end(two))
    _draw_mosaic(part, axes[0], one, "A1", ticks, end)
    _draw_mosaic(part, axes[1], two, "A2", ticks, end)
    lambdas = [float(layer.lambda_.mean()) for layer in maps.layers if layer.lambda_ is not None]
    ticks = [f"{tick}\nλ {value:.2f}" for tick, value in zip(ticks, lambdas, strict=True)]
    _draw_mosaic(part, axes[2], difference, "A1 - λ A2", ticks, _end(difference), signed=True)


def read_out_rows(maps: ImageMaps, of_layers: Sequence[torch.Tensor]) -> Floats:
    """Return what the tokens that the tower reads out attend to, on average: (L, h, y, x).

    Args:
        of_layers: L maps, (1, h, N, N) each.
    """
    rows = [maps.patches(layer[0, :, list(maps.read_out)].mean(dim=1)) for layer in of_layers]
    return torch.stack(rows).float().cpu().numpy()


def _end(rows: Floats) -> float:
    return float(np.percentile(np.abs(rows), _PERCENTILE))


def mosaic(rows_Lhyx: Floats) -> Floats:
    """Join the panels (y, x) to one array: a row a layer and a column a head, with NaN between them."""
    layers, heads, height, width = rows_Lhyx.shape
    scale, gap = -(-_PANEL_PIXELS // max(height, width)), 2
    panels = rows_Lhyx.repeat(scale, axis=2).repeat(scale, axis=3)
    apart = np.pad(panels, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    joined = apart.transpose(0, 2, 1, 3).reshape(layers * (scale * height + gap), heads * (scale * width + gap))
    return joined[:-gap, :-gap]


def _draw_mosaic(
    part: Any, axis: Any, rows_Lhyx: Floats, title: str, layers: Sequence[str], end: float, signed: bool = False
) -> None:
    values, heads = mosaic(rows_Lhyx), rows_Lhyx.shape[1]
    colormap = SIGNED_COLORMAP if signed else COLORMAP
    image = axis.imshow(values, cmap=colormap, vmin=-end if signed else 0, vmax=end, interpolation="none")
    axis.set_yticks((np.arange(len(layers)) + 0.5) * values.shape[0] / len(layers), layers, fontsize=6)
    axis.set_xticks((np.arange(heads) + 0.5) * values.shape[1] / heads, range(heads), fontsize=6)
    axis.tick_params(length=0)
    axis.set_title(title, fontsize=9)
    axis.set_ylabel("layer", fontsize=7)
    axis.set_xlabel("head", fontsize=7)
    bar = part.colorbar(image, ax=axis, extend="both" if signed else "max", shrink=0.8)
    bar.ax.tick_params(labelsize=6)
