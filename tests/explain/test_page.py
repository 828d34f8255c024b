"""The page holds the maps, needs nothing else, and shows in a browser what the library computes."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from matplotlib import colormaps
from support.attend_data import MODELS, TEXTS, page_data

from diffclip_openclip.explain.page import attention_page


@pytest.fixture(scope="module")
def html(in_photo):
    block = [in_photo[name] for name in MODELS]
    return attention_page(names=["photo <b>", "photo 2"], models=MODELS, texts=TEXTS, blocks=[block, block])


def _unpacked(packed, heads, tokens):
    scale = np.frombuffer(base64.b64decode(packed["scale"]), "<f4").reshape(heads, tokens, 1)
    shares = np.frombuffer(base64.b64decode(packed["values"]), np.uint8).reshape(heads, tokens, tokens)
    return scale * shares / 255, scale


def test_page_holds_the_maps(html, in_photo):
    data = page_data(html)
    assert (data["layers"], data["heads"]) == (4, 4)
    assert [image["name"] for image in data["images"]] == ["photo <b>", "photo 2"]
    for entry, name in zip(data["images"][0]["models"], MODELS, strict=True):
        found, maps_in_photo = in_photo[name]
        assert (entry["label"], entry["grid"], entry["tokens"], entry["prefix"]) == (name, [4, 4], 17, 1)
        assert entry["readOut"] == [0]
        similarities = found.relevance.similarity[0].tolist()
        texts = [f"{text}: similarity {value:.3f}" for text, value in zip(TEXTS, similarities, strict=True)]
        assert [text["text"] for text in entry["texts"]] == texts
        for packed, layer in zip(entry["layers"], maps_in_photo.layers, strict=True):
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
    assert "costs $5" in page_data(html)["images"][0]["models"][0]["texts"][1]["text"]
    # the data's own "<" would end its element or begin another
    assert html.count("</script>") == 2
    code = html.replace(re.search(r"<script id.*?</script>", html, re.DOTALL)[0], "")
    assert not re.search(r"https?:|//\w|url\(|@import|<link|\ssrc=|\shref=|fetch\(|XMLHttp|import\(", code)
    assert "default-src 'none'" in code
    pictures = [
        text["picture"] for image in page_data(html)["images"] for model in image["models"] for text in model["texts"]
    ]
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)


# in a browser

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
    """Return what the page shows in a browser after each step of the probe."""
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


def test_browser_computes_what_the_library_does(steps, in_photo):
    layers = in_photo["DiffCLIP-nano"][1].layers
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
    lambda_ = in_photo["DiffCLIP-V2-nano"][1].layers[0].lambda_[0, 1, 12, 0].item()
    assert f"λ = {lambda_:.3f}" in steps["click"]["lines"][4]


def test_browser_paints_each_patch_in_its_colour(steps, in_photo):
    layer = in_photo["DiffCLIP-nano"][1].layers[0]
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
