"""Tar archives: those of every writer are read, and one that is cut short or damaged is an error, wherever it is."""

import gzip
import io
import subprocess
import tarfile
import tracemalloc
import zlib

import pytest
from webdataset import TarWriter

from diffclip_openclip.data.tar_files import tar_files

FILES = [(f"{index}.{end}", bytes([index]) * (900 * index + 1)) for index in range(4) for end in ("jpg", "cls")]


def _read(data: bytes, most: int = 10_000) -> list[tuple[str, bytes | None]]:
    return list(tar_files(io.BytesIO(data), lambda name: 0 if name.endswith("skip") else most))


def _by_tarfile(form: int = tarfile.PAX_FORMAT, files=FILES, ending: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{ending}", format=form) as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1.5  # in pax form a time with a fraction takes a header of its own
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


def _by_webdataset() -> bytes:
    stream = io.BytesIO()
    with TarWriter(stream, encoder=False) as tar:
        for index in range(4):
            tar.write({"__key__": str(index), **{n.partition(".")[2]: d for n, d in FILES[2 * index : 2 * index + 2]}})
    return stream.getvalue()


def _by_gnu_tar(folder, *options: str) -> bytes:
    for name, data in FILES:
        (folder / name).write_bytes(data)
    command = ["tar", *options, "-cf", "-", "-C", str(folder), *(name for name, _ in FILES)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def archive() -> bytes:
    return _by_tarfile(tarfile.USTAR_FORMAT)


def test_archives_of_every_writer(tmp_path, archive):
    long = [("d/" * 90 + name, data) for name, data in FILES]
    assert _read(archive) == FILES
    assert sorted(_read(_by_webdataset())) == sorted(FILES)
    assert _read(_by_tarfile(tarfile.GNU_FORMAT, long)) == _read(_by_tarfile(tarfile.PAX_FORMAT, long)) == long
    for options in ([], ["--format=pax"], ["--format=v7"], ["-b", "1"], ["-b", "128"]):
        assert _read(_by_gnu_tar(tmp_path, *options)) == FILES
    assert _read(_by_tarfile(ending="gz")) == FILES


def test_what_is_passed_over():
    files = [("__meta__/x", b"1"), ("a.skip", b"2" * 20_000), ("a.jpg", b"3")]
    assert _read(_by_tarfile(files=files)) == [("a.skip", None), ("a.jpg", b"3")]


def test_cut_anywhere(archive):
    """All of the files are there once the first block of zeros behind them is."""
    end = len(archive.rstrip(b"\0"))
    end += -end % 512 + 512
    assert _read(archive[:end]) == FILES
    for length in [*range(0, end - 512, 512), *range(1, end, 97), end - 512, end - 1]:
        with pytest.raises(tarfile.TarError):
            _read(archive[:length])


def test_cut_where_it_is_compressed():
    """Its last bytes are a checksum of all, so that any bit that has changed is noticed."""
    data = _by_tarfile(ending="gz")
    for length in range(1, len(data), 7):
        with pytest.raises((tarfile.TarError, EOFError)):
            _read(data[:length])
    with pytest.raises((tarfile.TarError, zlib.error, OSError)):
        _read(data[:200] + bytes([data[200] ^ 1]) + data[201:])


def test_headers_that_are_none(archive):
    for start in range(0, len(archive.rstrip(b"\0")), 512):
        block = archive[start : start + 512]
        if not block.startswith(tuple(f"{name}\0".encode() for name, _ in FILES)):
            continue
        for damage in (b"\xff" * 400, b"\0" * 512):  # zeros are the archive's end, with more behind it
            with pytest.raises(tarfile.ReadError):
                _read(archive[:start] + damage + archive[start + len(damage) :])


def test_what_follows_the_end(archive):
    assert _read(archive + bytes(300_000)) == FILES
    with pytest.raises(tarfile.ReadError, match="there is more behind the end"):
        _read(archive + archive)
    with pytest.raises(tarfile.ReadError, match="as a copy that was interrupted"):
        _read(archive + bytes(2_000_000))
    with pytest.raises(tarfile.ReadError):
        _read(b"no archive" * 100)


def test_sizes_that_are_claimed(archive):
    """Nothing is read of what is too large, so that little data cannot fill the memory."""
    member = tarfile.TarInfo("a.jpg")
    member.size = 1 << 40
    with pytest.raises(tarfile.ReadError, match=r"a\.jpg claims 1,099,511,627,776 bytes; at most 10,000"):
        _read(member.tobuf(tarfile.GNU_FORMAT) + archive)
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE):
        member.type = kind
        with pytest.raises(tarfile.ReadError, match=r"header of 'a\.jpg' claims"):
            _read(member.tobuf(tarfile.GNU_FORMAT) + archive)


def test_a_small_file_that_unpacks_to_a_large_one():
    """40 MB in 40 KB, of a file that is not wanted and behind the archive's end; neither is ever held as a whole."""
    member = tarfile.TarInfo("a.skip")
    member.size = 40_000_000
    bomb = gzip.compress(member.tobuf() + bytes(member.size) + bytes(10_240))
    assert len(bomb) < 50_000
    behind = gzip.compress(_by_tarfile() + bytes(member.size))
    tracemalloc.start()
    assert _read(bomb) == [("a.skip", None)]
    with pytest.raises(tarfile.ReadError, match="as a copy that was interrupted"):
        _read(behind)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
