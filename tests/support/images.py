"""Small images as files, and data sets read back as clip_benchmark gives them to its user."""

import io
from pathlib import Path

from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from support.common import EMOJI, read_tar


def pictures(count: int) -> list[bytes]:
    """Different emoji in lossy WebP, 64x64."""
    return [data for name, data in read_tar(EMOJI / "eval" / "retrieval" / "test" / "0.tar", 2 * count)][::2]


def save(path: Path, picture: bytes, form: str = "JPEG", mode: str = "RGB") -> Path:
    """A picture as a file of another format, made with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(picture)).convert(mode).save(path, form)
    return path


def read_back(root: Path, name: str, split: str) -> list[tuple[Image.Image, object]]:
    """What clip_benchmark gives its user: RGB images with labels, or with captions."""
    task = "zeroshot_retrieval" if (root / name / "dataset_type.txt").exists() else "zeroshot_classification"
    return list(build_dataset(f"wds/{name}", str(root / name), lambda image: image, split, task=task))


def pixels(image: Image.Image) -> tuple[tuple[int, int], bytes]:
    """Size and bytes of the image as a user sees it, in RGB."""
    rgb = image.convert("RGB")
    return rgb.size, rgb.tobytes()


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def dots(count: int) -> list[Image.Image]:
    """One pixel each, whose colour is its number."""
    return [Image.new("RGB", (1, 1), (index >> 16, index >> 8 & 255, index & 255)) for index in range(count)]


def number(image: Image.Image) -> int:
    return int.from_bytes(image.tobytes()[:3], "big")


def encoded(image: Image.Image, kind: str) -> bytes:
    """Return an image file's content; ``kind`` is Pillow's name of the format."""
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()
