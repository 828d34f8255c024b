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
from diffclip_openclip.data.layout import CLASS_NAMES, METADATA, RETRIEVAL, SHARD_COUNT, TEMPLATES, TYPE
from diffclip_openclip.extras import require
from diffclip_openclip.files import Folder, check_place, staged

SHARD_SIZE = 1000  # samples; readers decode shards in parallel
# The names of at most 10,000 shards, as patterns of fnmatch.
_SHARDS = ("[0-9].tar", "[1-9][0-9].tar", "[1-9][0-9][0-9].tar", "[1-9][0-9][0-9][0-9].tar")
# The text file of a set of images with captions.
RETRIEVAL_METADATA = {TYPE: f"{RETRIEVAL}\n"}
_SPLIT = Folder("a split of a data set", (SHARD_COUNT, *_SHARDS), mark=SHARD_COUNT)


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
    """
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

    def write(self, samples: Iterable[Sample], total: int, metadata: Mapping[str, str]) -> list[str]:
        """Write ``total`` samples in their order, and the data set's text files.

        The folder appears when all of it is written. Nothing stays of a run that fails.

        Returns:
            lines to show: what was written, and whether its size is the published one.

        Raises:
            FileExistsError: the folder is there, or one of the text files with another content, and ``overwrite`` is
                not given.
            FileNotFoundError, ValueError: an image that is missing or cannot be read, or no images at all.
            ImportError: webdataset is not installed.
        """
        require("preparing data sets", "eval", "webdataset")
        if total == 0:
            raise ValueError(f"the source has no images for {self.dataset}/{self.name}")
        home = self.folder.parent
        if home.is_dir():
            check_place(self.folder, self.overwrite, _SPLIT)
        _check_metadata(home, metadata, self.overwrite)
        with _made(home), staged(self.folder, self.overwrite) as new:
            new.mkdir()
            shards, captions = _write_shards(new, samples, total, f"{self.dataset}/{self.name}")
            (new / SHARD_COUNT).write_text(f"{shards}\n", encoding="ascii")
            _write_metadata(home, metadata)
        warning = size_warning(self.dataset, self.name, total, captions)
        return [f"{self.folder}: {total:,} images in {shards} shards", *warning]


def _write_shards(folder: Path, samples: Iterable[Sample], total: int, title: str) -> tuple[int, int]:
    """Write samples to shards in their order, and return the numbers of shards and of captions."""
    from webdataset import TarWriter

    numbered, shards, captions = enumerate(samples), 0, 0
    with ThreadPoolExecutor() as pool, tqdm(total=total, desc=title, unit="image", delay=2) as progress:
        while chunk := list(islice(numbered, SHARD_SIZE)):
            encoded = pool.map(encode, [sample.image for _, sample in chunk])
            # a fixed time makes the same data the same bytes; ShardWriter would take a % in the path for its own
            with (folder / f"{shards}.tar").open("wb") as file, TarWriter(file, encoder=False, mtime=0) as tar:
                for (index, sample), (extension, data) in zip(chunk, encoded, strict=True):
                    tar.write({"__key__": f"s{index:07d}", extension: data, **sample.fields})
                    captions += len(sample.fields.get("txt", b"").splitlines())
                    progress.update()
            shards += 1
    return shards, captions


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


def _check_metadata(home: Path, metadata: Mapping[str, str], overwrite: bool) -> None:
    """Refuse text files that would contradict those of the splits that are there."""
    for name in METADATA:
        path = home / name
        if not overwrite and path.is_file() and path.read_text(encoding="utf-8") != metadata.get(name):
            raise FileExistsError(
                f"{path} says otherwise than this source: it is of other classes, or of another kind of data set; name "
                "another place, or replace it with --overwrite"
            )


def _write_metadata(home: Path, metadata: Mapping[str, str]) -> None:
    """Write the data set's text files, and remove those that are of another kind of data set."""
    for name in METADATA:
        if name in metadata:
            with staged(home / name, overwrite=True) as new:
                new.write_text(metadata[name], encoding="utf-8", newline="\n")
        else:
            (home / name).unlink(missing_ok=True)
