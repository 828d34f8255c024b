"""Make discs of known colours to compose images of, and mark tests that need scikit-image."""

import numpy as np
import pytest
from composed_images import CutOut
from PIL import Image

QUADRANTS = [np.s_[:64, :64], np.s_[:64, 64:], np.s_[64:, :64], np.s_[64:, 64:]]


def disc_cut_out(name, colour, radius=20):
    y, x = np.mgrid[:64, :64]
    mask = (y - 32) ** 2 + (x - 32) ** 2 < radius**2
    pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
    pixels[mask] = colour
    return CutOut(name, pixels, mask)


GREY = {"gravel": Image.new("RGB", (300, 200), (120, 130, 140))}

HUES = {
    "red": (255, 0, 0),
    "orange": (255, 128, 0),
    "yellow": (255, 255, 0),
    "green": (0, 128, 0),
    "cyan": (0, 255, 255),
    "blue": (0, 0, 255),
    "purple": (96, 0, 160),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "brown": (110, 60, 10),
    "lime": (128, 255, 0),
}

DISCS = [disc_cut_out(name, colour, 28) for name, colour in HUES.items()]


needs_skimage = pytest.mark.skipif(
    "not __import__('importlib').util.find_spec('skimage')", reason="needs scikit-image: the benchmarks extra"
)
