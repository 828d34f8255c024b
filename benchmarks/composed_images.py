"""Compose images of two known objects on a photograph, with the masks of both.

attention_score.py measures on them how much of a text's relevance lies inside the object that it names.

Shape legend: H x W pixels.
"""

import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffclip_openclip.extras import require

Mask = np.ndarray[Any, np.dtype[np.bool_]]
SIDE = 128  # pixels of a composed image
_WHITE = 12  # how far below 255 a channel of the white ground may be, after lossy compression
_SPECK = 16  # smallest piece of an object, in pixels
_AREA = (0.2, 0.75)  # shares of its square that an object may fill: less is mostly edge, more has no outline
_DRAWS = 1000  # before names are held to be all alike

# name of a photograph in scikit-image's wheel, all in the public domain or CC0 -> what it shows
PHOTOGRAPHS = {
    "astronaut": "woman person face astronaut space suit flag shuttle rocket smiling hair",
    "brick": "brick wall",
    "chelsea": "cat kitten face animal",
    "coffee": "coffee hot beverage cup spoon saucer table drink",
    "grass": "grass herb green plant",
    "gravel": "gravel stone rock",
    "hubble_deep_field": "star galaxy space sky night",
    "rocket": "rocket launch sky tower smoke night",
}


class CutOut(NamedTuple):
    """Hold an object that was cut out of an image."""

    name: str
    pixels: np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)
    mask: Mask  # True where the pixels are the object's own, (H, W)


class Pair(NamedTuple):
    """Hold an image of two objects."""

    image: Image.Image
    masks: Mask  # where each object is, (2, H, W)
    names: tuple[str, str]


def cut_out(name: str, image: Image.Image) -> CutOut:
    """Cut the object out of its white ground: it is what a flood of white from the border does not reach.

    Its outermost pixel is left out, as it is blended with white and would show as a fringe.
    """
    from skimage.morphology import disk, erosion, remove_small_objects
    from skimage.segmentation import flood

    pixels = np.asarray(image.convert("RGB"))
    white = np.pad(255 - pixels.min(axis=-1) <= _WHITE, 1, constant_values=True)
    ground = flood(white, (0, 0), connectivity=1)[1:-1, 1:-1]
    return CutOut(name, pixels, remove_small_objects(erosion(~ground, disk(1), mode="max"), max_size=_SPECK - 1))


def read_cut_outs(directory: Path) -> list[CutOut]:
    """Cut out the objects of a classification set on white ground, in clip_benchmark's webdataset layout.

    Objects that fill less than 20 % or more than 75 % of their square are left out.

    Raises:
        FileNotFoundError: the directory lacks ``classnames.txt`` or ``test/0.tar``.
        ImportError: scikit-image is not installed.
    """
    require("cutting objects out", "benchmarks", "skimage")
    for path in (directory / "classnames.txt", directory / "test" / "0.tar"):
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}; give a classification set in clip_benchmark's layout")
    names = (directory / "classnames.txt").read_text(encoding="utf-8").splitlines()
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(directory / "test" / "0.tar") as tar:
        for member in tar:
            key, _, extension = member.name.rpartition(".")
            stream = tar.extractfile(member)
            if stream is not None:
                samples.setdefault(key, {})[extension] = stream.read()
    images = ((names[int(sample["cls"])], Image.open(io.BytesIO(sample["webp"]))) for sample in samples.values())
    return [cut for cut in (cut_out(*image) for image in images) if _AREA[0] <= cut.mask.mean() <= _AREA[1]]


def photographs() -> dict[str, Image.Image]:
    """Return the photographs of :data:`PHOTOGRAPHS` by what they show.

    Raises:
        ImportError: scikit-image is not installed.
    """
    require("composing images", "benchmarks", "skimage")
    from skimage import data

    return {shows: Image.fromarray(getattr(data, name)()).convert("RGB") for name, shows in PHOTOGRAPHS.items()}


def compose(cut_outs: Sequence[CutOut], grounds: dict[str, Image.Image], num_images: int, seed: int = 0) -> list[Pair]:
    """Compose images of two objects, each in a quadrant of its own, on a part of a photograph.

    The names share no word with each other or with what the photograph shows. The same seed gives the same images.

    Args:
        grounds: photographs by what they show.

    Raises:
        ValueError: all names have a word in common with each other or with what a photograph shows.
    """
    rng = np.random.default_rng(seed)
    shown = list(grounds)
    pairs = []
    for _ in range(num_images):
        shows = shown[rng.integers(len(shown))]
        first, second = _draw(cut_outs, shows, rng)
        image, masks = _ground(grounds[shows], rng), np.zeros((2, SIDE, SIDE), dtype=np.bool_)
        for cut, mask, quadrant in zip((first, second), masks, rng.permutation(4)[:2], strict=True):
            _paste(cut, image, mask, *divmod(int(quadrant), 2))
        pairs.append(Pair(Image.fromarray(image), masks, (first.name, second.name)))
    return pairs


def _draw(cut_outs: Sequence[CutOut], shows: str, rng: np.random.Generator) -> tuple[CutOut, CutOut]:
    for _ in range(_DRAWS):
        first, second = (cut_outs[i] for i in rng.choice(len(cut_outs), 2, replace=False))
        words = [_words(text) for text in (first.name, second.name, shows)]
        if len(set.union(*words)) == sum(map(len, words)):
            return first, second
    raise ValueError(f"no two of {len(cut_outs)} objects have names without a word in common; give more of them")


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _ground(photograph: Image.Image, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    side = int(rng.integers(min(photograph.size) // 2, min(photograph.size) + 1))
    left, top = (int(rng.integers(size - side + 1)) for size in photograph.size)
    return np.array(photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))


def _paste(cut: CutOut, image: np.ndarray[Any, np.dtype[np.uint8]], mask: Mask, row: int, column: int) -> None:
    half = SIDE // 2
    high, wide = cut.mask.shape
    top, left = row * half + (half - high) // 2, column * half + (half - wide) // 2
    mask[top : top + high, left : left + wide] = cut.mask
    image[mask] = cut.pixels[cut.mask]
