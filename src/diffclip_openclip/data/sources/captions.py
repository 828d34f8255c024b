"""Read images with captions from a table or JSON of one's own, for retrieval: ``diffclip data captions``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffclip_openclip.data.annotations import read_json_lines, read_list, read_table
from diffclip_openclip.data.writer import RETRIEVAL_METADATA, Split, captioned


def convert(
    name: str,
    *,
    annotations: Path,
    images: Path,
    root: Path,
    split: str = "test",
    image_key: str = "image",
    caption_key: str = "caption",
    overwrite: bool = False,
) -> list[str]:
    """Write images with their captions to ``root``/``name``/``split``, in the order in which they are first listed.

    An image that is listed several times has all of these captions.

    Args:
        annotations: a table with a line of titles (.csv, .tsv), a JSON object a line (.jsonl), or a JSON list of them.
        images: the folder that the images' names start from.
        image_key: the title or key of an image's name.
        caption_key: the title or key of a caption, or in JSON of a list of captions.

    Raises:
        ValueError: ``annotations`` is of another form, or an image has no caption.
        FileNotFoundError: a file that is missing.
    """
    target = Split(root, name, split, overwrite)
    if finished := target.finished():
        return finished
    captions: dict[str, list[str]] = {}
    for place, entry in _entries(annotations):
        image, found = entry.get(image_key), entry.get(caption_key)
        listed = [found] if isinstance(found, str) else found
        if not isinstance(image, str) or not isinstance(listed, list) or not all(isinstance(c, str) for c in listed):
            raise ValueError(
                f"{place}: expected an image's name under {image_key!r} and a caption, or a list of them, under "
                f"{caption_key!r}; found {', '.join(map(repr, entry)) or 'nothing'} (--image-key, --caption-key)"
            )
        captions.setdefault(image, []).extend(listed)
    samples, notes = captioned((images / image, of_it) for image, of_it in captions.items())
    return [*target.write(samples, len(samples), RETRIEVAL_METADATA), *notes]


def _entries(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """Return each entry with its place."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return read_table(path)
    if kind in (".jsonl", ".ndjson"):
        return read_json_lines(path)
    if kind != ".json":
        raise ValueError(f"{path} must be a table (.csv, .tsv) or JSON (.json, .jsonl), and be named so")
    listed = read_list(path)
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ValueError(f"{path} must be a list of objects; for Karpathy's JSON there is `diffclip data karpathy`")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(listed, start=1)]
