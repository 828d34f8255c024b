"""The attention score measures where a map lies, with intervals, and models that learnt something have it."""

import json
import runpy
import sys

import numpy as np
import open_clip
import pytest
import torch
from attention_score import (
    SCORES,
    as_markdown,
    attention_score,
    chance,
    score_map,
    score_model,
    shuffle_weights,
    summarize,
)
from composed_images import SIDE, Pair, compose
from PIL import Image
from support.common import REPOSITORY
from support.discs import DISCS, GREY, HUES, QUADRANTS, needs_skimage

from diffclip_openclip import DifferentialAttention
from diffclip_openclip.weights.loading import LoadedModel
from diffclip_openclip.weights.spec import ModelSpec

# the scores of one map


def _square(top, left, side, size=4):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _square(top, left, side, size=4):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_relevance_that_is_the_mask_scores_one():
    named, other = _square(10, 20, 30, SIDE), _square(70, 70, 40, SIDE)
    assert score_map(named.float(), named, other) == (1.0, 1.0, 1.0)
    assert score_map(other.float(), named, other) == (0.0, 0.0, 0.0)


def test_a_map_is_stretched_bilinearly():
    # 2 -> 4 pixels bilinearly: [1, 0] becomes [1, 3/4, 1/4, 0]; the map's 2 x 2 the product of two such rows
    relevance = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    inside, pointing, within = score_map(relevance, _square(0, 0, 2), _square(2, 2, 2))
    assert inside == pytest.approx(1.75**2 / 2**2)
    assert pointing == 1.0
    assert within == pytest.approx(1.75**2 / (1.75**2 + 0.25**2))


def test_a_map_without_relevance_is_at_chance():
    named, other = _square(0, 0, 2), _square(3, 3, 1)
    assert score_map(torch.zeros(2, 2), named, other) == pytest.approx((4 / 16, 4 / 16, 4 / 5))
    # named in turn, the two make 1/2 on average
    assert score_map(torch.zeros(2, 2), other, named) == pytest.approx((1 / 16, 1 / 16, 1 / 5))


def test_relevance_in_neither_object_prefers_neither():
    relevance = _square(0, 2, 2).float()
    assert score_map(relevance, _square(0, 0, 2), _square(2, 0, 2)) == (0.0, 0.0, 0.5)


def test_a_plateau_points_by_its_share():
    relevance = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    # the maximum is the upper row of pixels, of which the named object has three
    named = torch.tensor([[True, True, True, False], *[[False] * 4] * 3])
    assert score_map(relevance, named, _square(2, 0, 2))[1] == 0.75


def test_chance_is_the_score_of_an_even_map():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(5):
        masks = np.zeros((2, SIDE, SIDE), dtype=bool)
        for mask, quadrant in zip(masks, rng.permutation(4)[:2], strict=True):
            mask[QUADRANTS[quadrant]] = rng.random((64, 64)) < rng.random()
        pairs.append(Pair(Image.new("RGB", (SIDE, SIDE)), masks, ("a", "b")))
    scores = []
    for pair in pairs:
        first, second = torch.from_numpy(pair.masks)
        scores += [score_map(torch.ones(4, 4), first, second), score_map(torch.ones(4, 4), second, first)]
    assert tuple(np.mean(scores, axis=0)) == pytest.approx(tuple(chance(pairs).values())[:3])
    assert chance(pairs)["recognised"] == 0.5


def test_gradient_times_map_sums_to_zero_behind_a_norm():
    """Show why "chefer" does not compare DiffCLIP with CLIP like for like."""
    torch.manual_seed(0)
    attention = DifferentialAttention(16, 4).double()
    attention.sub_norm.eps = 0.0  # with it the sum is only nearly zero
    x, weights = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    a1, a2 = attention.attention_maps(x)
    difference = (a1 - attention.compute_lambda() * a2).detach().requires_grad_()
    (gradient,) = torch.autograd.grad((attention.attend_with(x, difference) * weights).sum(), difference)
    product = gradient * difference
    assert (product.abs().sum(-1) > 1e-3).all()
    assert product.sum(-1).abs().max() < 1e-12


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    base = rng.random((1, 200, 1))
    rows = summarize({"first": base, "second": np.concatenate([base, base + 0.2])}, {"score": 0.5})
    first, second = rows
    assert first.difference is None
    assert first.value.mean == pytest.approx(base.mean())
    assert first.value.high - first.value.low > 0.05
    # checkpoints are averaged image by image; what is common to all images leaves no doubt
    assert second.checkpoints == pytest.approx([base.mean(), base.mean() + 0.2])
    assert (second.difference.mean, second.difference.low, second.difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(0.5, 0.1, (1, 400, 1))
    [row] = summarize({"model": values}, {"score": 0.5})
    half = 1.96 * values.std() / 400**0.5
    assert row.value.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert row.value.high == pytest.approx(values.mean() + half, abs=0.05 * half)
    assert summarize({"model": values}, {"score": 0.5}) == [row]


def test_table_is_in_per_cent_by_score():
    values = np.full((1, 10, 2), 0.25)
    rows = summarize({"A": values, "B": values + 0.5}, {"inside": 0.125, "pointing": 0.125})
    assert as_markdown(rows).splitlines()[2:] == [
        "| inside | 12.5 | A | 25.0 [25.0, 25.0] | 25.0 |  |",
        "| inside | 12.5 | B | 75.0 [75.0, 75.0] | 75.0 | +50.0 [+50.0, +50.0] |",
        "| pointing | 12.5 | A | 25.0 [25.0, 25.0] | 25.0 |  |",
        "| pointing | 12.5 | B | 75.0 [75.0, 75.0] | 75.0 | +50.0 [+50.0, +50.0] |",
    ]


@pytest.fixture(scope="module")
def trained():
    """Train a DiffCLIP that has learnt in seconds which of twelve colours a disc has, from single discs on grey."""
    torch.manual_seed(0)
    model, _, preprocess = open_clip.create_model_and_transforms("DiffCLIP-nano")
    tokenizer = open_clip.get_tokenizer("DiffCLIP-nano")
    settings = dict(open_clip.get_model_preprocess_cfg(model))
    optimizer = torch.optim.AdamW(model.visual.parameters(), lr=1e-3)
    with torch.no_grad():
        text = model.encode_text(tokenizer(list(HUES)), normalize=True)
    rng = np.random.default_rng(0)
    for _ in range(120):
        images = []
        for disc in DISCS:
            pixels = np.asarray(GREY["gravel"].resize((SIDE, SIDE))).copy()
            pixels[QUADRANTS[rng.integers(4)]][disc.mask] = disc.pixels[disc.mask]
            images.append(preprocess(Image.fromarray(pixels)))
        logits = 50 * model.encode_image(torch.stack(images), normalize=True) @ text.t()
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(DISCS)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return LoadedModel(ModelSpec("DiffCLIP-nano"), model.eval(), tokenizer, preprocess, settings)


@pytest.mark.parametrize("method", ["chefer", "gradcam"])
def test_trained_weights_have_the_score_and_shuffled_ones_lose_it(trained, method):
    pairs = compose(DISCS, GREY, 40, seed=1)
    own = score_model(trained, pairs, method=method)[None]
    shuffled = np.stack([score_model(shuffle_weights(trained, seed), pairs, method=method) for seed in range(3)])
    rows = {(row.model, row.score): row for row in summarize({"own": own, "shuffled": shuffled}, chance(pairs))}
    within = rows["own", "within pair"]
    assert within.value.low > 0.55
    assert rows["own", "inside"].value.low > rows["own", "inside"].chance
    assert rows["own", "recognised"].value.low > 0.5
    assert rows["shuffled", "within pair"].difference.high < 0
    # over shufflings (t of 2 degrees of freedom): chance, and nothing like the trained one's
    lost = np.array(rows["shuffled", "within pair"].checkpoints)
    half = 4.30 * lost.std(ddof=1) / 3**0.5
    assert abs(lost.mean() - 0.5) <= half
    assert lost.max() < within.value.low


def test_a_method_that_knows_no_text_is_at_chance(trained):
    scores = score_model(trained, compose(DISCS, GREY, 3, seed=2), method="rollout")
    assert scores.shape == (3, len(SCORES))
    assert scores[:, SCORES.index("within pair")] == pytest.approx(0.5)


def test_shuffling_keeps_the_weights_and_the_model(trained):
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    shuffled = shuffle_weights(trained).model.state_dict()
    for name, tensor in trained.model.named_parameters():
        assert torch.equal(tensor, before[name])
        assert torch.equal(shuffled[name].flatten().sort()[0], tensor.flatten().sort()[0])
    weight = "visual.trunk.blocks.0.attn.qkv.weight"
    assert not torch.equal(shuffled[weight], before[weight])


def test_one_image_is_too_few(trained):
    with pytest.raises(ValueError, match="there are 1 images"):
        score_model(trained, compose(DISCS, GREY, 1, seed=3))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    specs = []
    for name, seed in (("CLIP-nano-baseline", 0), ("DiffCLIP-nano", 0), ("DiffCLIP-nano", 1)):
        torch.manual_seed(seed)
        path = folder / f"{name}-{seed}.pt"
        torch.save(open_clip.create_model(name).state_dict(), path)
        specs.append(f"{name},{path}")
    return specs


def test_checkpoints_of_one_model_are_averaged(checkpoints):
    pairs = compose(DISCS, GREY, 4, seed=4)
    rows = attention_score(checkpoints, pairs, seed=5)
    models = ["CLIP-nano-baseline", "DiffCLIP-nano", "CLIP-nano-baseline, shuffled", "DiffCLIP-nano, shuffled"]
    assert [(row.score, row.model) for row in rows] == [(score, model) for score in SCORES for model in models]
    for row in rows:
        assert len(row.checkpoints) == (2 if row.model.startswith("DiffCLIP") else 1)
        assert row.value.mean == pytest.approx(np.mean(row.checkpoints))
        assert (row.difference is None) == (row.model == "CLIP-nano-baseline")


def test_no_model_is_refused():
    with pytest.raises(ValueError, match="there is no model to score"):
        attention_score([], [])


@needs_skimage
def test_benchmark_prints_and_writes(checkpoints, tmp_path, monkeypatch, capsys):
    arguments = ["--data", "heldout-concepts", "--num-images", "3", "--ground", "white", "photographs"]
    arguments += [f"--model={spec}" for spec in checkpoints[:2]]
    monkeypatch.setattr(sys, "argv", ["attention_score.py", *arguments, "--output", str(tmp_path / "out.json")])
    runpy.run_path(str(REPOSITORY / "benchmarks" / "attention_score.py"), run_name="__main__")
    printed = capsys.readouterr().out
    tables = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert [(table["ground"], table["method"]) for table in tables] == [("white", "chefer"), ("photographs", "chefer")]
    value = tables[1]["rows"][1]["value"]
    cell = f"| DiffCLIP-nano | {100 * value['mean']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}] |"
    assert cell in printed
    assert "heldout-concepts, on photographs, chefer, 3 images" in printed
