"""Make checkpoints, a photo, and what models attend to in it, for several files."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from support.attend_data import MODELS, TEXTS

from diffclip_openclip.explain.images import image_maps, image_relevance, read_image
from diffclip_openclip.weights.loading import load_model


@pytest.fixture(scope="session")
def specs(tmp_path_factory) -> dict[str, str]:
    """Write small models with random weights; by name their NAME,CHECKPOINT."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name in MODELS:
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name).state_dict(), folder / f"{name}.pt")
        found[name] = f"{name},{folder / name}.pt"
    return found


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    """Write an image that is wider than high, with something in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.fromarray(pixels).resize((160, 100), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="session")
def in_photo(specs, photo):
    """Return (ImageRelevance, ImageMaps) of the photo by model."""
    image = read_image(photo)
    loaded = {name: load_model(spec) for name, spec in specs.items()}
    return {name: (image_relevance(model, image, TEXTS), image_maps(model, image)) for name, model in loaded.items()}
