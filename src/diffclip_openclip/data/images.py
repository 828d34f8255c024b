"""Images as bytes for a shard: a file's own where every reader takes its format, lossless PNG otherwise."""

from io import BytesIO
from pathlib import Path

from PIL import Image

ImageSource = Path | Image.Image

# formats that clip_benchmark's reader takes, by Pillow's names. Files' suffixes say little: SUN397 has PNG, GIF and
# BMP named .jpg. MPO is a JPEG with more pictures behind the first
_KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}


def encode(image: ImageSource) -> tuple[str, bytes]:
    """An image's extension and bytes, after it has been decoded once.

    Of a file in JPEG, PNG or WebP the bytes are the file's own, in whatever mode (readers convert to RGB); other
    formats become a PNG of their first frame in RGB, which is what a reader would see.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be decoded, or not to its end.
    """
    if isinstance(image, Image.Image):
        return "png", _png(image)
    if not image.is_file():
        raise FileNotFoundError(f"there is no image {image}, which belongs to the data set; complete the source")
    data = image.read_bytes()
    try:
        with Image.open(BytesIO(data)) as opened:
            opened.load()  # verify() would pass a JPEG that is cut off
            extension = _KEPT.get(opened.format or "")
            return (extension, data) if extension else ("png", _png(opened.convert("RGB")))
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise ValueError(f"{image} is no image that can be read ({error}); replace it with an intact one") from error


def _png(image: Image.Image) -> bytes:
    stream = BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
