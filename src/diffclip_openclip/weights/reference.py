"""State-dict key maps between open_clip's models and the authors' checkpoints.

The reference layout is the one of the authors' published checkpoints (there with a ``module.`` prefix) and of SLIP's
CLIP (facebookresearch/SLIP@c6faf5d:models.py). Its image tower is a timm ViT, its text tower OpenAI's; each may have
differential or plain attention, so one table a tower and kind of attention covers DiffCLIP, DiffCLIP* (lambda_init is
no weight), DiffCLIP† and CLIP, at any width and depth.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from diffclip_openclip.weights.checkpoint import StateDict


@dataclass(frozen=True)
class Row:
    """One line of the key map.

    ``shape`` is the reference tensor's: numbers, or letters that must stand for the same number everywhere in a tower
    (E in both), optionally with a factor ("2d"). ``how`` is "same", "transposed" (a projection matrix that open_clip
    keeps in a linear layer), or "qkv" (``{x}`` runs over q, k, v, which are one layer here).
    """

    reference: str
    ours: str
    shape: str
    how: str = "same"


_IMAGE = [
    Row("visual.cls_token", "visual.trunk.cls_token", "1 1 C"),
    Row("visual.pos_embed", "visual.trunk.pos_embed", "1 L C"),
    Row("visual.patch_embed.proj.weight", "visual.trunk.patch_embed.proj.weight", "C 3 S S"),
    Row("visual.patch_embed.proj.bias", "visual.trunk.patch_embed.proj.bias", "C"),
    Row("visual.norm.weight", "visual.trunk.norm.weight", "C"),
    Row("visual.norm.bias", "visual.trunk.norm.bias", "C"),
    Row("image_projection", "visual.head.proj.weight", "C E", "transposed"),
]
_IMAGE_BLOCK = [
    Row("norm1.weight", "norm1.weight", "C"),
    Row("norm1.bias", "norm1.bias", "C"),
    Row("norm2.weight", "norm2.weight", "C"),
    Row("norm2.bias", "norm2.bias", "C"),
    Row("mlp.fc1.weight", "mlp.fc1.weight", "M C"),
    Row("mlp.fc1.bias", "mlp.fc1.bias", "M"),
    Row("mlp.fc2.weight", "mlp.fc2.weight", "C M"),
    Row("mlp.fc2.bias", "mlp.fc2.bias", "C"),
]
_IMAGE_PLAIN = [
    Row("attn.qkv.weight", "attn.qkv.weight", "3C C"),
    Row("attn.qkv.bias", "attn.qkv.bias", "3C"),
    Row("attn.proj.weight", "attn.proj.weight", "C C"),
    Row("attn.proj.bias", "attn.proj.bias", "C"),
]
_DIFFERENTIAL = [
    Row("attn.lambda_q1", "attn.lambda_q1", "d"),
    Row("attn.lambda_k1", "attn.lambda_k1", "d"),
    Row("attn.lambda_q2", "attn.lambda_q2", "d"),
    Row("attn.lambda_k2", "attn.lambda_k2", "d"),
    Row("attn.{x}_proj.weight", "attn.qkv.weight", "C C", "qkv"),
    Row("attn.{x}_proj.bias", "attn.qkv.bias", "C", "qkv"),
    Row("attn.diff_norm.weight", "attn.sub_norm.weight", "2d"),
    Row("attn.out_proj.weight", "attn.proj.weight", "C C"),
    Row("attn.out_proj.bias", "attn.proj.bias", "C"),
]
_TEXT_BLOCK = [
    Row("ln_1.weight", "ln_1.weight", "C"),
    Row("ln_1.bias", "ln_1.bias", "C"),
    Row("ln_2.weight", "ln_2.weight", "C"),
    Row("ln_2.bias", "ln_2.bias", "C"),
    Row("mlp.c_fc.weight", "mlp.c_fc.weight", "M C"),
    Row("mlp.c_fc.bias", "mlp.c_fc.bias", "M"),
    Row("mlp.c_proj.weight", "mlp.c_proj.weight", "C M"),
    Row("mlp.c_proj.bias", "mlp.c_proj.bias", "C"),
]
_TEXT_DIFFERENTIAL = [
    Row("ln_final.weight", "text.transformer.ln_final.weight", "C"),
    Row("ln_final.bias", "text.transformer.ln_final.bias", "C"),
    Row("token_embedding.weight", "text.transformer.embeddings.token_embedding.weight", "V C"),
    Row("positional_embedding", "text.transformer.embeddings.positional_embedding", "L C"),
    Row("text_projection", "text.proj.weight", "C E", "transposed"),
]
_TEXT_PLAIN = [
    Row("ln_final.weight", "text.ln_final.weight", "C"),
    Row("ln_final.bias", "text.ln_final.bias", "C"),
    Row("token_embedding.weight", "text.token_embedding.weight", "V C"),
    Row("positional_embedding", "text.positional_embedding", "L C"),
    Row("text_projection", "text.text_projection", "C E"),
]
_TEXT_BLOCK_PLAIN = [
    Row("attn.in_proj_weight", "attn.in_proj_weight", "3C C"),
    Row("attn.in_proj_bias", "attn.in_proj_bias", "3C"),
    Row("attn.out_proj.weight", "attn.out_proj.weight", "C C"),
    Row("attn.out_proj.bias", "attn.out_proj.bias", "C"),
]


def depth_of(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many blocks there are whose keys start with ``prefix`` and a number; not as many as a number says."""
    return len({m[1] for key in state_dict if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", key))})


def _blocks(rows: list[Row], reference: str, ours: str, depth: int) -> Iterator[Row]:
    for i in range(depth):
        for row in rows:
            yield Row(f"{reference}{i}.{row.reference}", f"{ours}{i}.{row.ours}", row.shape, row.how)


def _key_map(
    image_depth: int, image_differential: bool, text_depth: int, text_differential: bool
) -> tuple[list[Row], list[Row]]:
    """The rows of the image tower and those of the text tower; letters have their own meaning in each."""
    image_block = _IMAGE_BLOCK + (_DIFFERENTIAL if image_differential else _IMAGE_PLAIN)
    text_block = _TEXT_BLOCK + (_DIFFERENTIAL if text_differential else _TEXT_BLOCK_PLAIN)
    text_prefix = "text.transformer.layers." if text_differential else "text.transformer.resblocks."
    image = _IMAGE + list(_blocks(image_block, "visual.blocks.", "visual.trunk.blocks.", image_depth))
    text = (_TEXT_DIFFERENTIAL if text_differential else _TEXT_PLAIN) + list(
        _blocks(text_block, "transformer.resblocks.", text_prefix, text_depth)
    )
    return [*image, Row("logit_scale", "logit_scale", "")], text


def _reference_keys(row: Row) -> list[str]:
    return [row.reference.format(x=x) for x in "qkv"] if row.how == "qkv" else [row.reference]


def _our_shape(row: Row) -> str:
    """``row.shape`` as it is in open_clip's layout."""
    sizes = row.shape.split()
    if row.how == "transposed":
        sizes.reverse()
    elif row.how == "qkv":
        sizes[0] = f"3{sizes[0]}"
    return " ".join(sizes)


def _shape_error(key: str, tensor: torch.Tensor, shape: str, letters: dict[str, int]) -> str | None:
    """Compare with ``shape``; a letter gets its number where it first stands alone."""
    sizes = shape.split()
    expected: list[str] = []
    fits = len(sizes) == tensor.dim()
    for size, actual in zip(sizes, tensor.shape, strict=False):
        factor, letter = re.fullmatch(r"(\d*)([A-Za-z]?)", size).groups()  # type: ignore[union-attr]  # own tables
        if letter and not factor:
            letters.setdefault(letter, actual)
        number = int(factor or 1) * (letters.get(letter, 0) if letter else 1)
        expected.append(str(number))
        fits = fits and number == actual
    return None if fits else f"{key} has shape {list(tensor.shape)}, expected [{', '.join(expected) or shape}]"


def _check(state_dict: Mapping[str, torch.Tensor], towers: list[dict[str, str]], layout: str) -> None:
    """Raise unless ``state_dict`` has just the keys of ``towers`` (key -> shape) in their shapes."""
    expected = {key for tower in towers for key in tower}
    problems = [f"missing {key}" for key in sorted(expected - state_dict.keys())]
    problems += [f"unexpected {key}" for key in sorted(state_dict.keys() - expected)]
    letters: dict[str, int] = {}
    for tower in towers:
        letters = {letter: size for letter, size in letters.items() if letter == "E"}  # the joint space's size
        for key, shape in tower.items():
            if key in state_dict and (error := _shape_error(key, state_dict[key], shape, letters)):
                problems.append(f"misshapen {error}")
    if problems:
        raise ValueError(
            f"not a state dict of a DiffCLIP or CLIP in {layout} layout, {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that safetensors can save: contiguous, and shared with no other tensor."""
    return tensor.clone(memory_format=torch.contiguous_format)


def from_reference(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Weights in the authors' layout (with or without ``module.``) as a state dict of open_clip's model.

    Load the result with ``model.load_state_dict``, the model being of the same size: ``DiffCLIP-B-16`` for DiffCLIP,
    ``DiffCLIP-B-16-dynamic`` for DiffCLIP*, ``DiffCLIP-B-16-vision`` for DiffCLIP†, ``CLIP-B-16-baseline`` for SLIP's.

    Raises:
        ValueError: keys that are missing, unexpected or misshapen; lists all of them.
    """
    if state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    towers = _key_map(
        depth_of(state_dict, "visual.blocks."),
        "visual.blocks.0.attn.lambda_q1" in state_dict,
        depth_of(state_dict, "transformer.resblocks."),
        "transformer.resblocks.0.attn.lambda_q1" in state_dict,
    )
    _check(
        state_dict,
        [{key: row.shape for row in rows for key in _reference_keys(row)} for rows in towers],
        "the authors'",
    )
    converted = {}
    for row in (row for rows in towers for row in rows):
        tensors = [state_dict[key] for key in _reference_keys(row)]
        tensor = torch.cat(tensors) if row.how == "qkv" else tensors[0]
        converted[row.ours] = _own(tensor.t() if row.how == "transposed" else tensor)
    return converted


def to_reference(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """The inverse of :func:`from_reference`, without the ``module.`` prefix.

    Raises:
        ValueError: keys that are missing, unexpected or misshapen; lists all of them.
    """
    text_differential = "text.transformer.layers.0.attn.lambda_q1" in state_dict
    towers = _key_map(
        depth_of(state_dict, "visual.trunk.blocks."),
        "visual.trunk.blocks.0.attn.lambda_q1" in state_dict,
        depth_of(state_dict, "text.transformer.layers." if text_differential else "text.transformer.resblocks."),
        text_differential,
    )
    _check(state_dict, [{row.ours: _our_shape(row) for row in rows} for rows in towers], "open_clip's")
    converted = {}
    for row in (row for rows in towers for row in rows):
        tensor = state_dict[row.ours].t() if row.how == "transposed" else state_dict[row.ours]
        parts = tensor.chunk(3) if row.how == "qkv" else (tensor,)
        converted.update({key: _own(part) for key, part in zip(_reference_keys(row), parts, strict=True)})
    return converted
