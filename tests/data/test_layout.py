"""Where data sets lie: the first root that has one, what its files must hold, and the hash of its content."""

import shutil

import pytest
from support.common import write_tar
from support.evaluation_data import locate_paper

from diffclip_openclip.data.layout import Location


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
    assert location.shards("test") == [f"{files}/test/0.tar", f"{files}/test/1.tar"]


def test_fingerprint_follows_content_only(suite, tmp_path):
    copy = shutil.copytree(suite / "pets", tmp_path / "a" / "pets")
    memory = tmp_path / "memory"

    def value():
        return locate_paper("pets", copy.parent).fingerprint(memory)

    first = value()
    assert first == locate_paper("pets", suite).fingerprint(tmp_path / "other")
    (copy / "test" / "0.tar").touch()
    assert value() == first
    names = copy / "classnames.txt"
    names.write_text(names.read_text().replace("bird", "brid"))
    second = value()
    shard = copy / "test" / "0.tar"
    shard.write_bytes(shard.read_bytes()[:-10_240] + b"\1" * 10_240)
    assert len({first, second, value()}) == 3
