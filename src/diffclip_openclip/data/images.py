"""Convert images: a shard's bytes to the RGB that models see, and a file to a shard's bytes."""

from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

ImageSource = Path | bytes | Image.Image  # a file, a file's content, or pixels

# The extensions of images in shards that clip_benchmark reads.
EXTENSIONS = ("webp", "png", "jpg", "jpeg")

# The formats of images that are opened, by Pillow's names: those that data sets hold. Pillow goes by a file's content,
# whatever its name, and knows others whose decoders run programs (EPS: Ghostscript) or are hardly used.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Formats whose files go into shards as they are, by Pillow's names, with their extensions there. A file's own suffix
# says little: SUN397 has PNG, GIF and BMP named .jpg. MPO is a JPEG with more pictures behind the first.
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB with 8 bits a channel, as open_clip's training and clip_benchmark do.

    What is transparent shows its colour. Greys of 16 bits are scaled; Pillow's own conversion would clip them at 255.

    Raises:
        ValueError: pixels whose range is not known, floating-point or integers of 32 bits.
    """
    if image.mode in ("F", "I"):
        kind = "floating-point numbers" if image.mode == "F" else "integers of 32 bits"
        raise ValueError(f"its pixels are {kind}, whose range is not known; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def open_image(file: Path | BinaryIO) -> Image.Image:
    """Open an image in one of :data:`FORMATS`; its pixels are read later.

    Raises:
        PIL.UnidentifiedImageError: it is in none of them.
    """
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError(f"it is in none of the formats {', '.join(FORMATS)}") from error


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image to RGB; see :func:`to_rgb`.

    Raises:
        OSError: bytes that Pillow cannot read as an image.
        ValueError: as :func:`to_rgb`.
    """
    with open_image(BytesIO(data)) as image:
        return to_rgb(image)


def encode(image: ImageSource) -> tuple[str, bytes]:
    """Return an image's extension and bytes in a shard, after decoding it once.

    A file in JPEG, PNG or WebP keeps its bytes, in whatever mode, as readers convert to RGB. Greys of 16 bits, which
    readers would clip, and other formats become a PNG of the first frame in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or not to its end, or has pixels whose range is not known.
    """
    if isinstance(image, Image.Image):
        return "png", _png(image)
    if isinstance(image, Path) and not image.is_file():
        raise FileNotFoundError(f"there is no image {image}, which belongs to the data set; complete the source")
    name, data = (str(image), image.read_bytes()) if isinstance(image, Path) else ("an image of the source", image)
    try:
        opened = open_image(BytesIO(data))
        opened.load()  # verify() would pass a JPEG that is cut off
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f"{name} is no image that can be read ({error}); replace it with an intact one") from error
    extension = _KEPT.get(opened.format or "")
    if extension and not opened.mode.startswith("I"):
        return extension, data
    try:
        return "png", _png(to_rgb(opened))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
