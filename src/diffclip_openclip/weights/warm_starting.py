"""``diffclip warm-start``: a trained CLIP as a DiffCLIP with V2 attention that computes the same embeddings.

Each plain attention layer, A v W, becomes (A1 - sigmoid(lambda) A2) v (2 W) with both queries the plain one's and the
projection of lambda zero, so that A1 = A2 = A and sigmoid(lambda) = 1/2. The gradients of the two queries have opposite
signs, so training parts them.
"""

import difflib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import parse_model_name
from open_clip.model import convert_to_custom_text_state_dict, get_model_preprocess_cfg
from open_clip.transformer import QuickGELU
from torch import nn

from diffclip_openclip.files import check_place, sha256
from diffclip_openclip.weights.architecture import recognize
from diffclip_openclip.weights.card import model_card
from diffclip_openclip.weights.checkpoint import StateDict, read_checkpoint
from diffclip_openclip.weights.directory import MODEL_DIRECTORY, write_directory
from diffclip_openclip.weights.reference import from_reference
from diffclip_openclip.weights.source import PREPROCESS, Source, preprocess_of_run

_TOLERANCE = 1e-4  # of normalised embeddings in float32, where sums run in another order
_TEXTS = ["", "a photo of a mug", "two lamps and a chair on a wooden floor, seen from above", "7"]

# key of open_clip's plain CLIP, key here, what happens to the tensor; the first row that matches counts
_IMAGE_BLOCK, _TEXT_BLOCK = r"visual\.transformer\.resblocks\.(\d+)", r"text\.transformer\.resblocks\.(\d+)"
_KEYS: list[tuple[str, str, str]] = [
    # open_clip's VisionTransformer
    (r"visual\.class_embedding", r"visual.trunk.cls_token", "1 1 C"),
    (r"visual\.positional_embedding", r"visual.trunk.pos_embed", "1 N C"),
    (r"visual\.conv1\.weight", r"visual.trunk.patch_embed.proj.weight", "same"),
    (r"visual\.ln_pre\.(\w+)", r"visual.trunk.norm_pre.\1", "same"),
    (r"visual\.ln_post\.(\w+)", r"visual.trunk.norm.\1", "same"),
    (r"visual\.proj", r"visual.head.proj.weight", "transposed"),
    (_IMAGE_BLOCK + r"\.ln_([12])\.(\w+)", r"visual.trunk.blocks.\1.norm\2.\3", "same"),
    (_IMAGE_BLOCK + r"\.attn\.in_proj_(\w+)", r"visual.trunk.blocks.\1.attn.qkv.\2", "twin image queries"),
    (_IMAGE_BLOCK + r"\.attn\.out_proj\.weight", r"visual.trunk.blocks.\1.attn.proj.weight", "doubled"),
    (_IMAGE_BLOCK + r"\.attn\.out_proj\.bias", r"visual.trunk.blocks.\1.attn.proj.bias", "same"),
    (_IMAGE_BLOCK + r"\.mlp\.c_fc\.(\w+)", r"visual.trunk.blocks.\1.mlp.fc1.\2", "same"),
    (_IMAGE_BLOCK + r"\.mlp\.c_proj\.(\w+)", r"visual.trunk.blocks.\1.mlp.fc2.\2", "same"),
    # timm's ViT behind open_clip's adapter, as in this package's baselines
    (r"(visual\.trunk\.blocks\.\d+\.attn\.qkv\.\w+)", r"\1", "twin image queries"),
    (r"(visual\.trunk\.blocks\.\d+\.attn\.proj\.weight)", r"\1", "doubled"),
    (r"(visual\.(?:trunk|head)\..+)", r"\1", "same"),
    # open_clip's TextTransformer
    (r"text\.token_embedding\.weight", r"text.transformer.embeddings.token_embedding.weight", "same"),
    (r"text\.positional_embedding", r"text.transformer.embeddings.positional_embedding", "same"),
    (r"text\.ln_final\.(\w+)", r"text.transformer.ln_final.\1", "same"),
    (r"text\.text_projection", r"text.proj.weight", "transposed"),
    (_TEXT_BLOCK + r"\.attn\.in_proj_(\w+)", r"text.transformer.layers.\1.attn.qkv.\2", "twin text queries"),
    (_TEXT_BLOCK + r"\.attn\.out_proj\.weight", r"text.transformer.layers.\1.attn.proj.weight", "doubled"),
    (_TEXT_BLOCK + r"\.attn\.out_proj\.bias", r"text.transformer.layers.\1.attn.proj.bias", "same"),
    (_TEXT_BLOCK + r"\.(ln_[12]|mlp\.c_fc|mlp\.c_proj)\.(\w+)", r"text.transformer.layers.\1.\2.\3", "same"),
    (r"logit_scale", r"logit_scale", "same"),
]


def warm_start(src: str, out: Path, preprocess: str | None = None, overwrite: bool = False) -> list[str]:
    """Write a DiffCLIP with V2 attention that starts from SRC's function; returns what the user should know.

    Args:
        src: ``NAME:TAG`` or ``NAME:FILE`` with open_clip's names, or ``local-dir:DIR``, ``hf-hub:owner/repo``.
        out: the directory to make, as :func:`~diffclip_openclip.weights.directory.write_directory`.
        preprocess: "slip" or "openai", where SRC does not say.

    Raises:
        ValueError: an unknown name or tag, another architecture than CLIP's ViTs with a counterpart here, or embeddings
            that differ from SRC's.
        FileExistsError: ``out`` exists, and ``overwrite`` is not given; or it is not just a model directory, or is SRC.
        FileNotFoundError, OSError: as :func:`write_directory`.
    """
    check_place(out, overwrite, MODEL_DIRECTORY, inputs=[Path(src.partition(":")[2])])
    model, digest, preprocess_cfg = _load(src)
    if preprocess is not None:
        preprocess_cfg = PREPROCESS[preprocess]
    if preprocess_cfg is None:
        raise ValueError(f"{src} does not say how its images were preprocessed; add --preprocess openai or slip")
    state_dict = with_twin_queries(model)
    architecture = recognize(state_dict, "quickgelu" if _has_quick_gelu(model) else "gelu")
    note = f"train on with: open_clip_train --model local-dir:{out.resolve()}"
    card_note = "Made to have the source's embeddings exactly; nothing was trained yet"
    source = Source(src, digest, state_dict, architecture, preprocess_cfg, [card_note])
    differences: list[float] = []
    write_directory(
        out,
        state_dict,
        architecture,
        preprocess_cfg,
        model_card(source, "warm-start"),
        overwrite,
        check=lambda new: differences.append(_compare(model, new)),
    )
    name = architecture.name or architecture.tower
    return [f"{out} is {name}; its embeddings differ from {src}'s by {differences[0]:.1e} in float32", note]


def with_twin_queries(model: Any) -> StateDict:
    """The state dict of the V2 model with the embeddings of ``model``, an open_clip ``CustomTextCLIP``.

    Raises:
        ValueError: a tensor that has no counterpart.
    """
    image_blocks, text_blocks = _image_blocks(model), _text_blocks(model)
    num_heads = {"image": image_blocks[0].attn.num_heads, "text": text_blocks[0].attn.num_heads}
    converted: StateDict = {}
    for key, tensor in model.state_dict().items():
        name, change = _counterpart(key)
        converted[name] = _changed(tensor, change, num_heads).clone(memory_format=torch.contiguous_format)
    for prefix, blocks in (("visual.trunk.blocks", image_blocks), ("text.transformer.layers", text_blocks)):
        for i in range(len(blocks)):
            proj, heads = converted[f"{prefix}.{i}.attn.proj.weight"], blocks[i].attn.num_heads
            converted[f"{prefix}.{i}.attn.lambda_proj.weight"] = proj.new_zeros(heads, proj.shape[0])
    return converted


def _counterpart(key: str) -> tuple[str, str]:
    for pattern, ours, change in _KEYS:
        if match := re.fullmatch(pattern, key):
            return match.expand(ours), change
    raise ValueError(f"{key} has no counterpart in a V2 model; supported are CLIP's ViTs with a plain text tower")


def _changed(tensor: torch.Tensor, change: str, num_heads: Mapping[str, int]) -> torch.Tensor:
    if change == "same":
        return tensor
    if change == "1 1 C":
        return tensor[None, None]
    if change == "1 N C":
        return tensor[None]
    if change == "transposed":
        return tensor.t()
    if change == "doubled":
        return 2 * tensor
    _, tower, _ = change.split()
    q, k, v = tensor.chunk(3)
    q = q.unflatten(0, (num_heads[tower], 1, -1))
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


def _load(src: str) -> tuple[Any, str | None, dict[str, Any] | None]:
    """The source as open_clip builds it, its weights' checksum and its preprocessing."""
    if parse_model_name(src)[0] is not None:
        try:
            model = open_clip.create_model(src, force_custom_text=True, require_pretrained=True)
        except pickle.UnpicklingError as error:
            raise ValueError(f"the weights of {src} hold more than tensors and were not loaded: {error}") from error
        return model.eval(), None, _preprocess(model)
    name, _, weights = src.partition(":")
    if name not in open_clip.list_models():
        close = difflib.get_close_matches(name, open_clip.list_models(), 3)
        raise ValueError(
            f"open_clip knows no model {name!r}" + (f"; did you mean {' or '.join(close)}?" if close else "")
        )
    tag = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    if tag:
        # open_clip takes a name's activation even where a tag's weights were trained with the other
        model = open_clip.create_model(
            name, weights, force_custom_text=True, force_quick_gelu=tag.get("quick_gelu", False)
        )
        return model.eval(), None, _preprocess(model)
    if not weights or not Path(weights).is_file():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise FileNotFoundError(f"{src} names no weights: NAME:TAG or NAME:FILE are possible; tags of {name}: {tags}")
    model = open_clip.create_model(name, force_custom_text=True)
    preprocess_cfg = _load_file(model, Path(weights), name)
    return model.eval(), sha256(Path(weights)), preprocess_cfg


def _load_file(model: Any, path: Path, name: str) -> dict[str, Any] | None:
    """Load the weights, and return the preprocessing where it is known."""
    state_dict, preprocess_cfg = read_checkpoint(path), preprocess_of_run(path)
    if "visual.blocks.0.norm1.weight" in state_dict:
        state_dict, preprocess_cfg = from_reference(state_dict), PREPROCESS["slip"]
    try:
        model.load_state_dict(convert_to_custom_text_state_dict(state_dict))
    except RuntimeError as error:
        raise ValueError(f"{path} does not hold the weights of {name}: {error}") from error
    return preprocess_cfg


def _preprocess(model: Any) -> dict[str, Any]:
    preprocess_cfg = get_model_preprocess_cfg(model)
    return {key: preprocess_cfg[key] for key in PREPROCESS["openai"]}


@torch.no_grad()
def _compare(old: Any, new: Any) -> float:
    """The largest difference of an embedding's component between two models, both (B, embed_dim) and normalised."""
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
