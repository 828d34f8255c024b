"""POPE: metrics by hand, alignment by question id."""

import json

import pytest
from support.common import REPOSITORY, run_python
from support.markdown import blocks

from diffclip_cli.main import main
from diffclip_openclip.evaluation import pope
from diffclip_openclip.evaluation.results import read_outcomes


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes, there is a dog.", True),
        ("No.", False),
        ("no, there is none", False),
        ("There is not a dog in the image.", False),
        ("The image shows a notable dog. No cat, though.", True),  # only the first sentence, only whole words
        ("Nothing is there", True),
        ("No\n", True),  # words end at spaces alone
        ("there is\tno cat", True),
        ("", True),
    ],
)
def test_yes_is_what_is_not_no(answer, yes):
    assert pope.is_yes(answer) is yes


def test_metrics_by_hand():
    answers, labels = [True, True, True, False, False], [True, False, True, True, False]
    metrics = pope.metrics(answers, labels)
    assert metrics == {
        "accuracy": 3 / 5,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": pytest.approx(2 / 3),
        "yes_ratio": 3 / 5,
    }
    assert pope.metrics([False, False], [True, False])["precision"] == 0.0
    assert pope.metrics([True, True], [False, False])["recall"] == 0.0


def _files(tmp_path, questions, answers):
    paths = tmp_path / "coco_pope_random.json", tmp_path / "answers.jsonl"
    for path, rows in zip(paths, (questions, answers), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def _accuracy(questions, answers):
    return pope.metrics(*pope.align(questions, answers))["accuracy"]


QUESTIONS = [
    {"question_id": i, "image": "a.jpg", "text": "Is there?", "label": "yes" if i % 2 else "no"} for i in range(6)
]


def test_answers_are_aligned_by_id_whatever_their_order(tmp_path):
    answers = [{"question_id": str(i), "text": "Yes" if i in (1, 3, 4) else "No"} for i in (5, 3, 1, 0, 4, 2)]
    assert _accuracy(*_files(tmp_path, QUESTIONS, answers)) == pytest.approx(4 / 6)
    answers = [{"question_id": i, "answer": "Yes" if i in (1, 3, 4) else "No"} for i in range(6)]
    assert _accuracy(*_files(tmp_path, QUESTIONS, answers)) == pytest.approx(4 / 6)


def test_lines_end_at_line_feeds_alone(tmp_path):
    """JSON strings may hold Unicode's other line breaks."""
    questions, answers = _files(tmp_path, QUESTIONS, [])
    said = ({"question_id": i, "text": "No \u2028 \x85x" if i != 1 else "Yes"} for i in range(6))
    answers.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in said), encoding="utf-8", newline="")
    assert _accuracy(questions, answers) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [{"question_id": i, "text": "Yes"} for i in range(5)],
            "6 questions and .* 5 answers: 1 questions have no answer",
        ),
        ([{"question_id": i, "text": "Yes"} for i in range(7)], r"1 answers no question \(6\).*see examples/llava"),
        ([{"question_id": 1, "text": "Yes"}] * 2, "question_id 1 is there twice"),
        ([{"question_id": i} for i in range(6)], "has no answer under text"),
        ([{"text": "Yes"}], "line 1: not a JSON object with a question_id"),
        ([], "has no lines"),
    ],
)
def test_answers_that_do_not_fit(tmp_path, answers, message):
    with pytest.raises(ValueError, match=message):
        pope.align(*_files(tmp_path, QUESTIONS, answers))


def test_llavas_scripts_are_asked_questions_with_popes_ids(tmp_path):
    """The example's snippet; a stand-in of TinyLLaVA's script copies question_id as it does."""
    for category in ("random", "popular", "adversarial"):
        lines = [json.dumps(question | {"category": category}) for question in QUESTIONS]
        (tmp_path / f"coco_pope_{category}.json").write_text("\n".join(lines) + "\n")
    page = REPOSITORY / "examples" / "llava" / "README.md"
    (block,) = (block for block in blocks(page, "python") if "coco_pope" in block.code)
    run_python(block.code, tmp_path)
    asked = [json.loads(line) for line in (tmp_path / "ask_popular.jsonl").read_text().splitlines()]
    assert {line["text"] for line in asked} == {"Is there?\nAnswer the question using a single word or phrase."}
    answers = [{"question_id": line["question_id"], "prompt": line["text"], "text": "Yes"} for line in asked]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    assert _accuracy(tmp_path / "coco_pope_popular.json", tmp_path / "answers.jsonl") == 0.5


def test_a_label_that_is_neither(tmp_path):
    with pytest.raises(ValueError, match="is 'maybe', not yes or no"):
        pope.align(*_files(tmp_path, [{"question_id": 0, "label": "maybe"}], [{"question_id": 0, "text": "Yes"}]))


def test_command_writes_a_result(tmp_path, capsys):
    answers = [{"question_id": i, "text": "Yes"} for i in range(6)]
    paths = [str(path) for path in _files(tmp_path, QUESTIONS, answers)]
    command = ["pope", *paths, "--category", "random", "--label", "Tiny", "--output", str(tmp_path / "RESULTS")]
    assert main(command) == 0
    assert "Tiny: pope on pope_random: accuracy 50.0 %" in capsys.readouterr().out
    (path,) = (tmp_path / "RESULTS").rglob("*.json")
    entry = json.loads(path.read_text())
    assert (entry["dataset"], entry["metrics"]["yes_ratio"]) == ("pope_random", 1.0)
    outcomes = read_outcomes(path)
    assert outcomes["correct"].tolist() == outcomes["label"].tolist() == [0, 1, 0, 1, 0, 1]
    paths[1] = str(tmp_path / "none.jsonl")
    assert main(["pope", *paths, *command[3:]]) == 2
    assert "none.jsonl" in capsys.readouterr().err
