"""Images on their way into shards: bytes that stay, formats that change, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image
from support.images import pictures, pixels, read_back, save

from diffclip_openclip.data.images import encode
from diffclip_openclip.data.sources import folders
from diffclip_openclip.data.writer import Split, classification_metadata, classified
from diffclip_openclip.explain.images import read_image

METADATA = classification_metadata(["one"], ["a {c}."])


@pytest.mark.parametrize(
    ("form", "mode", "extension"),
    [
        ("JPEG", "RGB", "jpg"),
        ("JPEG", "L", "jpg"),
        ("JPEG", "CMYK", "jpg"),
        ("PNG", "P", "png"),
        ("PNG", "RGBA", "png"),
        ("WEBP", "RGBA", "webp"),
    ],
)
def test_files_in_the_readers_formats_keep_their_bytes(tmp_path, form, mode, extension):
    path = tmp_path / "image.dat"  # the content counts, not the name
    save(path, pictures(1)[0], form, mode)
    assert encode(path) == (extension, path.read_bytes())
    Split(tmp_path, "one", "test").write([classified(path, 0)], 1, METADATA)
    [(read, _)] = read_back(tmp_path, "one", "test")
    with Image.open(path) as original:
        assert pixels(read) == pixels(original)


@pytest.mark.parametrize(("form", "mode"), [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGBA"), ("PPM", "L")])
def test_other_formats_become_png_with_the_same_pixels(tmp_path, form, mode):
    path = save(tmp_path / "really_not.jpg", pictures(1)[0], form, mode)
    extension, data = encode(path)
    assert extension == "png"
    with Image.open(path) as original, Image.open(io.BytesIO(data)) as encoded:
        assert (encoded.format, encoded.mode) == ("PNG", "RGB")
        assert pixels(encoded) == pixels(original)


@pytest.mark.parametrize("form", ["EPS", "ICO", "TGA"])
def test_formats_that_no_data_set_holds_are_refused_whatever_the_name(tmp_path, form):
    """Pillow would hand PostScript to Ghostscript."""
    path = save(tmp_path / "image.png", pictures(1)[0], form)
    with pytest.raises(
        ValueError, match=r"image\.png is no image that can be read \(it is in none of the formats JPEG"
    ):
        encode(path)
    with pytest.raises(ValueError, match=r"image\.png is no image that can be read \(JPEG, PNG"):
        read_image(path)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_greys_of_sixteen_bits_keep_their_range(tmp_path, form):
    """Readers would clip them at 255 of 65,535."""
    path = tmp_path / "image.dat"
    Image.fromarray(np.arange(0, 65536, 257, dtype=np.uint16)[None]).save(path, form)
    Split(tmp_path, "one", "test").write([classified(path, 0)], 1, METADATA)
    [(read, _)] = read_back(tmp_path, "one", "test")
    assert np.asarray(read).tolist() == [[[grey] * 3 for grey in range(256)]]


@pytest.mark.parametrize(("mode", "kind"), [("F", "floating-point numbers"), ("I", "integers of 32 bits")])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode, kind):
    Image.new(mode, (3, 2), 1).save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match=rf"image\.tif: its pixels are {kind}, whose range is not known"):
        encode(tmp_path / "image.tif")


def _cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _cut(path, 0.9),
        lambda path: _cut(path, 0.1),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not an image"),
    ],
)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_broken_image_is_named_and_nothing_stays(tmp_path, damage, form):
    source, root = tmp_path / "source", tmp_path / "new" / "root"
    for index, picture in enumerate(pictures(3)):
        save(source / "class" / f"{index}.jpg", picture, form)
    damage(source / "class" / "1.jpg")
    with pytest.raises(ValueError, match=r"class/1\.jpg is no image that can be read"):
        folders.convert("mine", source=source, root=root)
    assert list(tmp_path.iterdir()) == [source]
