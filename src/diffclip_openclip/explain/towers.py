"""Where an open_clip model keeps its attention modules, and what the tokens of its image tower stand for."""

from typing import Any, NamedTuple

from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from diffclip_openclip.explain.explicit import SUPPORTED, is_supported
from diffclip_openclip.models import TEXT_TOWER, TRUNK

# the places of a tower's blocks in CLIP, CustomTextCLIP and CoCa, with open_clip's own towers, timm's and ours
_BLOCKS = {
    "image": (f"{TRUNK}blocks", "visual.transformer.resblocks"),
    "text": (f"{TEXT_TOWER}layers", f"{TEXT_TOWER}resblocks", "transformer.resblocks"),
}


class Tokens(NamedTuple):
    """The tokens of an image tower: ``num_prefix`` extra ones, then the patches, row by row of ``grid`` (h, w).

    The tower's output reads the mean of the tokens in ``pooled``; None if it reads them in another way.
    """

    grid: tuple[int, int]
    num_prefix: int
    pooled: slice | None


def attention_layers(model: nn.Module, tower: str) -> list[nn.Module]:
    """The attention modules of a tower ("image" or "text") of an open_clip model, from the first block to the last.

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


def tokens_of(model: Any, image: Tensor) -> Tokens:
    """What the tokens of the model's image tower stand for, for images (B, 3, H, W).

    Raises:
        ValueError: the tower has no grid of patches that can be told.
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


def check_inputs(image: Tensor | None = None, text: Tensor | None = None) -> None:
    """Refuse images that are not (B, 3, H, W) and token ids that are not (B, N).

    Raises:
        ValueError: another number of dimensions.
    """
    if image is not None and image.dim() != 4:
        raise ValueError(f"image has shape {list(image.shape)}; give preprocessed images, (B, 3, H, W)")
    if text is not None and text.dim() != 2:
        raise ValueError(f"text has shape {list(text.shape)}; give a tokenizer's output, (B, N)")


def _name(model: nn.Module, tower: str) -> str:
    part: Any = getattr(model, "visual" if tower == "image" else "text", None)
    inner = getattr(part, "trunk", None) or getattr(part, "transformer", None)
    return " with ".join(type(module).__name__ for module in (part, inner) if module is not None) or "missing"
