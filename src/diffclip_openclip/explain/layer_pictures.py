"""A1, A2 and A1 - lambda A2 of every layer and head beside each other.

Shape legend: L layers, h heads (pairs of them in DiffCLIP's attention), N tokens, y x x grid of patches.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffclip_openclip.explain.looks import LayerLook
from diffclip_openclip.explain.pictures import COLORMAP, SIGNED_COLORMAP, Floats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_IMAGE, _PANEL, _BAR, _TITLE = 1.6, 0.42, 1.1, 0.9  # inches: the image, a panel, a colour bar, titles
_PANEL_PIXELS = 28  # so that the lines between panels are thin
_PERCENTILE = 99.5  # where a colour bar ends: single tokens with most of a row's attention would darken all others


def layers_figure(looks: Sequence[LayerLook], titles: Sequence[str]) -> "Figure":
    """What the class token attends to in every layer (rows) and head (columns): A1, A2 and A1 - lambda A2.

    A row of pictures a look; plain attention has one map. Towers that average tokens show the mean of these tokens'
    rows. What goes to the class token itself is not shown. A1 and A2 share a scale. Colour bars end where 99.5 % of the
    entries do.
    """
    from matplotlib.figure import Figure

    heights = [max(_IMAGE, _PANEL * len(look.layers)) + _TITLE for look in looks]
    widths = [[_IMAGE, *_mosaic_widths(look)] for look in looks]
    width = max(sum(row) for row in widths)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(looks), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, look, title, row in zip(parts, looks, titles, widths, strict=True):
        part.suptitle(title, fontsize=10, x=0.01, ha="left", parse_math=False)
        # the last place is empty: it makes panels as large in every row
        axes = part.subplots(1, len(row) + 1, width_ratios=[*row, width - sum(row) + 1e-3])
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].imshow(look.picture)
        _draw(part, axes[1:], look)
    return figure


def _mosaic_widths(look: LayerLook) -> list[float]:
    return [_PANEL * look.layers[0].a1.shape[1] + _BAR] * (3 if look.differential else 1)


def _draw(part: Any, axes: Sequence[Any], look: LayerLook) -> None:
    ticks = [str(layer.layer) for layer in look.layers]
    one = read_out_rows(look, [layer.a1 for layer in look.layers])
    if not look.differential:
        _draw_mosaic(part, axes[0], one, "A", ticks, _end(one))
        return
    two = read_out_rows(look, [layer.a2 for layer in look.layers if layer.a2 is not None])
    difference = read_out_rows(look, [layer.attention for layer in look.layers])
    end = max(_end(one), _end(two))
    _draw_mosaic(part, axes[0], one, "A1", ticks, end)
    _draw_mosaic(part, axes[1], two, "A2", ticks, end)
    lambdas = [float(layer.lambda_.mean()) for layer in look.layers if layer.lambda_ is not None]
    ticks = [f"{tick}\nλ {value:.2f}" for tick, value in zip(ticks, lambdas, strict=True)]
    _draw_mosaic(part, axes[2], difference, "A1 - λ A2", ticks, _end(difference), signed=True)


def read_out_rows(look: LayerLook, maps: Sequence[torch.Tensor]) -> Floats:
    """What the tokens that the tower reads out attend to, on average: of L maps (1, h, N, N), (L, h, y, x)."""
    rows = [look.patches(layer[0, :, list(look.read_out)].mean(dim=1)) for layer in maps]
    return torch.stack(rows).float().cpu().numpy()


def _end(rows: Floats) -> float:
    return float(np.percentile(np.abs(rows), _PERCENTILE))


def mosaic(rows_Lhyx: Floats) -> Floats:
    """The panels (y, x) as one array, a row a layer and a column a head, with NaN between them."""
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
