"""Read image files, cut them as a model sees them, and compute what the model attends to in them.

Shape legend: T texts, N tokens, h x w grid of patches, H x W pixels of a view.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from diffclip_openclip.data.images import FORMATS, open_image, to_rgb
from diffclip_openclip.explain.heat_maps import Relevance, relevance
from diffclip_openclip.explain.maps import LayerMaps, Tokens, attention_maps, tokens_of
from diffclip_openclip.weights.loading import LoadedModel

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_MAX_ASPECT = 100  # resizing the shorter side of a thinner strip to a model's size would take gigabytes
_DISPLAY = 384  # pixels of a view's shorter side, at least


def read_image(path: Path) -> Image.Image:
    """Read an image file: upright (EXIF), in RGB as for evaluation, and the first frame of an animation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, is cut short, is too large for Pillow's limit, is more than 100 times as long
            as wide, or has pixels whose range is not known.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with open_image(path) as file:
            upright = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that can be read ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error}; make it smaller first, models see a few hundred pixels") from error
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for damaged PNGs
        raise ValueError(f"{path} is cut short or damaged: {error}") from error
    try:
        image = to_rgb(upright)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if max(image.size) > _MAX_ASPECT * min(image.size):
        size = f"{image.width} x {image.height} pixels"
        raise ValueError(f"{path} has {size}; one side may be at most {_MAX_ASPECT} times the other")
    return image


def view(image: Image.Image, preprocess_cfg: Mapping[str, Any]) -> Pixels:
    """Cut out the region of ``image`` that a model sees, at 384 pixels a side or more.

    open_clip's evaluation transform makes it, at a whole multiple of the model's size and without mean and std. So a
    heat map stretched over it lies where it belongs, whether the model crops, pads or squashes.

    Args:
        preprocess_cfg: open_clip's ``PreprocessCfg`` as a dictionary.

    Returns:
        (H, W, 3) in 0..255.
    """
    height, width = np.broadcast_to(preprocess_cfg["size"], 2).tolist()
    scale = -(-_DISPLAY // min(height, width))
    settings = {**preprocess_cfg, "size": (scale * height, scale * width), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    pixels: torch.Tensor = image_transform_v2(PreprocessCfg(**settings), is_train=False)(image)
    return (pixels.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()


@dataclass(frozen=True)
class ImageRelevance:
    """Hold where a model finds texts in one image."""

    picture: Pixels  # what the model sees, (H, W, 3)
    relevance: Relevance  # of this one image, so B = 1


@dataclass(frozen=True)
class ImageMaps:
    """Hold how a model's image tower attends in one image."""

    picture: Pixels  # what the model sees, (H, W, 3)
    tokens: Tokens
    layers: list[LayerMaps]  # of this one image, so B = 1

    @property
    def read_out(self) -> range:
        """Return the tokens that the tower's output reads: the class token, or those averaged; all if unknown."""
        num_tokens = self.layers[0].a1.shape[-1]
        return range(*(self.tokens.pooled or slice(None)).indices(num_tokens))

    @property
    def differential(self) -> bool:
        """Tell whether every layer has two maps."""
        return all(layer.a2 is not None for layer in self.layers)

    def patches(self, row_hN: Tensor) -> Tensor:
        """Return the patches' part of rows of maps, (heads, N), as (heads, h, w)."""
        return row_hN[:, self.tokens.num_prefix :].unflatten(-1, self.tokens.grid)


def image_relevance(
    loaded: LoadedModel,
    image: Image.Image,
    texts: Sequence[str],
    *,
    method: str = "chefer",
    start_layer: int | None = None,
) -> ImageRelevance:
    """Compute the relevance of each text.

    ``method``, ``start_layer`` and errors are those of :func:`~diffclip_openclip.explain.heat_maps.relevance`.
    """
    pixels, ids = loaded.preprocess(image)[None], loaded.tokenizer(list(texts))
    found = relevance(loaded.model, pixels, ids, method=method, start_layer=start_layer)
    return ImageRelevance(view(image, loaded.preprocess_cfg), found)


def image_maps(loaded: LoadedModel, image: Image.Image) -> ImageMaps:
    """Compute the maps of every layer of the image tower.

    Errors are those of :func:`~diffclip_openclip.explain.maps.attention_maps`.
    """
    pixels = loaded.preprocess(image)[None]
    layers = attention_maps(loaded.model, image=pixels)
    return ImageMaps(view(image, loaded.preprocess_cfg), tokens_of(loaded.model, pixels), layers)
