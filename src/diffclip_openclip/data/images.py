"""Images as bytes for a shard: a file's own where every reader takes its format, lossless PNG otherwise."""

from io import BytesIO
from pathlib import Path

from PIL import Image

from diffclip_openclip.data.rgb import to_rgb

ImageSource = Path | Image.Image

# formats that clip_benchmark's reader takes, by Pillow's names. Files' suffixes say little: SUN397 has PNG, GIF and
# BMP named .jpg. MPO is a JPEG with more pictures behind the first
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def encode(image: ImageSource) -> tuple[str, bytes]:
    """An image's extension and bytes, after it has been decoded once.

    Of a file in JPEG, PNG or WebP the bytes are the file's own, in whatever mode (readers convert to RGB). Greys of 16
    bits, which readers would clip, and other formats become a PNG of the first frame in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or not to its end, or has pixels whose range is not known.
    """
    if isinstance(image, Image.Image):
        return "png", _png(image)
    if not image.is_file():
        raise FileNotFoundError(f"there is no image {image}, which belongs to the data set; complete the source")
    data = image.read_bytes()
    try:
        opened = Image.open(BytesIO(data))
        opened.load()  # verify() would pass a JPEG that is cut off
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f"{image} is no image that can be read ({error}); replace it with an intact one") from error
    extension = _KEPT.get(opened.format or "")
    if extension and not opened.mode.startswith("I"):
        return extension, data
    try:
        return "png", _png(to_rgb(opened))
    except ValueError as error:
        raise ValueError(f"{image}: {error}") from error


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
