"""Real images for the evaluation's tests: emoji as pixels, and as the paper's data sets in small."""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support.common import REPOSITORY

from diffclip_openclip.evaluation.features import Features

sys.path.insert(0, str(REPOSITORY / "examples" / "emoji"))

import paper_suite


def emoji_pixels(count: int, size: int) -> Features:
    """``count`` emoji of one vendor as centred pixels, (count, 3 size^2), with the index of their group."""
    groups = sorted({concept["group"] for concept in paper_suite.concepts()})
    group_of = {concept["hexcode"]: groups.index(concept["group"]) for concept in paper_suite.concepts()}
    drawings = paper_suite.images("twemoji")
    chosen = sorted(drawings)[:: len(drawings) // count][:count]
    images = [Image.open(io.BytesIO(drawings[code])).convert("RGB").resize((size, size)) for code in chosen]
    pixels = torch.from_numpy(np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in images]))
    return Features(pixels - pixels.mean(dim=0), torch.tensor([group_of[code] for code in chosen]))


def build_suite(root: Path, limit: int) -> Path:
    """All of the paper's data sets, ``limit`` images a class; returns ``root``."""
    paper_suite.build(root, limit)
    return root
