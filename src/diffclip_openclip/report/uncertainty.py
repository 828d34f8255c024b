"""Estimate how far a score, or a difference of two, may be from what other test samples or other training runs give.

What can be said depends on what is known:

- the outcomes of each test sample: Wilson's interval for a share of hits, otherwise the bootstrap over samples. Two
  models on the same samples are compared pair by pair: McNemar's exact test for a share of hits, otherwise the
  bootstrap of the difference, in which both see the same drawn samples
- the scores of several training runs: Student's interval of their mean. Two models are compared seed by seed by
  Student's test of the differences where both were trained with the same seeds, otherwise by Welch's test
- the size of the test set alone, as of the paper's numbers: Wilson's interval, and a difference as of unrelated
  samples, which is too wide where both models err on the same samples

All values are in percent. The bootstrap's seed follows from the data set, so the same results give the same report.
"""

import math
import statistics
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

RESAMPLES = 2000  # of the bootstrap
LEVEL = 0.05  # a difference of a higher p is within noise
POWER = 0.8  # with which a test would find the smallest detectable difference
_Z = 1.959963985  # standard deviations on each side of 95 % of a normal distribution


@dataclass(frozen=True)
class Interval:
    """Hold a 95 % interval."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Return half of its width."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """Hold how sure a difference to the baseline is."""

    half: float  # half the width of its 95 % interval
    p: float  # how likely one as large is if there is none
    df: float | None = None  # degrees of freedom, of a t-test between training runs
    by_seed: bool = False  # whether it is a t-test of the differences of runs with the same seed

    @property
    def within_noise(self) -> bool:
        """Tell whether the difference may be chance."""
        return not self.p < LEVEL


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Hold what a score is computed from: the sum of hits over the sum of trials, or the mean of the classes' of it."""

    samples: str  # names the units: the same for outcomes of the same ones in the same order, and for no others
    hits: np.ndarray  # by unit, (U,): of an image, of all captions of an image, of a pair of images, of an episode
    trials: np.ndarray  # by unit, (U,)
    classes: np.ndarray | None = None  # by unit, (U,), where the score is the mean of the classes' scores

    @property
    def is_share(self) -> bool:
        """Tell whether the score is the share of hits among the units that count, as of precision those with a yes."""
        is_zero_or_one = np.isin(self.trials, (0, 1)) & ((self.hits == 0) | (self.hits == self.trials))
        return self.classes is None and bool(is_zero_or_one.all())


# one score


def share_interval(hits: int, units: int) -> Interval:
    """Return Wilson's interval of a share."""
    from scipy.stats import binomtest

    found = binomtest(hits, units).proportion_ci(method="wilson")
    return Interval(100 * float(found.low), 100 * float(found.high))


def outcomes_interval(outcomes: Outcomes) -> Interval | None:
    """Return the interval of a score: Wilson's of a share of hits, the bootstrap's of others; None without a trial."""
    if not outcomes.trials.any():
        return None
    if outcomes.is_share:
        return share_interval(int(outcomes.hits.sum()), int(outcomes.trials.sum()))
    return _percentiles(_draws((outcomes,))[:, 0])


def mean_interval(value: float, intervals: Sequence[Interval]) -> Interval:
    """Return the interval of a mean whose members' intervals are known, as of unrelated members."""
    half = math.hypot(*(interval.half for interval in intervals)) / len(intervals)
    return Interval(max(0.0, value - half), min(100.0, value + half))


# two scores


def paired_difference(own: tuple[Outcomes, ...], base: tuple[Outcomes, ...]) -> Difference | None:
    """Compare two models on the same samples; None where these are not the same, or one model has no score.

    Args:
        own, base: of each data set that the score is the mean of.
    """
    if len(own) != len(base) or not own or not all(map(_are_paired, own, base)):
        return None
    drawn = sum((_draws(pair) for pair in zip(own, base, strict=True)), np.zeros((RESAMPLES, 2))) / len(own)
    draws = drawn[:, 0] - drawn[:, 1]
    draws = draws[np.isfinite(draws)]  # of both models, a trial was drawn
    if not len(draws):
        return None
    if len(own) == 1 and own[0].is_share and base[0].is_share and np.array_equal(own[0].trials, base[0].trials):
        return Difference(_percentiles(draws).half, _mcnemar(own[0].hits, base[0].hits))
    beyond = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Difference(_percentiles(draws).half, min(1.0, 2 * (beyond + 1) / (len(draws) + 1)))


def unrelated_difference(difference: float, own: Interval, base: Interval) -> Difference:
    """Compare two scores of which only the intervals are known."""
    half = math.hypot(own.half, base.half)
    return Difference(half, math.erfc(abs(difference) / half * _Z / math.sqrt(2)) if half else float(difference == 0))


def runs_difference(own: Sequence[float], base: Sequence[float]) -> Difference | None:
    """Compare the scores of two models' training runs by Welch's test; None with fewer than two runs of one."""
    if min(len(own), len(base)) < 2:
        return None
    if max(statistics.stdev(own), statistics.stdev(base)) < 1e-9:
        return Difference(0.0, float(math.isclose(statistics.mean(own), statistics.mean(base))))
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():  # scipy warns where all runs of one model score the same, as of 15 pairs they do
        warnings.simplefilter("ignore", RuntimeWarning)
        found = ttest_ind(own, base, equal_var=False)
    interval = found.confidence_interval()
    return Difference(float(interval.high - interval.low) / 2, float(found.pvalue), float(found.df))


def seeds_difference(own: Sequence[float], base: Sequence[float]) -> Difference | None:
    """Compare two models' training runs seed by seed by Student's test; None with fewer than two seeds.

    Differences that are all the same, as few seeds and few test samples may give, would pass for certain. Such runs are
    compared by Welch's test.

    Args:
        own, base: the scores by seed, of the same seeds in the same order.
    """
    differences = [a - b for a, b in zip(own, base, strict=True)]
    if len(differences) < 2 or statistics.stdev(differences) < 1e-9:
        return runs_difference(own, base)
    from scipy.stats import ttest_rel

    found = ttest_rel(own, base)
    return Difference(runs_interval(differences).half, float(found.pvalue), float(found.df), by_seed=True)


# training runs


def runs_interval(values: Sequence[float]) -> Interval:
    """Return Student's interval of the mean of at least two values."""
    from scipy.stats import sem, t

    half = float(t.isf(LEVEL / 2, len(values) - 1) * sem(values))
    mean = statistics.mean(values)
    return Interval(mean - half, mean + half)


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979), so that any error among them has at most the level's chance."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        highest = max(highest, (len(ps) - rank) * ps[index])
        corrected[index] = min(1.0, highest)
    return corrected


def detectable(difference: Difference, comparisons: int = 1) -> float | None:
    """Return the smallest true difference that a t-test between training runs would find with a power of POWER.

    It follows from the number of runs and their observed deviation, by the noncentral t distribution.

    Args:
        comparisons: how many p-values are corrected together; the level is LEVEL / comparisons, of Holm's first step.
    """
    if difference.df is None or not difference.half:
        return None
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    standard_error = difference.half / float(t.isf(LEVEL / 2, difference.df))
    critical = float(t.isf(LEVEL / comparisons / 2, difference.df))
    shift = brentq(lambda shift: float(nct.sf(critical, difference.df, shift)) - POWER, 0.0, 4 * critical + 4)
    return standard_error * float(shift)


def _are_paired(own: Outcomes, base: Outcomes) -> bool:
    return own.samples == base.samples and len(own.hits) == len(base.hits)


def _mcnemar(own: np.ndarray, base: np.ndarray) -> float:
    from scipy.stats import binomtest

    better, worse = int(((own == 1) & (base == 0)).sum()), int(((own == 0) & (base == 1)).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


# the bootstrap


@cache
def _draws(models: tuple[Outcomes, ...]) -> np.ndarray:
    """Score models on samples that are drawn again, the same for all of them; (resamples, models)."""
    columns = np.stack([column for one in models for column in (one.hits, one.trials)], axis=1).astype(float)
    generator = np.random.default_rng(zlib.crc32(models[0].samples.encode()))  # other data, other numbers
    strata = list(_strata(columns, models[0].classes))
    with np.errstate(invalid="ignore"):  # no trial is among the drawn
        sums = (_resample(stratum, generator) for stratum in strata)
        scores = np.zeros((RESAMPLES, len(models)))
        for drawn in sums:
            scores += 100 * drawn[:, 0::2] / drawn[:, 1::2]
    return scores / len(strata)


def _strata(columns: np.ndarray, classes: np.ndarray | None) -> Iterator[np.ndarray]:
    if classes is None:
        yield columns
        return
    for label in np.unique(classes):
        yield columns[classes == label]


def _resample(columns: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw as many rows as there are, with replacement, and add them up; (resamples, columns).

    Rows take few values, so how often each value is drawn is one multinomial number instead of a draw for each row.
    """
    values, counts = np.unique(columns, axis=0, return_counts=True)
    return generator.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES) @ values


def _percentiles(draws: np.ndarray) -> Interval:
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return Interval(float(low), float(high))
