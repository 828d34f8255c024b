"""Results put together: a model is a checkpoint as it was evaluated, in one precision and with one seed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffclip_openclip.data.catalog import POPE
from diffclip_openclip.report.results import Result, read_results
from diffclip_openclip.report.scores import Score, with_means


@dataclass(frozen=True)
class Model:
    """A checkpoint, ``precision`` and ``seed``, and all results of it; None where no result has such a setting.

    ``name`` is its label, with the checkpoint's hash where two share a label, and the settings where there are several.
    ``architecture`` is open_clip's name of it, if it has one.
    """

    name: str
    architecture: str | None
    sha256: str | None
    precision: str | None
    seed: int | None
    results: tuple[Result, ...]

    @property
    def scores(self) -> dict[str, Score]:
        """What its files say, and the means of what is complete."""
        return with_means({key: score for result in self.results for key, score in result.scores.items()}, False)

    def is_set_as(self, other: "Model") -> bool:
        """Whether no setting differs."""
        pairs = ((self.precision, other.precision), (self.seed, other.seed))
        return all(mine == theirs or mine is None or theirs is None for mine, theirs in pairs)


def read_models(folder: Path) -> list[Model]:
    """All models that have results in ``folder``, by name.

    Raises:
        FileNotFoundError, ValueError: as :func:`~diffclip_openclip.report.results.read_results`.
        ValueError: two files say the same; names them.
    """
    groups = _grouped(read_results(folder))
    labels = [label for label, _ in groups]
    models = [model for key, own in groups.items() for model in _models(*key, own, ambiguous=labels.count(key[0]) > 1)]
    return sorted(models, key=lambda model: model.name)


def _grouped(results: Iterable[Result]) -> dict[tuple[str, str | None], list[Result]]:
    """Results by label and checkpoint.

    What POPE scores are a language model's answers, of which each category has a file: they go by the label alone, to
    the one checkpoint that has it, or else stand for themselves.
    """
    groups: dict[tuple[str, str | None], list[Result]] = {}
    answers: list[Result] = []
    for result in results:
        if result.task == POPE:
            answers.append(result)
        else:
            groups.setdefault((result.content["label"], result.content["checkpoint_sha256"]), []).append(result)
    checkpoints = list(groups)
    for result in answers:
        own = [key for key in checkpoints if key[0] == result.content["label"]]
        groups.setdefault(own[0] if len(own) == 1 else (result.content["label"], None), []).append(result)
    return groups


def _models(label: str, sha256: str | None, results: Sequence[Result], ambiguous: bool) -> Iterator[Model]:
    """A model for each setting; what does not depend on a setting stands in each."""
    name = f"{label} @ {sha256[:8] if sha256 else 'no checkpoint'}" if ambiguous else label
    settings = _settings(results)
    several_precisions, several_seeds = (len({setting[at] for setting in settings}) > 1 for at in (0, 1))
    for precision, seed in settings:
        own = tuple(result for result in results if _applies(result, precision, seed))
        _check_unique(own)
        shown = [precision] if several_precisions else []
        shown += [f"seed {seed}"] if several_seeds and seed is not None else []
        architecture = next((result.content.get("architecture") for result in own if result.task != POPE), None)
        yield Model(
            f"{name} ({', '.join(map(str, shown))})" if shown else name, architecture, sha256, precision, seed, own
        )


def _settings(results: Sequence[Result]) -> list[tuple[str | None, int | None]]:
    """Precisions, and the seeds that there are of each."""
    seeds: dict[str, set[int]] = {}
    for result in results:
        if result.task != POPE:
            seed = result.content.get("seed")
            seeds.setdefault(result.content["precision"], set()).update([] if seed is None else [seed])
    found: list[tuple[str | None, int | None]] = []
    for precision in sorted(seeds):
        found += [(precision, seed) for seed in sorted(seeds[precision])] or [(precision, None)]
    return found or [(None, None)]


def _applies(result: Result, precision: str | None, seed: int | None) -> bool:
    if result.task == POPE:
        return True
    return result.content["precision"] == precision and result.content.get("seed") in (None, seed)


def _check_unique(results: Iterable[Result]) -> None:
    seen: dict[str, str] = {}
    for result in results:
        for key in result.scores:
            if key in seen:
                raise ValueError(f"{seen[key]} and {result.path} are results of the same model and data; remove one")
            seen[key] = result.path
