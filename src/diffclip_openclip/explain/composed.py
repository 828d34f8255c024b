"""Images of two known objects on a photograph, with the masks of both: to measure attention inside an object on.

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

# photographs in scikit-image's wheel, all in the public domain or CC0, and what they show
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
    """An object without its ground: ``pixels`` (H, W, 3), True in ``mask`` (H, W) where they are its own."""

    name: str
    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    mask: Mask


class Pair(NamedTuple):
    """``image`` shows two objects; ``masks`` (2, H, W) say where, ``names`` what they are."""

    image: Image.Image
    masks: Mask
    names: tuple[str, str]


def cut_out(name: str, image: Image.Image) -> CutOut:
    """The object on white in ``image``: what a flood of white from the border does not reach, less its outermost pixel.

    That pixel is blended with white and would show as a fringe.
    """
    from skimage.morphology import disk, erosion, remove_small_objects
    from skimage.segmentation import flood

    pixels = np.asarray(image.convert("RGB"))
    white = np.pad(255 - pixels.min(axis=-1) <= _WHITE, 1, constant_values=True)
    ground = flood(white, (0, 0), connectivity=1)[1:-1, 1:-1]
    return CutOut(name, pixels, remove_small_objects(erosion(~ground, disk(1), mode="max"), max_size=_SPECK - 1))


def read_cut_outs(directory: Path) -> list[CutOut]:
    """The objects of a classification set on white ground, in clip_benchmark's webdataset layout.

    Left out are those that fill less than 20 % or more than 75 % of their square.

    Raises:
        FileNotFoundError: the directory lacks ``classnames.txt`` or ``test/0.tar``.
        ImportError: scikit-image is not installed.
    """
    require("cutting objects out", "explain", "skimage")
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
    """The photographs of :data:`PHOTOGRAPHS`, by what they show.

    Raises:
        ImportError: scikit-image is not installed.
    """
    require("composing images", "explain", "skimage")
    from skimage import data

    return {shows: Image.fromarray(getattr(data, name)()).convert("RGB") for name, shows in PHOTOGRAPHS.items()}


def compose(cut_outs: Sequence[CutOut], grounds: dict[str, Image.Image], num_images: int, seed: int = 0) -> list[Pair]:
    """``num_images`` images of two objects, each in a quadrant of its own, on a part of a photograph.

    The names share no word with each other or with what the photograph shows. The same seed gives the same images.

    Args:
        grounds: photographs by what they show.

    Raises:
        ValueError: no two names go together.
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
