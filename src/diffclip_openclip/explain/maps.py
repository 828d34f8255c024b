"""Compute the attention maps of any layer of either tower of a model.

Three steps: find a tower's attention modules, record their calls in a forward pass, and write the maps of these calls
out. Heat maps use the same steps.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from diffclip_openclip.explain.attention_formulas import SUPPORTED, is_supported, weighted_difference, write_out
from diffclip_openclip.models import TEXT_TOWER, TRUNK

# where CLIP, CustomTextCLIP and CoCa keep a tower's blocks, for open_clip's own towers, timm's and ours
_BLOCKS = {
    "image": (f"{TRUNK}blocks", "visual.transformer.resblocks"),
    "text": (f"{TEXT_TOWER}layers", f"{TEXT_TOWER}resblocks", "transformer.resblocks"),
}


@dataclass(frozen=True)
class LayerMaps:
    """Hold the attention maps of one layer, for B inputs of N tokens each.

    In the shapes h are the maps of a layer: pairs of heads in DiffCLIP's attention, heads in version 2 and in plain
    attention.
    """

    tower: str  # "image" or "text"
    layer: int  # from 0
    a1: Tensor  # A1, or plain attention's only map, (B, h, N, N)
    a2: Tensor | None  # A2, (B, h, N, N); None for plain attention
    # weight of A2, broadcastable to (B, h, N, 1): one scalar a layer, in version 2 sigma(lambda) of each token and
    # head; None for plain attention
    lambda_: Tensor | None

    @property
    def attention(self) -> Tensor:
        """Return what the values are multiplied with, (B, h, N, N): A1 - lambda A2, or plain attention's map."""
        return weighted_difference(self.a1, self.a2, self.lambda_)


def attention_maps(
    model: Any, image: Tensor | None = None, text: Tensor | None = None, layers: Iterable[int] | None = None
) -> list[LayerMaps]:
    """Return the attention maps that a model makes of images, of texts or of both, the image tower's layers first.

    The model's mode, gradients and hooks are afterwards what they were.

    Args:
        model: of open_clip, with transformers for the towers that are asked for.
        image: preprocessed images, (B, 3, H, W), on the model's device and in its dtype.
        text: token ids, (B, N).
        layers: indices of the wanted layers in each tower, negative ones from the end; all of them by default.

    Raises:
        ValueError: neither images nor texts are given, a tensor has another shape, a tower does not have a layer, or a
            tower (a ResNet, say) has no known attention modules.
    """
    if image is None and text is None:
        raise ValueError("there is nothing to attend to; give image, text or both")
    check_inputs(image, text)
    wanted = None if layers is None else list(layers)
    maps = []
    if image is not None:
        maps += _maps_of(model, "image", wanted, lambda: model.encode_image(image))
    if text is not None:
        maps += _maps_of(model, "text", wanted, lambda: model.encode_text(text))
    return maps


@torch.no_grad()
def _maps_of(model: Any, tower: str, wanted: list[int] | None, encode: Callable[[], Tensor]) -> list[LayerMaps]:
    attention = dict(enumerate(attention_layers(model, tower)))
    if wanted is not None:
        attention = {i: attention[i] for i in (layer_index(i, len(attention), tower) for i in wanted)}
    with recorded(model, attention.values()) as calls:
        encode()
        return [
            LayerMaps(tower, i, *write_out(module, *calls[module].args, **calls[module].kwargs)[:3])
            for i, module in attention.items()
        ]


# the towers of a model


class Tokens(NamedTuple):
    """Describe the tokens of an image tower: ``num_prefix`` extra ones, then the patches, row by row."""

    grid: tuple[int, int]  # patches, (rows, columns)
    num_prefix: int  # class token and registers
    pooled: slice | None  # the tokens whose mean the tower's output reads; None if it reads them in another way


def attention_layers(model: nn.Module, tower: str) -> list[nn.Module]:
    """Return the attention modules of a tower of an open_clip model, from the first block to the last.

    Args:
        tower: "image" or "text".

    Raises:
        ValueError: the tower is not made of blocks with a supported attention module; lists the supported ones.
    """
    for path in _BLOCKS[tower]:
        try:
            blocks = model.get_submodule(path)
        except AttributeError:
            continue
        attention = [getattr(block, "attn", None) for block in blocks.children()]
        if attention and all(isinstance(module, nn.Module) and is_supported(module) for module in attention):
            return attention  # type: ignore[return-value]  # mypy does not narrow the elements of a list
    raise ValueError(
        f"the {tower} tower of {type(model).__name__} ({_name(model, tower)}) is not a transformer whose attention is "
        f"known; {SUPPORTED}, in the blocks of an open_clip model's towers"
    )


def layer_index(index: int, depth: int, tower: str) -> int:
    """Return ``index`` counted from 0, in a tower of ``depth`` layers.

    Raises:
        ValueError: there is no such layer.
    """
    if not -depth <= index < depth:
        raise ValueError(f"there is no layer {index}: the {tower} tower has {depth}, from 0 to {depth - 1}")
    return index % depth


def tokens_of(model: Any, image: Tensor) -> Tokens:
    """Return what the tokens of the model's image tower stand for, for images (B, 3, H, W).

    Raises:
        ValueError: the tower's grid of patches cannot be told.
    """
    height, width = image.shape[-2:]
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        grid = (height // visual.patch_size[0], width // visual.patch_size[1])
        pooled = {"tok": slice(0, 1), "avg": slice(1, None)}.get(visual.pool_type)
        return Tokens(grid, 1, pooled if visual.attn_pool is None else None)
    trunk: Any = visual.trunk if isinstance(visual, TimmModel) else None
    if not hasattr(getattr(trunk, "patch_embed", None), "dynamic_feat_size"):
        raise ValueError(
            f"the image tower ({_name(model, 'image')}) does not tell its grid of patches; open_clip's "
            "VisionTransformer and timm's towers with a PatchEmbed or HybridEmbed do"
        )
    num_prefix = trunk.num_prefix_tokens
    averaged = slice(0 if getattr(trunk, "pool_include_prefix", False) else num_prefix, None)
    pooled = {"token": slice(0, 1), "avg": averaged}.get(trunk.global_pool)
    return Tokens(trunk.patch_embed.dynamic_feat_size((height, width)), num_prefix, pooled)


def _name(model: nn.Module, tower: str) -> str:
    part: Any = getattr(model, "visual" if tower == "image" else "text", None)
    inner = getattr(part, "trunk", None) or getattr(part, "transformer", None)
    return " with ".join(type(module).__name__ for module in (part, inner) if module is not None) or "missing"


def check_inputs(image: Tensor | None = None, text: Tensor | None = None) -> None:
    """Refuse images that are not (B, 3, H, W) and token ids that are not (B, N).

    Raises:
        ValueError: a tensor has another number of dimensions.
    """
    if image is not None and image.dim() != 4:
        raise ValueError(f"image has shape {list(image.shape)}; give preprocessed images, (B, 3, H, W)")
    if text is not None and text.dim() != 2:
        raise ValueError(f"text has shape {list(text.shape)}; give a tokenizer's output, (B, N)")


# a forward pass


class RecordedCall(NamedTuple):
    """Hold what a module was given and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor  # the first one, if it returned several


@contextmanager
def recorded(model: nn.Module, modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, RecordedCall]]:
    """Record the last call of each of ``modules`` in the body, through torch's own hooks.

    In the body, ``model`` is in evaluation mode and runs eagerly. Afterwards, also if the body raises, every submodule
    is in its own mode again and no hook is left.
    """
    calls: dict[nn.Module, RecordedCall] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls[module] = RecordedCall(args, kwargs, output[0] if isinstance(output, tuple) else output)

    modes = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        for module, training in modes.items():
            stack.callback(setattr, module, "training", training)
        model.eval()
        # compiled code does not look for hooks
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in modules:
            stack.enter_context(module.register_forward_hook(record, with_kwargs=True))
        yield calls
