"""Show what a CLIP attends to: attention maps, heat maps of an image for texts, and lambda.

Each module uses only those before it:

- ``attention_formulas``: an attention module's call with its maps written out
- ``maps``: the attention maps of a model
- ``heat_maps``: the relevance of an image's patches for texts
- ``images``, ``pictures``, ``page``: maps and relevance of image files; pictures; a page for a browser
- ``attend``: the work of ``diffclip attend``
- ``lambda_values``, ``lambda_report``: lambda by layer; the work of ``diffclip lambdas``
"""

from diffclip_openclip.explain.heat_maps import Relevance, relevance, upsample
from diffclip_openclip.explain.lambda_values import lambdas, lambdas_over_training
from diffclip_openclip.explain.maps import LayerMaps, attention_maps

__all__ = [
    "LayerMaps",
    "Relevance",
    "attention_maps",
    "lambdas",
    "lambdas_over_training",
    "relevance",
    "upsample",
]
