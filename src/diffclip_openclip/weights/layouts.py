"""Rename and reshape state dicts between the layouts that CLIPs are kept in; one table a layout, inverted by code.

"Ours" is open_clip's layout of this package's models: timm's image tower behind ``visual.trunk.``, and the text tower
behind ``text.``. The others are

- the authors' layout, which is also SLIP's (facebookresearch/SLIP@c6faf5d:models.py). Its image tower is a timm ViT,
  its text tower OpenAI's. Each may have differential or plain attention, so its tables cover DiffCLIP, DiffCLIP*
  (lambda_init is no weight), DiffCLIP† and CLIP, at any width and depth.
- the layout of open_clip's own CLIP with OpenAI's image tower, from which warm starts begin.
- timm's layout of an image tower alone, which is ours without ``visual.trunk.``.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

import torch

from diffclip_openclip.models import TEXT_TOWER, TRUNK
from diffclip_openclip.weights.checkpoint import StateDict


class Layout(Enum):
    """Name a layout; the value is how keys begin that only this layout has."""

    AUTHORS = "visual.blocks."
    OURS = f"{TRUNK}blocks."
    TIMM = "blocks."
    OPENAI = "visual.conv1."


def detect(state_dict: Iterable[str]) -> Layout | None:
    """Return the layout of a state dict, also behind ``module.``; None if it is none of them.

    Any of a layout's keys will do, so that the keys that are missing can be named afterwards.
    """
    keys = [key.removeprefix("module.") for key in state_dict]
    return next((layout for layout in Layout if any(key.startswith(layout.value) for key in keys)), None)


class Row(NamedTuple):
    """Hold one line of a layout's table."""

    theirs: str  # the key; {i} stands for a block's index, {x} for q, k and v
    ours: str
    # Of their tensor: numbers, or letters that stand for the same number everywhere in a tower (E in both), maybe with
    # a factor ("2d"). Empty where open_clip has checked it.
    shape: str = ""
    # What becomes of the tensor on its way here: "same", "transposed" (a projection that is a linear layer here),
    # "joined" (q, k and v are one layer here), or "unsqueezed" n times (axes of size 1 before the others).
    change: str = "same"


def _under(theirs: str, ours: str, rows: Iterable[Row]) -> list[Row]:
    return [row._replace(theirs=theirs + row.theirs, ours=ours + row.ours) for row in rows]


def _layer(theirs: str, ours: str, shape: str = "", change: str = "same") -> list[Row]:
    """Return the rows of a layer's weight, of the given shape, and of its bias."""
    bias_shape = shape.partition(" ")[0]
    return [
        Row(f"{theirs}.weight", f"{ours}.weight", shape, change),
        Row(f"{theirs}.bias", f"{ours}.bias", bias_shape, change),
    ]


_DIFFERENTIAL = [
    Row("attn.lambda_q1", "attn.lambda_q1", "d"),
    Row("attn.lambda_k1", "attn.lambda_k1", "d"),
    Row("attn.lambda_q2", "attn.lambda_q2", "d"),
    Row("attn.lambda_k2", "attn.lambda_k2", "d"),
    *_layer("attn.{x}_proj", "attn.qkv", "C C", "joined"),
    Row("attn.diff_norm.weight", "attn.sub_norm.weight", "2d"),
    *_layer("attn.out_proj", "attn.proj", "C C"),
]
_PLAIN_IMAGE = [*_layer("attn.qkv", "attn.qkv", "3C C"), *_layer("attn.proj", "attn.proj", "C C")]
_PLAIN_TEXT = [
    Row("attn.in_proj_weight", "attn.in_proj_weight", "3C C"),
    Row("attn.in_proj_bias", "attn.in_proj_bias", "3C"),
    *_layer("attn.out_proj", "attn.out_proj", "C C"),
]
_IMAGE_BLOCK = [
    *_layer("norm1", "norm1", "C"),
    *_layer("norm2", "norm2", "C"),
    *_layer("mlp.fc1", "mlp.fc1", "M C"),
    *_layer("mlp.fc2", "mlp.fc2", "C M"),
]
_TEXT_BLOCK = [
    *_layer("ln_1", "ln_1", "C"),
    *_layer("ln_2", "ln_2", "C"),
    *_layer("mlp.c_fc", "mlp.c_fc", "M C"),
    *_layer("mlp.c_proj", "mlp.c_proj", "C M"),
]
_IMAGE = [
    Row("visual.cls_token", f"{TRUNK}cls_token", "1 1 C"),
    Row("visual.pos_embed", f"{TRUNK}pos_embed", "1 L C"),
    *_layer("visual.patch_embed.proj", f"{TRUNK}patch_embed.proj", "C 3 S S"),
    *_layer("visual.norm", f"{TRUNK}norm", "C"),
    Row("image_projection", "visual.head.proj.weight", "C E", "transposed"),
    Row("logit_scale", "logit_scale"),
    *_under("visual.blocks.{i}.", f"{TRUNK}blocks.{{i}}.", _IMAGE_BLOCK),
]
# tables of the authors' layout, by whether the tower's attention is differential
_AUTHORS_IMAGE = {
    True: [*_IMAGE, *_under("visual.blocks.{i}.", f"{TRUNK}blocks.{{i}}.", _DIFFERENTIAL)],
    False: [*_IMAGE, *_under("visual.blocks.{i}.", f"{TRUNK}blocks.{{i}}.", _PLAIN_IMAGE)],
}
_AUTHORS_TEXT = {
    True: [
        *_layer("ln_final", f"{TEXT_TOWER}ln_final", "C"),
        Row("token_embedding.weight", f"{TEXT_TOWER}embeddings.token_embedding.weight", "V C"),
        Row("positional_embedding", f"{TEXT_TOWER}embeddings.positional_embedding", "L C"),
        Row("text_projection", "text.proj.weight", "C E", "transposed"),
        *_under("transformer.resblocks.{i}.", f"{TEXT_TOWER}layers.{{i}}.", _TEXT_BLOCK + _DIFFERENTIAL),
    ],
    False: [
        *_layer("ln_final", "text.ln_final", "C"),
        Row("token_embedding.weight", "text.token_embedding.weight", "V C"),
        Row("positional_embedding", "text.positional_embedding", "L C"),
        Row("text_projection", "text.text_projection", "C E"),
        *_under("transformer.resblocks.{i}.", f"{TEXT_TOWER}resblocks.{{i}}.", _TEXT_BLOCK + _PLAIN_TEXT),
    ],
}

# open_clip's own towers, plain, with the keys of its CustomTextCLIP, as timm's and as transformers' with a joint qkv
_OPENAI_BLOCK = [
    Row("attn.in_proj_weight", "attn.qkv.weight"),
    Row("attn.in_proj_bias", "attn.qkv.bias"),
    *_layer("attn.out_proj", "attn.proj"),
]
_OPENAI_IMAGE_BLOCK = [
    *_layer("ln_1", "norm1"),
    *_layer("ln_2", "norm2"),
    *_layer("mlp.c_fc", "mlp.fc1"),
    *_layer("mlp.c_proj", "mlp.fc2"),
    Row("ls_1.gamma", "ls1.gamma"),
    Row("ls_2.gamma", "ls2.gamma"),
]
_OPENAI_IMAGE = [
    Row("visual.class_embedding", f"{TRUNK}cls_token", change="unsqueezed 2"),
    Row("visual.positional_embedding", f"{TRUNK}pos_embed", change="unsqueezed 1"),
    Row("visual.conv1.weight", f"{TRUNK}patch_embed.proj.weight"),
    *_layer("visual.ln_pre", f"{TRUNK}norm_pre"),
    *_layer("visual.ln_post", f"{TRUNK}norm"),
    Row("visual.proj", "visual.head.proj.weight", change="transposed"),
    *_under("visual.transformer.resblocks.{i}.", f"{TRUNK}blocks.{{i}}.", _OPENAI_IMAGE_BLOCK + _OPENAI_BLOCK),
]
_OPENAI_TEXT = [
    Row("text.token_embedding.weight", f"{TEXT_TOWER}embeddings.token_embedding.weight"),
    Row("text.positional_embedding", f"{TEXT_TOWER}embeddings.positional_embedding"),
    *_layer("text.ln_final", f"{TEXT_TOWER}ln_final"),
    Row("text.text_projection", "text.proj.weight", change="transposed"),
    *_layer("text.text_projection", f"{TEXT_TOWER}projection"),  # SigLIP's, with a bias
    *_under(f"{TEXT_TOWER}resblocks.{{i}}.", f"{TEXT_TOWER}layers.{{i}}.", _TEXT_BLOCK + _OPENAI_BLOCK),
]


def depth_of(state_dict: Iterable[str], prefix: str) -> int:
    """Count the blocks whose keys start with ``prefix`` and a number; a single large number does not count for more."""
    return len({m[1] for key in state_dict if (m := re.match(rf"{re.escape(prefix)}(\d+)\.", key))})


def from_reference(state_dict: Mapping[str, torch.Tensor], *, copy: bool = True) -> StateDict:
    """Return weights in the authors' layout (with or without ``module.``) as a state dict of open_clip's model.

    Load the result with ``model.load_state_dict``, the model being of the same size: ``DiffCLIP-B-16`` for DiffCLIP,
    ``DiffCLIP-B-16-dynamic`` for DiffCLIP*, ``DiffCLIP-B-16-vision`` for DiffCLIP†, ``CLIP-B-16-baseline`` for SLIP's.

    Args:
        copy: share no memory with ``state_dict``. Otherwise most tensors are its own, and a mapped file stays unread.

    Raises:
        ValueError: keys that are missing, unexpected or misshapen; lists all of them.
    """
    if state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): tensor for key, tensor in state_dict.items()}
    image = _AUTHORS_IMAGE["visual.blocks.0.attn.lambda_q1" in state_dict]
    text = _AUTHORS_TEXT["transformer.resblocks.0.attn.lambda_q1" in state_dict]
    towers = [
        _rows(image, depth_of(state_dict, "visual.blocks.")),
        _rows(text, depth_of(state_dict, "transformer.resblocks.")),
    ]
    _check(
        state_dict, [{key: row.shape for row in rows for key in _their_keys(row)} for rows in towers], "the authors'"
    )
    return {
        row.ours: _to_ours([state_dict[key] for key in _their_keys(row)], row, copy) for rows in towers for row in rows
    }


def to_reference(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Return the inverse of :func:`from_reference`, without the ``module.`` prefix.

    Raises:
        ValueError: keys that are missing, unexpected or misshapen; lists all of them.
    """
    differential_text = f"{TEXT_TOWER}layers.0.attn.lambda_q1" in state_dict
    text_blocks = f"{TEXT_TOWER}layers." if differential_text else f"{TEXT_TOWER}resblocks."
    towers = [
        _rows(_AUTHORS_IMAGE[f"{TRUNK}blocks.0.attn.lambda_q1" in state_dict], depth_of(state_dict, f"{TRUNK}blocks.")),
        _rows(_AUTHORS_TEXT[differential_text], depth_of(state_dict, text_blocks)),
    ]
    _check(state_dict, [{row.ours: _our_shape(row) for row in rows} for rows in towers], "open_clip's")
    converted: StateDict = {}
    for row in (row for rows in towers for row in rows):
        converted |= zip(_their_keys(row), _to_theirs(state_dict[row.ours], row), strict=True)
    return converted


def from_openai(state_dict: Mapping[str, torch.Tensor], *, copy: bool = True) -> StateDict:
    """Return a state dict of open_clip's own plain towers with the names and shapes of timm's and of our text tower.

    Args:
        state_dict: of a ``CustomTextCLIP`` or of one of its towers, with the keys that these have there. Other keys,
            such as an image tower's that is timm's already, stay as they are.
        copy: as :func:`from_reference`.
    """
    table = {row.theirs: row for row in (*_OPENAI_IMAGE, *_OPENAI_TEXT)}
    converted: StateDict = {}
    for key, tensor in state_dict.items():
        row = table.get(re.sub(r"\.\d+\.", ".{i}.", key, count=1), Row(key, key))
        index = re.search(r"\.(\d+)\.", key)
        converted[row.ours.format(i=index[1] if index else "")] = _to_ours([tensor], row, copy)
    return converted


def _rows(table: Iterable[Row], depth: int) -> list[Row]:
    """Return a tower's table with each block's rows written out for all of its blocks."""
    return [
        row._replace(theirs=row.theirs.replace("{i}", str(i)), ours=row.ours.replace("{i}", str(i)))
        for row in table
        for i in range(depth if "{i}" in row.ours else 1)
    ]


def _their_keys(row: Row) -> list[str]:
    return [row.theirs.format(x=x) for x in "qkv"] if row.change == "joined" else [row.theirs]


def _to_ours(tensors: list[torch.Tensor], row: Row, copy: bool = True) -> torch.Tensor:
    tensor = torch.cat(tensors) if row.change == "joined" else tensors[0]
    if row.change == "transposed":
        tensor = tensor.t()
    elif row.change.startswith("unsqueezed"):
        tensor = tensor[(None,) * int(row.change.split()[1])]
    return _own(tensor) if copy else tensor.contiguous()


def _to_theirs(tensor: torch.Tensor, row: Row) -> list[torch.Tensor]:
    if row.change == "joined":
        return [_own(part) for part in tensor.chunk(3)]
    return [_own(tensor.t() if row.change == "transposed" else tensor)]


def _own(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy that safetensors can save: contiguous, and shared with no other tensor."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _our_shape(row: Row) -> str:
    """Return ``row.shape`` as it is in open_clip's layout."""
    sizes = row.shape.split()
    if row.change == "transposed":
        sizes.reverse()
    elif row.change == "joined":
        sizes[0] = f"3{sizes[0]}"
    return " ".join(sizes)


def _check(state_dict: Mapping[str, torch.Tensor], towers: list[dict[str, str]], layout: str) -> None:
    """Raise unless ``state_dict`` has just the keys of ``towers`` (key -> shape) in their shapes."""
    expected = {key for tower in towers for key in tower}
    problems = [f"missing {key}" for key in sorted(expected - state_dict.keys())]
    problems += [f"unexpected {key}" for key in sorted(state_dict.keys() - expected)]
    joint = _numbers(state_dict, {key: shape for tower in towers for key, shape in tower.items()}).get("E", 0)
    for tower in towers:
        numbers = _numbers(state_dict, tower) | {"E": joint}
        for key, shape in tower.items():
            if key in state_dict and (error := _shape_error(key, state_dict[key], shape, numbers)):
                problems.append(f"misshapen {error}")
    if problems:
        raise ValueError(
            f"not a state dict of a DiffCLIP or CLIP in {layout} layout, {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )


def _numbers(state_dict: Mapping[str, torch.Tensor], tower: Mapping[str, str]) -> dict[str, int]:
    """Return the number of each letter: the one that most tensors have, so that a damaged one is told as such."""
    votes: dict[str, Counter[int]] = defaultdict(Counter)
    for key, shape in tower.items():
        sizes, actual = shape.split(), state_dict[key].shape if key in state_dict else ()
        if len(sizes) == len(actual):
            for letter, number in zip(sizes, actual, strict=True):
                votes[letter][number] += letter.isalpha()
    return {letter: counts.most_common(1)[0][0] for letter, counts in votes.items() if letter.isalpha()}


def _shape_error(key: str, tensor: torch.Tensor, shape: str, numbers: Mapping[str, int]) -> str | None:
    """Compare with ``shape``, whose letters stand for ``numbers``."""
    sizes = shape.split()
    expected: list[int] = []
    for size in sizes:
        factor, letter = re.fullmatch(r"(\d*)([A-Za-z]?)", size).groups()  # type: ignore[union-attr]  # own tables
        expected.append(int(factor or 1) * (numbers.get(letter, 0) if letter else 1))
    if list(tensor.shape) == expected:
        return None
    return f"{key} has shape {list(tensor.shape)}, expected [{', '.join(map(str, expected)) or shape}]"
