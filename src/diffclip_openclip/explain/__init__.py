"""What a CLIP attends to: attention maps, heat maps of an image for texts, and lambda.

To read in this order: ``explicit`` (an attention module's call with its maps written out), ``towers`` (where a model's
attention modules are, and what its tokens stand for), ``recording`` (the calls of one forward pass), ``maps``,
``relevance`` and ``lambdas`` (what is asked for).
"""
