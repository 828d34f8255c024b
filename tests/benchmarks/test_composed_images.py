"""Composed images show what their masks say, and objects are cut out whole."""

import sys
import tarfile

import numpy as np
import pytest
from composed_images import SIDE, compose, cut_out, photographs, read_cut_outs
from PIL import Image
from support.common import EMOJI
from support.discs import GREY, QUADRANTS, disc_cut_out, needs_skimage

CUT_OUTS = [disc_cut_out(name, colour) for name, colour in (("red ball", (255, 0, 0)), ("blue ball", (0, 0, 255)))]

CUT_OUTS += [disc_cut_out("green box", (0, 255, 0)), disc_cut_out("violet box", (99, 0, 99))]


def test_composed_images_show_what_their_masks_say():
    colours = {cut.name: cut.pixels[32, 32] for cut in CUT_OUTS}
    places = set()
    for pair in compose(CUT_OUTS, GREY, 40):
        pixels = np.asarray(pair.image)
        first, second = pair.masks
        assert pixels.shape == (SIDE, SIDE, 3)
        assert (pixels[first] == colours[pair.names[0]]).all()
        assert (pixels[second] == colours[pair.names[1]]).all()
        assert (pixels[~first & ~second] == (120, 130, 140)).all()
        quadrants = [[i for i, part in enumerate(QUADRANTS) if mask[part].any()] for mask in pair.masks]
        assert [len(found) for found in quadrants] == [1, 1]
        assert quadrants[0] != quadrants[1]
        assert first.sum() == second.sum() == CUT_OUTS[0].mask.sum()
        places.add((*quadrants[0], *quadrants[1]))
    assert len(places) > 6


def test_names_share_no_word():
    names = {frozenset(pair.names) for pair in compose(CUT_OUTS, GREY, 60)}
    colours = (("red ball", "green box"), ("red ball", "violet box"), ("blue ball", "green box"))
    assert names == {*map(frozenset, colours), frozenset(("blue ball", "violet box"))}
    [on_box] = {frozenset(p.names) for p in compose(CUT_OUTS[:1] + CUT_OUTS[2:], {"a green thing": GREY["gravel"]}, 20)}
    assert on_box == {"red ball", "violet box"}
    with pytest.raises(ValueError, match="no two of 2 objects have names without a word in common"):
        compose(CUT_OUTS[:2], GREY, 1)


def test_seed_decides_everything():
    def pixels(seed):
        grounds = {"noise": Image.fromarray(np.random.default_rng(9).integers(0, 256, (90, 140, 3), dtype=np.uint8))}
        return [
            (pair.names, pair.image.tobytes(), pair.masks.tobytes()) for pair in compose(CUT_OUTS, grounds, 6, seed)
        ]

    assert pixels(1) == pixels(1)
    assert pixels(1) != pixels(2)


@needs_skimage
def test_flood_from_the_border_finds_the_object():
    pixels = np.full((64, 64, 3), 250, dtype=np.uint8)  # not quite white
    pixels[10:40, 20:60] = (200, 30, 30)
    pixels[20:25, 30:35] = 255  # a white eye belongs to the object
    pixels[50:54, 5:9] = 0  # a speck
    expected = np.zeros((64, 64), dtype=bool)
    expected[11:39, 21:59] = True  # less the outermost pixel
    found = cut_out("thing", Image.fromarray(pixels))
    assert (found.mask == expected).all()
    assert (found.pixels == pixels).all()


@needs_skimage
def test_emoji_are_cut_out():
    directory = EMOJI / "eval" / "heldout-concepts"
    cut_outs = read_cut_outs(directory)
    names = (directory / "classnames.txt").read_text().splitlines()
    with tarfile.open(directory / "test" / "0.tar") as tar:
        total = sum(member.name.endswith(".cls") for member in tar)
    assert 0.7 * total < len(cut_outs) < total
    for cut in cut_outs:
        assert cut.name in names
        assert 0.2 <= cut.mask.mean() <= 0.75
        assert cut.pixels.shape == (*cut.mask.shape, 3) == (64, 64, 3)
    # the ground is white: nothing dark is left outside but the one pixel that is cut off
    dark = sum((cut.pixels.min(axis=-1) < 128) & ~cut.mask for cut in cut_outs).mean() / len(cut_outs)
    assert dark < 0.05


def test_directory_without_a_data_set_is_refused(tmp_path):
    pytest.importorskip("skimage", reason="the benchmarks extra")
    with pytest.raises(FileNotFoundError, match=r"classnames\.txt; give a classification set"):
        read_cut_outs(tmp_path)


@needs_skimage
def test_photographs_ship_with_scikit_image():
    found = photographs()
    assert len(found) == 8
    for shows, image in found.items():
        assert image.mode == "RGB"
        assert min(image.size) >= 300, shows


def test_missing_scikit_image_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"pip install 'diffclip-openclip\[benchmarks\]'"):
        photographs()
    with pytest.raises(ImportError, match=r"pip install 'diffclip-openclip\[benchmarks\]'"):
        read_cut_outs(EMOJI / "eval" / "heldout-concepts")
