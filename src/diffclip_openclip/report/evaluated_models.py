"""Group what ``diffclip evaluate`` wrote into models, and several training runs of one model into one.

Result files are RESULTS/<model>/<task>/<name>.json, with metrics as fractions. A model is a checkpoint as it was
evaluated, in one precision and with one seed.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from pathlib import Path

from diffclip_openclip.data.catalog import POPE
from diffclip_openclip.evaluation.results import RESULT_TASKS, result_paths
from diffclip_openclip.report.paper import Score, with_means
from diffclip_openclip.report.result_scores import Result, plain_text, read_result
from diffclip_openclip.weights.runs import epoch_of


@dataclass(frozen=True)
class EvaluatedModel:
    """Hold all results of a checkpoint in one precision and with one seed, or of several training runs of one model."""

    name: str  # the label, with the checkpoint's hash and the settings where the label alone is not unique
    architecture: str | None  # open_clip's name of it, if it has one
    sha256: str | None  # of the checkpoint; None for several
    precision: str | None  # None where no result has one
    seed: int | None  # likewise
    results: tuple[Result, ...]
    scores: Mapping[
        str, Score
    ]  # of all results, and the means whose members are all there; of several runs, their means
    runs: tuple[str, ...] = ()  # the names of the training runs, if it is several
    checkpoint: tuple[str, int] | None = None  # the training run and the epoch, if it is one of a run

    def is_set_as(self, other: "EvaluatedModel") -> bool:
        """Tell whether precision and seed are the same, as far as both are known."""
        pairs = ((self.precision, other.precision), (self.seed, other.seed))
        return all(mine == theirs or mine is None or theirs is None for mine, theirs in pairs)


def read_models(folder: Path) -> list[EvaluatedModel]:
    """Return all models that have results in ``folder``, by name.

    Files elsewhere than in a model's folder of a known task are not read.

    Raises:
        FileNotFoundError: ``folder`` does not exist.
        ValueError: a file is no result, there are no results, or two files are of the same model and data.
    """
    groups = _by_checkpoint(_read_results(folder))
    labels = [label for label, _ in groups]
    models = [model for key, own in groups.items() for model in _models(*key, own, ambiguous=labels.count(key[0]) > 1)]
    return sorted(models, key=lambda model: model.name)


# files


def _read_results(folder: Path) -> list[Result]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder that `diffclip evaluate` wrote")
    results = [read_result(path, folder) for path in result_paths(folder)]
    if not results:
        raise ValueError(
            f"{folder} holds no results; they are expected as MODEL/TASK/NAME.json, as `diffclip evaluate` writes "
            f"them, with TASK one of {', '.join(RESULT_TASKS)}"
        )
    return results


# models


def plain_label(result: Result) -> str:
    """Return a result's label as plain text, without a word that is there twice in turn.

    Earlier versions called a model "CLIP-nano-baseline CLIP-nano-baseline" where its run has the model's name.
    """
    return " ".join(word for word, _ in groupby(plain_text(result.content["label"]).split(" ")))


def _by_checkpoint(results: Iterable[Result]) -> dict[tuple[str, str | None], list[Result]]:
    """Group results by label and checkpoint.

    POPE scores a language model's answers. Each category has a file of answers with a hash of its own, so these results
    go by their label: to the one checkpoint that has it, or else into a group of their own.
    """
    groups: dict[tuple[str, str | None], list[Result]] = {}
    answers: list[Result] = []
    for result in results:
        if result.task == POPE:
            answers.append(result)
        else:
            groups.setdefault((plain_label(result), result.content["checkpoint_sha256"]), []).append(result)
    checkpoints = list(groups)
    for result in answers:
        label = plain_label(result)
        own = [key for key in checkpoints if key[0] == label]
        groups.setdefault(own[0] if len(own) == 1 else (label, None), []).append(result)
    return groups


def _models(label: str, sha256: str | None, results: Sequence[Result], ambiguous: bool) -> Iterator[EvaluatedModel]:
    """Yield a model for each precision and seed; a result that depends on neither is in each of them."""
    name = f"{label} @ {sha256[:8] if sha256 else 'no checkpoint'}" if ambiguous else label
    settings = _settings(results)
    several_precisions, several_seeds = (len({setting[at] for setting in settings}) > 1 for at in (0, 1))
    for precision, seed in settings:
        own = tuple(result for result in results if _applies(result, precision, seed))
        _check_unique(own)
        shown = [precision] if several_precisions else []
        shown += [f"seed {seed}"] if several_seeds and seed is not None else []
        architecture = next((result.content.get("architecture") for result in own if result.task != POPE), None)
        full_name = f"{name} ({', '.join(map(str, shown))})" if shown else name
        scores = with_means({key: score for result in own for key, score in result.scores.items()}, False)
        place = _place_in_run(own)
        yield EvaluatedModel(full_name, architecture, sha256, precision, seed, own, scores, checkpoint=place)


def _place_in_run(results: Sequence[Result]) -> tuple[str, int] | None:
    """Return the training run and the epoch that a checkpoint is of; None for other weights.

    A run is known by its folder where the checkpoint lies in one, since names of runs come again, as in several seeds'
    folders. Results of earlier versions do not have the epoch, but the names of their checkpoints do.
    """
    for result in results:
        path = Path(result.content.get("pretrained") or "")
        run, epoch = result.content.get("run"), result.content.get("epoch")
        if path.parent.name == "checkpoints":
            run, epoch = path.parent.parent.as_posix(), epoch_of(path) if epoch is None else epoch
        if run and epoch is not None:
            return run, epoch
    return None


def _settings(results: Sequence[Result]) -> list[tuple[str | None, int | None]]:
    """Return the precisions that there are results in, each with its seeds."""
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


# several training runs


def group_runs(models: Sequence[EvaluatedModel], groups: Sequence[str]) -> list[EvaluatedModel]:
    """Make several training runs of one model into one, whose scores are the runs' means.

    Args:
        groups: ``NAME=PATTERN`` each. PATTERN is a model's name, with ``*`` for anything. A NAME may come again.

    Raises:
        ValueError: a group has another form or a name that is taken, matches fewer than two models, or one of another
            group.
    """
    found = members(models, groups)
    taken: dict[str, str] = {}
    for name, runs in found.items():
        names = ", ".join(model.name for model in models)
        if len(runs) < 2:
            raise ValueError(f"--group {name!r} has {len(runs)} models, and takes at least two; there are {names}")
        for model in runs:
            if taken.setdefault(model.name, name) != name:
                raise ValueError(f"{model.name!r} is in two groups, {taken[model.name]!r} and {name!r}")
    single = [model for model in models if model.name not in taken]
    if clash := found.keys() & {model.name for model in single}:
        raise ValueError(f"--group {min(clash)!r} is the name of a model that is in no group; choose another")
    return sorted((*single, *(mean_of_runs(*item) for item in found.items())), key=lambda model: model.name)


def members(models: Sequence[EvaluatedModel], groups: Sequence[str]) -> dict[str, list[EvaluatedModel]]:
    """Return the models that each group's patterns match, as :func:`group_runs` takes them.

    Raises:
        ValueError: a group has another form.
    """
    found: dict[str, list[EvaluatedModel]] = {}
    for text in groups:
        name, sign, pattern = text.partition("=")
        if not (name and sign and pattern):
            raise ValueError(f"--group {text!r} is not of the form NAME=PATTERN, as in 'DiffCLIP=DiffCLIP-B-16 seed*'")
        matching = [model for model in models if model.name == pattern or fnmatchcase(model.name, pattern)]
        found.setdefault(name, []).extend(model for model in matching if model not in found[name])
    return found


def mean_of_runs(name: str, runs: Sequence[EvaluatedModel]) -> EvaluatedModel:
    """Return the model of which several training runs' mean scores are."""
    keys = [key for key in runs[0].scores if all(key in run.scores for run in runs)]
    architectures, precisions = {run.architecture for run in runs}, {run.precision for run in runs}
    return EvaluatedModel(
        name,
        architectures.pop() if len(architectures) == 1 else None,
        None,
        precisions.pop() if len(precisions) == 1 else None,
        None,
        tuple(result for run in runs for result in run.results),
        {key: _mean_score([run.scores[key] for run in runs], _training_seeds(runs)) for key in keys},
        tuple(run.name for run in runs),
    )


def _training_seeds(runs: Sequence[EvaluatedModel]) -> tuple[int, ...]:
    """Return the seed that each run was trained with; none unless all are known and differ.

    Results of POPE, and those of earlier versions, do not say it. Others of the same run do.
    """
    told = [[result.content.get("training_seed") for result in run.results] for run in runs]
    found = [{seed for seed in own if seed is not None} for own in told]
    seeds = tuple(seed for own in found if len(own) == 1 for seed in own)
    return seeds if len(set(seeds)) == len(runs) else ()


def _mean_score(scores: Sequence[Score], seeds: tuple[int, ...]) -> Score:
    values = tuple(score.value for score in scores)
    source = f"mean of {len(values)} training runs: {', '.join(f'{value:.4g}' for value in values)}"
    is_other_size = any(score.is_other_size for score in scores)
    return Score(statistics.mean(values), source, runs=values, seeds=seeds, is_other_size=is_other_size)
