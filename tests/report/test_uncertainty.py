"""Intervals and tests are the textbooks', and what has no textbook formula is compared with a plain bootstrap."""

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel
from support.report_results import outcomes

from diffclip_openclip.report.uncertainty import (
    Difference,
    Interval,
    detectable,
    holm,
    mean_interval,
    outcomes_interval,
    paired_difference,
    runs_difference,
    runs_interval,
    seeds_difference,
    share_interval,
    unrelated_difference,
)


def test_wilsons_interval():
    p, n, z = 29 / 105, 105, 1.959963985
    middle, half = (
        (p + z**2 / (2 * n)) / (1 + z**2 / n),
        z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)),
    )
    found = share_interval(29, 105)
    assert (found.low, found.high) == pytest.approx((100 * (middle - half), 100 * (middle + half)))
    assert share_interval(15, 15).high == 100
    assert outcomes_interval(outcomes([1] * 29 + [0] * 76)) == found


def test_mcnemars_test():
    """Expect the binomial tail of 2 worse among 12 changed: 2 (1 + 12 + 66) / 2^12."""
    own, base = [1] * 10 + [0] * 2 + [1] * 30, [0] * 10 + [1] * 2 + [1] * 30
    found = paired_difference((outcomes(own),), (outcomes(base),))
    assert found.p == pytest.approx(2 * (1 + 12 + 66) / 2**12)
    assert not found.within_noise
    same = paired_difference((outcomes(own),), (outcomes(own),))
    assert (same.p, same.half) == (1.0, 0.0)


def score(hits, trials, classes):
    if classes is None:
        return hits.sum() / trials.sum()
    return np.mean([hits[classes == label].mean() for label in np.unique(classes)])


@pytest.mark.parametrize("kind", ["captions of an image", "classes", "episodes"])
def test_the_bootstrap_is_that_of_drawn_samples(kind):
    """Draw indices one by one, for one score and for the difference of two."""
    generator = np.random.default_rng(3)
    classes = generator.integers(0, 4, 200) if kind == "classes" else None
    trials = generator.integers(1, 6, 200) if kind == "captions of an image" else np.ones(200)
    skill = generator.random(200)
    if kind == "episodes":
        own, base = (np.round(30 * (0.8 * skill + shift * generator.random(200))) / 30 for shift in (0.2, 0.15))
    else:
        own, base = (generator.binomial(trials.astype(int), np.clip(skill + shift, 0, 1)) for shift in (0.05, 0.0))
    drawn = []
    for _ in range(2000):
        chosen = generator.integers(0, 200, 200)
        if classes is not None:
            groups = [np.flatnonzero(classes == label) for label in range(4)]
            chosen = np.concatenate([generator.choice(group, len(group)) for group in groups])
        labels = None if classes is None else classes[chosen]
        drawn.append([score(hits[chosen], trials[chosen], labels) for hits in (own, base)])
    drawn = 100 * np.array(drawn)
    pair = [outcomes(hits, trials, classes) for hits in (own, base)]
    low, high = np.percentile(drawn[:, 0], (2.5, 97.5))
    assert (outcomes_interval(pair[0]).low, outcomes_interval(pair[0]).high) == pytest.approx((low, high), abs=0.8)
    low, high = np.percentile(drawn[:, 0] - drawn[:, 1], (2.5, 97.5))
    assert paired_difference((pair[0],), (pair[1],)).half == pytest.approx((high - low) / 2, rel=0.1)


def test_a_mean_of_data_sets_is_surer_than_each():
    generator = np.random.default_rng(5)
    base = [generator.random(300) < 0.5 for _ in range(9)]
    own = [hits | (generator.random(300) < 0.02) for hits in base]
    pairs = [
        tuple(outcomes(hits, samples=f"data set {at}") for hits in pair)
        for at, pair in enumerate(zip(own, base, strict=True))
    ]
    single = [paired_difference((one,), (other,)) for one, other in pairs]
    mean = paired_difference(*map(tuple, zip(*pairs, strict=True)))
    assert mean.half == pytest.approx(math.hypot(*(one.half for one in single)) / 9, rel=0.1)
    assert mean.p < 0.01
    assert mean_interval(50, [Interval(40, 60)] * 4) == Interval(45, 55)


def test_precision_is_a_share_of_what_is_answered_by_yes():
    """A model that says yes to 3 of 50 questions is no surer than 3 answers are; one that never does has no score."""
    some, none = outcomes([1] * 3 + [0] * 47, [1] * 3 + [0] * 47), outcomes([0] * 50, [0] * 50)
    assert outcomes_interval(some) == share_interval(3, 3)
    assert outcomes_interval(none) is None
    assert paired_difference((some,), (none,)) is None
    half = outcomes([1] * 10 + [0] * 40, [1] * 20 + [0] * 30)  # 50 %; three yes, some resamples have none
    assert paired_difference((some,), (half,)).half > 0


def test_recall_is_tested_among_what_is_to_be_found():
    due = [1] * 20 + [0] * 30
    own, base = outcomes([1] * 9 + [0] * 41, due), outcomes([0] * 9 + [1] + [0] * 40, due)
    assert paired_difference((own,), (base,)).p == pytest.approx(2 * (1 + 10) / 2**10)


def test_other_samples_are_no_pairs():
    own, base = outcomes([1, 0, 1]), outcomes([1, 0, 1], samples="others")
    assert paired_difference((own,), (base,)) is None
    assert paired_difference((own,), (outcomes([1, 0]),)) is None
    assert paired_difference((own,), ()) is None
    assert paired_difference((), ()) is None


def test_scores_of_which_the_intervals_are_known():
    found = unrelated_difference(1.96, Interval(49, 51), Interval(50, 50))
    assert found.half == 1
    assert found.p == pytest.approx(math.erfc(1.96 * 1.959963985 / math.sqrt(2)))
    assert unrelated_difference(0.0, Interval(5, 5), Interval(5, 5)).within_noise


def test_training_runs():
    """Compare with Welch's formula worked by hand: t = 2 / sqrt(2/3), 4 degrees of freedom."""
    found = runs_difference((3, 4, 5), (1, 2, 3))
    assert found.p == pytest.approx(0.0705, abs=5e-5)
    assert found.half == pytest.approx(2.776445 * math.sqrt(2 / 3), rel=1e-5)
    assert runs_difference((3, 4), (1,)) is None
    assert runs_difference((2, 2), (2, 2)).within_noise
    assert not runs_difference((3, 3), (2, 2)).within_noise


def test_runs_of_equal_scores_raise_no_warning(recwarn):
    assert runs_difference((20, 20, 20), (20, 26.7, 33.3)).within_noise
    assert not recwarn.list


def test_runs_of_the_same_seeds():
    """Compare with Student's formula worked by hand (differences 1, 2, 3: t = 2 / sqrt(1/3)), and with scipy."""
    own, base = (3.0, 5.0, 4.0), (2.0, 3.0, 1.0)
    found = seeds_difference(own, base)
    assert found.p == pytest.approx(0.074180, abs=1e-6)
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.p, found.df, found.by_seed) == (ttest_rel(own, base).pvalue, 2, True)
    interval = ttest_1samp([1, 2, 3], 0).confidence_interval()
    assert runs_interval([1, 2, 3]) == Interval(*map(pytest.approx, interval))
    assert seeds_difference((3,), (1,)) is None
    for base in ((2, 3), (3, 4)):  # the same difference with each seed, which is not certain for that
        assert seeds_difference((3, 4), base) == runs_difference((3, 4), base)
        assert seeds_difference((3, 4), base).within_noise


def test_holms_correction():
    """Of the four p-values that Wikipedia's article on the method works through, and where a cap and a tie matter."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "runs"), [(0.5, 34), (0.8, 15)])
def test_power_is_the_textbooks(effect, runs):
    """So many pairs find an effect of so many standard deviations with a power of 80 %: Cohen's tables, and G*Power."""
    found = [detectable(_of_unit_deviation(n)) for n in (runs - 1, runs)]
    assert found[0] > effect > found[1]
    assert detectable(_of_unit_deviation(runs), comparisons=6) > found[1]
    assert detectable(Difference(1.0, 0.5)) is None
    assert detectable(Difference(0.0, 1.0, 4.0)) is None


def _of_unit_deviation(runs):
    values = np.random.default_rng(0).normal(size=runs)
    values = (values - values.mean()) / values.std(ddof=1)
    return seeds_difference(values, np.zeros(runs))
