"""Read the files that describe data sets: JSON, JSON lines, and tables with a line of titles."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffclip_openclip.files import parse_json, read_json, read_text

_LARGEST = 1 << 30  # bytes of a file that describes a data set; COCO's, with all splits, has 144 MB


def read_list(path: Path) -> Any:
    """Read a JSON file that lists a data set's images, of some million at most.

    Raises:
        FileNotFoundError, ValueError: as :func:`~diffclip_openclip.files.read_json`.
    """
    return read_json(path, _LARGEST)


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Yield each JSON object of a file that has one a line, with its place for messages: the path and the line.

    Lines end at ``\n`` alone, as JSON strings may hold Unicode's other line breaks. Blank lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object.
    """
    for number, line in enumerate(read_text(path, _LARGEST).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            entry = parse_json(line, place)
            if not isinstance(entry, dict):
                raise ValueError(f"{place}: {type(entry).__name__} is no JSON object")
            yield place, entry


def read_table(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each row of a table by its titles, with its place; values are divided by tabs in .tsv, else by commas.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has more or fewer values than there are titles.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(read_text(path, _LARGEST), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{place}: there must be {len(rows.fieldnames or ())} values, as in the first line")
            yield place, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def some(names: Sequence[str]) -> str:
    """Return the first three of the names in brackets, for a message; nothing where there is none."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
