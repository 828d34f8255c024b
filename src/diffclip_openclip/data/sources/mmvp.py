"""Read MMVP-VLM's questions, a statement for each image of a pair: ``diffclip data mmvp``.

Source: tsb0601/MMVP@4d6eaeb:scripts/evaluate_vlm.py; the README there for the folders.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffclip_openclip.data.catalog import MMVP_PATTERNS
from diffclip_openclip.data.writer import RETRIEVAL_METADATA, Sample, Split, one_line
from diffclip_openclip.files import read_text

_FOLDERS = ("MLLM_VLM Images", "MMVP_VLM_Images", "MLLM_VLM_Images")
_PER_PATTERN = 30  # questions: 15 pairs


class _Question(NamedTuple):
    """Hold a row of Questions.csv."""

    qid: int
    kind: str  # the column Type, which also names the folder of the image
    statement: str


def convert(*, source: Path, root: Path, overwrite: bool = False) -> list[str]:
    """Write ``source``/Questions.csv and its images to ``root``/mmvp/test, in the order of the questions.

    A sample is an image, its statement (``.txt``), and ``{"qid", "pattern", "pair"}`` (``.json``). Questions 2 p + 1
    and 2 p + 2 are pair p. The pattern follows from the question's number, 30 questions each, as in the benchmark's
    script: the column Type has shorter names. A Type that is a pattern's own name counts as that pattern. A part of
    the questions will do, in whole pairs.

    Args:
        source: the folder of Questions.csv and of the folder of images.

    Raises:
        ValueError: a row that is none, or a question given twice, without partner, or beyond the 270.
        FileNotFoundError: a file that is missing.
    """
    target = Split(root, "mmvp", "test", overwrite)
    if finished := target.finished():
        return finished
    questions = _read(source / "Questions.csv")
    places = [source / name for name in _FOLDERS if (source / name).is_dir()]
    if not places:
        raise FileNotFoundError(f"{source} has no folder of images; it must be {' or '.join(map(repr, _FOLDERS))}")
    samples = []
    for first, second in _pairs(questions, source):
        for question in (first, second):
            image = places[0] / first.kind / f"{question.qid}.jpg"  # the script looks in the first's folder for both
            about = {"qid": question.qid, "pattern": _pattern(first), "pair": (first.qid - 1) // 2}
            fields = {"txt": question.statement.encode("utf-8"), "json": json.dumps(about).encode("ascii")}
            samples.append(Sample(image, fields))
    return target.write(samples, len(samples), RETRIEVAL_METADATA)


def _pattern(question: _Question) -> str:
    known = question.kind in MMVP_PATTERNS
    return question.kind if known else MMVP_PATTERNS[(question.qid - 1) // _PER_PATTERN]


def _read(path: Path) -> list[_Question]:
    """Read Questions.csv, and return its questions by number."""
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))[1:]  # below a line of titles
    except csv.Error as error:
        raise ValueError(f"{path} is no table: {error}") from error
    questions = []
    for number, row in enumerate(rows, 2):
        cells = [one_line(cell) for cell in row]
        if not any(cells):
            continue
        if len(cells) != 3 or not all(cells) or not cells[0].isdecimal():
            raise ValueError(f"{path}, row {number}: expected a question's number, type and statement; found {row}")
        questions.append(_Question(int(cells[0]), cells[1], cells[2]))
    return sorted(questions)


def _pairs(questions: Sequence[_Question], source: Path) -> list[tuple[_Question, _Question]]:
    """Return the questions two by two, and refuse those that have no partner."""
    numbers, last = [question.qid for question in questions], _PER_PATTERN * len(MMVP_PATTERNS)
    if len(set(numbers)) < len(numbers):
        twice = next(qid for qid in numbers if numbers.count(qid) > 1)
        raise ValueError(f"{source / 'Questions.csv'} has question {twice} twice")
    alone = [qid for qid in numbers if (qid + 1 if qid % 2 else qid - 1) not in numbers]
    if alone or (numbers and not 1 <= numbers[0] <= numbers[-1] <= last):
        raise ValueError(
            f"{source / 'Questions.csv'} must have questions of 1 to {last} in pairs (1 and 2, 3 and 4, ...); it has "
            f"{numbers[0]} to {numbers[-1]}, and without partner {alone or 'none'}"
        )
    return list(zip(questions[::2], questions[1::2], strict=True))
