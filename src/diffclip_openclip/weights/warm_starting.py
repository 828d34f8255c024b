"""Do the work of ``diffclip warm-start``: a trained CLIP as a DiffCLIP with V2 attention and the same embeddings.

Each plain attention layer, A v W, becomes (A1 - sigmoid(lambda) A2) v (2 W) with both queries the plain one's and the
projection of lambda zero, so that A1 = A2 = A and sigmoid(lambda) = 1/2. The gradients of the two queries have opposite
signs, so training parts them.
"""

import pickle
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.transformer import QuickGELU
from torch import nn

from diffclip_openclip.files import check_place, sha256
from diffclip_openclip.models import TEXT_TOWER, TRUNK
from diffclip_openclip.weights.architecture import recognize
from diffclip_openclip.weights.card import model_card
from diffclip_openclip.weights.checkpoint import StateDict, read_checkpoint
from diffclip_openclip.weights.directory import MODEL_DIRECTORY, PREPROCESS, preprocess_cfg_of, write_directory
from diffclip_openclip.weights.foreign import loading_errors
from diffclip_openclip.weights.layouts import Layout, detect, from_openai, from_reference
from diffclip_openclip.weights.loading import checked_config
from diffclip_openclip.weights.runs import TrainingRun
from diffclip_openclip.weights.source import Source
from diffclip_openclip.weights.spec import ModelSpec, parse_spec

_TOLERANCE = 1e-4  # of normalised embeddings in float32, where sums run in another order
_TEXTS = ["", "a photo of a mug", "two lamps and a chair on a wooden floor, seen from above", "7"]


def warm_start(src: str, out: Path, *, preprocess: str | None = None, overwrite: bool = False) -> list[str]:
    """Write a DiffCLIP with V2 attention that starts from SRC's function, and return what the user should know.

    Args:
        src: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that open_clip builds, with weights.
        out: the directory to make, as :func:`~diffclip_openclip.weights.directory.write_directory`.
        preprocess: "slip" or "openai", where SRC does not say.

    Raises:
        ValueError: an unknown name or tag, another architecture than CLIP's ViTs with a counterpart here, or embeddings
            that differ from SRC's.
        FileExistsError, FileNotFoundError, OSError: as :func:`write_directory`.
    """
    spec = parse_spec(src)
    inputs = [path for path in (spec.directory, spec.checkpoint) if path is not None]
    check_place(out, overwrite, MODEL_DIRECTORY, inputs=inputs)
    model, digest, preprocess_cfg = _load(spec)
    if preprocess is not None:
        preprocess_cfg = PREPROCESS[preprocess]
    if preprocess_cfg is None:
        raise ValueError(f"{src} does not say how its images were preprocessed; add --preprocess openai or slip")
    state_dict = with_twin_queries(model)
    architecture = recognize(state_dict, "quickgelu" if _has_quick_gelu(model) else "gelu")
    note = f"train on with: open_clip_train --model local-dir:{out.resolve()}"
    card_note = "Made to have the source's embeddings exactly; nothing was trained yet"
    source = Source(src, digest, state_dict, architecture, preprocess_cfg, notes=[card_note])
    differences: list[float] = []
    write_directory(
        out,
        state_dict=state_dict,
        architecture=architecture,
        preprocess_cfg=preprocess_cfg,
        card=model_card(source, "warm-start"),
        overwrite=overwrite,
        check=lambda new: differences.append(_compare(model, new)),
    )
    name = architecture.name or architecture.tower
    return [f"{out} is {name}; its embeddings differ from {src}'s by {differences[0]:.1e} in float32", note]


def with_twin_queries(model: Any) -> StateDict:
    """Return the state dict of the V2 model with the embeddings of ``model``, an open_clip ``CustomTextCLIP``.

    Raises:
        ValueError: a tensor that has no counterpart.
    """
    towers = {f"{TRUNK}blocks": _image_blocks(model), f"{TEXT_TOWER}layers": _text_blocks(model)}
    converted = from_openai(model.state_dict())
    for prefix, blocks in towers.items():
        for i in range(len(blocks)):
            attention, num_heads = f"{prefix}.{i}.attn", blocks[i].attn.num_heads
            for name in ("weight", "bias"):
                qkv = converted[f"{attention}.qkv.{name}"]
                converted[f"{attention}.qkv.{name}"] = _with_each_query_twice(qkv, num_heads)
            proj = 2 * converted[f"{attention}.proj.weight"]
            converted[f"{attention}.proj.weight"] = proj
            converted[f"{attention}.lambda_proj.weight"] = proj.new_zeros(num_heads, proj.shape[0])
    return converted


def _with_each_query_twice(qkv: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return V2's qkv, (4 C, ...), from a plain layer's, (3 C, ...): a head's two queries stand beside each other."""
    q, k, v = qkv.chunk(3)
    q = q.unflatten(0, (num_heads, 1, -1))
    return torch.cat([torch.cat([q, q], dim=1).flatten(0, 2), k, v])


def _image_blocks(model: Any) -> Any:
    if hasattr(model.visual, "trunk"):
        return model.visual.trunk.blocks
    if hasattr(model.visual, "transformer"):
        return model.visual.transformer.resblocks
    raise ValueError(f"the image tower is a {type(model.visual).__name__}; supported are ViTs")


def _text_blocks(model: Any) -> Any:
    if not hasattr(getattr(model.text, "transformer", None), "resblocks"):
        raise ValueError(f"the text tower is a {type(model.text).__name__}; supported is open_clip's own transformer")
    return model.text.transformer.resblocks


def _has_quick_gelu(model: nn.Module) -> bool:
    return any(isinstance(module, QuickGELU) for module in model.modules())


def _load(spec: ModelSpec) -> tuple[Any, str | None, dict[str, Any] | None]:
    """Return the source as open_clip builds it, its weights' checksum and its preprocessing."""
    if spec.checkpoint is not None:
        model = open_clip.create_model(spec.name, force_custom_text=True)
        preprocess_cfg = _load_file(model, spec.checkpoint, spec.name)
        return model.eval(), sha256(spec.checkpoint), preprocess_cfg
    checked_config(spec)
    # open_clip takes a name's activation even where a tag's weights were trained with the other
    tag = open_clip.get_pretrained_cfg(spec.name, spec.pretrained) if spec.pretrained else {}
    options = {"force_custom_text": True, "force_quick_gelu": tag.get("quick_gelu", False), "require_pretrained": True}
    with loading_errors(spec):
        try:
            model = open_clip.create_model(spec.name, spec.pretrained or None, **options)
        except pickle.UnpicklingError as error:
            raise ValueError(f"the weights of {spec} hold more than tensors and were not loaded: {error}") from error
    return model.eval(), None, preprocess_cfg_of(model)


def _load_file(model: Any, path: Path, name: str) -> dict[str, Any] | None:
    """Load the weights, and return the preprocessing where it is known."""
    state_dict, preprocess_cfg = read_checkpoint(path), TrainingRun.of_checkpoint(path).preprocess_cfg
    if detect(state_dict) is Layout.AUTHORS:
        state_dict, preprocess_cfg = from_reference(state_dict), PREPROCESS["slip"]
    try:
        model.load_state_dict(convert_to_custom_text_state_dict(state_dict))
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {name}: {error}") from error
    return preprocess_cfg


@torch.no_grad()
def _compare(old: Any, new: Any) -> float:
    """Return the largest difference of a component of two models' embeddings, (B, embed_dim) and normalised.

    Raises:
        ValueError: it is more than rounding.
    """
    tokens = open_clip.SimpleTokenizer(context_length=old.context_length)(_TEXTS)
    images = torch.randn(2, 3, *new.visual.image_size)
    pairs = [
        (F.normalize(old.encode_image(images)), F.normalize(new.encode_image(images))),
        (F.normalize(old.encode_text(tokens)), F.normalize(new.encode_text(tokens))),
    ]
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    if not difference <= _TOLERANCE:
        raise ValueError(
            f"the new model's embeddings differ by {difference:.1e}: an option of the source is unsupported"
        )
    return difference
