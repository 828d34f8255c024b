"""Measure how easily zero-shot classification is attacked:

    python benchmarks/fragility.py --model NAME,CHECKPOINT --data DIR --output FILE.json

arXiv 2510.00517 finds DiffCLIP easier to attack than CLIP. Here: untargeted PGD (arXiv 1706.06083) within the
L-infinity ball of 1/255, 2/255 and 4/255 around the pixels in [0, 1], before normalisation; 20 steps of 2.5 eps / 20,
from a random start in the ball. All models get the same pixels. Beside it random noise of the same size (each value
moved by +eps or -eps), and the attack on a model of one group shown to a model of another: the one of the same seed,
and within a group the next seed's. Writes means over the seeds of a group with 95 % intervals, or over images where a
group has one checkpoint, and a figure. ``model_groups.py`` says how models are named.

"accuracy": of all images, clean, under "attack" and under "noise". A misclassified image is not attacked any more.
"flipped": share of the correctly classified images that are misclassified under "attack" or "noise", or, for "attack on
GROUP", of those that both models classify correctly. It compares models whose clean accuracies differ.

A gradient that is wrong or vanishes looks like robustness. So "checks" has, for each model: the relative error of
autograd's derivative against finite differences in float64, in three directions of one image; and for each size the
mean loss by step, the share of steps in which it rises, and the share of the first gradient's values that are zero.
"""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from attacks import STEPS, add_noise, attack, gradient_errors
from group_outputs import Curve, Panel, cell, estimate_of, make_row, markdown, names_of, write_outputs
from model_groups import (
    Groups,
    LabelledImages,
    add_arguments,
    add_data_arguments,
    check_arguments,
    difference,
    load_groups,
    over_seeds_or_images,
    read_images,
)
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor
from tqdm import tqdm

from diffclip_openclip.evaluation.zero_shot import embed_classes
from diffclip_openclip.weights.loading import LoadedModel

SIZES = (1, 2, 4)  # of the attack, in 255ths


# classifiers


def shared_pixels(models: Sequence[LoadedModel], data: LabelledImages) -> Tensor:
    """Return the images as all models see them before normalisation, (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: the models resize images differently, so that there are no pixels to share.
    """
    settings = [
        {key: value for key, value in loaded.preprocess_cfg.items() if key not in ("mean", "std")} for loaded in models
    ]
    for loaded, own in zip(models, settings, strict=True):
        if own != settings[0]:
            raise ValueError(
                f"{loaded.spec.label} reads images by {own}, and {models[0].spec.label} by {settings[0]}; the same "
                "pixels can be attacked only for models that differ in nothing but mean and std"
            )
    as_they_are = settings[0] | {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    transform = image_transform_v2(PreprocessCfg(**as_they_are), is_train=False)
    # bicubic resizing overshoots
    return torch.stack([transform(image) for image in data.images]).clamp(0, 1)


class ZeroShot:
    """Classify pixels in [0, 1] by the classes' text embeddings, with the model's own temperature."""

    def __init__(self, loaded: LoadedModel, data: LabelledImages, device: str) -> None:
        model: Any = loaded.model.requires_grad_(False)
        self.model = model
        with torch.no_grad():
            text_EK = embed_classes(loaded, device, data.class_names, data.templates)
            self.scaled_EK = text_EK * model.logit_scale.exp()
        self.mean, self.std = (
            torch.tensor(loaded.preprocess_cfg[key], device=device).view(3, 1, 1) for key in ("mean", "std")
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return the logits, (B, classes), of pixels (B, 3, H, W)."""
        return F.normalize(self.model.encode_image((pixels - self.mean) / self.std), dim=-1) @ self.scaled_EK

    def in_float64(self) -> ZeroShot:
        """Return a copy that computes in float64."""
        exact = copy.copy(self)
        exact.model = copy.deepcopy(self.model).double()
        exact.scaled_EK, exact.mean, exact.std = self.scaled_EK.double(), self.mean.double(), self.std.double()
        return exact


# models beside each other


@dataclass(frozen=True)
class Victim:
    """Hold a model under attack, and what it makes of the clean images."""

    group: str
    seed: int  # its place in the group
    logits: ZeroShot
    correct: Tensor  # of all images, (I,)


def partners(victim: Victim, groups: Mapping[str, Sequence[Victim]]) -> list[Victim]:
    """Return who is shown the attack on ``victim``: one model of each group, of its own the next seed's, if any."""
    found = []
    for group, models in groups.items():
        index = victim.seed + (group == victim.group)
        if group != victim.group or len(models) > 1:
            found.append(models[index % len(models)])
    return found


class _Run:
    """Attack all models with all sizes, and collect who was right about what."""

    def __init__(self, pixels: Tensor, labels: Tensor, *, batch_size: int, seed: int) -> None:
        self.pixels, self.labels, self.batch_size, self.seed = pixels, labels, batch_size, seed
        # by group, quantity, how it was disturbed and size: of each model, whether it was so, by image
        self.hits: dict[tuple[str, str, str, int], list[Tensor]] = defaultdict(list)

    def correct(self, logits: ZeroShot, pixels: Tensor, indices: Tensor) -> Tensor:
        """Tell which images are classified correctly, given their pixels and their places among all images."""
        if not len(pixels):
            return torch.zeros(0, dtype=torch.bool, device=pixels.device)
        parts = zip(pixels.split(self.batch_size), self.labels[indices].split(self.batch_size), strict=True)
        with torch.no_grad():
            return torch.cat([logits(part).argmax(-1) == labels for part, labels in parts])

    def attack(self, victim: Victim, others: Sequence[Victim], size: int) -> dict[str, Any]:
        """Attack a model and show the result to others; return how the attack went."""
        eps = size / 255
        everything = torch.arange(len(self.labels))
        noise = self.correct(
            victim.logits, add_noise(self.pixels, eps, torch.Generator().manual_seed(self.seed)), everything
        )
        targets = victim.correct.nonzero()[:, 0]  # the others are misclassified as they are
        generator = torch.Generator().manual_seed(self.seed)
        done = [
            attack(victim.logits, self.pixels[part], self.labels[part], eps, generator=generator)
            for part in targets.split(self.batch_size)
            if len(part)
        ]
        attacked = torch.cat([part.pixels for part in done]) if done else self.pixels[:0]
        survived = torch.zeros_like(victim.correct)
        survived[targets] = self.correct(victim.logits, attacked, targets)
        self.add(victim, "accuracy", "attack", size, survived)
        self.add(victim, "accuracy", "noise", size, noise)
        self.add(victim, "flipped", "attack", size, ~survived[victim.correct])
        self.add(victim, "flipped", "noise", size, ~noise[victim.correct])
        for other in others:
            both = other.correct[targets]
            flipped = ~self.correct(other.logits, attacked[both], targets[both])
            self.add(other, "flipped", f"attack on {victim.group}", size, flipped)
        if not done:
            return {"size": size, "attacked": 0}
        losses = torch.cat([part.losses for part in done], dim=1)
        return {
            "size": size,
            "attacked": len(targets),
            "loss by step": losses.mean(1).tolist(),
            "steps that rise": float((losses.diff(dim=0) > 0).double().mean()),
            "zeros in the first gradient": max(part.zeros for part in done),
        }

    def add(self, victim: Victim, quantity: str, disturbed: str, size: int, hits: Tensor) -> None:
        """Keep for a model whether what was asked is so, by image."""
        self.hits[victim.group, quantity, disturbed, size].append(hits.cpu())


def fragility(
    groups: Groups, data: LabelledImages, *, sizes: Sequence[int] = SIZES, batch_size: int, device: str, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Attack all models; return a row for each group, quantity, disturbance and size, and the checks of each model.

    Raises:
        ValueError: as :func:`shared_pixels`.
    """
    pixels = shared_pixels([loaded for models in groups.values() for loaded in models], data).to(device)
    run = _Run(pixels, torch.tensor(data.labels, device=device), batch_size=batch_size, seed=seed)
    victims: dict[str, list[Victim]] = {}
    checks: list[dict[str, Any]] = []
    for group, models in groups.items():
        for place, loaded in enumerate(models):
            logits = ZeroShot(loaded, data, device)
            victim = Victim(group, place, logits, run.correct(logits, pixels, torch.arange(len(pixels))))
            victims.setdefault(group, []).append(victim)
            run.add(victim, "accuracy", "clean", 0, victim.correct)
            errors = gradient_errors(logits.in_float64(), pixels[:1].double(), run.labels[:1], seed)
            checks.append({"group": group, "seed": place, "gradient errors": errors, "attacks": []})
    everyone = [victim for models in victims.values() for victim in models]
    for victim, check in zip(tqdm(everyone, desc="attacks", unit="model"), checks, strict=True):
        for size in sizes:
            check["attacks"].append(run.attack(victim, partners(victim, victims), size))
    return _rows(run.hits, next(iter(groups))), checks


def _rows(hits: Mapping[tuple[str, str, str, int], Sequence[Tensor]], first: str) -> list[dict[str, Any]]:
    rows = []
    estimates = {key: over_seeds_or_images(own) for key, own in hits.items()}
    for (group, quantity, disturbed, size), estimate in estimates.items():
        if estimate is not None:
            base = estimates.get((first, quantity, disturbed, size))
            paired = difference(estimate, base) if base is not None and group != first else None
            images = [len(own) for own in hits[group, quantity, disturbed, size]]
            what = {"group": group, "quantity": quantity, "disturbed": disturbed, "size": size, "images": images}
            rows.append(make_row(estimate, paired, **what))
    return rows


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return panels of accuracy and of flips by size, and of the flips by each group's attack; noise is dotted."""
    groups = names_of(rows)

    def curves(quantity: str, disturbed: str, dashed: bool = False) -> list[Curve]:
        found = []
        for group in groups:
            kinds = (disturbed, "clean") if quantity == "accuracy" else (disturbed,)
            own = [row for row in rows if (row["group"], row["quantity"]) == (group, quantity)]
            own = sorted((row for row in own if row["disturbed"] in kinds), key=lambda row: int(row["size"]))
            if own:
                found.append(Curve(group, [row["size"] for row in own], [estimate_of(row) for row in own], dashed))
        return found

    x = "size in 255ths"
    made = [
        Panel("accuracy", x, "share of images", curves("accuracy", "attack") + curves("accuracy", "noise", True)),
        Panel("flipped", x, "share of correct", curves("flipped", "attack") + curves("flipped", "noise", True)),
    ]
    transferred = [(group, curves("flipped", f"attack on {group}")) for group in groups]
    return made + [
        Panel(f"flipped by the\nattack on {group}", x, "share of correct", own) for group, own in transferred
    ]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table in per cent."""
    groups = names_of(rows)
    found: dict[tuple[str, str, int], dict[str, str]] = defaultdict(dict)
    for own in rows:
        found[own["quantity"], own["disturbed"], own["size"]][own["group"]] = cell(estimate_of(own), 1, 100)
    lines = [
        [f"{quantity}, {disturbed}{f' {size}/255' if size else ''}", *(cells.get(group, "–") for group in groups)]
        for (quantity, disturbed, size), cells in sorted(found.items())
    ]
    return markdown(["percent", *groups], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add_data_arguments(parser)
    args = parser.parse_args()
    specs = check_arguments(args)
    data = read_images(args.data, args.num_images, args.seed)
    groups = load_groups(specs, args.device)
    rows, checks = fragility(groups, data, batch_size=args.batch_size, device=args.device, seed=args.seed)
    print(table(rows))
    print(f"largest error of a gradient: {max(max(check['gradient errors']) for check in checks):.1e}")
    content = {"data": args.data.name, "images": len(data.images), "steps": STEPS, "rows": rows, "checks": checks}
    write_outputs(args, content, panels(rows), groups, columns=min(4, 2 + len(groups)))


if __name__ == "__main__":
    main()
