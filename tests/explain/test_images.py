"""Image files are read whatever they are, cut as models see them, and looked at as the library does."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.attend_data import TEXTS

from diffclip_openclip.explain import attention_maps, relevance
from diffclip_openclip.explain.images import read_image, view
from diffclip_openclip.weights.loading import load_model

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def _rgb(image):
    return np.asarray(image).reshape(-1, 3).tolist()


def test_what_is_transparent_shows_its_colour_as_in_training_and_evaluation(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "rgba.png")
    Image.new("LA", (2, 2), (10, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 1, 2, 3])
    palette.save(tmp_path / "p.png", transparency=1)
    palette.save(tmp_path / "opaque.png")
    assert _rgb(read_image(tmp_path / "rgba.png"))[0] == [255, 0, 0]
    assert _rgb(read_image(tmp_path / "la.png"))[0] == [10, 10, 10]
    assert _rgb(read_image(tmp_path / "p.png"))[0] == [1, 2, 3]
    assert _rgb(read_image(tmp_path / "opaque.png"))[0] == [1, 2, 3]


def test_sixteen_bits_keep_their_greys(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100, 257 * 200, 65535]], dtype=np.uint16)).save(tmp_path / "grey.png")
    assert _rgb(read_image(tmp_path / "grey.png")) == [[grey] * 3 for grey in (0, 100, 200, 255)]


def test_other_modes_and_frames(tmp_path):
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    Image.new("1", (2, 2), 1).save(tmp_path / "bits.png")
    Image.new("RGB", (2, 2), RED).save(
        tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (2, 2), BLUE)]
    )
    assert _rgb(read_image(tmp_path / "cmyk.tif"))[0] == [255, 0, 0]
    assert _rgb(read_image(tmp_path / "bits.png"))[0] == [255, 255, 255]
    assert _rgb(read_image(tmp_path / "moving.gif"))[0] == [255, 0, 0]


def test_rotated_images_are_turned_upright(tmp_path):
    # stored on its side: the file's left column is the picture's top row (EXIF orientation 6)
    stored = Image.fromarray(np.array([[RED, GREEN, GREEN], [RED, GREEN, GREEN]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "side.png", exif=exif)
    upright = np.asarray(read_image(tmp_path / "side.png"))
    assert upright.shape == (3, 2, 3)
    assert (upright[0] == RED).all()
    assert (upright[1:] == GREEN).all()


def test_bad_images_are_refused(tmp_path, monkeypatch):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    Image.new("F", (3, 3)).save(tmp_path / "float.tif")
    Image.new("I", (3, 3)).save(tmp_path / "long.tif")
    Image.new("L", (1000, 9)).save(tmp_path / "strip.png")
    for name, message in {
        "cut.png": "cut short or damaged",
        "text.jpg": "is no image that can be read",
        "float.tif": "its pixels are floating-point numbers",
        "long.tif": "its pixels are integers of 32 bits",
        "strip.png": "has 1000 x 9 pixels; one side may be at most 100 times",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            read_image(tmp_path / name)
        assert name in str(error.value)
    for missing in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no image file"):
            read_image(missing)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"exceeds limit of 200 pixels.*make it smaller first"):
        read_image(tmp_path / "whole.png")


THIRDS = np.repeat(np.array([[RED, GREEN, BLUE]], dtype=np.uint8), 50, axis=1).repeat(50, axis=0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("shortest", [GREEN, GREEN, GREEN]),  # the middle square
        ("squash", [RED, GREEN, BLUE]),
        ("longest", [RED, GREEN, BLUE]),  # with bars above and below
    ],
)
def test_view_is_the_region_that_the_model_sees(mode, expected):
    seen = view(Image.fromarray(THIRDS), {"size": (48, 48), "resize_mode": mode, "interpolation": "bilinear"})
    side = len(seen)
    assert seen.shape == (side, side, 3)
    assert seen.dtype == np.uint8
    assert side >= 384
    assert [tuple(seen[side // 2, side * (2 * i + 1) // 6]) for i in range(3)] == expected
    assert tuple(seen[side // 20, side // 2]) == ((0, 0, 0) if mode == "longest" else GREEN)


def test_view_has_the_models_shape_and_enlarges_tiny_images():
    assert view(Image.new("RGB", (1, 1)), {"size": 224}).shape == (448, 448, 3)
    assert view(Image.new("RGB", (7, 900)), {"size": (100, 50)}).shape == (800, 400, 3)
    assert view(Image.new("RGB", (9, 9)), {"size": (384, 384)}).shape == (384, 384, 3)


def test_looks_are_the_librarys(specs, photo, in_photo):
    for name, (found, layers) in in_photo.items():
        loaded = load_model(specs[name])
        pixels = loaded.preprocess(Image.open(photo))[None]
        expected = relevance(loaded.model, pixels, loaded.tokenizer(TEXTS))
        assert torch.equal(found.relevance.maps, expected.maps)
        assert torch.equal(found.relevance.similarity, expected.similarity)
        for own, given in zip(layers.layers, attention_maps(loaded.model, pixels), strict=True):
            assert torch.equal(own.attention, given.attention)
        assert found.picture.shape == layers.picture.shape == (384, 384, 3)
