"""``diffclip data karpathy``: images with captions, as clip_benchmark reads them."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.images import pictures, pixels, read_back, save

from diffclip_openclip.data.sources import karpathy


def _karpathy(folder: Path, entries: list[tuple[str, str, str, list[str]]]) -> Path:
    """His JSON of (filename, filepath, split, captions), with an image for each."""
    images = []
    for (name, place, split, captions), picture in zip(entries, pictures(len(entries)), strict=True):
        save(folder / "images" / place / name, picture)
        sentences = [{"raw": caption, "tokens": caption.split()} for caption in captions]
        images.append(
            {"filename": name, "split": split, "sentences": sentences} | ({"filepath": place} if place else {})
        )
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "x"}))
    return folder / "dataset.json"


def test_karpathy_split_with_all_captions(tmp_path):
    entries = [
        ("b.jpg", "val2014", "test", ["two", "three captions", "of it"]),
        ("a.jpg", "train2014", "train", ["not this"]),
        ("a.jpg", "val2014", "test", ["Über «ß» 🦊"]),
        ("c.jpg", "val2014", "restval", ["nor this"]),
    ]
    annotations = _karpathy(tmp_path, entries)
    lines = karpathy.convert(
        "mscoco_captions", annotations=annotations, images=tmp_path / "images", root=tmp_path / "root"
    )
    assert lines[1:] == [
        "warning: the published mscoco_captions/test has 5,000 images and 25,010 captions: results will not compare "
        "with others'"
    ]
    read = read_back(tmp_path / "root", "mscoco_captions", "test")
    assert [captions for _, captions in read] == [entries[0][3], entries[2][3]]
    for (image, _), name in zip(read, ("b.jpg", "a.jpg"), strict=True):
        with Image.open(tmp_path / "images" / "val2014" / name) as original:
            assert pixels(image) == pixels(original)
    assert (tmp_path / "root" / "mscoco_captions" / "dataset_type.txt").read_text() == "retrieval\n"
    karpathy.convert(
        "mscoco_captions", annotations=annotations, images=tmp_path / "images", root=tmp_path / "root", split="restval"
    )
    assert [captions for _, captions in read_back(tmp_path / "root", "mscoco_captions", "restval")] == [["nor this"]]


def test_images_may_lie_without_their_subfolder(tmp_path):
    annotations = _karpathy(tmp_path, [("a.jpg", "val2014", "test", ["one"])])
    karpathy.convert(
        "mscoco_captions", annotations=annotations, images=tmp_path / "images" / "val2014", root=tmp_path / "root"
    )
    assert len(read_back(tmp_path / "root", "mscoco_captions", "test")) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
def test_whatever_the_captions_hold_each_is_one_line(tmp_path_factory, captions):
    folder = tmp_path_factory.mktemp("captions")
    annotations = _karpathy(folder, [("a.jpg", "", "test", [*captions, "last\r\nof\x0ball\u2028\x85them\n"])])
    lines = karpathy.convert("flickr8k", annotations=annotations, images=folder / "images", root=folder / "root")
    [(_, read)] = read_back(folder / "root", "flickr8k", "test")
    words = [" ".join(caption.split()) for caption in captions]
    assert [" ".join(line.split()) for line in read] == [*filter(None, words), "last of all them"]
    assert any("empty captions" in line for line in lines) == ("" in words)


@pytest.mark.parametrize(
    ("name", "entries", "split", "message"),
    [
        ("flickr30", [("a.jpg", "", "test", ["x"])], "test", "flickr30k, flickr8k, mscoco_captions"),
        ("flickr30k", [("a.jpg", "", "test", ["x"]), ("b.jpg", "", "val", ["x"])], "train", "it has test, val"),
        ("flickr30k", [("a.jpg", "", "test", ["x"])] * 2, "test", r"lists a\.jpg 2 times"),
        ("flickr30k", [("a.jpg", "", "test", [" \n"])], "test", r"a\.jpg has no caption"),
        ("flickr30k", [("a.jpg", "", "test", [])], "test", r"a\.jpg has no caption"),
    ],
)
def test_karpathy_bad_input(tmp_path, name, entries, split, message):
    annotations = _karpathy(tmp_path, entries)
    with pytest.raises(ValueError, match=message):
        karpathy.convert(name, annotations=annotations, images=tmp_path / "images", root=tmp_path / "root", split=split)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{"filename": "a"}]}', '{"images": 3}', "null"])
def test_karpathy_other_json(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"not of the form of Karpathy's"):
        karpathy.convert("flickr8k", annotations=tmp_path / "dataset.json", images=tmp_path, root=tmp_path / "root")


def test_karpathy_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        karpathy.convert("flickr8k", annotations=tmp_path / "dataset.json", images=tmp_path, root=tmp_path / "root")
    annotations = _karpathy(tmp_path, [("a.jpg", "", "test", ["x"])])
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"images/a\.jpg; --images must be"):
        karpathy.convert("flickr8k", annotations=annotations, images=tmp_path / "images", root=tmp_path / "root")
    assert not (tmp_path / "root").exists()
