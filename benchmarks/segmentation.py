"""Measure dense zero-shot segmentation by MaskCLIP's read-out:

    python benchmarks/segmentation.py --model NAME,CHECKPOINT --voc VOCdevkit/VOC2012 --output FILE.json
    python benchmarks/segmentation.py --model NAME,CHECKPOINT --ade20k ADEChallengeData2016 --output FILE.json

MaskCLIP (arXiv 2112.01071) gives each patch a class by its own embedding: in the last layer every token is given its
own values only, with everything else as it is, residual and MLP included (as in its code, a copy of which is
volgachen/MaskCLIP@99cae98:mmseg/models/backbones/vit.py). So each softmax map of the last layer is the identity there.
The same for differential attention is A1 = A2 = I, and so A1 - lambda A2 = (1 - lambda) I. In V1 that is a factor that
the norm takes away but for its sign. In V2 there is one for each token and head, which keeps the scale that the
projection was trained for. No attention map of the last layer is used, so both kinds are treated alike; the layers
before are as trained.

Protocol, as of SCLIP (wangf3014/SCLIP@57fa9aa:configs/cfg_voc20.py, cfg_ade20k.py and @d84d4ab:clip_segmentor.py) for
224 pixels: the short side is resized to 336, windows of 224 step by 112, logits of windows are averaged, interpolated
to the full image and the largest wins. Other image sizes are scaled alike. Class embeddings are means over OpenAI's 80
templates. VOC 2012 val, 20 classes, background not counted; ADE20K (SceneParse150) val, 150 classes, "other" not
counted. Unlike SCLIP, names are the data sets' own, the first of each class, without synonyms of SCLIP's making; images
are resized by Pillow with the model's interpolation. There is no threshold and no refinement.

mIoU is that of mmsegmentation (open-mmlab/mmsegmentation@3d50cc3:mmseg/evaluation/metrics/iou_metric.py): intersections
and unions are summed over all images, and classes that occur nowhere are left out of the mean.

Writes means over the seeds of a group with 95 % intervals, or over images by bootstrap where a group has one
checkpoint, and a figure. ``model_groups.py`` says how models are named.

Shape legend: I images, K classes, E embed_dim, h x w grid of patches, H x W pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from group_outputs import Curve, Panel, cell, estimate_of, make_row, markdown, names_of, write_outputs
from model_groups import (
    Estimate,
    Groups,
    add_arguments,
    check_arguments,
    difference,
    load_groups,
    over_seeds,
)
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from segmentation_data import (
    Counts,
    SegmentationSet,
    class_ious,
    count_pixels,
    mean_iou,
    pixel_accuracy,
    read_ade20k,
    read_annotation,
    read_voc,
)
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import normalize, resize, to_tensor
from tqdm import tqdm

from diffclip_openclip.data.images import decode
from diffclip_openclip.evaluation.zero_shot import TEMPLATE_SETS, embed_classes
from diffclip_openclip.explain.attention_formulas import weighted_difference, write_out
from diffclip_openclip.explain.maps import attention_layers, recorded, tokens_of
from diffclip_openclip.report.uncertainty import LEVEL
from diffclip_openclip.weights.loading import LoadedModel

MEASURES = ("mIoU", "pixel accuracy")
TEMPLATES = TEMPLATE_SETS["openai-80"]
_SHORT_SIDE, _STRIDE = 1.5, 0.5  # of the model's image size
_RESAMPLES = 1000

# one image


@torch.no_grad()
def dense_embeddings(model: Any, image: Tensor) -> Tensor:
    """Return the embedding of each patch, normalised, (B, h, w, E).

    Args:
        image: preprocessed, (B, 3, H, W).

    Raises:
        ValueError: the image tower does not pool by a class token, so that its head has no meaning for a patch.
    """
    visual, tokens = model.visual, tokens_of(model, image)
    if tokens.pooled != slice(0, 1):
        raise ValueError("the image tower does not pool by a class token; MaskCLIP's read-out needs one that does")
    last = attention_layers(model, "image")[-1]
    with recorded(model, ()):  # evaluation mode, eager
        hook = last.register_forward_hook(_look_at_itself, with_kwargs=True)
        try:
            embedded_BPE = _of_patches(visual, image, tokens.num_prefix)
        finally:
            hook.remove()
    return F.normalize(embedded_BPE, dim=-1).unflatten(1, tokens.grid)


def _look_at_itself(attention: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    """Compute the output of a call in which each map is the identity."""
    written = write_out(attention, *args, **kwargs)
    identity = torch.eye(written.a1.shape[-1], dtype=written.a1.dtype, device=written.a1.device).expand_as(written.a1)
    given = weighted_difference(identity, None if written.a2 is None else identity, written.lambda_)
    own = written.output(given)
    return (own, *output[1:]) if isinstance(output, tuple) else own


def _of_patches(visual: Any, image: Tensor, num_prefix: int) -> Tensor:
    """Return the embeddings of the patches, each read out as the class token is, (B, P, E)."""
    if isinstance(visual, TimmModel):
        patches_BPC = visual.trunk.forward_features(image)[:, num_prefix:]
        single_C = patches_BPC.flatten(0, 1)[:, None]  # each patch as the only token of an image
        return visual.head(visual.trunk.forward_head(single_C)).unflatten(0, patches_BPC.shape[:2])
    assert isinstance(visual, VisionTransformer)
    before, visual.output_tokens = visual.output_tokens, True
    try:
        patches_BPC = visual(image)[1]
    finally:
        visual.output_tokens = before
    if visual.final_ln_after_pool:
        patches_BPC = visual.ln_post(patches_BPC)
    return patches_BPC if visual.proj is None else patches_BPC @ visual.proj


def starts(length: int, window: int, stride: int) -> list[int]:
    """Return where windows begin; the last one ends with the image."""
    return [min(start, length - window) for start in range(0, length - window + stride, stride)]


def class_logits(model: Any, image: Tensor, text_EK: Tensor, window: int) -> Tensor:
    """Return the cosines of each pixel with the classes, averaged over windows, (K, H, W).

    Args:
        image: preprocessed, (3, H, W), no side below ``window``.
        window: the model's image size in pixels.
    """
    _, H, W = image.shape
    stride = round(window * _STRIDE)
    corners = [(top, left) for top in starts(H, window, stride) for left in starts(W, window, stride)]
    crops = torch.stack([image[:, top : top + window, left : left + window] for top, left in corners])
    cosines = (dense_embeddings(model, crops) @ text_EK).permute(0, 3, 1, 2)
    summed, count = image.new_zeros(text_EK.shape[1], H, W), image.new_zeros(H, W)
    for (top, left), own in zip(corners, cosines, strict=True):
        pixels = F.interpolate(own[None], (window, window), mode="bilinear", align_corners=False)[0]
        summed[:, top : top + window, left : left + window] += pixels
        count[top : top + window, left : left + window] += 1
    return summed / count


# one model


def segment(loaded: LoadedModel, data: SegmentationSet, device: str) -> Counts:
    """Return the counts of each image, (I, 3, K); see :func:`count_pixels`."""
    settings: Mapping[str, Any] = loaded.preprocess_cfg
    size = settings["size"]
    window = size if isinstance(size, int) else size[0]
    short_side = round(window * _SHORT_SIDE)
    with torch.no_grad():
        text_EK = embed_classes(loaded, device, data.class_names, TEMPLATES)
    found = []
    for path, annotation in tqdm(data.files, desc=f"{loaded.spec.label}, {data.name}", unit="image", leave=False):
        image = resize(decode(path.read_bytes()), short_side, InterpolationMode(settings["interpolation"]))
        pixels = normalize(to_tensor(image), settings["mean"], settings["std"]).to(device)
        labels = read_annotation(annotation, len(data.class_names))
        logits = class_logits(loaded.model, pixels, text_EK, window)
        full = F.interpolate(logits[None], labels.shape, mode="bilinear", align_corners=False)[0]
        found.append(count_pixels(full.argmax(0).cpu(), labels, len(data.class_names)))
    return np.stack(found)


def estimate(models: Sequence[Counts], score: Callable[[Counts], np.ndarray], seed: int) -> Estimate:
    """Return a score's mean over seeds with its interval, or over images by bootstrap where there is one model.

    Args:
        models: the counts of each, (I, 3, K).
    """
    found = over_seeds([float(score(counts.sum(0))) for counts in models])
    if len(models) > 1:
        return found
    images = len(models[0])
    weights_RI = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=_RESAMPLES)
    drawn = score(np.tensordot(weights_RI, models[0], axes=1))
    low, high = np.quantile(drawn, [LEVEL / 2, 1 - LEVEL / 2])
    return Estimate(found.mean, float(low), float(high), found.seeds)


# models beside each other


def segmentation(groups: Groups, sets: Sequence[SegmentationSet], *, device: str, seed: int) -> list[dict[str, Any]]:
    """Measure all models on all data sets; return a row for each data set, group and measure.

    Rows of mIoU have the IoU of each class. Differences are to the first group.
    """
    rows = []
    for data in sets:
        base: dict[str, Estimate] = {}
        for group, models in groups.items():
            counts = [segment(loaded, data, device) for loaded in models]
            ious = np.mean([class_ious(own.sum(0)) for own in counts], axis=0)
            by_class = dict(zip(data.class_names, map(float, ious), strict=True))
            for measure, score in zip(MEASURES, (mean_iou, pixel_accuracy), strict=True):
                own = estimate(counts, score, seed)
                first = base.setdefault(measure, own)
                paired = None if own is first else difference(own, first)
                what = {"data": data.name, "images": len(data.files), "group": group, "measure": measure}
                rows.append(make_row(own, paired, **what) | ({"classes": by_class} if measure == "mIoU" else {}))
    return rows


def panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Return a panel for each measure, with a point for each group and data set."""
    sets, groups = (list(dict.fromkeys(row[key] for row in rows)) for key in ("data", "group"))
    made = []
    for measure in MEASURES:
        curves = []
        for group in groups:
            own = [row for row in rows if (row["group"], row["measure"]) == (group, measure)]
            curves.append(Curve(group, [sets.index(row["data"]) for row in own], [estimate_of(row) for row in own]))
        made.append(Panel(measure, "", measure, curves, names=sets))
    return made


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table in per cent."""
    groups = names_of(rows)
    cells = {(r["data"], r["measure"], r["group"]): cell(estimate_of(r), 1, 100) for r in rows}
    heads = dict.fromkeys((row["data"], row["measure"]) for row in rows)
    return markdown(
        ["percent", *groups], [[", ".join(head), *(cells[*head, group] for group in groups)] for head in heads]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--voc", type=Path, metavar="DIR", help="VOCdevkit/VOC2012")
    parser.add_argument("--ade20k", type=Path, metavar="DIR", help="ADEChallengeData2016")
    args = parser.parse_args()
    if args.voc is None and args.ade20k is None:
        parser.error("there is nothing to segment; give --voc, --ade20k or both")
    specs = check_arguments(args)
    sets = [read(root) for read, root in ((read_voc, args.voc), (read_ade20k, args.ade20k)) if root is not None]
    groups = load_groups(specs, args.device)
    rows = segmentation(groups, sets, device=args.device, seed=args.seed)
    print(table(rows))
    write_outputs(args, {"rows": rows}, panels(rows), groups, columns=2)


if __name__ == "__main__":
    main()
