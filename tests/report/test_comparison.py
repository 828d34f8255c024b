"""Models find their baseline and their family, and differences to the baseline are tested by what is known."""

import pytest
from support.report_results import CLIP, DIFF, outcomes, put

from diffclip_openclip.report.comparison import Entry, our_entries, paper_entries
from diffclip_openclip.report.evaluated_models import read_models
from diffclip_openclip.report.paper import Score, load_paper
from diffclip_openclip.report.uncertainty import Interval


def test_without_match_and_with_another_baseline(results):
    models, rows = read_models(results), load_paper()
    plain = our_entries(models, rows)
    assert [(entry.name, entry.family, entry.paper) for entry in plain] == [
        (CLIP, "CLIP", None),
        (DIFF, "DiffCLIP", None),
    ]
    assert plain[1].baseline.name == CLIP
    turned = our_entries(models, rows, baseline=DIFF)
    assert [(entry.name, entry.baseline and entry.baseline.name) for entry in turned] == [(DIFF, None), (CLIP, DIFF)]
    assert turned[1].difference("zero_shot_7/imagenet1k") == pytest.approx(-5.0)


def test_no_baseline_is_guessed_among_several(tmp_path):
    for label in ("CLIP-nano-baseline a", "CLIP-nano-baseline b", "DiffCLIP-nano-vision a", "DiffCLIP-V2-nano a"):
        put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.5}, checkpoint_sha256=label)
    put(tmp_path, "ViT-B-16 openai", "few_shot", "dtd", {"accuracy": 0.5}, checkpoint_sha256=None)
    models = read_models(tmp_path)
    assert all(entry.baseline is None for entry in our_entries(models, load_paper()))
    one = [model for model in models if model.name != "CLIP-nano-baseline b"]
    entries = {entry.name: entry for entry in our_entries(one, load_paper())}
    families = {name: (entry.family, entry.baseline and entry.baseline.name) for name, entry in entries.items()}
    assert families == {
        "CLIP-nano-baseline a": ("CLIP", None),
        "DiffCLIP-nano-vision a": ("DiffCLIP†", "CLIP-nano-baseline a"),
        "DiffCLIP-V2-nano a": ("other", "CLIP-nano-baseline a"),
        "ViT-B-16 openai": ("other", None),
    }


def test_families_follow_the_architecture_and_not_the_name(tmp_path):
    for label, architecture in {
        "OUT": "DiffCLIP-B-16-dynamic",
        "DiffCLIP-B-16-dynamic-cc12m": "DiffCLIP-B-16-vision",
        "plain": "CLIP-B-16-baseline",
        "DiffCLIP-B-16": None,
    }.items():
        fields = {"model": f"local-dir:{label}", "architecture": architecture, "checkpoint_sha256": label}
        put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.5}, **fields)
    entries = our_entries(read_models(tmp_path), load_paper())
    assert {entry.name: (entry.family, entry.baseline and entry.baseline.name) for entry in entries} == {
        "OUT": ("DiffCLIP*", "plain"),
        "DiffCLIP-B-16-dynamic-cc12m": ("DiffCLIP†", "plain"),
        "plain": ("CLIP", None),
        "DiffCLIP-B-16": ("other", None),
    }


# how sure a difference is


def certainty(own: Score, base: Score):
    return Entry("own", "DiffCLIP", {"key": own}, baseline=Entry("base", "CLIP", {"key": base})).certainty("key")


def test_the_same_samples_are_compared_pair_by_pair():
    """Expect McNemar's test to see what the intervals alone do not: 12 of 1,000 samples change, 11 for the better."""
    base = [1] * 500 + [0] * 500
    own = [0] + [1] * 510 + [0] * 489
    pair = [Score(100 * sum(h) / 1000, "", outcomes=(outcomes(h),), interval=Interval(40, 60)) for h in (own, base)]
    assert certainty(*pair).p == pytest.approx(2 * 13 / 2**12)
    assert not certainty(*pair).within_noise
    other = Score(50, "", outcomes=(outcomes(base, samples="others"),), interval=Interval(40, 60))
    assert certainty(pair[0], other).within_noise
    assert certainty(Score(50, ""), other) is None


def test_training_runs_are_compared_as_runs():
    assert certainty(Score(12, "", runs=(11, 12, 13)), Score(2, "", runs=(1, 2, 3))).p < 0.001
    assert certainty(Score(2.5, "", runs=(1.5, 2.5, 3.5)), Score(2, "", runs=(1, 2, 3))).within_noise
    assert certainty(Score(12, "", runs=(11, 12, 13)), Score(2, "", interval=Interval(1, 3))) is None


def test_the_papers_gain_on_mmvp_is_within_noise():
    """Compare 29 of 105 pairs with 23: 5.7 points, of which the size of the test set alone explains 11."""
    paper = paper_entries(load_paper())
    key = "mmvp/mean_7"
    clip, diffclip = (paper[f"CC12M/{name}"] for name in ("CLIP", "DiffCLIP"))
    assert [round(entry.scores[key].value * 1.05) for entry in (clip, diffclip)] == [23, 29]
    assert diffclip.difference(key) == pytest.approx(5.7)
    assert diffclip.certainty(key).within_noise
    assert 9 < diffclip.certainty(key).half < 12
    assert not diffclip.certainty("zero_shot_7/imagenet1k").within_noise
