"""The attention maps of a model, of any layer of either tower."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffclip_openclip.explain.explicit import explicit, weighted_difference
from diffclip_openclip.explain.recording import recorded
from diffclip_openclip.explain.towers import attention_layers, check_inputs


@dataclass(frozen=True)
class LayerMaps:
    """The attention maps of one layer, B inputs of N tokens each.

    Attributes:
        tower: "image" or "text".
        layer: index of the layer, from 0.
        a1: A1, or plain attention's only map, (B, h, N, N); h are pairs of heads in DiffCLIP's attention, heads in
            version 2 and in plain attention.
        a2: A2, likewise; None for plain attention.
        lambda_: weight of A2, broadcastable to (B, h, N, 1): one scalar a layer, in version 2 sigma(lambda) of each
            token and head; None for plain attention.
    """

    tower: str
    layer: int
    a1: Tensor
    a2: Tensor | None
    lambda_: Tensor | None

    @property
    def attention(self) -> Tensor:
        """What the values are multiplied with, (B, h, N, N): A1 - lambda A2, or plain attention's map."""
        return weighted_difference(self.a1, self.a2, self.lambda_)


def attention_maps(
    model: Any, image: Tensor | None = None, text: Tensor | None = None, layers: Iterable[int] | None = None
) -> list[LayerMaps]:
    """The attention maps that ``model`` makes of images, of texts or of both; the image tower's layers come first.

    The model is left as it was: its mode, its gradients, its hooks.

    Args:
        model: of open_clip, with transformers for the towers that are asked for.
        image: preprocessed images, (B, 3, H, W), on the model's device and in its dtype.
        text: token ids, (B, N).
        layers: indices of the wanted layers in each tower, negative ones from the end; all of them by default.

    Raises:
        ValueError: neither images nor texts, tensors of another shape, a layer that a tower does not have, or a tower
            without known attention modules (a ResNet, say).
    """
    if image is None and text is None:
        raise ValueError("there is nothing to attend to; give image, text or both")
    check_inputs(image, text)
    wanted = None if layers is None else list(layers)
    maps = []
    if image is not None:
        maps += _maps_of(model, "image", wanted, lambda: model.encode_image(image))
    if text is not None:
        maps += _maps_of(model, "text", wanted, lambda: model.encode_text(text))
    return maps


@torch.no_grad()
def _maps_of(model: Any, tower: str, wanted: list[int] | None, encode: Callable[[], Tensor]) -> list[LayerMaps]:
    attention = dict(enumerate(attention_layers(model, tower)))
    if wanted is not None:
        attention = {i: attention[i] for i in (layer_index(i, len(attention), tower) for i in wanted)}
    with recorded(model, attention.values()) as calls:
        encode()
        return [LayerMaps(tower, i, *_written_out(calls[module], module)) for i, module in attention.items()]


def _written_out(call: Any, module: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return explicit(module, *call.args, **call.kwargs)[:3]


def layer_index(index: int, depth: int, tower: str) -> int:
    """``index`` counted from 0, in a tower of ``depth`` layers.

    Raises:
        ValueError: there is no such layer.
    """
    if not -depth <= index < depth:
        raise ValueError(f"there is no layer {index}: the {tower} tower has {depth}, from 0 to {depth - 1}")
    return index % depth
