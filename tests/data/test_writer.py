"""The writer: clip_benchmark's layout, whole or not at all, and never over something else."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
from clip_benchmark.datasets.builder import build_dataset
from support.common import plain_environment
from support.images import dots, number, pictures, read_back, save, tree

from diffclip_openclip.data.sources import folders
from diffclip_openclip.data.writer import RETRIEVAL_METADATA, Sample, Split, classification_metadata, classified

METADATA = classification_metadata(["odd", "even"], ["a {c}."])


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (999, 1), (1000, 1), (1001, 2), (2000, 2)])
def test_every_sample_is_read_back_in_order_whatever_the_count(tmp_path, count, shards):
    lines = Split(tmp_path / "50%d {off}", "dots", "train").write(
        (classified(image, index % 7) for index, image in enumerate(dots(count))), count, METADATA
    )
    folder = tmp_path / "50%d {off}" / "dots" / "train"
    assert lines == [f"{folder}: {count:,} images in {shards} shards"]
    assert (folder / "nshards.txt").read_text() == f"{shards}\n"
    assert sum(map(int, (folder / "nsamples.txt").read_text().split())) == count
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
        "test/nsamples.txt",
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
    folders.convert("mine", source=source, root=tmp_path)
    before = tree(tmp_path / "mine")
    save(source / "b" / "0.jpg", pictures(2)[1])
    [line] = folders.convert("mine", source=source, root=tmp_path)
    assert line == f"{tmp_path / 'mine' / 'test'} is there, in 1 shards; --overwrite makes it again"
    assert tree(tmp_path / "mine") == before
    folders.convert("mine", source=source, root=tmp_path, overwrite=True)
    assert [label for _, label in read_back(tmp_path, "mine", "test")] == [0, 1]
    assert (tmp_path / "mine" / "classnames.txt").read_text() == "a\nb\n"


def test_incomplete_split_is_neither_kept_nor_replaced_unasked(tmp_path):
    source = tmp_path / "source"
    save(source / "a" / "0.jpg", pictures(1)[0])
    folders.convert("mine", source=source, root=tmp_path)
    (tmp_path / "mine" / "test" / "0.tar").unlink()
    with pytest.raises(FileExistsError, match="--overwrite"):
        folders.convert("mine", source=source, root=tmp_path)
    folders.convert("mine", source=source, root=tmp_path, overwrite=True)
    assert len(read_back(tmp_path, "mine", "test")) == 1


@pytest.mark.parametrize("change", ["a file more", "no nshards.txt"])
def test_folders_that_are_no_split_are_never_replaced(tmp_path, change):
    source, split = tmp_path / "source", tmp_path / "mine" / "test"
    save(source / "a" / "0.jpg", pictures(1)[0])
    folders.convert("mine", source=source, root=tmp_path)
    if change == "a file more":
        (split / "notes.txt").write_text("kept")
    else:
        (split / "nshards.txt").unlink()
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="is not just a split of a data set"):
        folders.convert("mine", source=source, root=tmp_path, overwrite=True)
    assert tree(tmp_path) == before


def test_splits_of_other_classes_or_kinds_do_not_mix(tmp_path):
    """Labels of one would mean the classes of the other, also with --overwrite."""
    Split(tmp_path, "dots", "train").write([classified(image, 0) for image in dots(1)], 1, METADATA)
    Split(tmp_path, "dots", "test").write([classified(image, 0) for image in dots(1)], 1, METADATA)
    before = tree(tmp_path)
    for other in (classification_metadata(["other"], ["a {c}."]), RETRIEVAL_METADATA):
        for split in (Split(tmp_path, "dots", "val"), Split(tmp_path, "dots", "test", overwrite=True)):
            with pytest.raises(
                FileExistsError, match=rf"classnames\.txt says otherwise.* train.* remove {tmp_path}/dots"
            ):
                split.write([classified(image, 0) for image in dots(1)], 1, other)
            assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_templates_that_were_edited_stay_for_another_split(tmp_path, overwrite):
    Split(tmp_path, "dots", "train").write([classified(dots(1)[0], 0)], 1, METADATA)
    (tmp_path / "dots" / "zeroshot_classification_templates.txt").write_text("a dot of the {c} kind.\n")
    Split(tmp_path, "dots", "test", overwrite).write([classified(dots(1)[0], 0)], 1, METADATA)
    assert (tmp_path / "dots" / "zeroshot_classification_templates.txt").read_text() == "a dot of the {c} kind.\n"


def test_the_only_split_may_become_another(tmp_path):
    Split(tmp_path, "dots", "test").write([classified(image, 0) for image in dots(1)], 1, METADATA)
    captioned_dot = Sample(dots(1)[0], {"txt": b"a dot"})
    with pytest.raises(FileExistsError, match=r"dots/test exists; .* --overwrite"):
        Split(tmp_path, "dots", "test").write([captioned_dot], 1, RETRIEVAL_METADATA)
    Split(tmp_path, "dots", "test", overwrite=True).write([captioned_dot], 1, RETRIEVAL_METADATA)
    assert {path.name for path in (tmp_path / "dots").iterdir()} == {"test", "dataset_type.txt"}
    shutil.rmtree(tmp_path / "dots" / "test")
    with pytest.raises(FileExistsError, match=r"txt says otherwise .* --overwrite"):
        Split(tmp_path, "dots", "test").write([classified(dots(1)[0], 0)], 1, METADATA)


def test_text_files_that_appear_meanwhile_are_kept(tmp_path):
    """Of two commands at once, the later one says so instead of giving the other's labels its own classes."""

    def samples():
        Split(tmp_path, "dots", "train").write([classified(dots(1)[0], 0)], 1, METADATA)
        yield classified(dots(1)[0], 0)

    with pytest.raises(FileExistsError, match=r"classnames\.txt says otherwise"):
        Split(tmp_path, "dots", "test").write(samples(), 1, classification_metadata(["other"], ["{c}"]))
    assert (tmp_path / "dots" / "classnames.txt").read_text() == "odd\neven\n"
    assert {path.name for path in (tmp_path / "dots").iterdir() if path.is_dir()} == {"train"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_split_that_appears_meanwhile_is_kept_unless_it_may_be_replaced(tmp_path, overwrite):
    split = Split(tmp_path, "dots", "test", overwrite)

    def samples():
        Split(tmp_path, "dots", "test").write([classified(image, 0) for image in dots(3)], 3, METADATA)
        yield classified(dots(1)[0], 0)

    if overwrite:
        split.write(samples(), 1, METADATA)
    else:
        with pytest.raises(FileExistsError, match="came to be while this worked"):
            split.write(samples(), 1, METADATA)
    assert len(read_back(tmp_path, "dots", "test")) == (1 if overwrite else 3)
    assert {path.name for path in (tmp_path / "dots").iterdir() if path.is_dir()} == {"test"}


def test_a_full_disk_names_what_was_written(tmp_path):
    def samples():
        yield classified(dots(1)[0], 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/dots/test'"):
        Split(tmp_path, "dots", "test").write(samples(), 2, METADATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\nb", "a\x1cb", "a\x85", "a\u2028b", "a\rb", "\udcff"])
def test_class_names_are_one_line_of_text(name):
    with pytest.raises(ValueError, match=r"the source has '.*' for a class's name; it must be one line"):
        classification_metadata(["fine", name], ["{c}"])


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
