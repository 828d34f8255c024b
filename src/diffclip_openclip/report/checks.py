"""The paper's arithmetic: do its printed means, differences and POPE figures follow from its other numbers?"""

from collections.abc import Iterable, Iterator, Mapping

from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.scores import MEANS

_HALF = 0.05 + 1e-9  # of the last digit that the paper prints in means
_POPE_HALF = 0.005 + 1e-9
# how many answers are yes and no: of a whole file of POPE (RUCAIBox/POPE@3df3ba1), and of its first 2,910 questions
_POPE_FULL, _POPE_CUT = (1500, 1500), (1455, 1455)


def paper_notes(entries: Mapping[str, Entry], keys: Iterable[str]) -> list[str]:
    """What does not add up among the paper's numbers of ``keys``, a sentence each."""
    wanted = set(keys)
    notes: list[str] = []
    for entry in entries.values():
        title = f"{entry.pretraining} {entry.name}"
        notes += [note for key in MEANS if key in wanted for note in _mean_notes(title, entry, key)]
        notes += [note for key in sorted(wanted) for note in _difference_notes(title, entry, key)]
    for key in sorted(wanted):
        category, _, metric = key.partition("/")
        if category.startswith("pope_") and metric == "accuracy":
            notes += _pope_notes(entries.values(), category)
    if "zero_shot_7/mean" in wanted:
        notes += _ood_note(entries.values())
    return notes


def _mean_notes(title: str, entry: Entry, key: str) -> Iterator[str]:
    printed = entry.scores.get(key)
    if printed is None or printed.derived or any(member not in entry.scores for member in MEANS[key]):
        return
    mean = sum(entry.scores[member].value for member in MEANS[key]) / len(MEANS[key])
    if abs(mean - printed.value) > _HALF:
        yield (
            f"{title}: the paper gives a mean of {printed.value:.1f} ({printed.source}); its values, which are rounded "
            f"themselves, have a mean of {mean:.2f}."
        )


def _difference_notes(title: str, entry: Entry, key: str) -> Iterator[str]:
    own, base = entry.scores.get(key), entry.baseline and entry.baseline.scores.get(key)
    if own is None or own.derived or own.difference is None or not base:
        return
    if abs(own.value - base.value - own.difference) > 1e-6:
        yield (
            f"{title}: the paper gives a difference of {own.difference:+g} ({own.source}); "
            f"its values differ by {own.value - base.value:+.2f}."
        )


def pope_counts(
    accuracy: float, precision: float, recall: float, positives: int, negatives: int
) -> list[tuple[int, int]]:
    """True and false positives that round to the given figures (percent, two decimals): all pairs that do."""

    def fits(part: int, whole: int, printed: float) -> bool:
        return whole > 0 and abs(100 * part / whole - printed) <= _POPE_HALF

    return [
        (hits, false)
        for hits in range(positives + 1)
        if fits(hits, positives, recall)
        for false in range(negatives + 1)
        if fits(hits, hits + false, precision) and fits(hits + negatives - false, positives + negatives, accuracy)
    ]


def _pope_notes(entries: Iterable[Entry], category: str) -> Iterator[str]:
    keys = [f"{category}/{metric}" for metric in ("accuracy", "precision", "recall")]
    figures = [[entry.scores[key].value for key in keys] for entry in entries if keys[0] in entry.scores]
    fit = {
        questions: all(pope_counts(accuracy, precision, recall, *questions) for accuracy, precision, recall in figures)
        for questions in (_POPE_FULL, _POPE_CUT)
    }
    if not figures or fit[_POPE_FULL]:
        return
    title = category.removeprefix("pope_").capitalize()
    note = f"{title}: no answers to {sum(_POPE_FULL):,} questions, half of them yes, give the paper's figures"
    if fit[_POPE_CUT]:
        note += (
            f"; answers to {sum(_POPE_CUT):,}, half of them yes, do. So answers to a file of {sum(_POPE_CUT):,} "
            "questions seem to have been scored against the labels of another (an inference): do not compare with them"
        )
    yield f"{note}."


def _ood_note(entries: Iterable[Entry]) -> Iterator[str]:
    """Whether the mean that Figure 3 draws counts ImageNet, which the paper does not say."""
    parts = []
    for entry in entries:
        drawn = entry.scores.get("zero_shot_7/mean")
        if drawn is None or drawn.derived:
            continue
        with_it, without = (
            sum(entry.scores[key].value for key in MEANS[mean]) / len(MEANS[mean])
            for mean in ("zero_shot_7/mean", "zero_shot_7/mean_without_imagenet")
        )
        title = f"{entry.pretraining} {entry.name}"
        parts.append(f"{title} {drawn.value:.1f}, which is {with_it:.2f} with ImageNet and {without:.2f} without")
    yield f"The paper's mean of zero-shot OOD counts ImageNet (the mean of five): {'; '.join(parts)}."
