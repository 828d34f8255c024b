"""Hold the facts that a name stands for: one table of image towers, one of models; plain data that imports nothing."""

from typing import NamedTuple

# what stands before a tower's keys in the state dict of open_clip's model
TRUNK = "visual.trunk."  # timm's image tower
TEXT_TOWER = "text.transformer."  # transformers' text tower, or the blocks of open_clip's own

# timm's name of the image tower of warm starts, whose sizes are in the config.json of a model's directory
TWIN = "vit_diffclip_v2"

# what weights do not tell: lambda_init in version 1 of the attention, the activation in OpenAI's towers with version 2,
# the number of heads of plain attention
HALF_HEADS = "half-heads"
VARIANTS = ("static", "dynamic", "gelu", "quickgelu", HALF_HEADS)


class Size(NamedTuple):
    """Describe the measures of an image tower."""

    patch_size: int  # pixels
    image_size: int  # pixels
    embed_dim: int
    depth: int
    num_heads: int


# S to H are timm's own sizes
SIZES = {
    "nano_patch12": Size(12, 48, 128, 4, 4),
    "small_patch16": Size(16, 224, 384, 12, 6),
    "base_patch16": Size(16, 224, 768, 12, 12),
    "base_patch32": Size(32, 224, 768, 12, 12),
    "large_patch16": Size(16, 224, 1024, 24, 16),
    "large_patch14": Size(14, 224, 1024, 24, 16),
    "huge_patch14": Size(14, 224, 1280, 32, 16),
}
_OPENAI_SIZES = ("base_patch32", "base_patch16", "large_patch14")


class Kind(NamedTuple):
    """Describe what image towers of one architecture have in common at every size."""

    version: int  # of the differential attention; 0 if it is plain
    variant: str | None  # one of VARIANTS; None where nothing has to be told
    sizes: tuple[str, ...] = tuple(SIZES)
    heads_divisor: int = 1  # how many of a size's heads are one of this kind's


_CONTROL_SIZES = ("nano_patch12", "base_patch16")  # those that models are compared at
KINDS = {
    "diffclip": Kind(1, "static"),
    "diffclip_dynamic": Kind(1, "dynamic"),
    "diffclip_v2": Kind(2, None),
    "clip_diffclip_v2": Kind(2, "gelu", _OPENAI_SIZES),
    "clip_quickgelu_diffclip_v2": Kind(2, "quickgelu", _OPENAI_SIZES),
    "gated": Kind(0, None, _CONTROL_SIZES),
    "half_heads": Kind(0, HALF_HEADS, _CONTROL_SIZES, heads_divisor=2),
    "plain": Kind(0, "static"),  # has no lambda_init, so that saying "static" is as good as saying nothing
}


class Tower(NamedTuple):
    """Describe an image tower that timm knows; ``name`` is timm's, ``size`` and ``kind`` are keys of the tables."""

    name: str
    size: str
    kind: str

    @property
    def is_ours(self) -> bool:
        """Return whether this package registers it; timm has a plain ViT of every size but the quick start's."""
        return self.kind != "plain" or self.size == "nano_patch12"


def _tower(size: str, kind: str) -> Tower:
    tower = Tower(f"vit_{size}_{kind}_{SIZES[size].image_size}", size, kind)
    return tower if tower.is_ours else tower._replace(name=f"vit_{size}_{SIZES[size].image_size}")


TOWERS = {tower.name: tower for name, kind in KINDS.items() for tower in (_tower(size, name) for size in kind.sizes)}


def find_tower(kind: str, patch_size: int, embed_dim: int, depth: int) -> Tower:
    """Return the tower of a kind that has these measures.

    Raises:
        ValueError: none has them; lists those that exist.
    """
    for size in KINDS[kind].sizes:
        measures = SIZES[size]
        if (measures.patch_size, measures.embed_dim, measures.depth) == (patch_size, embed_dim, depth):
            return _tower(size, kind)
    raise ValueError(
        f"no {kind} image tower has patches of {patch_size}, embed_dim {embed_dim} and {depth} blocks; there are: "
        + ", ".join(f"{size} ({SIZES[size].embed_dim}, {SIZES[size].depth} blocks)" for size in KINDS[kind].sizes)
    )


class Model(NamedTuple):
    """Describe one of this package's models for comparisons."""

    family: str | None  # the paper's name of such models; None for what the paper does not have
    baseline: str | None = None  # the plain CLIP of the same size


MODELS = {
    "CLIP-nano-baseline": Model("CLIP"),
    "CLIP-S-16-baseline": Model("CLIP"),
    "CLIP-B-32-baseline": Model("CLIP"),
    "CLIP-B-16-baseline": Model("CLIP"),
    "CLIP-L-14-baseline": Model("CLIP"),
    "CLIP-H-14-baseline": Model("CLIP"),
    "CLIP-nano-gated": Model(None, "CLIP-nano-baseline"),
    "CLIP-nano-half-heads": Model(None, "CLIP-nano-baseline"),
    "CLIP-B-16-gated": Model(None, "CLIP-B-16-baseline"),
    "CLIP-B-16-half-heads": Model(None, "CLIP-B-16-baseline"),
    "DiffCLIP-nano": Model("DiffCLIP", "CLIP-nano-baseline"),
    "DiffCLIP-nano-dynamic": Model("DiffCLIP*", "CLIP-nano-baseline"),
    "DiffCLIP-nano-vision": Model("DiffCLIP†", "CLIP-nano-baseline"),
    "DiffCLIP-S-16": Model("DiffCLIP", "CLIP-S-16-baseline"),
    "DiffCLIP-B-32": Model("DiffCLIP", "CLIP-B-32-baseline"),
    "DiffCLIP-B-16": Model("DiffCLIP", "CLIP-B-16-baseline"),
    "DiffCLIP-B-16-dynamic": Model("DiffCLIP*", "CLIP-B-16-baseline"),
    "DiffCLIP-B-16-vision": Model("DiffCLIP†", "CLIP-B-16-baseline"),
    "DiffCLIP-L-14": Model("DiffCLIP", "CLIP-L-14-baseline"),
    "DiffCLIP-H-14": Model("DiffCLIP", "CLIP-H-14-baseline"),
    "DiffCLIP-V2-nano": Model(None, "CLIP-nano-baseline"),
    "DiffCLIP-V2-B-16": Model(None, "CLIP-B-16-baseline"),
    "DiffCLIP-V2-ViT-B-32": Model(None),
    "DiffCLIP-V2-ViT-B-32-quickgelu": Model(None),
    "DiffCLIP-V2-ViT-B-16": Model(None),
    "DiffCLIP-V2-ViT-B-16-quickgelu": Model(None),
    "DiffCLIP-V2-ViT-L-14": Model(None),
    "DiffCLIP-V2-ViT-L-14-quickgelu": Model(None),
}
