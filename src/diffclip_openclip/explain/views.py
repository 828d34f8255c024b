"""Image files as models see them: read whatever they are, and cut as a model's own preprocessing cuts them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps, UnidentifiedImageError

from diffclip_openclip.data.images import to_rgb

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_MAX_ASPECT = 100  # resizing the shorter side of a thinner strip to a model's size would take gigabytes
_DISPLAY = 384  # pixels of a view's shorter side, at least


def read_image(path: Path) -> Image.Image:
    """The image in ``path``, upright (EXIF), as :func:`~diffclip_openclip.data.images.to_rgb`; an animation's first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, cut short, too large for Pillow's limit, more than 100 times as long as wide, or of
            pixels whose range is not known.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no image file {path}")
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no image that Pillow can read (PNG, JPEG, WebP, TIFF, GIF, BMP, ...)") from error
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
    """The region of ``image`` that a model sees, (H, W, 3) in 0..255, with at least 384 pixels a side.

    Made by open_clip's evaluation transform for ``preprocess_cfg`` (its ``PreprocessCfg`` as a dictionary), at a whole
    multiple of the model's size and without mean and std: a heat map stretched over it lies where it belongs, whether
    the model crops, pads or squashes.
    """
    height, width = np.broadcast_to(preprocess_cfg["size"], 2).tolist()
    scale = -(-_DISPLAY // min(height, width))
    settings = {**preprocess_cfg, "size": (scale * height, scale * width), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    pixels: torch.Tensor = image_transform_v2(PreprocessCfg(**settings), is_train=False)(image)
    return (pixels.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
