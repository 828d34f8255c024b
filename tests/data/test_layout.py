"""Where data sets lie: the first root that has one, what its files must hold, and the hash of its content."""

import os
import shutil

import pytest
from support.common import write_tar
from support.evaluation_data import locate_paper

from diffclip_openclip.data.layout import Location, Shard, locate, shard_fingerprint


def test_first_root_that_has_all_splits(suite, tmp_path):
    (tmp_path / "dtd" / "test").mkdir(parents=True)
    (tmp_path / "dtd" / "test" / "nshards.txt").write_text("1\n")
    write_tar(tmp_path / "dtd" / "test" / "0.tar", [("a.png", b"")])
    assert locate_paper("dtd", tmp_path) is None
    assert locate_paper("dtd", tmp_path, suite).base == f"{suite}/dtd"
    assert locate_paper("dtd", f"{suite}/{{dataset}}").shard_counts == {"train": 1, "val": 1, "test": 1}


def test_braces_in_a_root(suite, tmp_path):
    (tmp_path / "{y}").symlink_to(suite)
    root = str(tmp_path / "{y}")
    assert locate_paper("dtd", f"{root}/{{dataset}}").base == f"{root}/dtd"


def test_shards_that_nshards_promises(suite, tmp_path):
    shutil.copytree(suite / "pets", tmp_path / "pets")
    (tmp_path / "pets" / "test" / "nshards.txt").write_text("2\n")
    with pytest.raises(ValueError, match=r"lacks 1\.tar; its nshards\.txt says 2 shards"):
        locate_paper("pets", tmp_path)
    (tmp_path / "pets" / "test" / "nshards.txt").write_text("two\n")
    with pytest.raises(ValueError, match="holds 'two'; it must be the number of shards"):
        locate_paper("pets", tmp_path)


def test_the_hubs_files_have_another_address_than_its_pages():
    location = Location("https://huggingface.co/datasets/clip-benchmark/wds_dtd/tree/main", {"test": 2})
    files = "https://huggingface.co/datasets/clip-benchmark/wds_dtd/resolve/main"
    assert location.shards("test") == [Shard(f"{files}/test/0.tar"), Shard(f"{files}/test/1.tar")]


def test_fingerprint_follows_content_only(suite, tmp_path):
    copy = shutil.copytree(suite / "pets", tmp_path / "a" / "pets")
    memory = tmp_path / "memory"

    def value(root=copy.parent, cache_dir=memory):
        location = locate_paper("pets", root)
        return location.fingerprint(location.shard_hashes(cache_dir))

    first = value()
    assert first == value(suite, tmp_path / "other")
    (copy / "test" / "0.tar").touch()
    assert value() == first
    names = copy / "classnames.txt"
    names.write_text(names.read_text().replace("bird", "brid"))
    second = value()
    shard = copy / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:-10_240] + b"\1" * 10_240)
    assert len({first, second, value()}) == 3


@pytest.fixture
def shard(tmp_path):
    """A data set of one shard."""
    write_tar(tmp_path / "mine" / "test" / "0.tar", [("a.png", b"1"), ("a.cls", b"0")])
    (tmp_path / "mine" / "test" / "nshards.txt").write_text("1\n")
    return tmp_path / "mine" / "test" / "0.tar"


def _locate(shard):
    return locate("mine", ["test"], [str(shard.parents[2])])


def test_numbers_of_samples_go_with_the_shards(shard):
    assert _locate(shard).shards("test") == [Shard(str(shard))]  # others' data sets have none
    counts = shard.with_name("nsamples.txt")
    counts.write_text("17\n")
    assert _locate(shard).shards("test") == [Shard(str(shard), 17)]
    for text in ("", "17\n17\n", "0\n", "many\n", f"{10**12}\n"):
        counts.write_text(text)
        with pytest.raises(ValueError, match=r"test/nsamples\.txt must have a number of samples for each of 1 shards"):
            _locate(shard)


@pytest.mark.parametrize("text", [str(10**9), "9" * 5_000, "-1", "0", "٣"])
def test_numbers_of_shards_that_none_has(shard, text):
    shard.with_name("nshards.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"nshards\.txt holds '[^']{1,40}'; it must be the number of shards"):
        _locate(shard)


@pytest.mark.parametrize("text", [b"9" * 5_000_000, b"\xff\xfe"])
def test_text_files_that_are_none(shard, text):
    (shard.parents[1] / "classnames.txt").write_bytes(text)
    with pytest.raises(ValueError, match=r"classnames\.txt (has more than|is no text in UTF-8)"):
        _locate(shard)


def test_kinds_are_read_in_any_case_and_unknown_ones_refused(shard):
    kind = shard.parents[1] / "dataset_type.txt"
    assert _locate(shard).kind == "classification"
    kind.write_text("Retrieval\n")
    assert _locate(shard).has_captions
    kind.write_text("multilabel\n")
    with pytest.raises(ValueError, match=r"mine is of the type 'multilabel' by its dataset_type\.txt"):
        _locate(shard)


def test_names_and_templates_end_at_line_feeds_alone(shard):
    home = shard.parents[1]
    (home / "classnames.txt").write_bytes("a \r\nb\xa0b\r\nc".encode())
    (home / "zeroshot_classification_templates.txt").write_text("\na {c}.\n\u2028b {c}\x0cc\n", encoding="utf-8")
    location = _locate(shard)
    assert location.class_names == ["a", "b\xa0b", "c"]
    assert location.templates == ["a {c}.", "b {c}\x0cc"]
    for name in ("a\x1cb", "a\x85", "a\u2028b", "a\rb", "a" * 100_000):
        (home / "classnames.txt").write_text(f"{name}\nc\n", encoding="utf-8", newline="")
        with pytest.raises(ValueError, match=r"classnames\.txt has '.{1,80}' for a class's name"):
            _ = _locate(shard).class_names


def test_a_shard_of_the_same_size_and_time_is_another(shard, tmp_path):
    before, state = shard_fingerprint(Shard(str(shard)), tmp_path / "notes"), shard.stat()
    assert shard_fingerprint(Shard(str(shard)), tmp_path / "notes") == before
    write_tar(shard, [("a.png", b"2"), ("a.cls", b"0")])
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert shard.stat().st_size == state.st_size
    assert shard_fingerprint(Shard(str(shard)), tmp_path / "notes") != before


@pytest.mark.parametrize("note", [b"", b"../../../out", b"0" * 63, b"0" * 64 + b"\n", b"\xff" * 64])
def test_a_note_that_is_no_hash_is_written_anew(shard, tmp_path, note):
    """A cut of the power can leave an empty one, so that shards would share their features."""
    before = shard_fingerprint(Shard(str(shard)), tmp_path / "notes")
    (path,) = (tmp_path / "notes").iterdir()
    path.write_bytes(note)
    assert shard_fingerprint(Shard(str(shard)), tmp_path / "notes") == before
    assert path.read_text() == before
