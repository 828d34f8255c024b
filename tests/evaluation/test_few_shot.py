"""Few-shot: against loops written out, and at the limits."""

import pytest
import torch
from support.evaluation_data import emoji_pixels

from diffclip_openclip.evaluation import few_shot
from diffclip_openclip.evaluation.features import Features


def _split(data: Features) -> tuple[Features, Features]:
    return Features(*(part[::2] for part in data)), Features(*(part[1::2] for part in data))


def _brute_force(train: Features, test: Features, episodes: int) -> list[float]:
    """The same episodes, one query at a time."""
    generator = torch.Generator().manual_seed(0)
    classes = train.labels.unique().tolist()
    pools = [[(part.labels == c).nonzero().flatten() for part in (train, test)] for c in classes]
    scores = []
    for _ in range(episodes):
        chosen = torch.randperm(len(pools), generator=generator)[:5].tolist()
        support = [pools[c][0][torch.randperm(len(pools[c][0]), generator=generator)[:5]].tolist() for c in chosen]
        queries = [pools[c][1][torch.randperm(len(pools[c][1]), generator=generator)[:6]].tolist() for c in chosen]
        mean = sum(train.features[i].double() for way in support for i in way) / 25

        def unit(x, mean=mean):
            return (x.double() - mean) / (x.double() - mean).norm()

        prototypes = [sum(unit(train.features[i]) for i in way) / 5 for way in support]
        hits = [
            min(range(5), key=lambda p: (unit(test.features[i]) - prototypes[p]).norm().item()) == way
            for way in range(5)
            for i in queries[way]
        ]
        scores.append(sum(hits) / len(hits))
    return scores


def test_agrees_with_loops_written_out():
    train, test = _split(emoji_pixels(300, 8))
    scores = torch.tensor(_brute_force(train, test, 40), dtype=torch.float64)
    accuracies = few_shot.episode_accuracies(train, test, seed=0, episodes=40)
    torch.testing.assert_close(torch.from_numpy(accuracies), scores, atol=1e-9, rtol=0)
    metrics = few_shot.summary(accuracies)
    assert metrics["accuracy"] == pytest.approx(scores.mean().item(), abs=1e-9)
    assert metrics["std"] == pytest.approx(scores.std().item(), abs=1e-9)
    assert metrics["ci95"] == pytest.approx(1.96 * scores.std().item() / 40**0.5, abs=1e-9)


def test_seed_decides():
    train, test = _split(emoji_pixels(300, 8))
    first, again, other = (
        few_shot.episode_accuracies(train, test, seed=seed, episodes=30).tolist() for seed in (0, 0, 1)
    )
    assert first == again != other


def test_separable_classes_and_noise():
    labels = torch.arange(8).repeat(20)
    clean = Features(torch.eye(8)[labels] + 3, labels)
    assert few_shot.episode_accuracies(clean, clean, episodes=50).mean() == 1.0
    noise = Features(torch.randn(160, 16, generator=torch.Generator().manual_seed(0)), labels)
    other = noise._replace(features=noise.features.flip(0))
    assert abs(few_shot.episode_accuracies(noise, other, episodes=1000).mean() - 0.2) < 0.05


def test_classes_with_few_test_images_give_what_they_have():
    labels = torch.arange(5).repeat(6)
    train = Features(torch.eye(5)[labels], labels)
    test = Features(torch.eye(5)[torch.tensor([0, 1, 2, 3, 3])], torch.tensor([0, 1, 2, 3, 4]))
    metrics = few_shot.summary(few_shot.episode_accuracies(train, test, episodes=10))
    assert metrics["accuracy"] == pytest.approx(4 / 5)  # the fifth class's only query looks like the fourth's
    assert metrics["std"] == 0


def test_too_few_classes():
    labels = torch.arange(6).repeat_interleave(torch.tensor([5, 5, 5, 5, 4, 9]))
    train = Features(torch.eye(6)[labels], labels)
    with pytest.raises(ValueError, match="4 of 6 classes have 5 training images and a test image"):
        few_shot.episode_accuracies(train, Features(torch.eye(6)[:5], torch.arange(5)))
