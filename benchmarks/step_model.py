"""Predict what a training step takes, by size:  python benchmarks/step_model.py [--batch-size 512]

Parameters, FLOPs of a pair (torch's own counter, on tensors without data), and memory on an accelerator by a model that
is all here. step_check.py compares the model's activations with those of real and of simulated passes.

Memory of a process of open_clip's trainer with --precision amp or amp_bf16, in bytes:

    a parameter                      4 itself, 4 gradient, 8 AdamW, 4 its place in DDP's buckets, 2 autocast's copy
    a token, in each block           8 C  both residual sums before a norm, float32
                                     4 C  input of both linear layers behind the norms, half
                                     6 C  q, k, v, half
             plain attention         2 C  output, half
             differential attention  4 C  both maps' outputs, half; what follows up to the projection is made again
             GELU, hidden size 4 C  16 C  before and behind it, half
             QuickGELU              24 C  also its sigmoid
                                     4 bytes each for the norms' means and deviations, and for the softmaxes' sums, as
                                     many as multiples of 32 tokens have
    with --grad-checkpointing        4 C  a block's input, float32; and one block's activations as above

Left out: the contrastive loss (a batch's logits, 25 MB at 512 of 4,096), the CUDA context, NCCL, cuBLAS, and what the
allocator cannot use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

SIZES = ("DiffCLIP-S-16", "DiffCLIP-B-32", "DiffCLIP-B-16", "DiffCLIP-L-14", "DiffCLIP-H-14", "CLIP-B-16-baseline")
_PARAMETER_BYTES = 4 + 4 + 8 + 4 + 2
FLOAT, HALF = 4, 2


@dataclass(frozen=True)
class Tower:
    """Hold the sizes of a tower that decide what a step keeps."""

    depth: int  # blocks
    width: int  # C
    heads: int
    tokens: int
    differential: bool  # its attention
    quick_gelu: bool  # otherwise GELU
    inputs: int  # values of an image, which the patch embedding keeps; 0 for a text


def empty_model(name: str) -> Any:
    """Return the model of that name with its weights on the meta device."""
    with torch.device("meta"):
        return open_clip.create_model(name, device="meta", output_dict=True)


def towers_of(model: Any) -> tuple[Tower, Tower]:
    """Return the sizes of the image tower (timm's) and of the text tower (this package's or open_clip's)."""
    trunk, text = model.visual.trunk, model.text
    height, width = model.visual.image_size
    depth, heads = len(trunk.blocks), trunk.blocks[0].attn.num_heads
    differential = hasattr(trunk.blocks[0].attn, "lambda_q1")
    image = Tower(depth, trunk.embed_dim, heads, trunk.pos_embed.shape[1], differential, False, 3 * height * width)
    if hasattr(text, "pooler"):
        config = text.transformer.config
        sizes = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        return image, Tower(*sizes, model.context_length, True, True, 0)
    blocks = text.transformer.resblocks
    sizes = len(blocks), text.transformer.width, blocks[0].attn.num_heads
    return image, Tower(*sizes, model.context_length, False, True, 0)


def text_pass(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the text tower's forward pass, without open_clip's wrapper where that needs the tokens' values."""
    if hasattr(model.text, "pooler"):
        return lambda texts: model.text.proj(model.text.transformer(texts).pooler_output)
    return lambda texts: model.text(texts)


def block_bytes(tower: Tower, half: int = HALF) -> int:
    """Return what a block keeps of a sample for the backward pass on an accelerator, in bytes.

    Args:
        half: bytes of a value under autocast, or 4 without.
    """
    hidden = (12 if tower.quick_gelu else 8) * half
    # open_clip's plain text tower copies the heads before the projection, timm's image tower does not
    attention = half * (2 if tower.differential or tower.inputs == 0 else 1)
    width = tower.width * (2 * FLOAT + 2 * half + 3 * half + attention + hidden)
    return tower.tokens * (width + FLOAT * 4) + sums_bytes(tower)


def sums_bytes(tower: Tower) -> int:
    """Return what a block's fused attention keeps of its softmaxes, in bytes a sample."""
    return FLOAT * tower.heads * -(-tower.tokens // 32) * 32


def activation_bytes(towers: Sequence[Tower], checkpointing: bool = False, half: int = HALF) -> int:
    """Return what towers keep of a sample for the backward pass on an accelerator, in bytes."""
    streams = [FLOAT * tower.tokens * tower.width for tower in towers]
    ends = sum(streams) + sum(half * tower.inputs for tower in towers)  # before the last norm, and the image
    blocks = [block_bytes(tower, half) for tower in towers]
    depths = [tower.depth for tower in towers]
    if checkpointing:
        return ends + sum(depth * stream for depth, stream in zip(depths, streams, strict=True)) + max(blocks)
    return ends + sum(depth * block for depth, block in zip(depths, blocks, strict=True))


def memory_bytes(model: Any, batch_size: int, checkpointing: bool) -> int:
    """Return the memory of one process with ``batch_size`` pairs."""
    return _PARAMETER_BYTES * parameters(model) + batch_size * activation_bytes(towers_of(model), checkpointing)


def parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model: Any) -> tuple[int, int]:
    """Return the FLOPs of an image's and of a text's forward pass, two for a multiply-add.

    Counted with two fused attentions a layer, as accelerators do. A training step takes three times as many, four with
    --grad-checkpointing.
    """
    image = torch.empty(1, 3, *model.visual.image_size, device="meta")
    text = torch.zeros(1, model.context_length, dtype=torch.long, device="meta")
    counts = []
    for run, given in ((model.visual, image), (text_pass(model), text)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            run(given)
        counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def table(names: Sequence[str], batch_size: int) -> str:
    """Return the sizes' figures as a Markdown table."""
    lines = [
        "| model | parameters | GFLOPs an image | a text | activations of a pair, MB | with checkpointing "
        f"| GB at {batch_size} pairs | with checkpointing |",
        "| --- |" + " ---: |" * 7,
    ]
    for name in names:
        model = empty_model(name)
        image, text = flops(model)
        kept, few = (activation_bytes(towers_of(model), checkpointing) / 1e6 for checkpointing in (False, True))
        whole, less = (memory_bytes(model, batch_size, checkpointing) / 1e9 for checkpointing in (False, True))
        lines.append(
            f"| `{name}` | {parameters(model):,} | {image / 1e9:.1f} | {text / 1e9:.1f} "
            f"| {kept:.0f} | {few:.0f} | {whole:.0f} | {less:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=SIZES, help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=512, help="pairs a process; default: %(default)s")
    args = parser.parse_args()
    print(table(args.model, args.batch_size))


if __name__ == "__main__":
    main()
