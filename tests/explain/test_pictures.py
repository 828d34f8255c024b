"""Pictures show relevance over images and the maps of every layer and head, in colours that mean something."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from support.attend_data import TEXTS

from diffclip_openclip.explain import LayerMaps, Relevance
from diffclip_openclip.explain.images import ImageMaps, ImageRelevance
from diffclip_openclip.explain.maps import Tokens
from diffclip_openclip.explain.pictures import heat, maps_figure, mosaic, overlay, read_out_rows, relevance_figure

# relevance


def _image_relevance(maps, similarity, picture=None):
    picture = np.full((40, 40, 3), 128, dtype=np.uint8) if picture is None else picture
    return ImageRelevance(picture, Relevance(torch.tensor(maps)[None], torch.tensor(similarity)[None]))


CORNER = [[0.0, 0.0], [0.0, 2.0]]


def test_heat_lies_over_the_patch_that_has_it():
    given = _image_relevance([CORNER, [[3.0, 0.0], [0.0, 0.0]]], [0.1, 0.2])
    found = heat(given, 0)
    assert found.shape == (40, 40)
    assert found[30:, 30:] == pytest.approx(1)  # beyond the patch's centre
    assert found[:10, :10] == pytest.approx(0)
    assert found[19, 19] < found[20, 20]
    assert heat(given, 1) == pytest.approx(found[::-1, ::-1], abs=1e-6)


def test_overlay_in_the_papers_colours_is_the_normalised_sum():
    picture = np.array([[[255, 0, 0], [0, 51, 0]]], dtype=np.uint8)
    # jet's ends (matplotlib's _cm.py): 0 is (0, 0, 0.5), 1 is (0.5, 0, 0)
    mixed = overlay(picture, np.array([[0.0, 1.0]], dtype=np.float32), "jet")
    assert mixed == pytest.approx(np.array([[[1.0, 0.0, 0.5], [0.5, 0.2, 0.0]]]), abs=1e-6)


def test_overlay_grows_lighter_and_takes_its_hue_from_relevance():
    picture = np.full((1, 50, 3), 90, dtype=np.uint8)
    ramp = np.linspace(0, 1, 50, dtype=np.float32)[None]
    lightness = overlay(picture, ramp) @ (0.299, 0.587, 0.114)
    assert (np.diff(lightness[0]) > 0).all()
    # red and a grey of the same luma cannot be told apart beneath a map
    red = np.array([[[200, 0, 0]]], dtype=np.uint8)
    grey = np.full((1, 1, 3), 200 * 0.299)
    for value in (0.0, 0.5, 1.0):
        at = np.array([[value]], dtype=np.float32)
        assert overlay(red, at) == pytest.approx(overlay(grey, at), abs=1e-6)


def test_figure_has_a_block_an_image_a_column_a_model_and_a_row_a_text():
    empty = [[0.0, 0.0], [0.0, 0.0]]
    red = np.full((40, 40, 3), (255, 0, 0), dtype=np.uint8)
    blocks = [
        [_image_relevance([CORNER, empty], [0.25, -0.5], red), _image_relevance([CORNER, CORNER], [0.125, 0.5])],
        [_image_relevance([CORNER, CORNER], [0.0, 0.0]), _image_relevance([CORNER, CORNER], [1.0, 0.75])],
    ]
    figure = relevance_figure(blocks, ["one", "two"], TEXTS, caption="method: chefer")
    axes = np.array(figure.axes[:12]).reshape(4, 3)
    assert [axis.get_title() for axis in axes[0]] == ["", "one", "two"]
    assert [axes[row, 1].get_ylabel() for row in range(4)] == TEXTS * 2
    below = [[axis.get_xlabel() for axis in row[1:]] for row in axes]
    assert below[0] == ["similarity 0.250", "similarity 0.125"]
    assert below[1] == ["similarity -0.500, no relevance", "similarity 0.500"]
    assert below[3] == ["similarity 0.000", "similarity 0.750"]
    assert [bool(axis.images) for axis in axes[:, 0]] == [True, False, True, False]
    assert (axes[0, 0].images[0].get_array() == (255, 0, 0)).all()
    assert (axes[0, 1].images[0].get_array() == overlay(red, heat(blocks[0][0], 0))).all()
    assert figure.get_supxlabel() == "method: chefer"


# maps


def _image_maps(rows, pooled, num_prefix, grid=(1, 2), a2=None):
    maps = torch.tensor(rows)[None]
    layer = LayerMaps("image", 0, maps, a2, None if a2 is None else torch.tensor(0.5))
    return ImageMaps(np.zeros((4, 4, 3), dtype=np.uint8), Tokens(grid, num_prefix, pooled), [layer])


def test_rows_are_those_of_the_tokens_that_are_read_out():
    rows = [[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]

    def read(pooled):
        maps = _image_maps(rows, pooled, 1)
        return read_out_rows(maps, [maps.layers[0].a1])[0, 0, 0].tolist()

    assert read(slice(0, 1)) == pytest.approx([0.2, 0.3])  # a class token
    assert read(slice(1, None)) == pytest.approx([0.5, 0.35])  # the mean of the patches
    assert read(None) == pytest.approx([0.4, 1 / 3])  # unknown: all


def test_mosaic_has_a_row_a_layer_and_a_column_a_head():
    panels = np.arange(2 * 3 * 2 * 4, dtype=np.float32).reshape(2, 3, 2, 4)
    whole = mosaic(panels)
    scale = 7  # 28 pixels for the longer side
    assert whole.shape == (2 * 2 * scale + 2, 3 * 4 * scale + 2 * 2)
    top, left = 1 * (2 * scale + 2), 2 * (4 * scale + 2)
    assert (whole[top : top + 2 * scale : scale, left : left + 4 * scale : scale] == panels[1, 2]).all()
    assert np.isnan(whole[2 * scale : 2 * scale + 2]).all()
    assert np.isnan(whole).sum() == 2 * whole.shape[1] + 2 * 2 * 4 * scale


def test_layers_figure_shows_three_maps_on_comparable_scales(in_photo):
    names = ["CLIP-nano-baseline", "DiffCLIP-nano"]
    figure = maps_figure([in_photo[name][1] for name in names], ["an$image: CLIP", "DiffCLIP"])
    plain, differential = figure.subfigs
    assert plain.get_suptitle() == "an$image: CLIP"
    assert [axis.get_title() for axis in plain.axes if axis.get_title()] == ["A"]
    shown = {axis.get_title(): axis for axis in differential.axes if axis.get_title()}
    assert list(shown) == ["A1", "A2", "A1 - λ A2"]
    one, two, difference = (axis.images[0] for axis in shown.values())
    assert one.get_clim() == two.get_clim()
    assert one.get_clim()[0] == 0
    low, high = difference.get_clim()
    assert low == -high
    assert difference.get_cmap()(0.5)[:3] == pytest.approx(to_rgb("white"), abs=0.05)
    layers = in_photo["DiffCLIP-nano"][1].layers
    expected = np.stack([layer.attention[0, :, 0, 1:].reshape(-1, 4, 4).numpy() for layer in layers])
    assert np.array_equal(difference.get_array().filled(np.nan), mosaic(expected), equal_nan=True)
    ticks = [tick.get_text() for tick in shown["A1 - λ A2"].get_yticklabels()]
    assert ticks == [f"{layer.layer}\nλ {layer.lambda_.item():.2f}" for layer in layers]
