"""diffclip data: the layout, and sources in folders, in Karpathy's form and in MMVP-VLM's, as clip_benchmark reads."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from clip_benchmark.datasets.builder import build_dataset
from diffclip_openclip.data.names import class_names, imagenet_folders
from diffclip_openclip.evaluation.suite import DATA_SETS, MMVP_PATTERNS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.common import plain_environment
from support.images import dots, number, pictures, pixels, read_back, save, tree

from diffclip_openclip.data import folders, karpathy, mmvp
from diffclip_openclip.data.images import encode
from diffclip_openclip.data.writer import Split, classification_metadata, classified, retrieval_metadata

METADATA = classification_metadata(["odd", "even"], ["a {c}."])


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2)])
def test_every_sample_is_read_back_in_order_whatever_the_count(tmp_path, count, shards):
    lines = Split(tmp_path / "50%d {off}", "dots", "train").write(
        (classified(image, index % 7) for index, image in enumerate(dots(count))), count, METADATA
    )
    folder = tmp_path / "50%d {off}" / "dots" / "train"
    assert lines == [f"{folder}: {count:,} images in {shards} shards"]
    assert (folder / "nshards.txt").read_text() == f"{shards}\n"
    assert sorted(path.name for path in folder.glob("*.tar")) == [f"{index}.tar" for index in range(shards)]
    folder.parent.rename(tmp_path / "dots")  # clip_benchmark expands braces in paths
    read = read_back(tmp_path, "dots", "train")
    assert [(number(image), label) for image, label in read] == [(index, index % 7) for index in range(count)]


def test_layout_is_clip_benchmarks(tmp_path):
    Split(tmp_path, "dots", "test").write([classified(image, 1) for image in dots(2)], 2, METADATA)
    assert set(tree(tmp_path / "dots")) == {
        "classnames.txt",
        "zeroshot_classification_templates.txt",
        "test/0.tar",
        "test/nshards.txt",
    }
    dataset = build_dataset("wds/dots", str(tmp_path / "dots"), None, "test")
    assert (dataset.classes, dataset.templates) == (["odd", "even"], ["a {c}."])
    with tarfile.open(tmp_path / "dots" / "test" / "0.tar") as tar:
        names = tar.getnames()
    assert names == ["s0000000.cls", "s0000000.png", "s0000001.cls", "s0000001.png"]


def test_same_data_gives_the_same_bytes(tmp_path):
    for root in ("a", "b"):
        Split(tmp_path / root, "dots", "test").write([classified(image, 0) for image in dots(5)], 5, METADATA)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "dots" / "test" / "0.tar") as tar:
        assert {member.mtime for member in tar} == {0}


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
        folders.convert("mine", source, root)
    assert list(tmp_path.iterdir()) == [source]


def test_failure_midway_leaves_a_split_that_was_there(tmp_path):
    split = Split(tmp_path, "dots", "test", overwrite=True)
    split.write([classified(image, 0) for image in dots(1500)], 1500, METADATA)
    before = tree(tmp_path)

    def failing():
        yield from (classified(image, 1) for image in dots(1200))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        split.write(failing(), 1500, classification_metadata(["new"], ["{c}"]))
    assert tree(tmp_path) == before


def test_a_killed_run_leaves_no_split_and_can_be_repeated(tmp_path):
    code = f"""
from pathlib import Path
from PIL import Image
from diffclip_openclip.data.writer import Split, classified
def samples():
    for index in range(3000):
        if index == 1500:
            print("midway", flush=True)
            time.sleep(600)
        yield classified(Image.new("RGB", (1, 1)), 0)
Split(Path({str(tmp_path)!r}), "dots", "test").write(samples(), 3000, {{"classnames.txt": "x"}})
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=plain_environment())
    assert process.stdout.readline() == b"midway\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    visible = [path for path in (tmp_path / "dots").iterdir() if not path.name.startswith(".")]
    assert visible == []
    split = Split(tmp_path, "dots", "test")
    assert split.finished() == []
    split.write([classified(image, 0) for image in dots(3)], 3, METADATA)
    assert len(read_back(tmp_path, "dots", "test")) == 3


def test_complete_split_stays_until_overwrite(tmp_path):
    source = tmp_path / "source"
    save(source / "a" / "0.jpg", pictures(1)[0])
    folders.convert("mine", source, tmp_path)
    before = tree(tmp_path / "mine")
    save(source / "b" / "0.jpg", pictures(2)[1])
    [line] = folders.convert("mine", source, tmp_path)
    assert line == f"{tmp_path / 'mine' / 'test'} is there, in 1 shards; --overwrite makes it again"
    assert tree(tmp_path / "mine") == before
    folders.convert("mine", source, tmp_path, overwrite=True)
    assert [label for _, label in read_back(tmp_path, "mine", "test")] == [0, 1]
    assert (tmp_path / "mine" / "classnames.txt").read_text() == "a\nb\n"


def test_incomplete_split_is_neither_kept_nor_replaced_unasked(tmp_path):
    source = tmp_path / "source"
    save(source / "a" / "0.jpg", pictures(1)[0])
    folders.convert("mine", source, tmp_path)
    (tmp_path / "mine" / "test" / "0.tar").unlink()
    with pytest.raises(FileExistsError, match="--overwrite"):
        folders.convert("mine", source, tmp_path)
    folders.convert("mine", source, tmp_path, overwrite=True)
    assert len(read_back(tmp_path, "mine", "test")) == 1


@pytest.mark.parametrize("change", ["a file more", "no nshards.txt"])
def test_folders_that_are_no_split_are_never_replaced(tmp_path, change):
    source, split = tmp_path / "source", tmp_path / "mine" / "test"
    save(source / "a" / "0.jpg", pictures(1)[0])
    folders.convert("mine", source, tmp_path)
    if change == "a file more":
        (split / "notes.txt").write_text("kept")
    else:
        (split / "nshards.txt").unlink()
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="is not just a split of a data set"):
        folders.convert("mine", source, tmp_path, overwrite=True)
    assert tree(tmp_path) == before


def test_splits_of_other_classes_or_kinds_do_not_mix(tmp_path):
    Split(tmp_path, "dots", "train").write([classified(image, 0) for image in dots(1)], 1, METADATA)
    before = tree(tmp_path)
    for other in (classification_metadata(["other"], ["a {c}."]), retrieval_metadata()):
        with pytest.raises(FileExistsError, match=r"classnames\.txt says otherwise"):
            Split(tmp_path, "dots", "test").write([classified(image, 0) for image in dots(1)], 1, other)
        assert tree(tmp_path) == before
    Split(tmp_path, "dots", "test", overwrite=True).write(
        [classified(image, 0) for image in dots(1)], 1, retrieval_metadata()
    )
    assert {path.name for path in (tmp_path / "dots").iterdir()} == {"train", "test", "dataset_type.txt"}


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc", ".hidden"])
def test_names_that_are_no_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="is no name for a folder"):
        Split(tmp_path, name, "test")
    with pytest.raises(ValueError, match="is no name for a folder"):
        Split(tmp_path, "dots", name)


def test_no_images_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no images for dots/test"):
        Split(tmp_path, "dots", "test").write([], 0, METADATA)
    assert list(tmp_path.iterdir()) == []


# --- folders


def _imagenet(folder: Path, names: list[str]) -> Path:
    """A class folder for each name, with one image that tells which."""
    for name, dot in zip(names, dots(len(names)), strict=True):
        (folder / name).mkdir(parents=True)
        dot.save(folder / name / f"{name}_0.JPEG", "PNG")
    return folder


def test_folders_in_order_with_names_from_folders_or_file(tmp_path):
    source = tmp_path / "source"
    for name in ("zebra", "Éclair", "ant hill"):
        for file, picture in zip(("b.jpg", "a.png", ".DS_Store"), pictures(3), strict=True):
            save(source / name / file, picture, "PNG" if file == "a.png" else "JPEG")
    (source / "README.txt").write_text("beside the classes")
    folders.convert("mine", source, tmp_path / "root", "val")
    assert (tmp_path / "root" / "mine" / "classnames.txt").read_text(encoding="utf-8") == "ant hill\nzebra\nÉclair\n"
    expected = [
        (pixels(Image.open(source / name / file)), label)
        for label, name in enumerate(("ant hill", "zebra", "Éclair"))
        for file in ("a.png", "b.jpg")
    ]
    assert [(pixels(image), label) for image, label in read_back(tmp_path / "root", "mine", "val")] == expected
    (tmp_path / "names.txt").write_text("un\ndeux\ntrois\n")
    folders.convert("other", source, tmp_path / "root", classnames=tmp_path / "names.txt")
    assert (tmp_path / "root" / "other" / "classnames.txt").read_text() == "un\ndeux\ntrois\n"


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet_sketch", "imagenet-a", "imagenet-r"])
def test_imagenet_labels_and_names_are_clip_benchmarks(tmp_path, name):
    source = _imagenet(tmp_path / "source", sorted(imagenet_folders(name), reverse=True))
    lines = folders.convert(name, source, tmp_path)
    count = 200 if name in ("imagenet-a", "imagenet-r") else 1000
    assert "warning: the published" in lines[1]
    # clip_benchmark's own data set of the same folder; imagenet1k's wants the devkit, so Sketch's stands for it
    own = build_dataset("imagenet_sketch" if name == "imagenet1k" else name, str(source), None)
    assert len(own.classes) == count
    read = build_dataset(f"wds/{name}", str(tmp_path / name), lambda image: image)
    assert read.classes == own.classes
    assert read.templates == own.templates
    assert len(read.templates) == 80
    assert [(number(image), label) for image, label in read] == [(number(image), label) for image, label in own]


def test_imagenetv2_folders_are_counted_not_sorted_as_text(tmp_path):
    source = _imagenet(tmp_path / "source", [str(label) for label in range(1000)])
    folders.convert("imagenetv2", source, tmp_path)
    assert [(number(image), label) for image, label in read_back(tmp_path, "imagenetv2", "test")] == [
        (label, label) for label in range(1000)
    ]
    assert (tmp_path / "imagenetv2" / "classnames.txt").read_text().splitlines() == class_names("imagenet1k")


def test_imagenet_class_folders_must_be_all_and_no_others(tmp_path):
    source = _imagenet(tmp_path / "source", list(imagenet_folders("imagenet-a")))
    with pytest.raises(ValueError, match=r"200 class folders of imagenet-r; .* are missing \(n01443537, .*\.\.\.\)"):
        folders.convert("imagenet-r", source, tmp_path)
    (source / "n01498041").rename(source / "n99999999")
    with pytest.raises(ValueError, match=r"1 are missing \(n01498041\) and 1 are none of them \(n99999999\)"):
        folders.convert("imagenet-a", source, tmp_path)
    assert not (tmp_path / "imagenet-a").exists()


def test_folder_bad_input(tmp_path):
    source = tmp_path / "source"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        folders.convert("mine", source, tmp_path)
    source.mkdir()
    with pytest.raises(ValueError, match="has no folders"):
        folders.convert("mine", source, tmp_path)
    save(source / "a" / "0.jpg", pictures(1)[0])
    (source / "b").mkdir()
    with pytest.raises(ValueError, match="b is empty"):
        folders.convert("mine", source, tmp_path)
    (source / "b" / "deeper").mkdir()
    with pytest.raises(ValueError, match="deeper is a folder in a class folder"):
        folders.convert("mine", source, tmp_path)
    (source / "b" / "deeper").rmdir()
    (source / "b" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt is no image"):
        folders.convert("mine", source, tmp_path)
    for text in ("one\n", "one\n\n", "one\ntwo\nthree\n"):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(ValueError, match="must have 2 lines"):
            folders.convert("mine", source, tmp_path, classnames=tmp_path / "names.txt")
    assert not (tmp_path / "mine").exists()


# --- Karpathy's form


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
    lines = karpathy.convert("mscoco_captions", annotations, tmp_path / "images", tmp_path / "root")
    assert lines[1:] == [
        "warning: the published mscoco_captions/test has 5,000 images: results will not compare with others'"
    ]
    read = read_back(tmp_path / "root", "mscoco_captions", "test")
    assert [captions for _, captions in read] == [entries[0][3], entries[2][3]]
    for (image, _), name in zip(read, ("b.jpg", "a.jpg"), strict=True):
        with Image.open(tmp_path / "images" / "val2014" / name) as original:
            assert pixels(image) == pixels(original)
    assert (tmp_path / "root" / "mscoco_captions" / "dataset_type.txt").read_text() == "retrieval\n"
    karpathy.convert("mscoco_captions", annotations, tmp_path / "images", tmp_path / "root", "restval")
    assert [captions for _, captions in read_back(tmp_path / "root", "mscoco_captions", "restval")] == [["nor this"]]


def test_images_may_lie_without_their_subfolder(tmp_path):
    annotations = _karpathy(tmp_path, [("a.jpg", "val2014", "test", ["one"])])
    karpathy.convert("mscoco_captions", annotations, tmp_path / "images" / "val2014", tmp_path / "root")
    assert len(read_back(tmp_path / "root", "mscoco_captions", "test")) == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=6))
def test_whatever_the_captions_hold_each_is_one_line(tmp_path_factory, captions):
    folder = tmp_path_factory.mktemp("captions")
    annotations = _karpathy(folder, [("a.jpg", "", "test", [*captions, "last\r\nof\x0ball\u2028\x85them\n"])])
    lines = karpathy.convert("flickr8k", annotations, folder / "images", folder / "root")
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
        karpathy.convert(name, annotations, tmp_path / "images", tmp_path / "root", split)
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"images": [{"filename": "a"}]}', '{"images": 3}', "null"])
def test_karpathy_other_json(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"not of the form of Karpathy's"):
        karpathy.convert("flickr8k", tmp_path / "dataset.json", tmp_path, tmp_path / "root")


def test_karpathy_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        karpathy.convert("flickr8k", tmp_path / "dataset.json", tmp_path, tmp_path / "root")
    annotations = _karpathy(tmp_path, [("a.jpg", "", "test", ["x"])])
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"images/a\.jpg; --images must be"):
        karpathy.convert("flickr8k", annotations, tmp_path / "images", tmp_path / "root")
    assert not (tmp_path / "root").exists()


# --- MMVP-VLM


def _mmvp(folder: Path, rows: list[tuple[int, str, str]], images: str = "MLLM_VLM Images") -> Path:
    """Questions.csv as published, and an image for each question in the folder of its type."""
    (folder / images).mkdir(parents=True)
    text = "".join(f'{qid},{kind},"{statement}"\r\n' for qid, kind, statement in rows)
    (folder / "Questions.csv").write_bytes(b"\xef\xbb\xbf" + f"Question ID,Type,Statement\r\n{text}".encode())
    for (qid, kind, _), picture in zip(rows, pictures(len(rows)), strict=True):
        save(folder / images / kind / f"{qid}.jpg", picture)
    return folder


@pytest.mark.parametrize("images", ["MLLM_VLM Images", "MMVP_VLM_Images", "MLLM_VLM_Images"])
def test_mmvp_pairs_in_order_with_their_patterns(tmp_path, images):
    # types are the published folders' names; 240 questions precede Camera_Perspective
    rows = [(242, "Camera_Perspective", "seen, from below"), (241, "Camera_Perspective", "seen from above")]
    rows += [(1, "Orientation", "facing left"), (2, "Orientation", "facing right")]
    rows += [(30, "Orientation", "d"), (29, "Orientation", "c"), (31, "Presence", "a"), (32, "Presence", "b")]
    source = _mmvp(tmp_path / "source", rows, images)
    lines = mmvp.convert(source, tmp_path)
    assert "published mmvp/test has 270 images" in lines[1]
    with tarfile.open(tmp_path / "mmvp" / "test" / "0.tar") as tar:
        about = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    first, second, last = MMVP_PATTERNS[0], MMVP_PATTERNS[1], MMVP_PATTERNS[8]
    assert about == [
        {"qid": qid, "pattern": pattern, "pair": pair}
        for qid, pattern, pair in [
            (1, first, 0),
            (2, first, 0),
            (29, first, 14),
            (30, first, 14),
            (31, second, 15),
            (32, second, 15),
            (241, last, 120),
            (242, last, 120),
        ]
    ]
    statements = {qid: [statement] for qid, _, statement in rows}
    kinds = {qid: kind for qid, kind, _ in rows}
    read = read_back(tmp_path, "mmvp", "test")
    for (image, statement), entry in zip(read, about, strict=True):
        assert statement == statements[entry["qid"]]
        with Image.open(source / images / kinds[entry["qid"]] / f"{entry['qid']}.jpg") as original:
            assert pixels(image) == pixels(original)


def test_mmvp_type_that_names_a_pattern_is_it(tmp_path):
    mmvp.convert(_mmvp(tmp_path / "source", [(1, "Texts", "a"), (2, "Texts", "b")]), tmp_path)
    assert b'"pattern": "Texts"' in (tmp_path / "mmvp" / "test" / "0.tar").read_bytes()


def test_mmvp_all_270_questions(tmp_path):
    kinds = [f"Type {index // 30}" for index in range(270)]
    rows = [(index + 1, kind, f"statement {index + 1}") for index, kind in enumerate(kinds)]
    lines = mmvp.convert(_mmvp(tmp_path / "source", rows), tmp_path)
    assert lines == [f"{tmp_path / 'mmvp' / 'test'}: 270 images in 1 shards"]
    with tarfile.open(tmp_path / "mmvp" / "test" / "0.tar") as tar:
        about = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
    assert [entry["pattern"] for entry in about] == [name for name in MMVP_PATTERNS for _ in range(30)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "A", "x"), (2, "A", "y"), (2, "A", "z")], "has question 2 twice"),
        ([(1, "A", "x"), (2, "A", "y"), (4, "A", "z")], r"without partner \[4\]"),
        ([(2, "A", "x"), (3, "A", "y")], r"without partner \[2, 3\]"),
        ([(0, "A", "x"), (271, "A", "y"), (272, "A", "z")], "0 to 272"),
        ([(271, "A", "y"), (272, "A", "z")], "271 to 272"),
        ([(1, "A", "x"), (2, "A", " ")], "row 3: expected"),
        ([(1, "A", "x"), ("two", "A", "y")], "row 3: expected"),
        ([(1, "A", 'x","y')], "row 2: expected"),
        ([], "no images"),
    ],
)
def test_mmvp_bad_questions(tmp_path, rows, message):
    source = _mmvp(tmp_path / "source", rows)
    with pytest.raises(ValueError, match=message):
        mmvp.convert(source, tmp_path)
    assert not (tmp_path / "mmvp").exists()


def test_mmvp_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Questions\.csv"):
        mmvp.convert(tmp_path, tmp_path)
    source = _mmvp(tmp_path / "source", [(1, "A", "x"), (2, "A", "y")])
    (source / "MLLM_VLM Images" / "A" / "2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no image .*A/2\.jpg"):
        mmvp.convert(source, tmp_path)
    (source / "MLLM_VLM Images").rename(source / "images")
    with pytest.raises(FileNotFoundError, match="'MLLM_VLM Images' or 'MMVP_VLM_Images'"):
        mmvp.convert(source, tmp_path)
    assert not (tmp_path / "mmvp").exists()


# --- docs


def test_docs_have_every_data_set_of_the_suite_with_its_size():
    from diffclip_openclip.evaluation.published import size_note

    docs = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in docs.splitlines() if line.startswith("| `")}
    for data_set in DATA_SETS:
        for split in data_set.splits:
            [warning] = size_note(data_set.name, split, 0)
            count = warning.split(" has ")[1].split()[0]
            assert count in rows[data_set.name], (data_set.name, split)
