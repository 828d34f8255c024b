"""Where data sets lie: clip_benchmark's webdataset layout, in local folders or behind URLs.

A data set is BASE/SPLIT/{0..}.tar with BASE/SPLIT/nshards.txt and BASE/classnames.txt
(clip_benchmark@1.6.2:clip_benchmark/datasets/builder.py, build_wds_dataset).
"""

import hashlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm

from diffclip_openclip.files import sha256, staged

_TIMEOUT = 30  # seconds for a connection
_HUB = "https://huggingface.co/datasets"
_CLASS_NAMES, _TEMPLATES, _TYPE = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"


@dataclass(frozen=True)
class Place:
    """A data set that is there: ``base`` is a folder or a URL in which its splits lie, ``shards`` how many each has."""

    base: str
    shards: dict[str, int]

    def shard(self, split: str, index: int) -> str:
        """Path or URL of a shard."""
        return f"{_in_hub(self.base, 'resolve')}/{split}/{index}.tar"

    @cached_property
    def class_names(self) -> list[str]:
        """Line i is class i.

        Raises:
            FileNotFoundError: there is no classnames.txt.
        """
        text = self._metadata(_CLASS_NAMES)
        if text is None:
            raise FileNotFoundError(f"{self.base} has no {_CLASS_NAMES}; `diffclip data` writes it")
        return [line.strip() for line in text.splitlines()]

    @property
    def has_class_names(self) -> bool:
        return self._metadata(_CLASS_NAMES) is not None

    @property
    def has_captions(self) -> bool:
        """Whether it is for retrieval."""
        return (self._metadata(_TYPE) or "").strip() == "retrieval"

    @cached_property
    def templates(self) -> list[str]:
        """Its own templates, with ``{c}`` for the class name; none if it brings none.

        Raises:
            ValueError: a line without ``{c}``, or with other braces.
        """
        lines = [line.strip() for line in (self._metadata(_TEMPLATES) or "").splitlines()]
        for line in filter(None, lines):
            if "{c}" not in line or set("{}") & set(line.replace("{c}", "")):
                raise ValueError(
                    f"{self.base}/{_TEMPLATES}: {line!r} must have {{c}} for the class, and no other braces"
                )
        return [line for line in lines if line]

    def _metadata(self, name: str) -> str | None:
        return _read_text(f"{_in_hub(self.base, 'raw')}/{name}")

    def fingerprint(self, cache_dir: Path) -> str:
        """SHA-256 of the content: shards and what says how to read them.

        Hashing a local shard once is enough: ``cache_dir`` is a folder in which each one's hash is kept under its path,
        size and time of change. Of remote shards the server's size, date and tag count.
        """
        digest = hashlib.sha256()
        for name in (_CLASS_NAMES, _TEMPLATES, _TYPE):
            digest.update(f"{name}:{self._metadata(name) or ''}".encode())
        shards = [(split, index) for split, count in sorted(self.shards.items()) for index in range(count)]
        for split, index in tqdm(shards, desc=f"fingerprint of {self.base}", leave=False, delay=2):
            digest.update(f"{split}/{index}:{shard_fingerprint(self.shard(split, index), cache_dir)}".encode())
        return digest.hexdigest()


def locate(name: str, splits: Sequence[str], roots: Sequence[str], optional: Sequence[str] = ()) -> Place | None:
    """The first of ``roots`` that has all ``splits`` of a data set, with what it has of the ``optional`` ones.

    A root is a folder or URL that has a folder for each data set; ``{dataset}`` in it stands for the data set's name.

    Raises:
        ValueError: an nshards.txt that holds no number, or a folder that lacks a shard.
        OSError: a URL that cannot be reached; that it is not there (HTTP 404) is no error.
    """
    for root in roots:
        base = root.replace("{dataset}", name) if "{dataset}" in root else f"{root.rstrip('/')}/{name}"
        counts = {split: _num_shards(base, split) for split in (*splits, *optional)}
        found = {split: count for split, count in counts.items() if count is not None}
        if found.keys() >= set(splits):
            return Place(base, found)
    return None


def shard_fingerprint(shard: str, cache_dir: Path) -> str:
    """SHA-256 of one shard; see :meth:`Place.fingerprint`."""
    if _is_remote(shard):
        request = urllib.request.Request(shard, method="HEAD")
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            fields = [answer.headers.get(name) for name in ("Content-Length", "ETag", "Last-Modified")]
        return hashlib.sha256(repr((shard, fields)).encode()).hexdigest()
    path = Path(shard)
    state = path.stat()
    key = hashlib.sha256(repr((str(path.absolute()), state.st_size, state.st_mtime_ns)).encode()).hexdigest()
    note = cache_dir / key
    if note.is_file():
        return note.read_text(encoding="ascii")
    value = sha256(path)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with staged(note, overwrite=True) as new:
        new.write_text(value, encoding="ascii")
    return value


def _num_shards(base: str, split: str) -> int | None:
    text = _read_text(f"{_in_hub(base, 'raw')}/{split}/nshards.txt")
    if text is None:
        return None
    if not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(f"{base}/{split}/nshards.txt holds {text.strip()!r}; it must be the number of shards, above 0")
    if not _is_remote(base):
        for index in range(int(text)):
            if not Path(base, split, f"{index}.tar").is_file():
                raise ValueError(f"{base}/{split} lacks {index}.tar; its nshards.txt says {text.strip()} shards")
    return int(text)


def _is_remote(place: str) -> bool:
    return "://" in place


def _in_hub(base: str, kind: str) -> str:
    """The hub's address for files' contents: "raw" for text, "resolve" for what lies in LFS."""
    head, _, path = base.partition("/tree/")
    return f"{head}/{kind}/{path}" if base.startswith(_HUB) and path else base


def _read_text(place: str) -> str | None:
    if not _is_remote(place):
        path = Path(place)
        return path.read_text(encoding="utf-8") if path.is_file() else None
    try:
        with urllib.request.urlopen(place, timeout=_TIMEOUT) as answer:
            return str(answer.read().decode("utf-8"))
    except urllib.error.HTTPError as error:
        # the hub answers 401 for a repository that does not exist
        if error.code in (401, 403, 404):
            return None
        raise ConnectionError(f"{place} answers {error.code} {error.reason}; try again later") from error
    except (OSError, ValueError) as error:  # ValueError: no such scheme or no host
        raise ConnectionError(f"{place} cannot be reached: {error}") from error
