"""Measure what differential attention changes inside, layer by layer:

    python benchmarks/attention_inside.py --model NAME,CHECKPOINT --data DIR --output FILE.json

Images are drawn from a classification set, texts are their classes in its first template. Writes means over the seeds
of a group with 95 % intervals, the differences to the first group paired by seed, and a figure. ``model_groups.py``
says how models are named. Of each layer of both towers:

"sink": the largest over the median column sum of the map that the values are multiplied with, A1 - lambda A2 or the
plain map. A token that most others look at whatever the input is a sink (arXiv 2309.17453; in ViTs 2309.16588).
Entries count by their absolute value, as A1 - lambda A2 has negative ones and its signed sums may be zero or below. The
mean over images and heads is geometric. "sink of A1" and "sink of A2" are of the two maps alone. An even map has ratio
1, but more under the texts' causal mask, 2.9 for five tokens: compare models on the same texts.

"first token": share of the maps whose largest column is the first token, the class token or the start of the text.

"negative mass": sum of the negative entries of A1 - lambda A2 over that of all, by absolute value.

"CKA of heads": how alike the heads' outputs are, by linear CKA (arXiv 1905.00414, section 3) over all tokens of all
inputs, mean over pairs of heads. 1: the same up to rotation and scale. An output is what the projection reads of a
head, so behind V1's norm and behind a gate. V1 has half as many heads, of twice the size: compare it with a baseline of
half the heads, as CKA depends on both.

"lambda" and "spread of lambda": mean and standard deviation over tokens, heads and inputs; V1 has one number a layer.

Of a text, the tokens up to its last one count, the largest id as in open_clip's tokenizers.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from attention_statistics import measure_tower
from group_outputs import Curve, Panel, cell, estimate_of, make_row, markdown, names_of, write_outputs
from model_groups import (
    Estimate,
    Groups,
    LabelledImages,
    add_arguments,
    add_data_arguments,
    check_arguments,
    difference,
    load_groups,
    over_seeds,
    read_images,
)
from torch import Tensor
from tqdm import tqdm

from diffclip_openclip.weights.loading import LoadedModel

MEASURES = (
    "sink",
    "sink of A1",
    "sink of A2",
    "first token",
    "negative mass",
    "CKA of heads",
    "lambda",
    "spread of lambda",
)
_DRAWN = {
    "sink": "largest / median",
    "first token": "share of maps",
    "negative mass": "share",
    "CKA of heads": "CKA",
    "lambda": "λ",
}

Figures = Mapping[tuple[str, int, str], float]  # by tower, layer and measure


# one model


def measure_model(loaded: LoadedModel, data: LabelledImages, batch_size: int, device: str) -> Figures:
    """Return the measures of both towers."""
    images = (
        torch.stack([loaded.preprocess(image) for image in data.images[start : start + batch_size]]).to(device)
        for start in range(0, len(data.images), batch_size)
    )
    found: dict[tuple[str, int, str], float] = {}
    for tower, batches in (("image", images), ("text", _texts(loaded, data, batch_size, device))):
        for layer, measures in enumerate(measure_tower(loaded.model, tower, batches)):
            found |= {(tower, layer, measure): value for measure, value in measures.items()}
    return found


def _texts(loaded: LoadedModel, data: LabelledImages, batch_size: int, device: str) -> Iterator[Tensor]:
    """Yield the token ids of the images' classes, once each, in batches of one length."""
    names = [data.class_names[label] for label in sorted(set(data.labels))]
    ids_TN = loaded.tokenizer([data.templates[0].replace("{c}", name) for name in names]).to(device)
    lengths_T = ids_TN.argmax(-1)
    for length in lengths_T.unique():
        yield from ids_TN[lengths_T == length].split(batch_size)


# models beside each other


def summarize(found: Mapping[str, Sequence[Figures]]) -> list[dict[str, Any]]:
    """Return a row for each group, tower, layer and measure; the models of a group have the same ones.

    Differences are to the first group, where it has the same measure.
    """
    estimates: dict[str, dict[tuple[str, int, str], Estimate]] = {
        group: {key: over_seeds([own[key] for own in models]) for key in models[0]} for group, models in found.items()
    }
    base = next(iter(estimates.values()))
    rows = []
    for group, own in estimates.items():
        for key, estimate in sorted(own.items(), key=lambda item: (*item[0][:2], MEASURES.index(item[0][2]))):
            tower, layer, measure = key
            paired = difference(estimate, base[key]) if key in base and own is not base else None
            rows.append(make_row(estimate, paired, group=group, tower=tower, layer=layer, measure=measure))
    return rows


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return a panel for each tower and drawn measure; the dotted lines beside a group's sinks are A1's."""
    made = []
    for tower in ("image", "text"):
        for measure, label in _DRAWN.items():
            curves = _curves(rows, tower, measure)
            if measure == "sink":
                curves += _curves(rows, tower, "sink of A1", dashed=True)
            made.append(Panel(f"{tower} tower:\n{measure}", "layer", label, curves, log=measure == "sink"))
    return made


def _curves(rows: Sequence[Mapping[str, Any]], tower: str, measure: str, dashed: bool = False) -> list[Curve]:
    curves = []
    for group in names_of(rows):
        own = [row for row in rows if (row["group"], row["tower"], row["measure"]) == (group, tower, measure)]
        if own:
            curves.append(Curve(group, [row["layer"] for row in own], [estimate_of(row) for row in own], dashed))
    return curves


def over_layers(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Return the means over each tower's layers, by tower and measure and then by group."""
    found: dict[tuple[str, str], dict[str, Estimate]] = {}
    for tower in ("image", "text"):
        for measure in MEASURES:
            by_group: dict[str, list[list[float]]] = {}
            for row in rows:
                if (row["tower"], row["measure"]) == (tower, measure):
                    by_group.setdefault(row["group"], []).append(estimate_of(row).seeds)
            found[tower, measure] = {
                group: over_seeds([sum(values) / len(layers) for values in zip(*layers, strict=True)])
                for group, layers in by_group.items()
            }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the means over each tower's layers."""
    groups = names_of(rows)
    lines = [
        [f"{tower}: {measure}", *(cell(by_group.get(group), 2) for group in groups)]
        for (tower, measure), by_group in over_layers(rows).items()
    ]
    return markdown(["mean over layers", *groups], lines)


def attention_inside(groups: Groups, data: LabelledImages, *, batch_size: int, device: str) -> list[dict[str, Any]]:
    """Measure all models on the same images and texts; see :func:`summarize`."""
    return summarize(
        {
            group: [measure_model(loaded, data, batch_size, device) for loaded in tqdm(models, desc=group, leave=False)]
            for group, models in groups.items()
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    add_data_arguments(parser)
    args = parser.parse_args()
    specs = check_arguments(args)
    data = read_images(args.data, args.num_images, args.seed)
    groups = load_groups(specs, args.device)
    rows = attention_inside(groups, data, batch_size=args.batch_size, device=args.device)
    print(table(rows))
    content = {"data": args.data.name, "images": len(data.images), "rows": rows}
    write_outputs(args, content, panels(rows), groups, columns=len(_DRAWN))


if __name__ == "__main__":
    main()
