"""Load weights into a model on the meta device, so that they are mapped from their file and never in memory twice."""

from collections.abc import Callable
from itertools import chain
from typing import Any

from open_clip.transformer import TextTransformer


def assign(model: Any, load: Callable[[], object]) -> None:
    """Bring weights into an open_clip ``CustomTextCLIP`` on the meta device, in float32.

    Args:
        load: puts the weights of a checkpoint in the place of the model's, by ``load_state_dict(..., assign=True)``.

    Raises:
        LookupError: a tensor of the model is in no checkpoint, which open_clip's and timm's ViTs do not have.
    """
    load()
    text = getattr(model, "text", None)
    if isinstance(text, TextTransformer) and text.attn_mask is not None:
        text.attn_mask = text.build_causal_mask()
    left = [name for name, tensor in chain(model.named_parameters(), model.named_buffers()) if tensor.is_meta]
    if left:
        raise LookupError(f"the checkpoint lacks {len(left)} tensors that the model needs, the first is {left[0]}")
    model.float()
