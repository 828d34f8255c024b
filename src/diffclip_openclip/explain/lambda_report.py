"""Do the work of ``diffclip lambdas``: table and plot every layer's lambda, over training where there is a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffclip_openclip.explain.lambda_values import EpochLambdas, LayerLambda, lambdas, lambdas_over_training
from diffclip_openclip.explain.pictures import COLORMAP, check_colormap
from diffclip_openclip.files import check_place, staged
from diffclip_openclip.weights.runs import TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = (".png", ".svg")


def show_lambdas(
    source: str, out: Path | None = None, *, variant: str | None = None, overwrite: bool = False
) -> list[str]:
    """Return the lambdas of ``source`` as lines of a table, and plot them to ``out``.

    Args:
        source: what ``diffclip convert`` takes (a checkpoint file, a directory, an address on the hub), or a run of
            open_clip's trainer. Of a run every checkpoint is read, and the last one is tabled in full.
        out: a PNG or SVG file; None for no plot.
        variant: "static" or "dynamic", for weights or a run that do not say.

    Raises:
        ValueError: the weights have no lambda of DiffCLIP's, ``variant`` does not apply, or ``out`` is another kind of
            file.
        FileNotFoundError: there is no such checkpoint.
        FileExistsError, FileNotFoundError: as :func:`~diffclip_openclip.files.check_place`.
        ImportError: matplotlib is not installed, and ``out`` is given.
    """
    if out is not None:
        if out.suffix.lower() not in _PICTURES:
            raise ValueError(f"{out} is no picture; end it in {' or '.join(_PICTURES)}")
        check_place(out, overwrite)
        check_colormap(COLORMAP)
    if TrainingRun.at(Path(source)).is_there:
        run = lambdas_over_training(source, variant)
        layers, over_training = run[-1].layers, run if len(run) > 1 else []
    else:
        layers, over_training = lambdas(source, variant), []
    if out is not None:
        figure = lambda_training_figure(over_training) if over_training else lambdas_figure(layers)
        with staged(out, overwrite) as new:
            figure.savefig(new, dpi=130)
    return [*_training_table(over_training), *_layer_table(layers), *([] if out is None else [str(out)])]


def _layer_table(layers: Sequence[LayerLambda]) -> list[str]:
    lines = ["tower  layer   lambda  =    exp1  -    exp2  +  lambda_init"]
    for row in layers:
        parts = f"{row.lambda_:7.4f}    {row.exp1:6.4f}    {row.exp2:6.4f}    {row.lambda_init:11.4f}"
        lines.append(f"{row.tower:5}  {row.layer:5d}  {parts}")
    return lines


def _training_table(run: Sequence[EpochLambdas]) -> list[str]:
    if not run:
        return []
    towers = _towers(run[0].layers)
    lines = ["epoch  logit scale" + "".join(f"  {tower + ' lambda: mean (least, most)':>34}" for tower in towers)]
    for epoch in run:
        cells = []
        for tower in towers:
            values = [row.lambda_ for row in epoch.layers if row.tower == tower]
            cells.append(f"{sum(values) / len(values):.4f} ({min(values):.4f}, {max(values):.4f})")
        lines.append(f"{epoch.epoch:5d}  {epoch.logit_scale:11.2f}" + "".join(f"  {cell:>34}" for cell in cells))
    return [*lines, "", f"after epoch {run[-1].epoch}:"]


def _towers(layers: Sequence[LayerLambda]) -> list[str]:
    return list(dict.fromkeys(row.tower for row in layers))


def lambdas_figure(layers: Sequence[LayerLambda]) -> "Figure":
    """Plot lambda by layer: a line for each tower, with lambda_init dotted."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axis = figure.subplots()
    for number, tower in enumerate(_towers(layers)):
        own = [row for row in layers if row.tower == tower]
        numbers = [row.layer for row in own]
        axis.plot(numbers, [row.lambda_ for row in own], "os"[number] + "-", color=f"C{number}", label=f"{tower} tower")
        axis.plot(numbers, [row.lambda_init for row in own], ":", color=f"C{number}", label=f"{tower}: λ_init")
    axis.set(xlabel="layer", ylabel="λ")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def lambda_training_figure(run: Sequence[EpochLambdas]) -> "Figure":
    """Plot lambda over epochs: a panel for each tower and a line for each layer, lighter towards the output."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    towers = _towers(run[0].layers)
    figure = Figure(figsize=(4.8 * len(towers), 3.6), layout="constrained")
    for axis, tower in zip(figure.subplots(1, len(towers), sharey=True, squeeze=False)[0], towers, strict=True):
        _draw_training(axis, run, tower)
        axis.set(title=f"{tower} tower", xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(axis="y", alpha=0.3)
    figure.axes[0].set_ylabel("λ")
    return figure


def _draw_training(axis: Any, run: Sequence[EpochLambdas], tower: str) -> None:
    import matplotlib

    layers = [row.layer for row in run[0].layers if row.tower == tower]
    for layer in layers:
        values = [row.lambda_ for epoch in run for row in epoch.layers if (row.tower, row.layer) == (tower, layer)]
        shade = matplotlib.colormaps[COLORMAP](0.85 * layer / max(1, max(layers)))
        axis.plot([epoch.epoch for epoch in run], values, ".-", color=shade, label=f"layer {layer}")
    axis.legend(fontsize=7, ncols=-(-len(layers) // 12))
