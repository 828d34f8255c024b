"""Write data sets in the layout that :mod:`.layout` describes.

clip_benchmark's own ``webdataset_builder.convert_dataset`` (clip_benchmark@1.6.2) writes the same, but in place, so
that a run that ends early leaves part of a split, and with a lambda for its workers, which cannot be started where
Python spawns processes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from diffclip_openclip.data.catalog import size_warning
from diffclip_openclip.data.images import ImageSource, encode
from diffclip_openclip.data.layout import (
    CLASS_NAMES,
    METADATA,
    RETRIEVAL,
    SAMPLE_COUNTS,
    SHARD_COUNT,
    TEMPLATES,
    TYPE,
    check_class_name,
)
from diffclip_openclip.extras import require
from diffclip_openclip.files import Folder, check_place, staged

SHARD_SIZE = 1000  # samples; readers decode shards in parallel
# The names of at most 10,000 shards, as patterns of fnmatch.
_SHARDS = ("[0-9].tar", "[1-9][0-9].tar", "[1-9][0-9][0-9].tar", "[1-9][0-9][0-9][0-9].tar")
# Line i is the source's name for class i, where class names do not tell it; read here alone.
CLASS_FOLDERS = "classfolders.txt"
# The text file of a set of images with captions.
RETRIEVAL_METADATA = {TYPE: f"{RETRIEVAL}\n"}
_SPLIT = Folder("a split of a data set", (SHARD_COUNT, SAMPLE_COUNTS, *_SHARDS), mark=SHARD_COUNT)


@dataclass(frozen=True)
class Sample:
    """Hold an image with the files that go with it."""

    image: ImageSource
    fields: Mapping[str, bytes]  # contents by extension: cls, txt, json


def classified(image: ImageSource, label: int) -> Sample:
    """Make a sample of a classification set; ``label`` counts from 0."""
    return Sample(image, {"cls": str(label).encode("ascii")})


def one_line(caption: str) -> str:
    """Put a caption on one line: line breaks of all kinds become spaces, as readers split by ``str.splitlines``."""
    return " ".join(caption.splitlines()).strip()


def captioned(entries: Iterable[tuple[Path, Sequence[str]]]) -> tuple[list[Sample], list[str]]:
    """Make the samples of a retrieval set of images with their captions, each caption on a line of its own.

    Returns:
        the samples, and a line to show where captions are empty, which are left out.

    Raises:
        ValueError: an image has no caption.
    """
    samples, empty = [], 0
    for image, captions in entries:
        lines = [line for line in map(one_line, captions) if line]
        if not lines:
            raise ValueError(f"{image} has no caption; give it one, or leave the image out")
        empty += len(captions) - len(lines)
        samples.append(Sample(image, {"txt": "\n".join(lines).encode("utf-8")}))
    return samples, [f"warning: {empty} empty captions left out"] if empty else []


def classification_metadata(classes: Sequence[str], templates: Sequence[str]) -> dict[str, str]:
    """Make the text files of a classification set.

    Args:
        classes: names by label.
        templates: texts with ``{c}`` for the class name.

    Raises:
        ValueError: a name that is not one line.
    """
    for name in classes:
        check_class_name(name, "the source")
    return {CLASS_NAMES: "".join(f"{name}\n" for name in classes), TEMPLATES: "".join(f"{t}\n" for t in templates)}


@dataclass(frozen=True)
class Split:
    """Hold what is known of a split before it is written.

    Raises:
        ValueError: ``dataset`` or ``name`` is no name for a folder.
    """

    root: Path  # the folder of all data sets
    dataset: str
    name: str  # of the split
    overwrite: bool = False  # replace a split that is there

    def __post_init__(self) -> None:
        for name in (self.dataset, self.name):
            if not name or Path(name).name != name or name.startswith("."):
                raise ValueError(f"{name!r} is no name for a folder of {self.root}; give a plain word, e.g. imagenet1k")

    @property
    def folder(self) -> Path:
        """Return ROOT/DATASET/SPLIT."""
        return self.root / self.dataset / self.name

    def finished(self) -> list[str]:
        """Return a line to show where the split is complete and is to stay, otherwise nothing."""
        count = self.folder / SHARD_COUNT
        if self.overwrite or not count.is_file():
            return []
        text = count.read_text(encoding="utf-8").strip()
        shards = [self.folder / f"{index}.tar" for index in range(int(text) if text.isdecimal() else 0)]
        if not shards or not all(shard.is_file() for shard in shards):
            return []
        return [f"{self.folder} is there, in {len(shards)} shards; --overwrite makes it again"]

    def known_classes(self) -> list[str]:
        """Return the class names that the data set has by its other splits; empty where there are none."""
        path = self.folder.parent / CLASS_NAMES
        known = self._others() and path.is_file()
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n") if known else []

    def _others(self) -> list[str]:
        """List the other splits that are there."""
        splits = (path.parent for path in self.folder.parent.glob(f"*/{SHARD_COUNT}"))
        return sorted(split.name for split in splits if split != self.folder)

    def write(self, samples: Iterable[Sample], total: int, metadata: Mapping[str, str]) -> list[str]:
        """Write ``total`` samples in their order, and the data set's text files.

        The folder appears when all of it is written. Nothing stays of a run that fails. The text files are those of
        all splits: what other splits are there keep theirs, also with ``overwrite``, and templates that were edited.

        Returns:
            lines to show: what was written, and whether its size is the published one.

        Raises:
            FileExistsError: the folder is there and ``overwrite`` is not given, or one of the text files has another
                content, and another split goes by it or ``overwrite`` is not given.
            FileNotFoundError, ValueError: an image that is missing or cannot be read, or no images at all.
            ImportError: webdataset is not installed.
        """
        require("preparing data sets", "eval", "webdataset")
        if total == 0:
            raise ValueError(f"the source has no images for {self.dataset}/{self.name}")
        home = self.folder.parent
        if home.is_dir():
            check_place(self.folder, self.overwrite, _SPLIT)
        self._changed(metadata)
        with _made(home), _named(self.folder), staged(self.folder, self.overwrite, _SPLIT) as new:
            new.mkdir()
            counts, captions = _write_shards(new, samples, total, f"{self.dataset}/{self.name}")
            (new / SHARD_COUNT).write_text(f"{len(counts)}\n", encoding="ascii")
            (new / SAMPLE_COUNTS).write_text("".join(f"{count}\n" for count in counts), encoding="ascii")
            if (changed := self._changed(metadata)) and self.folder.is_dir():
                self.folder.rename(new.parent / f"{self.name}.old")  # the new text files are not for it
            for path in changed:
                _write_text(path, metadata.get(path.name))
        warning = size_warning(self.dataset, self.name, total, captions)
        return [f"{self.folder}: {total:,} images in {len(counts)} shards", *warning]

    def _changed(self, metadata: Mapping[str, str]) -> list[Path]:
        """Return the text files whose content would change, and refuse where that is not to be."""
        home = self.folder.parent
        others = self._others()
        changed = []
        for path in (home / name for name in (*METADATA, CLASS_FOLDERS)):
            old = path.read_text(encoding="utf-8") if path.is_file() else None
            edited = path.name == TEMPLATES and others and old and TEMPLATES in metadata  # which changes no label
            if old == metadata.get(path.name) or edited:
                continue
            if others:
                raise FileExistsError(
                    f"{path} says otherwise than this source, and {', '.join(others)} of {self.dataset} would be read "
                    f"by it: give a source of the same classes and kind, name another place, or remove {home} first"
                )
            if old is not None and not self.overwrite:
                raise FileExistsError(
                    f"{path} says otherwise than this source: it is of other classes, or of another kind of data set; "
                    "name another place, or replace it with --overwrite"
                )
            changed.append(path)
        return changed


def _write_shards(folder: Path, samples: Iterable[Sample], total: int, title: str) -> tuple[list[int], int]:
    """Write samples to shards in their order, and return the number of each shard's samples, and of captions."""
    from webdataset import TarWriter

    numbered, captions = enumerate(samples), 0
    counts: list[int] = []
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc=title, unit="image", delay=2) as progress:
        while chunk := list(islice(numbered, SHARD_SIZE)):
            encoded = pool.map(encode, [sample.image for _, sample in chunk])
            shard = folder / f"{len(counts)}.tar"
            # a fixed time makes the same data the same bytes; ShardWriter would take a % in the path for its own
            with shard.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
                for (index, sample), (extension, data) in zip(chunk, encoded, strict=True):
                    tar.write({"__key__": f"s{index:07d}", extension: data, **sample.fields})
                    captions += len(sample.fields.get("txt", b"").splitlines())
                    progress.update()
            counts.append(len(chunk))
    return counts, captions


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name what is written in an error that names nothing, such as a full disk's."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _write_text(path: Path, text: str | None) -> None:
    """Write a text file, or remove it where it is of another kind of data set."""
    if text is None:
        path.unlink(missing_ok=True)
        return
    with staged(path, overwrite=path.exists()) as new:
        new.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; where the body fails, remove it and the folders that were made above it, if they are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise
