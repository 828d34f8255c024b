"""Attack a classifier by projected gradient ascent on the pixels, and check its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 20
_STEP_FACTOR = 2.5  # step size: this times eps / steps, so that any point of the ball can be reached (arXiv 1706.06083)
_DIRECTIONS = 3

Logits = Callable[[Tensor], Tensor]  # pixels (B, 3, H, W) in [0, 1] -> (B, classes)


@dataclass(frozen=True)
class Attacked:
    """Hold attacked pixels, and how the attack went."""

    pixels: Tensor  # (B, 3, H, W) in [0, 1]
    losses: Tensor  # cross-entropy of each image before each step and after the last, (steps + 1, B)
    zeros: float  # share of the first gradient's values that are zero


# Libraries would replace this function alone: torchattacks' last release (2023) pins requests to 2.25, foolbox's (2024)
# brings GitPython, and ART brings scikit-learn and wants pixels as numpy arrays.
def attack(
    logits: Logits, pixels: Tensor, labels: Tensor, eps: float, *, steps: int = STEPS, generator: torch.Generator
) -> Attacked:
    """Raise the cross-entropy of the right classes by projected gradient ascent; the last iterate counts.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        labels: the right classes, (B,).
        eps: the largest change of a value.
        generator: of the random start, on the CPU.
    """
    low, high = (pixels - eps).clamp(min=0), (pixels + eps).clamp(max=1)
    start = (2 * torch.rand(pixels.shape, generator=generator) - 1).to(pixels)
    current = (pixels + eps * start).clamp(low, high)
    losses, zeros = [], 0.0
    for step in range(steps):
        current.requires_grad_()
        loss_B = F.cross_entropy(logits(current), labels, reduction="none")
        (gradient,) = torch.autograd.grad(loss_B.sum(), current)
        if step == 0:
            zeros = float((gradient == 0).double().mean())
        losses.append(loss_B.detach())
        current = (current.detach() + _STEP_FACTOR * eps / steps * gradient.sign()).clamp(low, high)
    with torch.no_grad():
        losses.append(F.cross_entropy(logits(current), labels, reduction="none"))
    return Attacked(current, torch.stack(losses), zeros)


def add_noise(pixels: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Move each value by eps, up or down at random, as far as [0, 1] goes."""
    signs = 2.0 * torch.randint(2, pixels.shape, generator=generator) - 1
    return (pixels + eps * signs.to(pixels)).clamp(0, 1)


def gradient_errors(logits: Logits, pixels: Tensor, label: Tensor, seed: int) -> list[float]:
    """Return the relative errors of autograd's derivatives against central differences, in random directions.

    Args:
        logits: in float64.
        pixels: of one image, (1, 3, H, W), in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    pixels = pixels.clone().requires_grad_()

    def loss(at: Tensor) -> Tensor:
        return F.cross_entropy(logits(at), label)

    (gradient,) = torch.autograd.grad(loss(pixels), pixels)
    errors = []
    for _ in range(_DIRECTIONS):
        direction = F.normalize(torch.randn(pixels.shape, generator=generator).to(pixels).flatten(), dim=0)
        direction, h = direction.view_as(pixels), 1e-4
        with torch.no_grad():
            # of fourth order, so that its own error is far below that of a wrong gradient
            near, far = (loss(pixels + k * h * direction) - loss(pixels - k * h * direction) for k in (1, 2))
            numeric = (8 * near - far) / (12 * h)
        exact = (gradient * direction).sum()
        errors.append(float((numeric - exact).abs() / exact.abs().clamp(min=1e-12)))
    return errors
