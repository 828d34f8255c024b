"""The notes on the paper's numbers are what its arithmetic gives: printed means, differences and POPE figures."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import pytest

from diffclip_openclip.report.comparison import Entry, paper_entries
from diffclip_openclip.report.paper import MEANS, Score, load_paper, paper_notes

# how far a printed number, and one that is read off a figure, may be from the true one
PRINTED, READ_OFF = 0.05, 0.1
POPE_HALF = 0.005 + 1e-9
# how many answers are yes and no: of a whole file of POPE (RUCAIBox/POPE@3df3ba1), and of its first 2,910 questions
POPE_FULL, POPE_CUT = (1500, 1500), (1455, 1455)


@pytest.fixture(scope="module")
def paper() -> dict[str, Entry]:
    return paper_entries(load_paper())


def off(paper: Mapping[str, Entry]) -> list[str]:
    """Return what does not follow from the paper's other numbers, a sentence each."""
    notes: list[str] = []
    for entry in paper.values():
        notes += [note for key in MEANS for note in _off_means(entry, key)]
        notes += [note for key in sorted(entry.scores) for note in _off_differences(entry, key)]
    notes.append(_ood_note(paper))
    return notes + [note for category in ("adversarial", "popular", "random") for note in _off_pope(paper, category)]


def _mean(entry: Entry, key: str) -> float:
    return sum(entry.scores[member].value for member in MEANS[key]) / len(MEANS[key])


def _off_means(entry: Entry, key: str) -> Iterator[str]:
    printed = entry.scores.get(key)
    if printed is None or printed.derived or any(member not in entry.scores for member in MEANS[key]):
        return
    slack = max(_slack(entry.scores[member]) for member in MEANS[key]) + _slack(printed)
    if abs(_mean(entry, key) - printed.value) > slack + 1e-9:
        yield (
            f"{entry.title}: the paper gives a mean of {printed.value:.1f} ({printed.source}); its values, which are "
            f"rounded themselves, have a mean of {_mean(entry, key):.2f}."
        )


def _slack(score: Score) -> float:
    return READ_OFF if "read off" in score.source else PRINTED


def _off_differences(entry: Entry, key: str) -> Iterator[str]:
    own, base = entry.scores[key], entry.baseline and entry.baseline.scores.get(key)
    if own.derived or own.difference is None or not base:
        return
    if abs(own.value - base.value - own.difference) > 1e-6:
        yield (
            f"{entry.title}: the paper gives a difference of {own.difference:+g} ({own.source}); "
            f"its values differ by {own.value - base.value:+.2f}."
        )


def _ood_note(paper: Mapping[str, Entry]) -> str:
    """Say that the mean that Figure 3 draws counts ImageNet, which the paper does not."""
    parts = []
    for entry in paper.values():
        drawn = entry.scores["zero_shot_7/mean"]
        if not drawn.derived:
            with_it, without = _mean(entry, "zero_shot_7/mean"), _mean(entry, "zero_shot_7/mean_without_imagenet")
            parts.append(
                f"{entry.title} {drawn.value:.1f}, which is {with_it:.2f} with ImageNet and {without:.2f} without"
            )
    return f"The paper's mean of zero-shot OOD counts ImageNet (the mean of five): {'; '.join(parts)}."


def pope_counts(
    accuracy: float, precision: float, recall: float, positives: int, negatives: int
) -> list[tuple[int, int]]:
    """Return all pairs of true and false positives that round to the given figures (percent, two decimals)."""

    def fits(part: int, whole: int, printed: float) -> bool:
        return whole > 0 and abs(100 * part / whole - printed) <= POPE_HALF

    return [
        (hits, false)
        for hits in range(positives + 1)
        if fits(hits, positives, recall)
        for false in range(negatives + 1)
        if fits(hits, hits + false, precision) and fits(hits + negatives - false, positives + negatives, accuracy)
    ]


def _figures(entry: Entry, category: str) -> list[float]:
    return [entry.scores[f"pope_{category}/{metric}"].value for metric in ("accuracy", "precision", "recall")]


def _off_pope(paper: Mapping[str, Entry], category: str) -> Iterator[str]:
    figures = [_figures(entry, category) for entry in paper.values() if f"pope_{category}/accuracy" in entry.scores]
    full, cut = (all(pope_counts(*figure, *questions) for figure in figures) for questions in (POPE_FULL, POPE_CUT))
    if full:
        return
    note = (
        f"{category.capitalize()}: no answers to {sum(POPE_FULL):,} questions, half of them yes, give the paper's "
        "figures"
    )
    if cut:
        note += (
            f"; answers to {sum(POPE_CUT):,}, half of them yes, do. So answers to a file of {sum(POPE_CUT):,} "
            "questions seem to have been scored against the labels of another (an inference): do not compare with them"
        )
    yield f"{note}."


def test_notes_are_what_the_arithmetic_gives(paper):
    notes = paper_notes(key for entry in paper.values() for key in entry.scores)
    assert notes == off(paper)
    assert [note.partition(":")[0] for note in notes] == [
        "The paper's mean of zero-shot OOD counts ImageNet (the mean of five)",
        "Random",
    ]
    assert "CC12M DiffCLIP 28.1, which is 28.08 with ImageNet and 26.65 without" in notes[0]


def test_notes_stand_where_their_numbers_do():
    assert [note[:16] for note in paper_notes(["zero_shot_7/mean"])] == ["The paper's mean"]
    assert [note[:7] for note in paper_notes(["pope_random/accuracy"])] == ["Random:"]
    assert paper_notes(["linear_probe/mean", "text_retrieval@5/mean", "pope_popular/accuracy"]) == []


def test_a_slip_of_the_pen_would_be_noticed(paper):
    entry = paper["CC3M/DiffCLIP"]
    wrong = {"linear_probe/dtd": replace(entry.scores["linear_probe/dtd"], value=62.0)}
    slipped = paper | {"CC3M/DiffCLIP": replace(entry, scores=entry.scores | wrong)}
    notes = [note for note in off(slipped) if note not in off(paper)]
    assert len(notes) == 2
    assert "mean of 64.98" in notes[0]
    assert "a difference of +1.5" in notes[1]
    assert "differ by +3.30" in notes[1]


def test_printed_means_recompute(paper):
    """Allow half of the last digit, and two exceptions: members that were rounded, and a mean read off a figure."""
    off = {}
    for name, entry in paper.items():
        for key, members in MEANS.items():
            printed = entry.scores.get(key)
            if printed is not None and not printed.derived:
                mean = sum(entry.scores[member].value for member in members) / len(members)
                if abs(mean - printed.value) > 0.05 + 1e-9:
                    off[name, key] = round(mean, 2)
                assert abs(mean - printed.value) <= 0.1
    assert off == {
        ("CC3M/DiffCLIP", "text_retrieval@5/mean"): 40.03,
        ("CC3M/DiffCLIP", "zero_shot_7/mean"): 9.92,
    }


def test_printed_differences_recompute(paper):
    count = 0
    for name in ("CC3M/DiffCLIP", "CC12M/DiffCLIP"):
        clip = paper[name.replace("Diff", "")]
        for key, score in paper[name].scores.items():
            if score.difference is not None:
                count += 1
                assert score.difference == pytest.approx(score.value - clip.scores[key].value, abs=1e-9)
    assert count == 2 * (20 + 9) + 9


def test_pope_counts():
    """Find 3 hits and 1 false positive of 4 yes and 4 no in 75 % accuracy, precision and recall."""
    assert pope_counts(75, 75, 75, 4, 4) == [(3, 1)]
    assert pope_counts(75, 75, 74, 4, 4) == []


@pytest.mark.parametrize("name", ["CC12M/CLIP", "CC12M/DiffCLIP"])
@pytest.mark.parametrize(("category", "half"), [("random", 1455), ("popular", 1500), ("adversarial", 1500)])
def test_pope_rows_fit_whole_answers(paper, name, category, half):
    figures = [paper[name].scores[f"pope_{category}/{metric}"].value for metric in ("accuracy", "precision", "recall")]
    assert len(pope_counts(*figures, half, half)) == 1
    assert pope_counts(*figures, 2955 - half, 2955 - half) == []
