"""``diffclip data folder``: class folders of one's own, and of the ImageNet sets."""

from pathlib import Path

import pytest
from clip_benchmark.datasets.builder import build_dataset
from PIL import Image
from support.images import dots, number, pictures, pixels, read_back, save

from diffclip_openclip.data.catalog import class_names, imagenet_folders
from diffclip_openclip.data.sources import folders


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
    folders.convert("mine", source=source, root=tmp_path / "root", split="val")
    assert (tmp_path / "root" / "mine" / "classnames.txt").read_text(encoding="utf-8") == "ant hill\nzebra\nÉclair\n"
    expected = [
        (pixels(Image.open(source / name / file)), label)
        for label, name in enumerate(("ant hill", "zebra", "Éclair"))
        for file in ("a.png", "b.jpg")
    ]
    assert [(pixels(image), label) for image, label in read_back(tmp_path / "root", "mine", "val")] == expected
    (tmp_path / "names.txt").write_text("un\ndeux\ntrois\n")
    folders.convert("other", source=source, root=tmp_path / "root", classnames=tmp_path / "names.txt")
    assert (tmp_path / "root" / "other" / "classnames.txt").read_text() == "un\ndeux\ntrois\n"


def _classes(folder: Path, *names: str) -> Path:
    for name in names:
        save(folder / name / "0.jpg", pictures(1)[0])
    return folder


def test_a_split_may_lack_a_class(tmp_path):
    folders.convert("mine", source=_classes(tmp_path / "train", "a", "aa", "b"), root=tmp_path, split="train")
    folders.convert("mine", source=_classes(tmp_path / "test", "a", "b"), root=tmp_path)
    assert [label for _, label in read_back(tmp_path, "mine", "test")] == [0, 2]
    assert (tmp_path / "mine" / "classnames.txt").read_text() == "a\naa\nb\n"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_split_with_a_class_more_does_not_relabel_the_others(tmp_path, overwrite):
    folders.convert("mine", source=_classes(tmp_path / "test", "a", "b"), root=tmp_path)
    source = _classes(tmp_path / "train", "a", "aa", "b")
    with pytest.raises(FileExistsError, match=r"classnames\.txt says otherwise .* test of mine would be read by it"):
        folders.convert("mine", source=source, root=tmp_path, split="train", overwrite=overwrite)
    assert (tmp_path / "mine" / "classnames.txt").read_text() == "a\nb\n"


def test_names_of_ones_own_stay_with_their_folders(tmp_path):
    """The same file of names beside other class folders would name other images."""
    (tmp_path / "names.txt").write_text("un\ndeux\n")
    options = {"root": tmp_path, "classnames": tmp_path / "names.txt"}
    folders.convert("mine", source=_classes(tmp_path / "test", "a", "b"), **options)
    with pytest.raises(FileExistsError, match=r"classfolders\.txt says otherwise .* test of mine would be read by it"):
        folders.convert("mine", source=_classes(tmp_path / "other", "a", "c"), split="train", **options)
    folders.convert("mine", source=_classes(tmp_path / "train", "a", "b"), split="train", **options)


@pytest.mark.parametrize("name", ["a\nb", "a\x1cb", "a\x85b", "a\u2028b"])
def test_class_folders_with_line_breaks_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="for a class's name; it must be one line"):
        folders.convert("mine", source=_classes(tmp_path / "source", "0", name), root=tmp_path)
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["imagenet1k", "imagenet_sketch", "imagenet-a", "imagenet-r"])
def test_imagenet_labels_and_names_are_clip_benchmarks(tmp_path, name):
    source = _imagenet(tmp_path / "source", sorted(imagenet_folders(name), reverse=True))
    lines = folders.convert(name, source=source, root=tmp_path)
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
    folders.convert("imagenetv2", source=source, root=tmp_path)
    assert [(number(image), label) for image, label in read_back(tmp_path, "imagenetv2", "test")] == [
        (label, label) for label in range(1000)
    ]
    assert (tmp_path / "imagenetv2" / "classnames.txt").read_text().splitlines() == class_names("imagenet1k")


def test_imagenet_class_folders_must_be_all_and_no_others(tmp_path):
    source = _imagenet(tmp_path / "source", list(imagenet_folders("imagenet-a")))
    with pytest.raises(ValueError, match=r"200 class folders of imagenet-r; .* are missing \(n01443537, .*\.\.\.\)"):
        folders.convert("imagenet-r", source=source, root=tmp_path)
    (source / "n01498041").rename(source / "n99999999")
    with pytest.raises(ValueError, match=r"1 are missing \(n01498041\) and 1 are none of them \(n99999999\)"):
        folders.convert("imagenet-a", source=source, root=tmp_path)
    assert not (tmp_path / "imagenet-a").exists()


def test_folder_bad_input(tmp_path):
    source = tmp_path / "source"
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        folders.convert("mine", source=source, root=tmp_path)
    source.mkdir()
    with pytest.raises(ValueError, match="has no folders"):
        folders.convert("mine", source=source, root=tmp_path)
    save(source / "a" / "0.jpg", pictures(1)[0])
    (source / "b").mkdir()
    with pytest.raises(ValueError, match="b is empty"):
        folders.convert("mine", source=source, root=tmp_path)
    (source / "b" / "deeper").mkdir()
    with pytest.raises(ValueError, match="deeper is a folder in a class folder"):
        folders.convert("mine", source=source, root=tmp_path)
    (source / "b" / "deeper").rmdir()
    (source / "b" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"notes\.txt is no image"):
        folders.convert("mine", source=source, root=tmp_path)
    for text in ("one\n", "one\n\n", "one\ntwo\nthree\n"):
        (tmp_path / "names.txt").write_text(text)
        with pytest.raises(ValueError, match="must have 2 lines"):
            folders.convert("mine", source=source, root=tmp_path, classnames=tmp_path / "names.txt")
    assert not (tmp_path / "mine").exists()
