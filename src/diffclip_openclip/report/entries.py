"""What is compared with what: rows of the paper and models of ours, each with its baseline and its counterpart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from diffclip_openclip.models import MODELS
from diffclip_openclip.report.models import Model
from diffclip_openclip.report.paper import PaperRow, find_row
from diffclip_openclip.report.scores import Score

OTHER = "other"  # the family of a model that the paper has no counterpart of


@dataclass(frozen=True)
class Entry:
    """A row of a table, a series of a figure.

    ``family`` is the paper's name for this kind of model. ``baseline``: what its differences are to; ``paper``: the
    row of the paper that it is to be held against, for models of ours.
    """

    name: str
    family: str
    scores: Mapping[str, Score]
    pretraining: str | None = None
    is_ours: bool = False
    baseline: "Entry | None" = None
    paper: "Entry | None" = None

    def difference(self, key: str) -> float | None:
        """To the baseline: as printed, or else computed."""
        own = self.scores.get(key)
        if own is None or own.difference is not None:
            return own.difference if own else None
        return self._minus(self.baseline, key)

    def minus_paper(self, key: str) -> float | None:
        return self._minus(self.paper, key)

    def _minus(self, other: "Entry | None", key: str) -> float | None:
        if other is None or key not in self.scores or key not in other.scores:
            return None
        return self.scores[key].value - other.scores[key].value


def paper_entries(rows: Mapping[str, PaperRow]) -> dict[str, Entry]:
    """The paper's rows by name; those that are not CLIP have the CLIP of their pretraining for a baseline."""
    entries: dict[str, Entry] = {}
    for name, row in rows.items():
        baseline = entries.get(f"{row.pretraining}/CLIP")
        entries[name] = Entry(row.model, row.model, row.scores, row.pretraining, False, baseline)
    return entries


def our_entries(
    models: Sequence[Model], rows: Mapping[str, PaperRow], match: Sequence[str] = (), baseline: str | None = None
) -> list[Entry]:
    """Models of ours, baselines first.

    ``match``: ``MODEL=ROW``, ROW a row of the paper as in ``CC12M/DiffCLIP``. ``baseline``: the model that all others
    are compared with; by default DiffCLIP of a size is compared with the one model that is ``CLIP-<size>-baseline``.

    Raises:
        ValueError: a model or row that does not exist, or ``match`` of another form.
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


def _plain(model: Model, row: PaperRow | None, paper: Mapping[str, Entry]) -> Entry:
    if row is None:
        return Entry(model.name, _family(model.architecture or ""), model.scores, is_ours=True)
    return Entry(model.name, row.model, model.scores, row.pretraining, is_ours=True, paper=paper[row.name])


def _matches(match: Sequence[str], models: Sequence[Model], rows: Mapping[str, PaperRow]) -> dict[str, PaperRow]:
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


def _check_model(name: str, models: Sequence[Model], option: str) -> None:
    names = [model.name for model in models]
    if name not in names:
        raise ValueError(f"{option}: there are no results of {name!r}; there are results of {', '.join(names)}")


def _default_baseline(model: Model, models: Sequence[Model]) -> str | None:
    packaged = MODELS.get(model.architecture or "")
    candidates = [other for other in models if packaged and other.architecture == packaged.baseline is not None]
    if len(candidates) > 1:
        candidates = [other for other in candidates if other.is_set_as(model)]
    return candidates[0].name if len(candidates) == 1 else None


def _family(architecture: str) -> str:
    return (MODELS[architecture].family if architecture in MODELS else None) or OTHER
