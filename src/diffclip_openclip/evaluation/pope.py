"""Score a language model's answers to POPE's questions: does it see objects that are not there?

Source: paper, section 5.1 and Table 3; RUCAIBox/POPE@3df3ba1:evaluate.py.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffclip_openclip.data.annotations import read_json_lines, some
from diffclip_openclip.data.catalog import POPE
from diffclip_openclip.evaluation.results import Identity, write
from diffclip_openclip.files import sha256

_ANSWER_KEYS = ("text", "answer", "response", "outputs")


def is_yes(answer: str) -> bool:
    r"""Tell whether an answer is a yes: it is, unless "No", "no" or "not" is a word of its first sentence.

    Words end at spaces alone, as in POPE's script, so that "No\n" is a yes.
    """
    words = answer.partition(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def metrics(answers: Sequence[bool], labels: Sequence[bool]) -> dict[str, float]:
    """Compute accuracy, precision, recall, f1 and yes_ratio; yes is the positive class.

    Precision and recall are 0 where nothing was answered, or nothing is, yes.
    """
    true_positives = sum(answer and label for answer, label in zip(answers, labels, strict=True))
    precision = true_positives / max(sum(answers), 1)
    recall = true_positives / max(sum(labels), 1)
    return {
        "accuracy": sum(answer == label for answer, label in zip(answers, labels, strict=True)) / len(labels),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if true_positives else 0.0,
        "yes_ratio": sum(answers) / len(answers),
    }


def align(questions: Path, answers: Path) -> tuple[list[bool], list[bool]]:
    """Read what was answered to POPE's questions and what is right, aligned by question_id; whether each is a yes.

    Args:
        questions: JSON lines as POPE has them: question_id, text, label ("yes" or "no").
        answers: JSON lines with question_id and text (or answer, response, outputs).

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: not such a file, or answers and questions do not belong together one to one.
    """
    labels = {key: _label(entry, questions) for key, entry in _read(questions).items()}
    said = {key: is_yes(_answer(entry, answers)) for key, entry in _read(answers).items()}
    if labels.keys() != said.keys():
        missing, unknown = sorted(labels.keys() - said.keys()), sorted(said.keys() - labels.keys())
        raise ValueError(
            f"{questions} has {len(labels)} questions and {answers} {len(said)} answers: {len(missing)} questions have "
            f"no answer{some(missing)}, {len(unknown)} answers no question{some(unknown)}; they must agree in "
            "question_id one to one (LLaVA's own llava_pope_test.jsonl has other ids: see examples/llava)"
        )
    return [said[key] for key in labels], list(labels.values())


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Read JSON lines, by question_id."""
    entries: dict[str, dict[str, Any]] = {}
    for place, entry in read_json_lines(path):
        if "question_id" not in entry:
            raise ValueError(f"{place}: not a JSON object with a question_id")
        key = str(entry["question_id"])
        if key in entries:
            raise ValueError(f"{place}: question_id {key} is there twice")
        entries[key] = entry
    if not entries:
        raise ValueError(f"{path} has no lines; POPE's files have one JSON object a line")
    return entries


def _label(entry: dict[str, Any], path: Path) -> bool:
    if entry.get("label") not in ("yes", "no"):
        raise ValueError(
            f"{path}: the label of question {entry['question_id']} is {entry.get('label')!r}, not yes or no"
        )
    return bool(entry["label"] == "yes")


def _answer(entry: dict[str, Any], path: Path) -> str:
    for key in _ANSWER_KEYS:
        if isinstance(entry.get(key), str):
            return str(entry[key])
    raise ValueError(f"{path}: question {entry['question_id']} has no answer under {', '.join(_ANSWER_KEYS)}")


def score_to_file(*, questions: Path, answers: Path, category: str, label: str, results: Path) -> dict[str, Any]:
    """Score answers as :func:`metrics`, write the result beside the evaluation's, and return the file's content.

    Args:
        category: one of :data:`~diffclip_openclip.data.catalog.POPE_CATEGORIES`.
        label: the language model's name in tables.
        results: the folder of the results.
    """
    start = time.monotonic()
    identity = Identity(
        task=POPE,
        dataset=f"pope_{category}",
        label=label,
        model=label,
        pretrained="",
        checkpoint_sha256=sha256(answers),
        dataset_sha256=sha256(questions),
        precision="fp32",
    )
    said, labels = align(questions, answers)
    outcomes = {"correct": np.equal(said, labels), "label": np.array(labels)}
    seconds = time.monotonic() - start
    return write(identity, results, metrics(said, labels), outcomes=outcomes, device="cpu", seconds=seconds)
