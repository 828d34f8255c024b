"""Linear probe: the objective, its minimum by other solvers, the search over C, the metrics."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from support.evaluation_data import emoji_pixels

from diffclip_openclip.evaluation import linear_probe
from diffclip_openclip.evaluation.features import Features
from diffclip_openclip.evaluation.linear_probe import COARSE, accuracy, fit, hold_out, objective, search


@pytest.fixture(scope="module")
def pixels() -> Features:
    """300 emoji as 8 x 8 pixels of three colours, 192-d, in eight groups."""
    return emoji_pixels(300, 8)


def _minimum(data: Features, num_classes: int, C: float) -> float:
    """Of the objective in float64, by SciPy's L-BFGS-B on a gradient written by hand."""
    x, y = data.features.double().numpy(), np.eye(num_classes)[data.labels.numpy()]
    shape = (num_classes, x.shape[1])

    def value_and_gradient(flat):
        weight, bias = flat[:-num_classes].reshape(shape), flat[-num_classes:]
        scores = x @ weight.T + bias
        scores -= scores.max(axis=1, keepdims=True)
        logp = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        norm = math.sqrt((weight**2).sum())
        errors = (np.exp(logp) - y) / len(y)
        slope = errors.T @ x + (0.5 / C * weight / norm if norm else 0)
        return -(logp * y).sum() / len(y) + 0.5 / C * norm, np.concatenate([slope.ravel(), errors.sum(axis=0)])

    start = np.random.RandomState(0).normal(0, 1e-3, num_classes * (x.shape[1] + 1))
    options = {"maxiter": 50_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-10, "maxcor": 50}
    return float(minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options).fun)


def test_objective_by_hand():
    weight, bias = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([0.0, 1.0])
    data = Features(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
    # logits (3, 1) and (0, 5), ||W|| = 5 and not 25
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-5))) / 2 + 0.5 * 5 / 10
    assert objective(weight, bias, data, C=10.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("C", [1.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fit_reaches_the_minimum_that_a_second_solver_finds(pixels, C, dtype):
    data = Features(pixels.features.to(dtype), pixels.labels)
    probe = fit(data, 8, C)
    exact = Features(pixels.features.double(), pixels.labels)
    reached = objective(probe.weight.double(), probe.bias.double(), exact, C).item()
    assert abs(reached - _minimum(pixels, 8, C)) < 1e-6


def test_the_cap_on_iterations_is_all_that_keeps_large_costs_from_the_minimum(pixels):
    """C of 1e4: 1,000 iterations, the protocol's, end near the minimum, not below it."""
    data = Features(pixels.features.double(), pixels.labels)
    probe = fit(data, 8, 1e4)
    assert 0 <= objective(probe.weight, probe.bias, data, 1e4).item() - _minimum(pixels, 8, 1e4) < 1e-4


def test_a_strong_penalty_gives_the_classes_shares(pixels):
    probe = fit(pixels, 8, 1e-4)
    assert probe.weight.abs().max() == 0
    shares = pixels.labels.bincount(minlength=8) / len(pixels.labels)
    torch.testing.assert_close(probe.bias.softmax(0), shares)
    data = Features(pixels.features.double(), pixels.labels)
    least = objective(probe.weight.double(), probe.bias.double(), data, 1e-4)
    generator = torch.Generator().manual_seed(0)
    for size in (1e-8, 1e-5, 1e-2):  # no step leads below it
        step = size * torch.randn(8, 192, generator=generator, dtype=torch.float64)
        assert objective(step, probe.bias.double(), data, 1e-4) > least


def test_scikit_learn_agrees_where_the_penalties_have_the_same_gradient(pixels):
    """At the minimum, 0.5 / C ||W|| pulls as mu / 2 ||W||^2 does with mu = 0.5 / (C ||W||)."""
    data = Features(pixels.features.double(), pixels.labels)
    probe = fit(data, 8, 10.0)
    mu = 0.5 / (10.0 * probe.weight.norm().item())
    other = LogisticRegression(C=1 / (len(data.labels) * mu), tol=1e-10, max_iter=20_000)
    other.fit(data.features.numpy(), data.labels.numpy())
    np.testing.assert_allclose(other.coef_, probe.weight.numpy(), atol=2e-4)
    assert (other.predict(data.features.numpy()) == probe.predict(data.features).numpy()).all()


@pytest.mark.parametrize("peak", [1e-6, 3e-3, 1.0, 50.0, 1e6])
def test_search_finds_the_peak_of_a_smooth_score(peak):
    visited = []

    def score(C):
        visited.append(C)
        return -abs(math.log10(C) - math.log10(peak))

    best = search(score)
    assert abs(math.log10(best) - math.log10(peak)) <= 1 / 7  # the resolution: seven points a decade
    assert visited[:7] == list(COARSE)
    assert len(visited) == len(set(visited)) <= 20
    assert all(1e-6 <= C <= 1e6 for C in visited)


def test_search_takes_the_first_of_equal_scores():
    assert search(lambda C: 0.5) == 1e-6
    assert search(lambda C: float(C >= 1)) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def unequal(pixels) -> tuple[Features, Features, Features]:
    """Three splits of which one class has six images of ten, and is not the first class."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([3, 1, 2, 0, 1, 2, 3, 0])[pixels.labels]
    large = groups.bincount().argmax()
    kept = [at for at in order.tolist() if groups[at] == large] + [at for at in order.tolist() if groups[at] != large]
    share = int((groups == large).sum())
    kept = sorted(kept[: share + round(share * 2 / 3)], key=order.tolist().index)
    labels = torch.where(groups == large, 1, torch.where(groups == 1, large, groups))
    return tuple(Features(pixels.features[kept[at::3]], labels[kept[at::3]]) for at in range(3))


def _lgssl(train: Features, val: Features, C: float) -> tuple[torch.Tensor, float]:
    """LGSSL's fit: L-BFGS from zero on the plain objective, wherever it ends; W and the accuracy on val."""
    layer = torch.nn.Linear(train.features.shape[1], 4)
    for parameter in layer.parameters():
        parameter.data.zero_()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=1000, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(train.features), train.labels)
        loss = loss + 0.5 * layer.weight.norm(p=2) / C
        loss.backward()
        return loss

    optimizer.step(closure)
    hits = layer(val.features).argmax(dim=1) == val.labels
    return layer.weight.detach(), hits.double().mean().item()


def test_unequal_classes_are_searched_where_lgssl_searches(unequal):
    """The largest class is hard to beat by a probe that looks at no feature, and is not the first that LGSSL has."""
    train, val, test = unequal
    majority = (val.labels == train.labels.mode().values).double().mean().item()
    assert fit(train, 4, COARSE[0]).is_constant
    theirs = {C: _lgssl(train, val, C) for C in COARSE}
    weight, at_zero = theirs[COARSE[0]]
    assert weight.abs().max() < 1e-6
    assert at_zero < majority
    metrics, predicted = linear_probe.score_probe(train, val, test, per_class=False)
    assert metrics["weight_norm"] > 0
    assert len(predicted.unique()) > 1
    best = max(theirs, key=lambda C: theirs[C][1])
    assert abs(math.log10(metrics["best_C"] / best)) <= 2  # the finer search is around LGSSL's best
    assert metrics["accuracy"] > (test.labels == train.labels.mode().values).double().mean()


def test_a_probe_that_looks_at_nothing_is_told():
    """Features without any information: W is 0 at all but large C."""
    labels = torch.tensor([1] * 30 + [0] * 10)
    nothing = Features(torch.zeros(40, 3), labels)
    metrics, predicted = linear_probe.score_probe(nothing, nothing, nothing, per_class=False)
    assert metrics["weight_norm"] == 0
    assert metrics["predicted_classes"] == 1
    assert predicted.tolist() == [1] * 40


def test_accuracy_by_hand():
    predicted, labels = torch.tensor([0, 0, 1, 1, 1, 4]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert accuracy(predicted, labels, per_class=False) == pytest.approx(4 / 6)
    predicted, labels = torch.tensor([0, 0, 0, 0, 4]), torch.tensor([0, 0, 0, 1, 4])
    assert accuracy(predicted, labels, per_class=True) == pytest.approx((1 + 0 + 1) / 3)


class _OnDevice(torch.Tensor):
    """A tensor that stands in for one on a GPU that knows no float64, as Apple's: ``cpu`` gives a plain one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        found = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError("this device has no float64")
        return found


@pytest.mark.parametrize("per_class", [False, True])
def test_accuracy_on_a_device_without_float64(per_class):
    predicted, labels = (torch.tensor(values).as_subclass(_OnDevice) for values in ([0, 0, 1, 1], [0, 0, 0, 1]))
    with pytest.raises(TypeError):
        predicted.double()
    assert accuracy(predicted, labels, per_class) == pytest.approx((2 / 3 + 1) / 2 if per_class else 3 / 4)


def test_nothing_to_hold_out(pixels):
    with pytest.raises(ValueError, match="the training split has 2 images, too few to hold out a fifth"):
        hold_out(Features(*(part[:2] for part in pixels)), 0)


def test_hold_out_is_a_fifth_and_follows_the_seed(pixels):
    train, val = hold_out(pixels, 0)
    assert (len(train.labels), len(val.labels)) == (240, 60)
    together = torch.cat([train.features, val.features])
    assert torch.equal(together.sort(dim=0).values, pixels.features.sort(dim=0).values)
    assert len(val.labels.unique()) > 4  # not the last classes of a folder order
    assert torch.equal(hold_out(pixels, 0)[1].features, val.features)
    assert not torch.equal(hold_out(pixels, 1)[1].features, val.features)


def test_the_test_split_is_scored_with_train_and_val():
    """Points on axes: class 2 is in val only, so a probe of train alone cannot know it."""

    def axis(labels):
        return Features(torch.eye(3)[torch.tensor(labels)] * 4, torch.tensor(labels))

    metrics, predicted = linear_probe.score_probe(
        axis([0, 1] * 8), axis([0, 1, 2] * 4), axis([0, 0, 1, 2]), per_class=True
    )
    assert predicted.tolist() == [0, 0, 1, 2]
    assert metrics["accuracy"] == metrics["mean_per_class_recall"] == 1.0
    wrong = axis([0, 0, 0, 1])._replace(labels=torch.tensor([0, 0, 0, 2]))
    metrics, _ = linear_probe.score_probe(axis([0, 1, 2] * 8), axis([0, 1, 2] * 4), wrong, per_class=False)
    assert metrics["accuracy"] == metrics["acc1"] == 0.75
    assert metrics["mean_per_class_recall"] == 0.5
