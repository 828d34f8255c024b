"""Define what makes a transformer block one that open_clip's trainer finds in a model."""

from open_clip.transformer import ResidualAttentionBlock
from torch import nn


class OpenClipBlock(ResidualAttentionBlock):
    """Count as open_clip's own block, of which a subclass has nothing but the class.

    The trainer's FSDP2 shards a model block by block, and finds blocks by their class
    (open_clip@89fb801:src/open_clip/task/base_task.py, _get_fsdp_shard_modules). A tower without any is gathered whole.
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
