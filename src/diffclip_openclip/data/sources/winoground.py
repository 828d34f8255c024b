"""Read Winoground's examples, two images with two captions of the same words: ``diffclip data winoground``.

Source: facebook/winoground on the hub. Its repository had data/examples.jsonl with data/images.zip, and now has
data/test-00000-of-00001.parquet with the same columns.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffclip_openclip.data.annotations import read_json_lines
from diffclip_openclip.data.catalog import WINOGROUND
from diffclip_openclip.data.images import ImageSource
from diffclip_openclip.data.writer import RETRIEVAL_METADATA, Sample, Split, one_line

_ABOUT = ("tag", "secondary_tag", "num_main_preds", "collapsed_tag")  # what results may be broken down by


def convert(*, source: Path, root: Path, overwrite: bool = False) -> list[str]:
    """Write both images of each example to ``root``/winoground/test, in the order of the examples.

    A sample is an image, its own caption (``.txt``), and ``{"pair", "image"}`` with the authors' tags (``.json``):
    ``pair`` is the example's id, ``image`` is 0 or 1.

    Args:
        source: the folder of examples.jsonl and of the unpacked ``images``, or of the Parquet file; or the folder that
            has either of them in its ``data``.

    Raises:
        ValueError: an example of another form, or given twice.
        FileNotFoundError: a file that is missing.
        ImportError: pyarrow is not installed, which reads the Parquet file.
    """
    target = Split(root, WINOGROUND, "test", overwrite)
    if finished := target.finished():
        return finished
    samples, seen = [], set()
    for place, entry in _examples(source):
        try:
            about = {name: entry[name] for name in _ABOUT}
            pair = int(entry["id"])
            both = [
                Sample(
                    _image(entry[f"image_{image}"], source),
                    {
                        "txt": one_line(entry[f"caption_{image}"]).encode("utf-8"),
                        "json": json.dumps({"pair": pair, "image": image} | about).encode("ascii"),
                    },
                )
                for image in (0, 1)
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{place} is not of the form of Winoground's examples ({error!r})") from error
        if pair in seen:
            raise ValueError(f"{place}: the example {pair} is there twice")
        seen.add(pair)
        samples += both
    return target.write(samples, len(samples), RETRIEVAL_METADATA)


def _folder(source: Path) -> Path:
    return source / "data" if (source / "data").is_dir() else source


def _examples(source: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    folder = _folder(source)
    if (folder / "examples.jsonl").is_file():
        return read_json_lines(folder / "examples.jsonl")
    if not (tables := sorted(folder.glob("test-*.parquet"))):
        raise FileNotFoundError(f"{folder} has neither examples.jsonl nor test-*.parquet; download facebook/winoground")
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise ImportError(f"reading {tables[0]} needs pyarrow ({error}); install it: pip install pyarrow") from error
    rows = (row for table in tables for row in read_table(table).to_pylist())
    return ((f"{folder}, example {number}", row) for number, row in enumerate(rows, start=1))


def _image(given: Any, source: Path) -> ImageSource:
    """Return an image, which a Parquet file holds and examples.jsonl names without its ending."""
    if isinstance(given, dict):
        return bytes(given["bytes"])
    return _folder(source) / "images" / f"{given}.png"
