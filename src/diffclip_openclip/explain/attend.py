"""Do the work of ``diffclip attend``: images, texts and models in, a picture or a page out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import Image
from tqdm import tqdm

from diffclip_openclip.explain.images import ImageMaps, ImageRelevance, image_maps, image_relevance, read_image
from diffclip_openclip.explain.page import attention_page
from diffclip_openclip.explain.pictures import COLORMAP, check_colormap, maps_figure, relevance_figure
from diffclip_openclip.files import check_place, staged
from diffclip_openclip.weights.loading import LoadedModel, load_model

_PICTURES, _PAGE = (".png", ".svg"), ".html"
_Found = TypeVar("_Found")


def show_attention(
    images: Sequence[Path],
    *,
    texts: Sequence[str],
    models: Sequence[str],
    out: Path,
    method: str = "chefer",
    start_layer: int | None = None,
    maps: bool = False,
    colormap: str = COLORMAP,
    overwrite: bool = False,
) -> list[str]:
    """Write to ``out`` what each model attends to in each image, and return a line that says so.

    A PNG or SVG is the paper's Figure 2. With ``maps`` it has A1, A2 and A1 - lambda A2 of all layers and heads
    instead, and texts, ``method``, ``start_layer`` and ``colormap`` have no effect. A page (HTML) has both.

    Args:
        models: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that open_clip builds, with weights.
        out: a .png, .svg or .html file.
        method, start_layer: as :func:`~diffclip_openclip.explain.heat_maps.relevance` takes them.
        colormap: of the relevance; matplotlib's name, "jet" is the paper's.

    Raises:
        ValueError: there is no image, model or text, or one of them, the method, the layer, the colour map or the kind
            of file cannot be.
        FileNotFoundError: an image or weights are not there.
        FileExistsError, FileNotFoundError: as :func:`~diffclip_openclip.files.check_place`.
        ImportError: matplotlib is not installed.
    """
    kind = out.suffix.lower()
    if kind not in (*_PICTURES, _PAGE):
        raise ValueError(f"{out} is neither a picture ({' or '.join(_PICTURES)}) nor a page ({_PAGE})")
    _check_given(images, texts, models, needs_text=kind == _PAGE or not maps)
    check_place(out, overwrite, inputs=images)
    check_colormap(colormap)
    opened, names = [read_image(path) for path in images], [path.name for path in images]

    def find(loaded: LoadedModel, image: Image.Image) -> ImageRelevance:
        return image_relevance(loaded, image, texts, method=method, start_layer=start_layer)

    def both(loaded: LoadedModel, image: Image.Image) -> tuple[ImageRelevance, ImageMaps]:
        return find(loaded, image), image_maps(loaded, image)

    with staged(out, overwrite) as new:
        if kind == _PAGE:
            titles, blocks = _for_all(both, models, opened)
            html = attention_page(names=names, models=titles, texts=texts, blocks=blocks, colormap=colormap)
            new.write_text(html, encoding="utf-8")
        elif maps:
            titles, by_image = _for_all(image_maps, models, opened)
            captions = [f"{name}: {title}" for name in names for title in titles]
            maps_figure([found for by_model in by_image for found in by_model], captions).savefig(new, dpi=130)
        else:
            titles, found = _for_all(find, models, opened)
            start = "" if start_layer is None else f", from layer {start_layer}"
            caption = f"method: {method}{start}"
            relevance_figure(found, titles, texts, colormap=colormap, caption=caption).savefig(new, dpi=130)
    return [f"{out}: images {len(images)}, models {len(models)}, {out.stat().st_size / 1e6:.1f} MB"]


def _check_given(images: Sequence[Path], texts: Sequence[str], models: Sequence[str], needs_text: bool) -> None:
    if not images:
        raise ValueError("there is no image to look at; name at least one")
    if not models:
        raise ValueError("there is no model to look with; give at least one with --model NAME,PRETRAINED")
    if needs_text and not texts:
        raise ValueError("there is no text to look for; give at least one with --text, or draw --maps, which need none")
    if any(not text.strip() for text in texts):
        raise ValueError("a --text is empty; say what to look for")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"--text {text!r} is no text in the terminal's encoding; it must be UTF-8") from error


def _for_all(
    find: Callable[[LoadedModel, Image.Image], _Found], models: Sequence[str], images: Sequence[Image.Image]
) -> tuple[list[str], list[list[_Found]]]:
    """Return the models' titles, and for each image what each model finds; one model is in memory at a time."""
    labels, columns = [], []
    for spec in tqdm(models, desc="models", unit="model"):
        loaded = load_model(spec)
        labels.append(loaded.spec.label)
        columns.append([find(loaded, image) for image in images])
    # two checkpoints of one run's name may share a label
    titles = labels if len(set(labels)) == len(labels) else list(models)
    return titles, [list(row) for row in zip(*columns, strict=True)]
