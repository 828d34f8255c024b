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

from diffclip_openclip.evaluation.suite import DataSet
from diffclip_openclip.files import sha256, staged

_TIMEOUT = 30  # seconds for a connection
_HUB = "https://huggingface.co/datasets"
_METADATA = ("classnames.txt", "dataset_type.txt")


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
        text = _read_text(f"{_in_hub(self.base, 'raw')}/classnames.txt")
        if text is None:
            raise FileNotFoundError(f"{self.base} has no classnames.txt; `diffclip data` writes it")
        return [line.strip() for line in text.splitlines()]


def locate(data_set: DataSet, roots: Sequence[str]) -> Place | None:
    """The first of ``roots`` that has all splits of a data set.

    A root is a folder or URL that has a folder for each data set; ``{dataset}`` in it stands for the data set's name.

    Raises:
        ValueError: an nshards.txt that holds no number, or a folder that lacks a shard.
        OSError: a URL that cannot be reached; that it is not there (HTTP 404) is no error.
    """
    for root in roots:
        base = root.format(dataset=data_set.name) if "{dataset}" in root else f"{root.rstrip('/')}/{data_set.name}"
        counts = {split: _num_shards(base, split) for split in data_set.splits}
        found = {split: count for split, count in counts.items() if count is not None}
        if len(found) == len(counts):
            return Place(base, found)
    return None


def fingerprint(place: Place, memory: Path) -> str:
    """SHA-256 of a data set's content: its shards and class names.

    Hashing a local shard once is enough: ``memory`` is a folder in which each one's hash is kept under its path, size
    and time of change. Of remote shards the server's size, date and tag count.
    """
    digest = hashlib.sha256()
    for name in _METADATA:
        digest.update((_read_text(f"{_in_hub(place.base, 'raw')}/{name}") or "").encode())
    shards = [(split, index) for split, count in sorted(place.shards.items()) for index in range(count)]
    for split, index in tqdm(shards, desc=f"fingerprint of {place.base}", leave=False, delay=2):
        digest.update(f"{split}/{index}:{shard_fingerprint(place.shard(split, index), memory)}".encode())
    return digest.hexdigest()


def shard_fingerprint(shard: str, memory: Path) -> str:
    """SHA-256 of one shard; see :func:`fingerprint`."""
    if _is_remote(shard):
        request = urllib.request.Request(shard, method="HEAD")
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            fields = [answer.headers.get(name) for name in ("Content-Length", "ETag", "Last-Modified")]
        return hashlib.sha256(repr((shard, fields)).encode()).hexdigest()
    path = Path(shard)
    state = path.stat()
    key = hashlib.sha256(repr((str(path.absolute()), state.st_size, state.st_mtime_ns)).encode()).hexdigest()
    note = memory / key
    if note.is_file():
        return note.read_text(encoding="ascii")
    value = sha256(path)
    memory.mkdir(parents=True, exist_ok=True)
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
        raise
