"""Result files are read, checked and grouped into models."""

import json

import numpy as np
import pytest
from support.report_results import CLIP, DIFF, pope, put, put_outcomes, put_runs, retrieval

from diffclip_openclip.data.catalog import MMVP_PATTERNS, SUGAR_CREPE_KINDS
from diffclip_openclip.report.comparison import our_entries
from diffclip_openclip.report.evaluated_models import group_runs, read_models
from diffclip_openclip.report.paper import load_paper


def test_seeds_and_precisions_are_rows_of_their_own(tmp_path):
    """Expect in each what does not depend on the seed, and the baseline of its own setting."""
    for label in (CLIP, DIFF):
        for at, (precision, seed) in enumerate((("fp32", 0), ("fp32", 1), ("amp", 0))):
            fields = {"precision": precision, "seed": seed, "folder": f"{label}{at}"}
            put(tmp_path, label, "few_shot", "dtd", {"accuracy": at / 10}, **fields)
        for at, precision in enumerate(("fp32", "amp")):
            fields = {"precision": precision, "seed": None, "folder": f"{label}{at}"}
            put(tmp_path, label, "zeroshot_retrieval", "flickr8k", retrieval(at / 2, 0.0), **fields)
    put(tmp_path, DIFF, "pope", "pope_random", pope(0.5), checkpoint_sha256="answers")
    models = read_models(tmp_path)
    found = {
        model.name: [round(model.scores[key].value) for key in ("few_shot/dtd", "image_retrieval@1/flickr8k")]
        for model in models
    }
    settings = {"amp, seed 0": [20, 51], "fp32, seed 0": [0, 1], "fp32, seed 1": [10, 1]}
    assert found == {f"{name} ({setting})": scores for name in (CLIP, DIFF) for setting, scores in settings.items()}
    for entry in our_entries(models, load_paper()):
        assert entry.baseline is None or entry.baseline.name == entry.name.replace(DIFF, CLIP)
        assert (entry.baseline is None) == entry.name.startswith(CLIP)
    assert all("pope_random/accuracy" in model.scores for model in models if model.name.startswith(DIFF))


def test_one_setting_is_not_in_the_name(tmp_path):
    put(tmp_path, DIFF, "few_shot", "dtd", {"accuracy": 0.5}, precision="amp", seed=1)
    put(tmp_path, DIFF, "zeroshot_retrieval", "flickr8k", retrieval(0.5, 0.5), precision="amp", seed=None)
    put(tmp_path, CLIP, "few_shot", "dtd", {"accuracy": 0.5})
    models = read_models(tmp_path)
    assert [model.name for model in models] == [CLIP, DIFF]
    assert our_entries(models, load_paper())[1].baseline.name == CLIP


def test_models_that_share_a_label_are_told_apart(tmp_path):
    for folder, sha256 in (("a", "a" * 64), ("b", "b" * 64)):
        put(tmp_path, "run", "few_shot", "dtd", {"accuracy": 0.5}, folder=folder, checkpoint_sha256=sha256)
    put(tmp_path, "run", "pope", "pope_random", pope(0.5), folder="c", checkpoint_sha256="answers")
    assert [model.name for model in read_models(tmp_path)] == [
        "run @ aaaaaaaa",
        "run @ bbbbbbbb",
        "run @ no checkpoint",
    ]


def test_recall_among_too_few_is_left_out(tmp_path):
    metrics = retrieval(0.5, 0.5) | {"image_retrieval_recall@10": None, "text_retrieval_recall@10": None}
    put(tmp_path, "run", "zeroshot_retrieval", "flickr8k", metrics)
    (model,) = read_models(tmp_path)
    assert set(model.scores) == {f"{kind}_retrieval@{k}/flickr8k" for kind in ("image", "text") for k in (1, 5)}
    del metrics["image_retrieval_recall@10"]
    put(tmp_path, "run", "zeroshot_retrieval", "flickr8k", metrics)
    with pytest.raises(ValueError, match="metrics lacks image_retrieval_recall@10"):
        read_models(tmp_path)


def test_a_mean_needs_every_pattern(tmp_path):
    patterns = {name: 0.2 for name in MMVP_PATTERNS if name != "Texts"}
    put(tmp_path, "run", "mmvp", "mmvp", {"patterns": patterns, "mean_7": 0.2, "mean_9": None})
    (model,) = read_models(tmp_path)
    assert model.scores["mmvp/mean_7"].value == pytest.approx(20)
    assert not {"mmvp/mean_9", "mmvp/Texts"} & model.scores.keys()


def test_labels_are_one_line_of_letters_without_doubled_names(tmp_path):
    labels = {"CLIP-nano-baseline CLIP-nano-baseline epoch_1": "CLIP-nano-baseline epoch_1", "a\n# b\tc": "a # b c"}
    labels |= {"red\x1b[31m": "red\ufffd[31m", "a\u2028b": "a b"}
    for folder, label in enumerate(labels):
        put(tmp_path, label, "few_shot", "dtd", {"accuracy": 0.5}, folder=str(folder), checkpoint_sha256=label)
    assert sorted(model.name for model in read_models(tmp_path)) == sorted(labels.values())


# training runs


def test_training_runs_become_one_model(tmp_path):
    put_runs(tmp_path, {CLIP: [0.1, 0.2, 0.3], DIFF: [0.4, 0.5, 0.6]})
    put(tmp_path, f"{DIFF} seed0", "linear_probe", "dtd", {"accuracy": 0.5}, checkpoint_sha256=f"{DIFF}0")
    models = group_runs(read_models(tmp_path), [f"CLIP={CLIP} seed*", f"DiffCLIP={DIFF} seed*"])
    assert [(model.name, model.runs) for model in models] == [
        (name, tuple(f"{label} seed{seed}" for seed in range(3)))
        for name, label in (("CLIP", CLIP), ("DiffCLIP", DIFF))
    ]
    assert set(models[1].scores) == {"few_shot/dtd"}  # what all runs have
    score = models[1].scores["few_shot/dtd"]
    assert (score.value, score.runs) == (pytest.approx(50), pytest.approx((40, 50, 60)))
    entry = our_entries(models, load_paper())[1]
    assert (entry.family, entry.baseline.name) == ("DiffCLIP", "CLIP")
    assert entry.certainty("few_shot/dtd").p < 0.05


def test_means_are_taken_in_each_run(tmp_path):
    for name, values in (("flickr30k", [0.1, 0.3]), ("flickr8k", [0.3, 0.1]), ("mscoco_captions", [0.2, 0.2])):
        for seed, value in enumerate(values):
            put(
                tmp_path,
                f"run seed{seed}",
                "zeroshot_retrieval",
                name,
                retrieval(value, value),
                checkpoint_sha256=str(seed),
            )
    (model,) = group_runs(read_models(tmp_path), ["run=run*"])
    assert model.scores["image_retrieval@5/mean"].runs == pytest.approx((25, 25))
    assert model.scores["image_retrieval@5/flickr8k"].runs == pytest.approx((35, 15))


def test_a_groups_name_is_not_taken(tmp_path):
    put_runs(tmp_path, {CLIP: [0.1, 0.2]})
    put(tmp_path, "CLIP", "few_shot", "dtd", {"accuracy": 0.5})
    with pytest.raises(ValueError, match="--group 'CLIP' is the name of a model that is in no group"):
        group_runs(read_models(tmp_path), [f"CLIP={CLIP}*"])


# outcomes


def test_scores_follow_from_their_outcomes(tmp_path):
    """Compute each score again from the arrays, in which the number of hits is made to give it."""
    generator = np.random.default_rng(0)
    label = generator.integers(0, 5, 400)
    hit = generator.random(400) < 0.2 + 0.1 * label
    per_class = float(np.mean([hit[label == one].mean() for one in range(5)]))
    ranks = {"image_to_text_rank": generator.integers(1, 13, 80), "text_to_image_rank": generator.integers(1, 13, 400)}
    recalls = {
        f"{kind}_retrieval_recall@{k}": float((ranks[name] <= k).mean())
        for k in (1, 5, 10)
        for kind, name in (("text", "image_to_text_rank"), ("image", "text_to_image_rank"))
    }
    yes, right = label % 2 == 0, hit
    said, true_yes = yes == right, (yes & right).sum()
    precision, recall = true_yes / said.sum(), true_yes / yes.sum()
    answers = {"accuracy": right.mean(), "precision": precision, "recall": recall, "yes_ratio": said.mean()}
    answers["f1"] = 2 * precision * recall / (precision + recall)
    pattern = np.arange(135) // 15
    shares = {name: float(hit[:135][pattern == place].mean()) for place, name in enumerate(MMVP_PATTERNS)}
    scores = ("text", "image", "group")
    kinds = {kind: float(hit[label == place].mean()) for place, kind in enumerate(list(SUGAR_CREPE_KINDS)[:5])}
    written = [
        ("zeroshot_classification", "imagenet1k", {"acc1": hit.mean()}, {"correct1": hit, "label": label}),
        ("linear_probe", "pets", {"accuracy": per_class}, {"correct": hit, "label": label}),
        ("linear_probe", "cifar10", {"accuracy": hit.mean()}, {"correct": hit, "label": label}),
        ("few_shot", "dtd", {"accuracy": label.mean() / 5, "ci95": 0.02}, {"accuracy": label / 5}),
        ("zeroshot_retrieval", "flickr8k", recalls, ranks | {"image_of_text": np.arange(80).repeat(5)}),
        ("mmvp", "mmvp", {"patterns": shares}, {"hit": hit[:135], "pattern": pattern}),
        ("sugar_crepe", "sugar_crepe", {"kinds": kinds, "mean": None}, {"correct": hit, "kind": label}),
        (
            "winoground",
            "winoground",
            {f"{name}_score": float(hit.mean()) for name in scores},
            dict.fromkeys(scores, hit),
        ),
        ("pope", "pope_random", answers, {"correct": right, "label": yes}),
    ]
    for task, dataset, metrics, arrays in written:
        put_outcomes(put(tmp_path, DIFF, task, dataset, metrics, templates="paper-7"), **arrays)
    (model,) = read_models(tmp_path)
    own = {key: score for key, score in model.scores.items() if not key.startswith("mmvp/mean")}
    assert len(own) == 1 + 2 + 1 + 6 + 9 + 5 + 3 + 5
    for key, score in own.items():
        (one,) = score.outcomes
        if one.classes is None:
            again = 100 * one.hits.sum() / one.trials.sum()
        else:
            again = 100 * np.mean([one.hits[one.classes == label].mean() for label in np.unique(one.classes)])
        assert again == pytest.approx(score.value), key
        assert score.interval.low < score.value < score.interval.high, key
    assert own["few_shot/dtd"].interval.half == pytest.approx(2)
    assert own["linear_probe/pets"].outcomes[0].classes is not None
    assert len(own["image_retrieval@5/flickr8k"].outcomes[0].hits) == 80  # by image
    assert len(model.scores["mmvp/mean_7"].outcomes) == 7


# files that are no results


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"templates": "openai-7"}, r"x\.json: templates is 'openai-7', not one of paper-7, openai-80"),
        ({"metrics": {"acc5": 0.5}}, r"x\.json: metrics lacks acc1"),
        ({"metrics": {"acc1": 13.6}}, r"x\.json: acc1 is 13\.6, which is no fraction between 0 and 1"),
        ({"metrics": {"acc1": float("nan")}}, r"x\.json: acc1 is nan, which is no fraction"),
        ({"metrics": {"acc1": "0.5"}}, r"x\.json: acc1 is '0\.5', which is no fraction"),
        ({"metrics": {"acc1": True}}, r"x\.json: acc1 is True, which is no fraction"),
        ({"metrics": [0.5]}, r"x\.json: metrics must be an object, not \[0\.5\]"),
        ({"label": None}, r"x\.json: label must be a string, not None"),
        ({"checkpoint_sha256": 3}, r"x\.json: checkpoint_sha256 must be a string or null, not 3"),
        ({"architecture": 3}, r"x\.json: architecture must be a string or null, not 3"),
        ({"seed": "0"}, r"x\.json: seed must be a whole number or null, not '0'"),
        ({"precision": None}, r"x\.json: precision must be a string, not None"),
        ({"images": {"test": None}}, r"x\.json: images must be numbers of images by split, not \{'test': None\}"),
        ("images", r"x\.json is no result of `diffclip evaluate`: it lacks images"),
        ({"task": "mmvp"}, r"x\.json lies in the folder of task zeroshot_classification, and says .* 'mmvp'"),
        ("date", r"x\.json is no result of `diffclip evaluate`: it lacks date"),
        ("templates", r"x\.json is no result of `diffclip evaluate`: it lacks templates"),
    ],
)
def test_what_is_no_result_is_named(tmp_path, change, expected):
    path = put(tmp_path, "run", "zeroshot_classification", "imagenet1k", {"acc1": 0.5}, templates="paper-7")
    content = json.loads(path.read_text())
    if isinstance(change, str):
        del content[change]
    else:
        content |= change
    path.unlink()
    path.with_name("x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=expected):
        read_models(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"dataset": ', r"x\.json is no JSON"),
        (b"\xff\xfe", r"x\.json is no text in UTF-8"),
        ("[1]", r"x\.json is no result: its content is a list"),
    ],
)
def test_broken_files_are_named(tmp_path, text, expected):
    path = tmp_path / "run" / "few_shot" / "x.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=expected):
        read_models(tmp_path)


def test_results_that_are_there_twice(tmp_path):
    for folder in ("a", "b"):
        put(tmp_path, "run", "few_shot", "dtd", {"accuracy": 0.5}, folder=folder)
    with pytest.raises(ValueError, match=r"a/few_shot/dtd_\.json and b/few_shot/dtd_\.json are results of the same"):
        read_models(tmp_path)


def test_no_results(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read_models(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"holds no results; they are expected as MODEL/TASK/NAME\.json"):
        read_models(tmp_path)
