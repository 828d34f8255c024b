"""Define what towers of both modalities share: blocks that open_clip's trainer finds, and plain attention."""

from typing import Any

from open_clip.transformer import ResidualAttentionBlock
from timm.layers import Attention
from torch import nn


class OpenClipBlock(ResidualAttentionBlock):
    """Count as open_clip's own block, of which a subclass has nothing but the class.

    The trainer's FSDP2 shards a model block by block, and finds blocks by their class
    (open_clip@89fb801:src/open_clip/task/base_task.py, _get_fsdp_shard_modules). A tower without any is gathered whole.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)


class PlainAttention(Attention):
    """Compute timm's plain attention, (B, N, C) -> (B, N, C), for towers that are compared with differential ones.

    It shows its number of heads, which no weight tells, so that models that differ in nothing else have hashes of their
    own.

    Raises:
        ValueError: ``dim`` is not a multiple of ``num_heads``.
    """

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        if dim % num_heads:  # of which timm has an assertion only
            raise ValueError(f"dim is {dim} and num_heads {num_heads}; dim must be a multiple of num_heads")
        super().__init__(dim, num_heads, **kwargs)

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


class GatedAttention(PlainAttention):
    """Compute timm's plain attention with its elementwise gate: proj(sigmoid(gate(x)) * heads) (arXiv 2505.06708)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"gated": True}))
