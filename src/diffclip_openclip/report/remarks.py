"""What a reader of the report should know of the results as a whole."""

from collections.abc import Iterator, Sequence

from diffclip_openclip.data.catalog import deviations
from diffclip_openclip.report.entries import Entry
from diffclip_openclip.report.models import Model


def remarks(models: Sequence[Model], ours: Sequence[Entry]) -> list[str]:
    """Sentences on results that are left out, compared with nothing, of different data, or of a part of the data."""
    return [*_left_out(models), *_not_compared(ours), *_different_data(models), *_not_published(models)]


def _left_out(models: Sequence[Model]) -> Iterator[str]:
    names = {result.content["dataset"] for model in models for result in model.results if not result.scores}
    if names:
        yield f"In no table, as the paper does not have them: {', '.join(sorted(names))}."


def _not_compared(ours: Sequence[Entry]) -> Iterator[str]:
    used = {entry.baseline.name for entry in ours if entry.baseline}
    names = [entry.name for entry in ours if entry.baseline is None and entry.name not in used]
    if names:
        yield f"Compared with no baseline: {', '.join(names)}. --baseline MODEL names one for all."


def _different_data(models: Sequence[Model]) -> Iterator[str]:
    hashes: dict[str, set[str | None]] = {}
    for model in models:
        for result in model.results:
            hashes.setdefault(result.content["dataset"], set()).add(result.content.get("dataset_sha256"))
    names = [name for name, found in hashes.items() if len(found) > 1]
    if names:
        yield f"Not all models saw the same data of {', '.join(sorted(names))}: see the hashes at the end."


def _not_published(models: Sequence[Model]) -> Iterator[str]:
    found: dict[str, set[str]] = {}
    for model in models:
        for result in model.results:
            unlike = deviations(result.content["dataset"], result.content["images"])
            if unlike:
                found.setdefault(result.content["dataset"], set()).update(unlike)
    if found:
        parts = "; ".join(f"{name}, {', '.join(sorted(found[name]))}" for name in sorted(found))
        yield f"Not to be compared with others' numbers, as the data are not of the published size: {parts}."
