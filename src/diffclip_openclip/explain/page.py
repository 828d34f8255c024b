"""Write a page to explore attention maps in a browser: one file, without a server, a network or a library.

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

from diffclip_openclip.explain.images import ImageMaps, ImageRelevance, Pixels
from diffclip_openclip.explain.maps import LayerMaps
from diffclip_openclip.explain.pictures import COLORMAP, SIGNED_COLORMAP, answer, heat, overlay

_MAP_SHARE = 0.8  # of the colour in a map, whose values count; the rest is the image in grey


def attention_page(
    *,
    names: Sequence[str],
    models: Sequence[str],
    texts: Sequence[str],
    blocks: Sequence[Sequence[tuple[ImageRelevance, ImageMaps]]],
    colormap: str = COLORMAP,
) -> str:
    """Return the page's HTML: sliders over layers and heads, a click for another token's row, relevance of each text.

    Maps are kept with 8 bits an entry and a float a row: to 1/510 of a row's maximum.

    Args:
        names: of the images.
        blocks: for each image the relevance and the maps that each model has.
        colormap: of the relevance.
    """
    import matplotlib

    layers = [layer for by_model in blocks for _, maps in by_model for layer in maps.layers]
    data = {
        "images": [
            {
                "name": name,
                "models": [
                    {"label": model} | _texts(found, texts, colormap) | _maps(maps)
                    for model, (found, maps) in zip(models, by_model, strict=True)
                ],
            }
            for name, by_model in zip(names, blocks, strict=True)
        ],
        "layers": 1 + max(layer.layer for layer in layers),
        "heads": max(layer.a1.shape[1] for layer in layers),
        "share": _MAP_SHARE,
        "sequential": _table(matplotlib.colormaps[COLORMAP]),
        "signed": _table(matplotlib.colormaps[SIGNED_COLORMAP]),
    }
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    # "<" could end the script element that holds the data
    return template.replace("__DATA__", json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))


def _texts(found: ImageRelevance, texts: Sequence[str], colormap: str) -> dict[str, Any]:
    pictures = [overlay(found.picture, heat(found, index), colormap) for index in range(len(texts))]
    return {
        "texts": [
            {"text": f"{text}: {answer(found, index)}", "picture": _data_uri((255 * picture).round().astype(np.uint8))}
            for index, (text, picture) in enumerate(zip(texts, pictures, strict=True))
        ]
    }


def _maps(maps: ImageMaps) -> dict[str, Any]:
    return {
        "picture": _data_uri(maps.picture),
        "grid": maps.tokens.grid,
        "tokens": maps.layers[0].a1.shape[-1],
        "prefix": maps.tokens.num_prefix,
        "readOut": list(maps.read_out),
        "layers": [_layer(layer) for layer in maps.layers],
    }


def _layer(layer: LayerMaps) -> dict[str, Any]:
    entry = {"layer": layer.layer, "heads": layer.a1.shape[1], "a1": _packed(layer.a1)}
    if layer.a2 is None or layer.lambda_ is None:
        return entry
    lambdas = layer.lambda_.expand(*layer.a1.shape[:-1], 1)
    return entry | {"a2": _packed(layer.a2), "lambda": _base64(lambdas.float().numpy().astype("<f4").tobytes())}


def _packed(maps: torch.Tensor) -> dict[str, str]:
    """Encode maps, (1, heads, N, N): each row's maximum as float32, and its entries as shares of it in 0..255."""
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
