"""Compute the lambda of every layer of a DiffCLIP: of a model, of weights, or over a training run.

lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init (paper, section 3.2). lambda_init is no
weight. It comes from the model, or from the architecture that ``diffclip convert`` recognizes a checkpoint as.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm.layers
from torch import Tensor, nn
from tqdm import tqdm

from diffclip_openclip.attention.v1 import DYNAMIC, LAMBDA_INIT, DifferentialAttention, resolve_lambda_init
from diffclip_openclip.explain.maps import attention_layers
from diffclip_openclip.models import TEXT_TOWER, TRUNK
from diffclip_openclip.weights.architecture import Architecture
from diffclip_openclip.weights.checkpoint import read_checkpoint
from diffclip_openclip.weights.layouts import Layout, depth_of, detect, from_reference
from diffclip_openclip.weights.runs import TrainingRun
from diffclip_openclip.weights.source import load_source

# tower -> what stands before a layer's index in the names of its weights, in open_clip's layout
_LAYERS = {"image": f"{TRUNK}blocks.", "text": f"{TEXT_TOWER}layers."}
_VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")


@dataclass(frozen=True)
class LayerLambda:
    """Hold lambda of one layer and its parts: ``lambda_`` = ``exp1`` - ``exp2`` + ``lambda_init``."""

    tower: str  # "image" or "text"
    layer: int  # from 0
    lambda_: float
    exp1: float  # exp(lambda_q1 . lambda_k1)
    exp2: float  # exp(lambda_q2 . lambda_k2)
    lambda_init: float


@dataclass(frozen=True)
class EpochLambdas:
    """Hold the lambdas of one checkpoint of a training run."""

    epoch: int  # how many epochs were done
    logit_scale: float  # what cosines are multiplied with: exp of the weight of that name
    layers: list[LayerLambda]


def lambdas(
    model_or_checkpoint: nn.Module | Mapping[str, Tensor] | str | Path, variant: str | None = None
) -> list[LayerLambda]:
    """Return the lambda of every layer with DiffCLIP's attention, the image tower's first.

    Args:
        model_or_checkpoint: an open_clip model, a state dict in open_clip's or the authors' layout, or what ``diffclip
            convert`` takes: a checkpoint file, a directory, or an address on the hub (``hf://owner/repo``).
        variant: "static" (lambda_init 0.8, the default) or "dynamic" (DiffCLIP*), for weights that do not say.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ConnectionError: the hub cannot be reached.
        ValueError: no layer has such attention, the weights are an image tower's without a CLIP around it, or the
            variant does not apply. Version 2 of the attention has another lambda for each token and image; see
            :func:`~diffclip_openclip.explain.maps.attention_maps`.
    """
    if isinstance(model_or_checkpoint, nn.Module):
        if variant is not None:
            raise ValueError(f"a model knows its own lambda_init; leave out variant {variant!r}")
        return _of_model(model_or_checkpoint)
    if isinstance(model_or_checkpoint, Mapping):
        if variant not in (None, "static", "dynamic"):
            raise ValueError(f"variant is {variant!r}; it must be 'static' or 'dynamic'")
        lambda_init = DYNAMIC if variant == "dynamic" else LAMBDA_INIT
        authors = detect(model_or_checkpoint) is Layout.AUTHORS
        weights = from_reference(model_or_checkpoint) if authors else model_or_checkpoint
        return _of_weights(weights, dict.fromkeys(_LAYERS, lambda_init))
    source = load_source(str(model_or_checkpoint), variant)
    if source.layout is Layout.TIMM:
        raise ValueError(f"{model_or_checkpoint} holds a timm image tower alone; give a CLIP's weights")
    return _of_weights(source.state_dict, _lambda_inits(source.architecture))


def lambdas_over_training(directory: str | Path, variant: str | None = None) -> list[EpochLambdas]:
    """Return the lambdas of each checkpoint that open_clip's trainer left of a run, by epoch.

    Args:
        directory: the run's folder or the ``checkpoints`` in it, with ``epoch_1.pt`` and so on or ``epoch_latest.pt``.
        variant: "static" or "dynamic", for a run whose params.txt is missing or names a model that is not here.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: as :func:`lambdas`.
    """
    paths = TrainingRun.at(Path(directory)).checkpoints()
    lambda_inits = _lambda_inits(load_source(str(next(iter(paths.values()))), variant).architecture)
    run = []
    for epoch, path in tqdm(paths.items(), desc="checkpoints", unit="file"):
        weights = read_checkpoint(path)
        run.append(EpochLambdas(epoch, weights["logit_scale"].exp().item(), _of_weights(weights, lambda_inits)))
    return run


def _of_model(model: nn.Module) -> list[LayerLambda]:
    found = []
    for tower in _LAYERS:
        try:
            attention = attention_layers(model, tower)
        except ValueError:  # a ResNet beside a DiffCLIP text tower, say
            continue
        for layer, module in enumerate(attention):
            vectors: list[Any] = [getattr(module, name, None) for name in _VECTORS]
            if isinstance(module, DifferentialAttention | timm.layers.DiffAttention) and vectors[0] is not None:
                found.append(_layer_lambda(tower, layer, vectors, module.lambda_init))
    return _not_empty(found, any("lambda_proj" in name for name, _ in model.named_parameters()))


def _of_weights(weights: Mapping[str, Tensor], lambda_inits: Mapping[str, float | str]) -> list[LayerLambda]:
    found = []
    for tower, prefix in _LAYERS.items():
        for layer in range(depth_of(weights, prefix)):
            keys = [f"{prefix}{layer}.attn.{name}" for name in _VECTORS]
            if keys[0] in weights:
                if missing := [key for key in keys if key not in weights]:
                    raise ValueError(f"the weights lack {', '.join(missing)}")
                lambda_init = resolve_lambda_init(lambda_inits[tower], layer)
                found.append(_layer_lambda(tower, layer, [weights[key] for key in keys], lambda_init))
    return _not_empty(found, any(".attn.lambda_proj." in key for key in weights))


def _layer_lambda(tower: str, layer: int, vectors: list[Tensor], lambda_init: float) -> LayerLambda:
    q1, k1, q2, k2 = (vector.detach().double() for vector in vectors)
    exp1, exp2 = (q1 @ k1).exp().item(), (q2 @ k2).exp().item()
    return LayerLambda(tower, layer, exp1 - exp2 + lambda_init, exp1, exp2, lambda_init)


def _not_empty(found: list[LayerLambda], second_version: bool) -> list[LayerLambda]:
    if found:
        return found
    if second_version:
        raise ValueError(
            "version 2 of differential attention has no lambda of its own, but one for each token that it is given; "
            "diffclip_openclip.explain.maps.attention_maps shows them for an image or a text"
        )
    raise ValueError("there is no lambda: neither tower has differential attention with lambda vectors")


def _lambda_inits(architecture: Architecture) -> dict[str, float | str]:
    image = DYNAMIC if architecture.variant == "dynamic" else LAMBDA_INIT
    return {"image": image, "text": (architecture.text_config or {}).get("lambda_init", LAMBDA_INIT)}
