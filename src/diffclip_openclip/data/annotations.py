"""Read the files that describe data sets: JSON, JSON lines, and tables with a line of titles."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON in UTF-8.
    """
    return _parse(read_text(path), str(path))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""Yield each JSON object of a file that has one a line, with its place for messages: the path and the line.

    Lines end at ``\n`` alone, as JSON strings may hold Unicode's other line breaks. Blank lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object.
    """
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            entry = _parse(line, place)
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
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{place}: there must be {len(rows.fieldnames or ())} values, as in the first line")
            yield place, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: {error}") from error


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, with its line breaks as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not in UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 ({error})") from error


def some(names: Sequence[str]) -> str:
    """Return the first three of the names in brackets, for a message; nothing where there is none."""
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error})") from error
