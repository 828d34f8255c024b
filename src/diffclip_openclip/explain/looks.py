"""What one model makes of one image: where it finds texts, and how its image tower attends.

Shape legend: T texts, N tokens, h x w grid of patches, H x W pixels of a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from diffclip_openclip.explain.maps import LayerMaps, attention_maps
from diffclip_openclip.explain.relevance import Relevance, relevance
from diffclip_openclip.explain.towers import Tokens, tokens_of
from diffclip_openclip.explain.views import Pixels, view
from diffclip_openclip.weights.loading import LoadedModel


@dataclass(frozen=True)
class TextLook:
    """Where a model finds texts: ``picture`` is what it sees, (H, W, 3); ``found`` is of this one image, B = 1."""

    picture: Pixels
    found: Relevance


@dataclass(frozen=True)
class LayerLook:
    """How an image tower attends: ``picture`` is what it sees, (H, W, 3); ``layers`` are of this one image, B = 1."""

    picture: Pixels
    tokens: Tokens
    layers: list[LayerMaps]

    @property
    def read_out(self) -> range:
        """The tokens that the tower's output reads: the class token, or those that it averages; all if unknown."""
        num_tokens = self.layers[0].a1.shape[-1]
        return range(*(self.tokens.pooled or slice(None)).indices(num_tokens))

    @property
    def differential(self) -> bool:
        return all(layer.a2 is not None for layer in self.layers)

    def patches(self, row_hN: Tensor) -> Tensor:
        """The patches' part of rows of maps, (heads, N), as (heads, h, w)."""
        return row_hN[:, self.tokens.num_prefix :].unflatten(-1, self.tokens.grid)


def look_for_texts(
    loaded: LoadedModel,
    image: Image.Image,
    texts: Sequence[str],
    method: str = "chefer",
    start_layer: int | None = None,
) -> TextLook:
    """Relevance of each text; ``method``, ``start_layer`` and errors are those of :func:`relevance`."""
    pixels, ids = loaded.preprocess(image)[None], loaded.tokenizer(list(texts))
    found = relevance(loaded.model, pixels, ids, method=method, start_layer=start_layer)
    return TextLook(view(image, loaded.preprocess_cfg), found)


def look_at_layers(loaded: LoadedModel, image: Image.Image) -> LayerLook:
    """The maps of every layer of the image tower; errors are those of :func:`attention_maps`."""
    pixels = loaded.preprocess(image)[None]
    layers = attention_maps(loaded.model, image=pixels)
    return LayerLook(view(image, loaded.preprocess_cfg), tokens_of(loaded.model, pixels), layers)
