"""A page to explore attention maps in a browser: one file, without a server, a network or a library.

Shape legend: N tokens, H x W pixels of a view.
"""

import base64
import io
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffclip_openclip.explain.looks import LayerLook, TextLook
from diffclip_openclip.explain.maps import LayerMaps
from diffclip_openclip.explain.pictures import COLORMAP, SIGNED_COLORMAP, answer, heat, overlay
from diffclip_openclip.explain.views import Pixels

_COLOUR_SHARE = 0.8  # of a map's colours, whose values count; the rest is the image in grey


def page(
    names: Sequence[str],
    models: Sequence[str],
    texts: Sequence[str],
    blocks: Sequence[Sequence[tuple[TextLook, LayerLook]]],
    colormap: str = COLORMAP,
) -> str:
    """The page's HTML: sliders over layers and heads, a click for another token's row, relevance of each text.

    Maps are kept with 8 bits an entry and a float a row: to 1/510 of a row's maximum.

    Args:
        names: of the images.
        models: their titles.
        blocks: for each image the looks of each model.
        colormap: of the relevance.
    """
    import matplotlib

    layers = [layer for looks in blocks for _, look in looks for layer in look.layers]
    data = {
        "images": [
            {
                "name": name,
                "models": [
                    {"label": model} | _texts(found, texts, colormap) | _maps(look)
                    for model, (found, look) in zip(models, looks, strict=True)
                ],
            }
            for name, looks in zip(names, blocks, strict=True)
        ],
        "layers": 1 + max(layer.layer for layer in layers),
        "heads": max(layer.a1.shape[1] for layer in layers),
        "share": _COLOUR_SHARE,
        "sequential": _table(matplotlib.colormaps[COLORMAP]),
        "signed": _table(matplotlib.colormaps[SIGNED_COLORMAP]),
    }
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # "<" could end the script element that holds the data
    return template.replace("__DATA__", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _texts(look: TextLook, texts: Sequence[str], colormap: str) -> dict[str, Any]:
    pictures = [overlay(look.picture, heat(look, index), colormap) for index in range(len(texts))]
    return {
        "texts": [
            {"text": f"{text}: {answer(look, index)}", "picture": _data_uri((255 * picture).round().astype(np.uint8))}
            for index, (text, picture) in enumerate(zip(texts, pictures, strict=True))
        ]
    }


def _maps(look: LayerLook) -> dict[str, Any]:
    return {
        "picture": _data_uri(look.picture),
        "grid": look.tokens.grid,
        "tokens": look.layers[0].a1.shape[-1],
        "prefix": look.tokens.num_prefix,
        "readOut": list(look.read_out),
        "layers": [_layer(layer) for layer in look.layers],
    }


def _layer(layer: LayerMaps) -> dict[str, Any]:
    entry = {"layer": layer.layer, "heads": layer.a1.shape[1], "a1": _packed(layer.a1)}
    if layer.a2 is None or layer.lambda_ is None:
        return entry
    lambdas = layer.lambda_.expand(*layer.a1.shape[:-1], 1)
    return entry | {"a2": _packed(layer.a2), "lambda": _base64(lambdas.float().numpy().astype("<f4").tobytes())}


def _packed(maps: torch.Tensor) -> dict[str, str]:
    """Maps (1, heads, N, N): each row's maximum as float32, and its entries as shares of it in 0..255."""
    largest = maps.float().amax(dim=-1, keepdim=True)
    shares = (maps.float() / largest.clamp(min=torch.finfo(torch.float32).tiny) * 255).round().to(torch.uint8)
    return {
        "scale": _base64(largest.numpy().astype("<f4").tobytes()),
        "values": _base64(shares.contiguous().numpy().tobytes()),
    }


def _data_uri(picture: Pixels) -> str:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{_base64(stream.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _table(colormap: Any) -> list[list[int]]:
    colours: list[list[int]] = (255 * colormap(np.linspace(0, 1, 256))[:, :3]).round().astype(int).tolist()
    return colours
