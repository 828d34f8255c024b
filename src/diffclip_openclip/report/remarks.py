"""Say what limits a comparison: models without a baseline, other training, other data, data of another size."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffclip_openclip.data import catalog
from diffclip_openclip.report.comparison import Entry
from diffclip_openclip.report.evaluated_models import EvaluatedModel
from diffclip_openclip.weights.runs import TrainingRun


def remarks(models: Sequence[EvaluatedModel], ours: Sequence[Entry]) -> list[str]:
    """Return what a reader should know of the results as a whole, a sentence each."""
    return [*_not_compared(ours), *_other_training(models, ours), *_different_data(models), *_not_published(models)]


def _not_compared(ours: Sequence[Entry]) -> Iterator[str]:
    used = {entry.baseline.name for entry in ours if entry.baseline}
    names = [entry.name for entry in ours if entry.baseline is None and entry.name not in used]
    if names:
        yield f"Compared with no baseline: {', '.join(names)}. --baseline MODEL names one for all."


def _different_data(models: Sequence[EvaluatedModel]) -> Iterator[str]:
    hashes: dict[str, set[str | None]] = {}
    for model in models:
        for result in model.results:
            hashes.setdefault(result.content["dataset"], set()).add(result.content.get("dataset_sha256"))
    names = [name for name, found in hashes.items() if len(found) > 1]
    if names:
        yield f"Not all models saw the same data of {', '.join(sorted(names))}: see the hashes at the end."


def _not_published(models: Sequence[EvaluatedModel]) -> Iterator[str]:
    if names := sorted({name for name, *_ in other_sizes(models)}):
        yield (
            f"Not to be compared with others' numbers, as the data are not of the published size: {', '.join(names)}. "
            "Their cells have the mark §, and the last table has the sizes."
        )


def other_sizes(models: Sequence[EvaluatedModel]) -> list[tuple[str, str, str, str, tuple[str, ...]]]:
    """Return the splits that are not of the published size.

    Returns:
        data set, split, number of images or captions, the published number, and the names of the models that were
        evaluated on so many.
    """
    found: dict[tuple[str, catalog.Deviation], dict[str, None]] = {}
    for model in models:
        for content in (result.content for result in model.results):
            for unlike in catalog.other_sizes(content["dataset"], content["images"], content.get("captions")):
                found.setdefault((content["dataset"], unlike), {})[model.name] = None
    return [
        (name, unlike.split, f"{unlike.size:,} {unlike.what}", f"{unlike.published:,} {unlike.what}", tuple(names))
        for (name, unlike), names in sorted(found.items())
    ]


# training, by the arguments in the folders of the runs


def _other_training(models: Sequence[EvaluatedModel], ours: Sequence[Entry]) -> Iterator[str]:
    """Yield in what a model's training differs from its baseline's, a sentence a model.

    Nothing is said of a pair of which both runs' folders are not there any more, or never were.
    """
    facts = {model.name: _facts(model) for model in models}
    for entry in ours:
        if entry.baseline is None:
            continue
        own, base = facts[entry.name], facts[entry.baseline.name]
        if own and base:
            unlike = [f"{name} {own[name]} and not {base[name]}" for name in own if own[name] != base[name]]
            if unlike:
                yield f"{entry.name} was not trained as {entry.baseline.name}: {'; '.join(unlike)}."
        elif own or base:
            unknown = entry.baseline.name if own else entry.name
            yield f"Whether {entry.name} was trained as {entry.baseline.name} is not known: no params.txt of {unknown}."


def _facts(model: EvaluatedModel) -> dict[str, str]:
    """Return what was trained on, by name; empty where it is not known. Several runs' facts stand beside each other."""
    places = dict.fromkeys(str(result.content.get("pretrained")) for result in model.results)
    runs = [_run_facts(Path(place)) for place in places if Path(place).suffix]
    known = [facts for facts in runs if facts]
    if not known or len(known) != len(runs):
        return {}
    return {name: ", ".join(sorted({facts[name] for facts in known})) for name in known[0]}


def _run_facts(checkpoint: Path) -> dict[str, str]:
    run = TrainingRun.of_checkpoint(checkpoint)
    return _described(run.params) if run.params else {}


def _described(params: Mapping[str, Any]) -> dict[str, str]:
    """Describe the arguments that decide how much a model has seen of what, by open_clip_train's params.txt."""
    samples, epochs = params.get("train_num_samples"), params.get("epochs")
    batch = [params.get("batch_size"), params.get("accum_freq", 1), params.get("world_size", 1)]
    return {
        "data": str(params.get("train_data")),
        "pairs seen": _product(samples, epochs),
        "epochs": _product(epochs),
        "batch": _product(*batch),
    }


def _product(*factors: Any) -> str:
    product = 1
    for factor in factors:
        if not isinstance(factor, int):
            return "unknown"
        product *= factor
    return f"{product:,}"
