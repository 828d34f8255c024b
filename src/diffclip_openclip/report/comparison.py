"""Pair every model with its baseline and its counterpart in the paper, and say how sure the differences are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from diffclip_openclip.models import MODELS
from diffclip_openclip.report.evaluated_models import EvaluatedModel
from diffclip_openclip.report.paper import PaperRow, Score, find_row, paper_key
from diffclip_openclip.report.uncertainty import (
    Difference,
    paired_difference,
    runs_difference,
    seeds_difference,
    unrelated_difference,
)

OTHER = "other"  # the family of a model that the paper has no counterpart of


@dataclass(frozen=True)
class Entry:
    """Hold what stands in a row of a table, or is drawn as a series of a figure."""

    name: str
    family: str  # the paper's name for this kind of model, or OTHER
    scores: Mapping[str, Score]  # by key
    pretraining: str | None = None  # of the paper's row; for a model of ours, of its counterpart
    is_ours: bool = False  # a model that has results, not a row of the paper
    baseline: "Entry | None" = None  # what its differences are to
    paper: "Entry | None" = None  # the paper's row that a model of ours is held against
    epoch: int | None = None  # where the figure over epochs shows it

    @property
    def title(self) -> str:
        """Return the name for running text: a row of the paper has its pretraining in it."""
        return self.name if self.is_ours else f"{self.pretraining} {self.name}"

    def difference(self, key: str) -> float | None:
        """Return the difference to the baseline: as the source prints it, or else computed."""
        own = self.scores.get(key)
        if own is None or own.difference is not None:
            return own.difference if own else None
        return self._minus(self.baseline, key, key)

    def certainty(self, key: str) -> Difference | None:
        """Return how sure the difference to the baseline is; None where that is not known, or there is none."""
        own, base = self.scores.get(key), self.baseline and self.baseline.scores.get(key)
        difference = self.difference(key)
        if not own or not base or difference is None:
            return None
        if own.runs or base.runs:
            return _between_runs(own, base)
        if paired := paired_difference(own.outcomes, base.outcomes):
            return paired
        return unrelated_difference(difference, own.interval, base.interval) if own.interval and base.interval else None

    def minus_paper(self, key: str) -> float | None:
        """Return the difference to the counterpart in the paper."""
        return self._minus(self.paper, key, paper_key(key))

    def _minus(self, other: "Entry | None", key: str, other_key: str) -> float | None:
        if other is None or key not in self.scores or other_key not in other.scores:
            return None
        return self.scores[key].value - other.scores[other_key].value


def _between_runs(own: Score, base: Score) -> Difference | None:
    """Compare seed by seed where both models were trained with the same seeds."""
    if own.seeds and set(own.seeds) == set(base.seeds):
        of_base = dict(zip(base.seeds, base.runs, strict=True))
        return seeds_difference(own.runs, [of_base[seed] for seed in own.seeds])
    return runs_difference(own.runs, base.runs)


def paper_entries(rows: Mapping[str, PaperRow]) -> dict[str, Entry]:
    """Return the paper's rows by name; the baseline of all others is the CLIP of their pretraining."""
    entries: dict[str, Entry] = {}
    for name, row in rows.items():
        baseline = entries.get(f"{row.pretraining}/CLIP")
        entries[name] = Entry(row.model, row.model, row.scores, row.pretraining, False, baseline)
    return entries


def our_entries(
    models: Sequence[EvaluatedModel],
    rows: Mapping[str, PaperRow],
    *,
    match: Sequence[str] = (),
    baseline: str | None = None,
) -> list[Entry]:
    """Return the models of ours, baselines first.

    Args:
        match: ``MODEL=ROW`` each, with ROW a row of the paper as in ``CC12M/DiffCLIP``.
        baseline: the model that all others are compared with. By default a DiffCLIP is compared with
            ``CLIP-<size>-baseline`` of its size, if there is one such model.

    Raises:
        ValueError: a model or row does not exist, or ``match`` has another form.
    """
    paper = paper_entries(rows)
    matches = _matches(match, models, rows)
    plain = {model.name: _plain(model, matches.get(model.name), paper) for model in models}
    if baseline is None:
        names = {model.name: _default_baseline(model, models) for model in models}
    else:
        _check_model(baseline, models, "--baseline")
        names = {name: baseline if name != baseline else None for name in plain}
    ordered = sorted(plain, key=lambda name: (name not in names.values(), name))
    return [replace(plain[name], baseline=plain[base] if (base := names[name]) else None) for name in ordered]


def _plain(model: EvaluatedModel, row: PaperRow | None, paper: Mapping[str, Entry]) -> Entry:
    if row is None:
        return Entry(model.name, family_of(model), model.scores, is_ours=True)
    return Entry(model.name, row.model, model.scores, row.pretraining, is_ours=True, paper=paper[row.name])


def _matches(
    match: Sequence[str], models: Sequence[EvaluatedModel], rows: Mapping[str, PaperRow]
) -> dict[str, PaperRow]:
    found: dict[str, PaperRow] = {}
    for text in match:
        name, sign, row = text.rpartition("=")
        if not sign:
            raise ValueError(f"--match {text!r} is not of the form MODEL=ROW, as in 'my run=CC12M/DiffCLIP'")
        _check_model(name, models, "--match")
        if name in found:
            raise ValueError(f"--match names {name!r} twice: {found[name].name} and {row}")
        found[name] = find_row(rows, row)
    return found


def _check_model(name: str, models: Sequence[EvaluatedModel], option: str) -> None:
    names = [model.name for model in models]
    if name not in names:
        raise ValueError(f"{option}: there are no results of {name!r}; there are results of {', '.join(names)}")


def _default_baseline(model: EvaluatedModel, models: Sequence[EvaluatedModel]) -> str | None:
    packaged = MODELS.get(model.architecture or "")
    candidates = [other for other in models if packaged and other.architecture == packaged.baseline is not None]
    if len(candidates) > 1:
        candidates = [other for other in candidates if other.is_set_as(model)]
    return candidates[0].name if len(candidates) == 1 else None


def family_of(model: EvaluatedModel) -> str:
    """Return the paper's name for a model's kind, or OTHER."""
    packaged = MODELS.get(model.architecture or "")
    return (packaged.family if packaged else None) or OTHER
