"""Load weights into a model on the meta device, so that they are mapped from their file and never in memory twice."""

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.transformer import TextTransformer

from diffclip_openclip.weights.checkpoint import read_checkpoint


def create_mapped(folder: Path) -> Any:
    """Build the model of a directory as open_clip does, with weights that are mapped from the file.

    open_clip's own loading has a model of random weights and the file in memory beside each other. It is taken for
    towers that have values beside their weights, such as timm's Swin.
    """
    options = {"load_weights": False, "pretrained_text": False}
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that there are no weights yet
    try:
        with torch.device("meta"):
            model = open_clip.create_model(f"local-dir:{folder}", device="meta", force_custom_text=True, **options)
    finally:
        logging.getLogger().setLevel(level)
    state_dict = read_checkpoint(folder / HF_SAFE_WEIGHTS_NAME)
    try:
        assign(model, lambda: model.load_state_dict(state_dict, assign=True))
    except LookupError:
        return open_clip.create_model(f"local-dir:{folder}")
    return model


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
