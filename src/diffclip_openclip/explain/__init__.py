"""What a CLIP attends to: attention maps, heat maps of an image for texts, and lambda.

To read in this order: ``explicit`` (an attention module's call with its maps written out), ``towers`` (where a model's
attention modules are, and what its tokens stand for), ``recording`` (the calls of one forward pass), ``maps``,
``relevance`` and ``lambdas`` (what is asked for). On these stand the pictures (``views``, ``looks``, ``pictures``,
``layer_pictures``, ``page``; ``attend`` is the command), ``lambda_report``, and the score of whether relevance lies in
what a text names (``composed``, ``score``, ``score_table``).
"""

from diffclip_openclip.explain.lambdas import lambdas, lambdas_over_training
from diffclip_openclip.explain.maps import LayerMaps, attention_maps
from diffclip_openclip.explain.relevance import Relevance, relevance, upsample

__all__ = [
    "LayerMaps",
    "Relevance",
    "attention_maps",
    "lambdas",
    "lambdas_over_training",
    "relevance",
    "upsample",
]
