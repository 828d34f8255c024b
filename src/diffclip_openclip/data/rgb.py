"""Images in the one form that models see: RGB with 8 bits a channel."""

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """``image`` in RGB, as open_clip's training and clip_benchmark convert it: what is transparent shows its colour.

    Greys of 16 bits are scaled; Pillow's own conversion would clip them at 255.

    Raises:
        ValueError: pixels whose range is not known, floating-point or integers of 32 bits.
    """
    if image.mode in ("F", "I"):
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, whose range is not known; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")
