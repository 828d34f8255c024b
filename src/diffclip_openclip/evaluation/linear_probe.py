"""Measure a linear probe: logistic regression on frozen features, with the sweep over C.

Source: paper, section 4.1 (protocol of LGSSL, arXiv 2302.12248), mbanani/lgssl@e4ae979:lgssl/evaluation/linear_probe.py
and logistic_regression.py. Shape legend: B images, C width of the features, K classes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from tqdm import tqdm

from diffclip_openclip.data.catalog import DataSet
from diffclip_openclip.data.layout import Location
from diffclip_openclip.evaluation.evaluator import Compute, Computed, Measurement, Subject, Variant
from diffclip_openclip.evaluation.features import BACKBONE, Features, join, read_features

READING = BACKBONE
COARSE = tuple(10.0**exponent for exponent in range(-6, 7, 2))  # the values of C that are tried first
_FINE = 29  # points from two decades below the best coarse C to two above
_MAX_ITER = 1000


def variants(data_set: DataSet, location: Location, seed: int) -> list[Variant]:
    """List the one result, which depends on the seed of the held-out samples."""
    return [Variant(seed=seed)]


def score(subject: Subject, computed: Computed) -> Iterator[Measurement]:
    """Yield the accuracy of the probe with the best C; see :func:`score_probe`."""
    splits, data_set = read_splits(computed, subject.compute), subject.data_set
    metrics, predicted = score_probe(
        splits.train, splits.val, splits.test, per_class=data_set.mean_per_class, title=data_set.name
    )
    label = splits.test.labels.cpu()
    outcomes = {"correct": (predicted == label).numpy(), "label": label.numpy()}
    yield Measurement(metrics, splits.images, outcomes)


class Splits(NamedTuple):
    """Hold the features that linear probe and few-shot take."""

    train: Features
    val: Features
    test: Features
    images: Mapping[str, int]  # the number of images of each split of the data set


def read_splits(computed: Computed, compute: Compute) -> Splits:
    """Return a data set's features on the device; without a split ``val``, a fifth of train is held out.

    Raises:
        ValueError: as :func:`hold_out`.
    """
    parts = {split: read_features(files, compute.device) for split, files in computed.items()}
    images = {split: len(part.labels) for split, part in parts.items()}
    train, val = parts["train"], parts.get("val")
    if val is None:
        train, val = hold_out(train, compute.seed)
    return Splits(train, val, parts["test"], images)


def hold_out(train: Features, seed: int) -> tuple[Features, Features]:
    """Divide the training samples into four fifths and one fifth, for data sets without a validation split.

    tensorflow_datasets' train[:80%] of the protocol is a part of its own random order; here the order is drawn from
    ``seed``.

    Raises:
        ValueError: so few samples that nothing is held out.
    """
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(seed))
    cut = round(0.8 * len(order))
    if cut == len(order):
        raise ValueError(f"the training split has {len(order)} images, too few to hold out a fifth; give a split val")
    return Features(*(part[order[:cut]] for part in train)), Features(*(part[order[cut:]] for part in train))


@dataclass(frozen=True)
class Probe:
    """Classify features linearly."""

    weight: torch.Tensor  # (K, C)
    bias: torch.Tensor  # (K,)

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class indices (B,) of features (B, C)."""
        return F.linear(features, self.weight, self.bias).argmax(dim=1)

    @property
    def is_constant(self) -> bool:
        """Tell whether W = 0, so that every image is predicted to be of one class."""
        return not self.weight.any()


def objective(weight: torch.Tensor, bias: torch.Tensor, data: Features, C: float) -> torch.Tensor:
    """Compute the loss: mean cross entropy + (1 / C) 0.5 ||W||_2.

    It is the norm itself and not its square, and the bias is not penalised.
    """
    return F.cross_entropy(F.linear(data.features, weight, bias), data.labels) + 0.5 / C * weight.norm()


def fit(data: Features, num_classes: int, C: float) -> Probe:
    """Find the minimum of :func:`objective`, by L-BFGS with strong Wolfe line search, from zero.

    Where the penalty outweighs all that features can gain, the minimum is at W = 0, where the norm has no gradient and
    a line search would stall beside it: the bias is then the logarithm of the classes' shares.
    """
    if _is_constant(data, num_classes, C):
        return _constant(data, num_classes)
    weight, bias = (
        torch.zeros(size, device=data.features.device, dtype=data.features.dtype, requires_grad=True)
        for size in ((num_classes, data.features.shape[1]), (num_classes,))
    )
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_MAX_ITER, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = objective(weight, bias, data, C)
        loss.backward()
        return loss

    optimizer.step(closure)
    return Probe(weight.detach(), bias.detach())


def _constant(data: Features, num_classes: int) -> Probe:
    """Return the best probe with W = 0, whose probabilities are the classes' shares."""
    shares = data.labels.bincount(minlength=num_classes).to(data.features) / len(data.labels)
    return Probe(data.features.new_zeros(num_classes, data.features.shape[1]), shares.clamp_min(1e-30).log())


def _is_constant(data: Features, num_classes: int, C: float) -> bool:
    """Tell whether W = 0 is the minimum: the cross entropy's gradient there is no longer than the norm's weight.

    The norm's subgradients at zero are the ball of radius 0.5 / C, so that zero is a minimum exactly where the other
    term's gradient lies in it. The bias is at its best, where its own gradient is zero.
    """
    probe = _constant(data, num_classes)
    errors_BK = probe.bias.softmax(dim=0) - F.one_hot(data.labels, num_classes).to(data.features)
    gradient_KC = errors_BK.t() @ data.features / len(data.labels)
    return gradient_KC.norm().item() <= 0.5 / C


def accuracy(predicted: torch.Tensor, labels: torch.Tensor, per_class: bool) -> float:
    """Compute the share of hits; with ``per_class``, its mean over the classes that occur in ``labels``."""
    predicted, labels = predicted.cpu(), labels.cpu()  # Apple's GPUs have no float64
    hits = (predicted == labels).double()
    if not per_class:
        return hits.mean().item()
    present, index = labels.unique(return_inverse=True)
    sums = torch.zeros(len(present), dtype=torch.float64).scatter_add_(0, index, hits)
    return (sums / index.bincount()).mean().item()


def search(score: Callable[[float], Any]) -> float:
    """Find the C of the best validation ``score``: coarse values, then halving 29 finer ones around the best.

    Of equal scores the first that was computed counts.
    """
    scores: dict[float, Any] = {}

    def known(C: float) -> Any:
        if C not in scores:
            scores[C] = score(C)
        return scores[C]

    best = max(COARSE, key=known)
    costs = [best * 10 ** (4 * i / (_FINE - 1) - 2) if i != _FINE // 2 else best for i in range(_FINE)]
    costs = [C for C in costs if COARSE[0] <= C <= COARSE[-1]]
    while len(costs) > 1:
        low, middle, high = len(costs) // 4, len(costs) // 2, -len(costs) // 4
        candidates = {C: known(C) for C in (costs[low], costs[middle], costs[high])}
        top = max(candidates.values())
        if candidates[costs[low]] == top:
            costs = costs[:middle]
        elif candidates[costs[high]] == top:
            costs = costs[middle:]
        else:
            costs = costs[low:high]
    fine = [C for C in scores if C not in COARSE or C is best]
    return max(fine, key=scores.__getitem__)


def _validation_score(
    train: Features, val: Features, num_classes: int, per_class: bool, bar: tqdm, C: float
) -> tuple[float, bool]:
    """Score one C on the validation split, and show it; behind the accuracy stands whether W is not 0.

    A probe that looks at no feature must not lead the search: it predicts the largest class, which among unequal
    classes is hard to beat. LGSSL's L-BFGS does not get to that bias. It stays at W = b = 0, whose first class is what
    is predicted, and so that is what such a C scores. Of equal scores a probe that looks at its features is better.
    """
    probe = fit(train, num_classes, C)
    bar.update()
    if probe.is_constant:
        value = accuracy(torch.zeros_like(val.labels), val.labels, per_class)
    else:
        value = accuracy(probe.predict(val.features), val.labels, per_class)
    bar.set_postfix_str(f"C = {C:.3g}: {100 * value:.1f} %")
    return value, not probe.is_constant


def score_probe(
    train: Features, val: Features, test: Features, *, per_class: bool, title: str = ""
) -> tuple[dict[str, float], torch.Tensor]:
    """Choose C on ``val``, fit again on train and val, and score on ``test``.

    Args:
        per_class: whether the accuracy is the mean over classes of their recall, on ``val`` too.
        title: the data set's name, for the progress bar.

    Returns:
        accuracy (the paper's for the data set), acc1, mean_per_class_recall, best_C, weight_norm (||W||; 0 is a probe
        that looks at no feature), predicted_classes (their number on ``test``); and the class indices that are
        predicted on ``test``, (B,), on the CPU.
    """
    num_classes = int(max(part.labels.max() for part in (train, val, test))) + 1
    with tqdm(desc=f"linear probe of {title}", unit=" fits", leave=False) as bar:
        best_C = search(partial(_validation_score, train, val, num_classes, per_class, bar))
    probe = fit(join([train, val]), num_classes, best_C)
    predicted = probe.predict(test.features).cpu()
    acc1, mean_per_class = (accuracy(predicted, test.labels, kind) for kind in (False, True))
    chosen = mean_per_class if per_class else acc1
    metrics = {"accuracy": chosen, "acc1": acc1, "mean_per_class_recall": mean_per_class, "best_C": best_C}
    metrics |= {"weight_norm": probe.weight.norm().item(), "predicted_classes": predicted.unique().numel()}
    return metrics, predicted
