"""Write outputs that appear whole or not at all and that replace nothing but their like; hash files, read JSON."""

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

_LITTER = (".DS_Store", "Thumbs.db")  # of desktops, in every folder that was looked at
_FEW = 32  # files that are flushed one by one
# how systems say that a name is taken: link, rename over a folder, and a folder over a file
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)
# how file systems say that they have no hard links
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_LARGEST_JSON = 64 << 20  # bytes; the largest of transformers' files, a tokenizer's vocabulary, has some 20 MB
_DEEPEST_JSON = 100  # levels; a tokenizer's file has some ten
_MOST_DIGITS = 308  # of a whole number that a float can hold


@dataclass(frozen=True)
class Folder:
    """Describe the directories that a command makes, and so which ones it may replace."""

    what: str  # one of them in words, with an article
    names: tuple[str, ...]  # patterns (``fnmatch``'s) of all files and folders that are ever in one, as paths from it
    mark: str  # the name that is never missing

    def difference(self, path: Path) -> str | None:
        """Say why the directory ``path``, which is not empty, is none of them; None where it is one."""
        inside = (entry.relative_to(path).as_posix() for entry in path.rglob("*") if entry.name not in _LITTER)
        for name in inside:
            if not any(fnmatchcase(name, pattern) for pattern in self.names):
                return f"it has {name} in it"
        return None if (path / self.mark).exists() else f"it has no {self.mark}"


def check_place(out: Path, overwrite: bool = False, ours: Folder | None = None, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output path before work for it begins.

    Args:
        overwrite: an old output may be replaced.
        ours: what the output looks like if it is a directory. A directory is replaced only by one, and only if it looks
            so or is empty; an empty one needs no ``overwrite``.
        inputs: what the output is made from, which must not go with the old one.

    Raises:
        FileExistsError: ``out`` exists, and ``overwrite`` is not given or something else would be lost.
        FileNotFoundError: the folder that ``out`` is to lie in does not exist.
        ValueError: ``out`` leads in a circle of links, or is not UTF-8, to which not every library can write.
    """
    place = _resolved(out)
    if ours is None and place.is_dir():
        raise FileExistsError(f"{out} is a directory, which no file takes the place of; name a file")
    if ours is not None and place.exists():
        _check_directory(out, ours)
    for path in inputs:
        if path.exists() and _resolved(path).is_relative_to(place):
            raise FileExistsError(f"{path} is what is read, and would go with the old {out}; name another place")
    _check_free(out, overwrite)


def _resolved(path: Path) -> Path:
    """Return where a path leads; raise ValueError for links that lead in a circle."""
    try:
        return path.resolve()
    except RuntimeError as error:
        raise ValueError(f"{path} leads in a circle of symbolic links; name another place") from error


def _check_directory(out: Path, ours: Folder) -> None:
    place = _resolved(out)
    if not place.is_dir():
        raise FileExistsError(f"{out} is a file, and {ours.what} is a directory; name another place")
    if Path.cwd().is_relative_to(place):
        raise FileExistsError(f"{out} is the working directory or above it; name another place, or work from elsewhere")
    if not _is_empty(place) and (difference := ours.difference(place)):
        raise FileExistsError(f"{out} is not just {ours.what}: {difference}. It is never replaced; name another place")


def _check_free(out: Path, overwrite: bool) -> None:
    place = _resolved(out)
    try:
        os.fspath(place).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fsencode(out)!r} is not UTF-8, or lies in what is not; name another place") from error
    if place.exists() and not overwrite and not _is_empty(place):
        raise FileExistsError(f"{out} exists; name another place, or replace it with --overwrite")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {place.parent} to put {place.name} in")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and all(entry.name in _LITTER for entry in path.iterdir())


@contextmanager
def staged(out: Path, overwrite: bool = False, ours: Folder | None = None) -> Iterator[Path]:
    """Yield a path inside a new temporary folder, to be made into ``out`` (a file or a directory) by the body.

    It takes ``out``'s place when the body ends well; otherwise nothing of it stays and an old ``out`` is untouched.
    Where ``out`` is a symbolic link, what it leads to is replaced. What was there before is checked by
    :func:`check_place`. What came there while the body worked, of another process say, stays and is told.

    Args:
        ours: as for :func:`check_place`.

    Raises:
        FileExistsError: ``out`` exists or came to be, and ``overwrite`` is not given; or one of the two is a file, the
            other none; or the directory there is no longer one of ``ours``.
        FileNotFoundError, ValueError: as :func:`check_place`.
    """
    _check_free(out, overwrite)
    place = _resolved(out)
    name = out.name if out.is_symlink() else place.name  # writers go by its ending
    prefix = f".{name[:40]}."  # a name may be as long as file systems admit
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=prefix, ignore_cleanup_errors=True) as folder:
        new = Path(folder, name)
        yield new
        _flush(new)
        if place.exists() and place.is_dir() != new.is_dir():
            raise FileExistsError(f"{out} is {'a directory' if place.is_dir() else 'a file'}; name another place")
        try:
            if place.is_dir() and (overwrite or (any(place.iterdir()) and _is_empty(place))):
                _swap(new, place, Path(folder, f"{name[:40]}.old"), overwrite, ours)
            elif new.is_dir():
                new.rename(place)  # over nothing but an empty folder
            elif overwrite:
                new.replace(place)
            else:
                _link(new, place)
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            raise FileExistsError(
                f"{out} came to be while this worked, and stays as it is; name another place, or replace it with "
                "--overwrite"
            ) from error


def _flush(path: Path) -> None:
    """Have a file, or all files of a folder, written to the disk, so that a power cut leaves none of them empty."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    if len(files) > _FEW and hasattr(os, "sync"):
        os.sync()  # once for all, as each call waits for the disk
        return
    for file in files:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())


def _link(new: Path, place: Path) -> None:
    """Give the file ``new`` a name that nothing has yet."""
    try:
        os.link(new, place)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        place.open("xb").close()  # which fails where something has it
        try:
            new.replace(place)
        except BaseException:
            if new.exists():
                place.unlink()
            raise


def _swap(new: Path, place: Path, old: Path, overwrite: bool, ours: Folder | None) -> None:
    """Put ``new`` in the place of a directory, which cannot be renamed over, and that one at ``old``."""
    try:
        with suppress(FileNotFoundError):  # another process has just moved it away
            place.rename(old)
        if old.exists() and not _is_empty(old):
            if not overwrite:
                raise FileExistsError(errno.EEXIST, "not empty any more")
            if ours is not None and (difference := ours.difference(old)):
                raise FileExistsError(f"{place} changed while this worked: {difference}. It stays; name another place")
        new.rename(place)
    except BaseException:
        if old.exists() and not place.exists():
            old.rename(place)
        raise


def sha256(path: Path) -> str:
    """Hash a file's content; in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: Path, largest: int = _LARGEST_JSON) -> str:
    """Read a text file in UTF-8, with its line breaks as they are.

    Args:
        largest: how many bytes it can honestly have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is larger, or not in UTF-8.
    """
    with path.open("rb") as file:
        data = file.read(largest + 1)  # what is no regular file tells no size
    return text_of(data, path, largest).removeprefix("\ufeff")


def text_of(data: bytes, place: object, largest: int) -> str:
    """Return the text that a file in UTF-8 holds, with a byte order mark in front as it is.

    Args:
        data: the file's content, or its first bytes, more than ``largest``.
        place: where it is from, for the message.
        largest: how many bytes it can honestly have.

    Raises:
        ValueError: it is larger, or not in UTF-8.
    """
    if len(data) > largest:
        raise ValueError(f"{place} has more than {largest:,} bytes; no such file has")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no text in UTF-8 ({error})") from error


def read_json(path: Path, largest: int = _LARGEST_JSON) -> Any:
    """Read a JSON file that others may have written.

    Args:
        largest: how many bytes it can honestly have.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`read_text` and :func:`parse_json`.
    """
    return parse_json(read_text(path, largest), path)


def parse_json(text: str, place: object) -> Any:
    """Return what JSON holds.

    Args:
        place: where it is from, for the message.

    Raises:
        ValueError: it is no JSON, is nested deeper than 100 levels, has a whole number that no float can hold, or a
            string that is no text.
    """
    try:
        content = json.loads(text, parse_int=_whole_number)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # two of these are a character, one is none
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError(f"{place} is no JSON that is read here: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{place} is no JSON: {error}") from error
    level = [content]
    for _ in range(_DEEPEST_JSON + 1):
        if not (level := [inner for outer in level for inner in _values(outer) if isinstance(inner, dict | list)]):
            return content
    raise ValueError(f"{place} is no JSON that is read here: it is nested deeper than {_DEEPEST_JSON} levels")


def _whole_number(digits: str) -> int:
    if (count := len(digits.lstrip("-"))) > _MOST_DIGITS:
        raise ValueError(f"{digits[:10]}... has {count} digits, which is more than any float can hold")
    return int(digits)


def _values(content: Any) -> Iterable[Any]:
    return content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that people can read, too."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def kept(path: Path) -> Iterator[Path]:
    """Yield a path to write a file at, which then takes the place of ``path``; see :func:`staged`.

    Raises:
        OSError: the disk is full, say; what writers raise of that does not name the file.
    """
    try:
        with staged(path, overwrite=True) as new:
            yield new
    except Exception as error:  # safetensors has its own
        if getattr(error, "filename", None) is None and ("os error" in str(error) or isinstance(error, OSError)):
            raise OSError(f"{path} cannot be written: {error}") from error
        raise
