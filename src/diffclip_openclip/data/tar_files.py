"""Read the files of a tar archive from a stream, and notice where it is cut short, damaged or larger than it looks.

tarfile takes a damaged header for the archive's end, does not ask for the blocks of zeros that end an archive, and
reads what a header announces, however large.
"""

import gzip
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

_BUFFER = 1 << 15  # bytes that are read at once; tarfile copies what it has not yet given out at each reading
_LARGEST_HEADER = 1 << 20  # bytes of what extends a header: names and attributes, by GNU tar or in pax form
_LARGEST_END = 1 << 20  # bytes of zeros behind the last file; tar pads to blocks of 10 KB, at most to some 100 KB
_PASSED_OVER = re.compile(r"__[^/]*__($|/)")  # webdataset's mark of files that belong to no sample


class _Header(tarfile.TarInfo):
    """Parse a header; one that is damaged is an error instead of the archive's end."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: Any, errors: Any) -> "_Header":
        try:
            header: _Header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # zeros: TarFile takes it for the end
            raise
        except tarfile.HeaderError as error:
            reason = "there is nothing" if not buf else f"{error}"
            raise tarfile.ReadError(f"{reason} where a file or the end of the archive must be") from error
        if header.type not in tarfile.REGULAR_TYPES and header.size > _LARGEST_HEADER:
            raise tarfile.ReadError(f"the header of {header.name!r} claims {header.size:,} bytes")
        return header


def tar_files(stream: BinaryIO, most: Callable[[str], int]) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and content of each regular file; of those that are not wanted None as content.

    A compression by gzip is recognised and undone while reading. tarfile's own unpacks each block that it reads as a
    whole, which of little data can make gigabytes.

    Args:
        most: tells from a file's name how many bytes it can have at most; 0 where its content is not wanted.

    Raises:
        tarfile.TarError: the archive is damaged, lacks its end, goes on behind it, or has a file above its limit.
        OSError: the stream cannot be read.
        EOFError, zlib.error: it is compressed, and damaged.
    """
    with tarfile.open(fileobj=_unpacked(stream), mode="r|", bufsize=_BUFFER, tarinfo=_Header) as archive:
        for member in archive:
            vars(archive)["members"] = []  # tarfile keeps them all
            if not member.isreg() or _PASSED_OVER.match(member.name):
                continue
            limit = most(member.name)
            if limit and member.size > limit:
                raise tarfile.ReadError(f"{member.name} claims {member.size:,} bytes; at most {limit:,} are read")
            file = archive.extractfile(member) if limit else None
            yield member.name, file.read() if file else None
        _check_end(archive.fileobj)


class _Rewound:
    """Give what has been read of a stream once more, and then the rest."""

    def __init__(self, first: bytes, rest: BinaryIO) -> None:
        self._first, self._rest = first, rest

    def read(self, size: int = -1) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        return self._rest.read(size)


def _unpacked(stream: BinaryIO) -> Any:
    first = stream.read(2)
    rewound: Any = _Rewound(first, stream)
    return gzip.GzipFile(fileobj=rewound, mode="rb") if first == b"\x1f\x8b" else rewound


def _check_end(rest: Any) -> None:
    """Refuse what is no padding behind the block of zeros that has been taken for the end."""
    length = 0
    while block := rest.read(_BUFFER):
        length += len(block)
        if block.count(0) != len(block):
            raise tarfile.ReadError("there is more behind the end of the archive")
        if length > _LARGEST_END:
            raise tarfile.ReadError(f"it ends in more than {length:,} zeros, as a copy that was interrupted does")
