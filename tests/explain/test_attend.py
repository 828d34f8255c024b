"""``diffclip attend`` writes pictures and pages, and refuses what cannot be before models are loaded."""

import shutil
import sys
import xml.etree.ElementTree

import pytest
from PIL import Image
from support.attend_data import MODELS, TEXTS, page_data
from support.common import run_python

from diffclip_openclip.explain.attend import show_attention


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_attend_writes_pictures_and_pages(specs, photo, tmp_path, kind):
    out = tmp_path / f"out.{kind}"
    [line] = show_attention([photo, photo], texts=TEXTS, models=list(specs.values())[:2], out=out, start_layer=0)
    assert line.startswith(f"{out}: images 2, models 2, ")
    assert list(tmp_path.iterdir()) == [out]
    if kind == "png":
        with Image.open(out) as image:
            assert image.width > 600
            assert image.height > 1000
    elif kind == "svg":
        assert xml.etree.ElementTree.parse(out).getroot().tag.endswith("svg")
    else:
        models = page_data(out.read_text())["images"][1]["models"]
        assert [model["label"] for model in models] == [f"{name} {name}" for name in MODELS[:2]]


def test_attend_draws_maps_without_a_text(specs, photo, tmp_path):
    show_attention([photo], texts=[], models=[specs["DiffCLIP-nano"]], out=tmp_path / "maps.png", maps=True)
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
    show_attention([photo], texts=TEXTS, models=twins, out=tmp_path / "out.html")
    labels = [model["label"] for model in page_data((tmp_path / "out.html").read_text())["images"][0]["models"]]
    assert labels == twins


def test_attend_refuses_what_cannot_be_before_models_are_loaded(photo, tmp_path, monkeypatch):
    monkeypatch.setattr("diffclip_openclip.explain.attend.load_model", lambda spec: pytest.fail("was loaded"))
    out, model = tmp_path / "out.png", ["DiffCLIP-nano,x.pt"]

    def refused(error, message, images=(photo,), texts=("a mug",), models=model, out=out, **kwargs):
        with pytest.raises(error, match=message):
            show_attention(list(images), texts=list(texts), models=models, out=out, **kwargs)

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
    """Import it without the packages of that other extra."""
    code = "import sys, diffclip_openclip.explain.attend\nprint(*sys.modules)"
    loaded = run_python(code, tmp_path).split()
    assert "diffclip_openclip.weights.loading" in loaded
    assert not [name for name in loaded if name.startswith(("diffclip_openclip.evaluation", "webdataset"))]


def test_attend_leaves_nothing_behind_when_it_fails(specs, photo, tmp_path):
    out = tmp_path / "out.png"
    with pytest.raises(ValueError, match="method is 'magic'"):
        show_attention([photo], texts=TEXTS, models=[specs["DiffCLIP-nano"]], out=out, method="magic")
    with pytest.raises(ValueError, match="there is no layer 9"):
        show_attention([photo], texts=TEXTS, models=[specs["DiffCLIP-nano"]], out=out, start_layer=9)
    with pytest.raises(ValueError, match="open_clip knows no model 'DiffCLIP-nan'"):
        show_attention([photo], texts=TEXTS, models=["DiffCLIP-nan,x.pt"], out=out)
    assert list(tmp_path.iterdir()) == []
