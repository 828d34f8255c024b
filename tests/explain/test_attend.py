"""Pictures and the page of what models attend to, and the work of diffclip attend and diffclip lambdas."""

import base64
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import open_clip
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image
from support.common import REPOSITORY, run_python
from support.notebook import executed, pictures, printed

from diffclip_openclip.explain.attend import attend
from diffclip_openclip.explain.lambda_report import layers_figure as lambdas_figure
from diffclip_openclip.explain.lambda_report import show_lambdas, training_figure
from diffclip_openclip.explain.lambdas import lambdas, lambdas_over_training
from diffclip_openclip.explain.layer_pictures import layers_figure, mosaic, read_out_rows
from diffclip_openclip.explain.looks import LayerLook, TextLook, look_at_layers, look_for_texts
from diffclip_openclip.explain.maps import LayerMaps, attention_maps
from diffclip_openclip.explain.page import page
from diffclip_openclip.explain.pictures import heat, overlay, relevance_figure
from diffclip_openclip.explain.relevance import Relevance, relevance
from diffclip_openclip.explain.towers import Tokens
from diffclip_openclip.explain.views import read_image, view
from diffclip_openclip.weights.loading import load_model

MODELS = ("CLIP-nano-baseline", "DiffCLIP-nano", "DiffCLIP-V2-nano")
TEXTS = ["a mug", "</script> costs $5 & $6"]
RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, str]:
    """NAME,CHECKPOINT of small models with random weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name in MODELS:
        torch.manual_seed(0)
        torch.save(open_clip.create_model(name).state_dict(), folder / f"{name}.pt")
        found[name] = f"{name},{folder / name}.pt"
    return found


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """An image that is wider than high, with something in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("images") / "photo.png"
    Image.fromarray(pixels).resize((160, 100), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def looks(specs, photo):
    """name -> (TextLook, LayerLook) of the photo."""
    image = read_image(photo)
    loaded = {name: load_model(spec) for name, spec in specs.items()}
    return {name: (look_for_texts(model, image, TEXTS), look_at_layers(model, image)) for name, model in loaded.items()}


# image files


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
        "text.jpg": "is no image that Pillow can read",
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


# relevance


def _text_look(maps, similarity, picture=None):
    picture = np.full((40, 40, 3), 128, dtype=np.uint8) if picture is None else picture
    return TextLook(picture, Relevance(torch.tensor(maps)[None], torch.tensor(similarity)[None]))


CORNER = [[0.0, 0.0], [0.0, 2.0]]


def test_heat_lies_over_the_patch_that_has_it():
    look = _text_look([CORNER, [[3.0, 0.0], [0.0, 0.0]]], [0.1, 0.2])
    found = heat(look, 0)
    assert found.shape == (40, 40)
    assert found[30:, 30:] == pytest.approx(1)  # beyond the patch's centre
    assert found[:10, :10] == pytest.approx(0)
    assert found[19, 19] < found[20, 20]
    assert heat(look, 1) == pytest.approx(found[::-1, ::-1], abs=1e-6)


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
    red = np.full((40, 40, 3), RED, dtype=np.uint8)
    blocks = [
        [_text_look([CORNER, empty], [0.25, -0.5], red), _text_look([CORNER, CORNER], [0.125, 0.5])],
        [_text_look([CORNER, CORNER], [0.0, 0.0]), _text_look([CORNER, CORNER], [1.0, 0.75])],
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
    assert (axes[0, 0].images[0].get_array() == RED).all()
    assert (axes[0, 1].images[0].get_array() == overlay(red, heat(blocks[0][0], 0))).all()
    assert figure.get_supxlabel() == "method: chefer"


def test_looks_are_the_librarys(specs, photo, looks):
    for name, (found, layers) in looks.items():
        loaded = load_model(specs[name])
        pixels = loaded.preprocess(Image.open(photo))[None]
        expected = relevance(loaded.model, pixels, loaded.tokenizer(TEXTS))
        assert torch.equal(found.found.maps, expected.maps)
        assert torch.equal(found.found.similarity, expected.similarity)
        for own, given in zip(layers.layers, attention_maps(loaded.model, pixels), strict=True):
            assert torch.equal(own.attention, given.attention)
        assert found.picture.shape == layers.picture.shape == (384, 384, 3)


# maps


def _layer_look(rows, pooled, num_prefix, grid=(1, 2), a2=None):
    maps = torch.tensor(rows)[None]
    layer = LayerMaps("image", 0, maps, a2, None if a2 is None else torch.tensor(0.5))
    return LayerLook(np.zeros((4, 4, 3), dtype=np.uint8), Tokens(grid, num_prefix, pooled), [layer])


def test_rows_are_those_of_the_tokens_that_are_read_out():
    rows = [[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]]

    def read(pooled):
        look = _layer_look(rows, pooled, 1)
        return read_out_rows(look, [look.layers[0].a1])[0, 0, 0].tolist()

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


def test_layers_figure_shows_three_maps_on_comparable_scales(looks):
    names = ["CLIP-nano-baseline", "DiffCLIP-nano"]
    figure = layers_figure([looks[name][1] for name in names], ["an$image: CLIP", "DiffCLIP"])
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
    layers = looks["DiffCLIP-nano"][1].layers
    expected = np.stack([layer.attention[0, :, 0, 1:].reshape(-1, 4, 4).numpy() for layer in layers])
    assert np.array_equal(difference.get_array().filled(np.nan), mosaic(expected), equal_nan=True)
    ticks = [tick.get_text() for tick in shown["A1 - λ A2"].get_yticklabels()]
    assert ticks == [f"{layer.layer}\nλ {layer.lambda_.item():.2f}" for layer in layers]


# the page


def _data(html):
    [content] = re.findall(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    return json.loads(content)


@pytest.fixture(scope="module")
def html(looks):
    block = [looks[name] for name in MODELS]
    return page(["photo <b>", "photo 2"], MODELS, TEXTS, [block, block])


def _unpacked(packed, heads, tokens):
    scale = np.frombuffer(base64.b64decode(packed["scale"]), "<f4").reshape(heads, tokens, 1)
    shares = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).reshape(heads, tokens, tokens)
    return scale * shares / 255, scale


def test_page_holds_the_maps(html, looks):
    data = _data(html)
    assert (data["layers"], data["heads"]) == (4, 4)
    assert [image["name"] for image in data["images"]] == ["photo <b>", "photo 2"]
    for entry, name in zip(data["images"][0]["models"], MODELS, strict=True):
        found, look = looks[name]
        assert (entry["label"], entry["grid"], entry["tokens"], entry["prefix"]) == (name, [4, 4], 17, 1)
        assert entry["readOut"] == [0]
        similarities = found.found.similarity[0].tolist()
        texts = [f"{text}: similarity {value:.3f}" for text, value in zip(TEXTS, similarities, strict=True)]
        assert [text["text"] for text in entry["texts"]] == texts
        for packed, layer in zip(entry["layers"], look.layers, strict=True):
            heads = layer.a1.shape[1]
            for key, maps in (("a1", layer.a1), ("a2", layer.a2)):
                if maps is not None:
                    values, scale = _unpacked(packed[key], heads, 17)
                    assert (abs(values - maps[0].numpy()) <= scale * (1 / 510 + 1e-6)).all()
            assert ("a2" in packed) == ("lambda" in packed) == (layer.a2 is not None)
            if layer.lambda_ is not None:
                kept = np.frombuffer(base64.b64decode(packed["lambda"]), "<f4").reshape(heads, 17)
                assert np.array_equal(kept, layer.lambda_.expand(1, heads, 17, 1)[0, :, :, 0].numpy())


def test_page_needs_nothing_else_and_user_text_stays_text(html):
    assert "costs $5" in _data(html)["images"][0]["models"][0]["texts"][1]["text"]
    # the data's own "<" would end its element or begin another
    assert html.count("</script>") == 2
    code = html.replace(re.search(r"<script id.*?</script>", html, re.DOTALL)[0], "")
    assert not re.search(r"https?:|//\w|url\(|@import|<link|\ssrc=|\shref=|fetch\(|XMLHttp|import\(", code)
    assert "default-src 'none'" in code
    pictures = [
        text["picture"] for image in _data(html)["images"] for model in image["models"] for text in model["texts"]
    ]
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)


# moves a slider, clicks and hovers as a user would, and leaves what it saw in the document
PROBE = """<script>{
const maps = () => [...document.querySelectorAll("canvas.map")];
const seen = () => ({ lines: [...document.querySelectorAll("p.readout")].map(p => p.textContent),
  pictures: maps().map(canvas => canvas.toDataURL()) });
const slide = (id, value) => { const slider = document.getElementById(id); slider.value = value;
  slider.dispatchEvent(new Event("input")); };
const at = (kind, canvas, row, column) => { const box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new PointerEvent(kind, { clientX: box.left + (column + .5) * box.width / 4,
    clientY: box.top + (row + .5) * box.height / 4, bubbles: true })); };
const wait = () => maps().length === 7 ? probe() : setTimeout(wait, 20);
function probe() {
  const steps = { start: seen() };
  slide("layer", 0); steps.layer = seen();
  slide("head", 1); steps.head = seen();
  at("click", maps()[2], 2, 3); steps.click = seen();
  steps.colours = maps().map(canvas => [...Array(16).keys()].map(i => [...canvas.getContext("2d").getImageData(
    (i % 4 + .5) * canvas.width / 4, (Math.floor(i / 4) + .5) * canvas.height / 4, 1, 1).data].slice(0, 3)));
  at("pointermove", maps()[1], 1, 0); steps.hover = seen();
  document.getElementById("class-token").click(); steps.back = seen();
  const select = document.getElementById("image");
  steps.images = [...select.options].map(option => option.textContent);
  steps.texts = [...document.querySelectorAll("figcaption")].map(node => node.textContent);
  const pre = document.body.appendChild(document.createElement("pre"));
  pre.id = "probe"; pre.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(steps))));
}
wait();
}</script>"""


@pytest.fixture(scope="module")
def steps(html, tmp_path_factory):
    """What the page shows in a browser, after each step of the probe."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a browser: chromium")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--disable-component-update", "--disable-sync", "--disable-quic", "--virtual-time-budget=10000"]
    options += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "page.html").as_uri()]
    done = subprocess.run([browser, *options], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-3000:]
    return json.loads(base64.b64decode(found[1]).decode())


def test_browser_shows_every_model(steps):
    assert steps["images"] == ["photo <b>", "photo 2"]
    titles = [text for text in steps["texts"] if text.startswith("A")]
    assert titles == ["A", "A1", "A2", "A1 − λ A2", "A1", "A2", "A1 − λ A2"]
    assert sum(text.startswith("</script> costs $5 & $6: similarity") for text in steps["texts"]) == 3


def test_sliders_and_clicks_change_the_pictures(steps):
    for before, after in (("start", "layer"), ("layer", "head"), ("head", "click")):
        changed = [a != b for a, b in zip(steps[before]["pictures"], steps[after]["pictures"], strict=True)]
        assert all(changed), after
    assert steps["back"]["pictures"] == steps["head"]["pictures"]


def test_browser_computes_what_the_library_does(steps, looks):
    layers = looks["DiffCLIP-nano"][1].layers
    mean_to_itself = layers[3].attention[0, :, 0, 0].mean().item()
    line = steps["start"]["lines"][2]
    assert line.startswith(f"layer 3, mean of 2 heads, λ = {layers[3].lambda_.item():.3f}, row of the class token")
    assert float(re.search(r"A1 − λ A2 (-?[\d.]+)", line)[1]) == pytest.approx(mean_to_itself, abs=2e-3)
    # the row of patch (2, 3), token 1 + 2 * 4 + 3, and there patch (1, 0)
    assert "layer 0, head 1" in steps["click"]["lines"][2]
    assert "row of the outlined patch" in steps["click"]["lines"][2]
    a1, a2 = (maps[0, 1, 12, 1 + 4].item() for maps in (layers[0].a1, layers[0].a2))
    expected = [a1, a2, a1 - layers[0].lambda_.item() * a2]
    hovered = steps["hover"]["lines"][3]
    assert hovered.startswith("patch row 1, column 0: A1 ")
    values = [float(part.rpartition(" ")[2]) for part in hovered.partition(": ")[2].split(", ")]
    assert values == pytest.approx(expected, abs=6e-4)
    # version 2 has a lambda for each token and head
    lambda_ = looks["DiffCLIP-V2-nano"][1].layers[0].lambda_[0, 1, 12, 0].item()
    assert f"λ = {lambda_:.3f}" in steps["click"]["lines"][4]


def test_browser_paints_each_patch_in_its_colour(steps, looks):
    layer = looks["DiffCLIP-nano"][1].layers[0]
    one, two, difference = (maps[0, 1, 12, 1:].numpy() for maps in (layer.a1, layer.a2, layer.attention))
    end = max(one.max(), two.max())
    tables = [colormaps["inferno"](one / end), colormaps["inferno"](two / end)]
    tables.append(colormaps["RdBu_r"]((difference / abs(difference).max() + 1) / 2))
    for painted, table in zip(steps["colours"][1:4], tables, strict=True):
        # four fifths are the colour, one fifth is the image in some grey
        grey = np.array(painted) - 0.8 * 255 * table[:, :3]
        assert (grey > -4).all()
        assert (grey < 51 + 4).all()
        assert (np.ptp(grey, axis=1) < 8).all()


# diffclip attend


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_attend_writes_pictures_and_pages(specs, photo, tmp_path, kind):
    out = tmp_path / f"out.{kind}"
    [line] = attend([photo, photo], TEXTS, list(specs.values())[:2], out, start_layer=0)
    assert line.startswith(f"{out}: images 2, models 2, ")
    assert list(tmp_path.iterdir()) == [out]
    if kind == "png":
        with Image.open(out) as image:
            assert image.width > 600
            assert image.height > 1000
    elif kind == "svg":
        assert xml.etree.ElementTree.parse(out).getroot().tag.endswith("svg")
    else:
        models = _data(out.read_text())["images"][1]["models"]
        assert [model["label"] for model in models] == [f"{name} {name}" for name in MODELS[:2]]


def test_attend_draws_maps_without_a_text(specs, photo, tmp_path):
    attend([photo], [], [specs["DiffCLIP-nano"]], tmp_path / "maps.png", maps=True)
    with Image.open(tmp_path / "maps.png") as image:
        assert min(image.size) > 200


def test_models_with_one_label_are_told_apart(specs, photo, tmp_path):
    name, _, path = specs["DiffCLIP-nano"].partition(",")
    twins = []
    for seed in ("a", "b"):
        folder = tmp_path / seed / name / "checkpoints"
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "epoch_1.pt")
        twins.append(f"{name},{folder / 'epoch_1.pt'}")
    attend([photo], TEXTS, twins, tmp_path / "out.html")
    labels = [model["label"] for model in _data((tmp_path / "out.html").read_text())["images"][0]["models"]]
    assert labels == twins


def test_attend_refuses_what_cannot_be_before_models_are_loaded(photo, tmp_path, monkeypatch):
    monkeypatch.setattr("diffclip_openclip.explain.attend.load_model", lambda spec: pytest.fail("was loaded"))
    out, model = tmp_path / "out.png", ["DiffCLIP-nano,x.pt"]

    def refused(error, message, images=(photo,), texts=("a mug",), models=model, out=out, **kwargs):
        with pytest.raises(error, match=message):
            attend(list(images), list(texts), models, out, **kwargs)

    refused(ValueError, "there is no text to look for", texts=())
    refused(ValueError, "a --text is empty", texts=("a mug", " "))
    refused(ValueError, "there is no image", images=())
    refused(ValueError, "there is no model", models=[])
    refused(ValueError, r"neither a picture \(\.png or \.svg\) nor a page", out=tmp_path / "out.jpg")
    refused(ValueError, "no text to look for", texts=(), out=tmp_path / "out.html", maps=True)
    refused(ValueError, "no colour map 'rainbows'", colormap="rainbows")
    refused(FileNotFoundError, "there is no image file", images=(tmp_path / "missing.png",))
    refused(FileNotFoundError, "there is no folder", out=tmp_path / "missing" / "out.png")
    out.write_text("mine")
    refused(FileExistsError, "--overwrite")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(ImportError, r"pip install 'diffclip-openclip\[plot\]'", overwrite=True)
    assert out.read_text() == "mine"


def test_attend_needs_nothing_of_the_evaluation(tmp_path):
    """Whose packages are another extra."""
    code = "import sys, diffclip_openclip.explain.attend, diffclip_openclip.explain.score\nprint(*sys.modules)"
    loaded = run_python(code, tmp_path).split()
    assert "diffclip_openclip.weights.loading" in loaded
    assert not [name for name in loaded if name.startswith(("diffclip_openclip.evaluation", "webdataset"))]


def test_attend_leaves_nothing_behind_when_it_fails(specs, photo, tmp_path):
    out = tmp_path / "out.png"
    with pytest.raises(ValueError, match="method is 'magic'"):
        attend([photo], TEXTS, [specs["DiffCLIP-nano"]], out, method="magic")
    with pytest.raises(ValueError, match="there is no layer 9"):
        attend([photo], TEXTS, [specs["DiffCLIP-nano"]], out, start_layer=9)
    with pytest.raises(ValueError, match="open_clip knows no model 'DiffCLIP-nan'"):
        attend([photo], TEXTS, ["DiffCLIP-nan,x.pt"], out)
    assert list(tmp_path.iterdir()) == []


# diffclip lambdas


def _run(specs, folder, epochs=3):
    """A run's folder: open_clip's trainer writes such checkpoints."""
    state = torch.load(specs["DiffCLIP-nano"].partition(",")[2], weights_only=True)
    (folder / "checkpoints").mkdir(parents=True)
    for epoch in range(1, epochs + 1):
        for key in state:
            if key.endswith("lambda_q1"):
                state[key] += 0.1 * epoch
        torch.save({"epoch": epoch, "state_dict": state}, folder / "checkpoints" / f"epoch_{epoch}.pt")
    return folder


def test_lambdas_are_tabled_layer_by_layer(specs):
    path = specs["DiffCLIP-nano"].partition(",")[2]
    lines = show_lambdas(path)
    rows = [line.split() for line in lines[1:]]
    assert [row[:2] for row in rows] == [["image", str(i)] for i in range(4)] + [["text", "0"], ["text", "1"]]
    for row, layer in zip(rows, lambdas(path), strict=True):
        assert row[2] == f"{layer.lambda_:.4f}"
        lambda_, exp1, exp2, init = map(float, row[2:])
        assert lambda_ == pytest.approx(exp1 - exp2 + init, abs=2e-4)
        assert init == 0.8


def test_lambdas_over_a_run(specs, tmp_path):
    run = _run(specs, tmp_path / "run")
    lines = show_lambdas(str(run), tmp_path / "run.png")
    assert [line.split()[0] for line in lines[1:4]] == ["1", "2", "3"]
    epochs = lambdas_over_training(run)
    text = [row.lambda_ for row in epochs[2].layers if row.tower == "text"]
    assert f"{np.mean(text):.4f} ({min(text):.4f}, {max(text):.4f})" in lines[3]
    assert lines[5] == "after epoch 3:"
    assert lines[6:-1] == show_lambdas(str(run / "checkpoints" / "epoch_3.pt"))
    assert lines[-1] == str(tmp_path / "run.png")
    with Image.open(tmp_path / "run.png") as image:
        assert image.width > 1000


def test_lambda_plots_show_the_values(specs, tmp_path):
    run = lambdas_over_training(_run(specs, tmp_path / "run"))
    image, text = training_figure(run).axes
    assert [len(axis.lines) for axis in (image, text)] == [4, 2]
    expected = [row.lambda_ for epoch in run for row in epoch.layers if (row.tower, row.layer) == ("image", 2)]
    assert image.lines[2].get_ydata() == pytest.approx(expected)
    assert list(image.lines[2].get_xdata()) == [1, 2, 3]
    [axis] = lambdas_figure(run[0].layers).axes
    shown = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert shown["text tower"] == pytest.approx([row.lambda_ for row in run[0].layers if row.tower == "text"])
    assert list(shown["image: λ_init"]) == [0.8] * 4


def test_a_run_of_one_checkpoint_is_plotted_by_layer(specs, tmp_path):
    run = _run(specs, tmp_path / "run", epochs=1)
    lines = show_lambdas(str(run), tmp_path / "lambdas.svg")
    assert lines[0].startswith("tower")
    assert "image tower" in (tmp_path / "lambdas.svg").read_text()


def test_lambdas_refuse_what_cannot_be(specs, tmp_path):
    path = specs["DiffCLIP-nano"].partition(",")[2]
    with pytest.raises(ValueError, match=r"out\.json is no picture; end it in \.png or \.svg"):
        show_lambdas(path, tmp_path / "out.json")
    with pytest.raises(ValueError, match="neither tower has differential attention"):
        show_lambdas(specs["CLIP-nano-baseline"].partition(",")[2])
    with pytest.raises(FileNotFoundError):
        show_lambdas(str(tmp_path / "missing.pt"))
    (tmp_path / "out.png").write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        show_lambdas(path, tmp_path / "out.png")
    show_lambdas(path, tmp_path / "out.png", overwrite=True)
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


# the notebook

NOTEBOOK = REPOSITORY / "examples" / "attention.ipynb"


def test_notebook_comes_with_results_of_the_quick_start():
    content = NOTEBOOK.read_text(encoding="utf-8")
    notebook = json.loads(content)
    texts = [output["text"] for cell in notebook["cells"] for output in cell.get("outputs", ()) if "text" in output]
    assert "the quick start's models\n" in ["".join(text) for text in texts]
    assert pictures(notebook) == 6
    assert not any(output.get("name") == "stderr" for cell in notebook["cells"] for output in cell.get("outputs", ()))
    assert not re.search(r"/(home|tmp|root|Users)/", content)


@pytest.mark.slow
def test_notebook_runs_in_a_fresh_clone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = executed(NOTEBOOK, tmp_path)
    assert "models that know twelve emoji" in printed(notebook)
    assert "tower  layer   lambda" in printed(notebook)
    assert pictures(notebook) == 6
