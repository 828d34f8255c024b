"""The attack finds what is known to be the worst on a linear classifier, and models are attacked on the same pixels."""

import dataclasses
import json
import math
import runpy
import sys

import pytest
import torch
from attacks import add_noise, attack, gradient_errors
from fragility import Victim, ZeroShot, fragility, partners, shared_pixels
from model_groups import load_groups, read_images
from support.common import REPOSITORY

from diffclip_openclip.weights.loading import load_model


def _generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def linear():
    """A classifier of two classes by one weight a value, with pixels away from 0 and 1."""
    weights = torch.randn(3 * 4 * 4, generator=_generator(), dtype=torch.float64)
    pixels = 0.25 + 0.5 * torch.rand(5, 3, 4, 4, generator=_generator(), dtype=torch.float64)

    def logits(at):
        score_B = at.flatten(1) @ weights
        return torch.stack([score_B, -score_B], dim=1)

    return logits, pixels, weights.view(3, 4, 4)


def test_the_attack_finds_the_worst_corner(linear):
    logits, pixels, weights = linear
    labels = logits(pixels).argmax(-1)
    found = attack(logits, pixels, labels, 4 / 255, generator=_generator())
    # the right class's logit falls most where each value moves by eps against its weight
    worst = pixels + 4 / 255 * (2 * labels - 1)[:, None, None, None] * weights.sign()
    torch.testing.assert_close(found.pixels, worst)
    assert found.losses.shape == (21, 5)
    assert (found.losses.diff(dim=0) > -1e-12).all()
    assert found.zeros == 0


def test_the_attack_stays_within_its_size_and_the_pixels_range(linear):
    logits, _, _ = linear
    pixels = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64).view(1, 3, 1, 1).expand(2, 3, 4, 4)
    labels = torch.tensor([0, 1])
    one, again = (attack(logits, pixels, labels, 0.1, steps=3, generator=_generator()).pixels for _ in range(2))
    assert torch.equal(one, again)
    assert (one - pixels).abs().max() == pytest.approx(0.1)
    assert one.min() == 0
    assert one.max() == 1
    no_step = attack(logits, pixels, labels, 0.1, steps=0, generator=_generator()).pixels
    assert (no_step[:, 2] - 0.5).abs().min() > 0  # a random start
    assert len(no_step[:, 2].unique()) == no_step[:, 2].numel()


def test_noise_moves_each_value_by_the_attacks_size():
    pixels = torch.full((2, 3, 20, 20), 0.5)
    moved = add_noise(pixels, 0.1, _generator()) - pixels
    assert torch.allclose(moved.abs(), torch.tensor(0.1))
    assert abs(moved.sign().mean()) < 0.1
    assert add_noise(torch.ones(1, 3, 4, 4), 0.1, _generator()).max() == 1


def test_a_wrong_gradient_is_seen(linear):
    logits, pixels, _ = linear
    label = torch.tensor([0])
    assert max(gradient_errors(logits, pixels[:1], label, 0)) < 1e-8

    def broken(at):  # the gradient does not pass through half of the pixels
        return logits(torch.cat([at[:, :, :2], at[:, :, 2:].detach()], dim=2))

    assert max(gradient_errors(broken, pixels[:1], label, 0)) > 0.1


def test_the_attack_is_shown_to_one_model_of_each_group():
    def group(name, seeds):
        return [Victim(name, seed, None, None) for seed in range(seeds)]

    def names(victim):
        return [(other.group, other.seed) for other in partners(victim, groups)]

    groups = {"A": group("A", 3), "B": group("B", 3), "C": group("C", 1)}
    assert names(groups["A"][1]) == [("A", 2), ("B", 1), ("C", 0)]
    assert names(groups["A"][2]) == [("A", 0), ("B", 2), ("C", 0)]
    assert names(groups["C"][0]) == [("A", 0), ("B", 0)]


def test_pixels_are_those_that_the_model_sees(nano_checkpoints, eval_root):
    loaded = load_model(nano_checkpoints["DiffCLIP-nano"][0])
    data = read_images(eval_root / "groups", 3)
    pixels = shared_pixels([loaded], data)
    expected = torch.stack([loaded.preprocess(image) for image in data.images])
    logits = ZeroShot(loaded, data, "cpu")
    torch.testing.assert_close((pixels - logits.mean) / logits.std, expected, atol=0.1, rtol=0)  # overshoots are cut
    assert ((pixels - logits.mean) / logits.std - expected).abs().median() < 1e-6
    other = dataclasses.replace(loaded, preprocess_cfg=loaded.preprocess_cfg | {"interpolation": "bilinear"})
    with pytest.raises(ValueError, match="same pixels can be attacked only"):
        shared_pixels([loaded, other], data)
    other = dataclasses.replace(loaded, preprocess_cfg=loaded.preprocess_cfg | {"mean": (0.5, 0.5, 0.5)})
    assert torch.equal(shared_pixels([loaded, other], data), pixels)


@pytest.fixture(scope="module")
def attacked(nano_checkpoints, eval_root):
    """Attack drawn weights. An image in four is of the class that the first model sees in it, and so on."""
    groups = load_groups({name: nano_checkpoints[name] for name in ("CLIP-nano-baseline", "DiffCLIP-nano")})
    data = read_images(eval_root / "groups", 32)
    everyone = [loaded for models in groups.values() for loaded in models]
    with torch.no_grad():
        seen = [ZeroShot(loaded, data, "cpu")(shared_pixels(everyone, data)).argmax(-1) for loaded in everyone]
    data = dataclasses.replace(data, labels=[int(seen[index % 4][index]) for index in range(32)])
    return fragility(groups, data, sizes=(2, 64), batch_size=32, device="cpu", seed=0)


def test_accuracies_and_flips_fit_together(attacked):
    rows, checks = attacked
    found = {(row["group"], row["quantity"], row["disturbed"], row["size"]): row for row in rows}
    for group in ("CLIP-nano-baseline", "DiffCLIP-nano"):
        clean = found[group, "accuracy", "clean", 0]
        assert clean["images"] == [32, 32]
        for size in (2, 64):
            survived, flipped = found[group, "accuracy", "attack", size], found[group, "flipped", "attack", size]
            assert flipped["images"] == [round(32 * share) for share in clean["seeds"]]
            for before, after, share in zip(clean["seeds"], survived["seeds"], flipped["seeds"], strict=True):
                assert after == pytest.approx(before * (1 - share))
        assert found[group, "flipped", "attack", 64]["mean"] > found[group, "flipped", "noise", 64]["mean"]
        for check in (check for check in checks if check["group"] == group):
            assert max(check["gradient errors"]) < 1e-5
            for tried in check["attacks"]:
                assert tried["loss by step"][-1] > tried["loss by step"][0]
                assert tried["steps that rise"] > 0.5
                assert tried["zeros in the first gradient"] < 0.01


def test_transfers_are_of_what_both_classify_correctly(attacked):
    rows, _ = attacked
    shown = [row for row in rows if row["disturbed"] == "attack on CLIP-nano-baseline" and row["size"] == 64]
    clean = {
        row["group"]: row["images"] for row in rows if row["disturbed"] == "attack" and row["quantity"] == "flipped"
    }
    for row in shown:
        assert all(count <= own for count, own in zip(row["images"], clean["CLIP-nano-baseline"], strict=True))
        assert not math.isnan(row["mean"])


def test_the_command_writes_rows_checks_and_a_figure(nano_checkpoints, eval_root, tmp_path, monkeypatch, capsys):
    specs = [nano_checkpoints[name][0] for name in ("CLIP-nano-baseline", "DiffCLIP-V2-nano")]
    output = tmp_path / "fragility.json"
    arguments = [*(f"--model={spec}" for spec in specs), "--data", str(eval_root / "groups"), "--num-images", "6"]
    monkeypatch.setattr(sys, "argv", ["fragility.py", *arguments, "--output", str(output)])
    runpy.run_path(str(REPOSITORY / "benchmarks" / "fragility.py"), run_name="__main__")
    found = json.loads(output.read_text())
    assert [check["group"] for check in found["checks"]] == ["CLIP-nano-baseline", "DiffCLIP-V2-nano"]
    assert {row["size"] for row in found["rows"]} == {0, 1, 2, 4}
    clean = found["rows"][0]
    assert clean["low"] <= clean["mean"] <= clean["high"]  # over images: there is one seed
    assert output.with_suffix(".png").is_file()
    assert "largest error of a gradient" in capsys.readouterr().out
