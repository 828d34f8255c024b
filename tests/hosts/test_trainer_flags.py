"""Every model-related flag of open_clip's unchanged trainer, on the nano models."""

import re
import sys

import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from support.common import IS_OPEN_CLIP_3, run_host, train_arguments
from support.training import losses_in

FLAGS = {
    "none": [],
    "torchcompile": ["--torchcompile"],
    "grad-checkpointing": ["--grad-checkpointing"],
    "torchcompile grad-checkpointing": ["--torchcompile", "--grad-checkpointing"],
    "lock-text": ["--lock-text"],
    "lock-text-unlocked-layers": ["--lock-text", "--lock-text-unlocked-layers", "1"],
    "lock-image": ["--lock-image"],
    "lock-image-unlocked-groups": ["--lock-image", "--lock-image-unlocked-groups", "1"],
    "force-patch-dropout": ["--force-patch-dropout", "0.5"],
    "force-image-size": ["--force-image-size", "64"],
    "force-context-length": ["--force-context-length", "8"],
    "force-quick-gelu": ["--force-quick-gelu"],
    "force-custom-text": ["--force-custom-text"],
    "siglip": ["--siglip"],
    "amp_bf16": ["--precision", "amp_bf16"],
    "pure_bf16": ["--precision", "pure_bf16"],
    "bf16": ["--precision", "bf16"],
    # AdamW's eps of 1e-8 is 0 in float16, and the plain CLIP's loss is NaN after a step too
    "fp16": ["--precision", "fp16", "--eps", "1e-4"],
    "accum-freq": ["--accum-freq", "2"],
    "timm optimizer": ["--opt", "timm/lamb"],
    **(
        {"torchscript": ["--torchscript"]}
        # open_clip 4 has no --torchscript and --trace, but layer-wise learning rates and strategies of torch.compile
        if IS_OPEN_CLIP_3
        else {
            "layer decay": ["--text-layer-decay", "0.65", "--image-layer-decay", "0.65"],
            "torchcompile step": ["--torchcompile", "--torchcompile-strategy", "step"],
        }
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS.values(), ids=list(FLAGS))
def test_trains(flags, train_shard, tmp_path):
    command = [sys.executable, "-m", "open_clip_train.main", *train_arguments(train_shard), "--epochs", "1"]
    command += ["--lr", "1e-3", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8", "--log-every-n-steps", "1"]
    output = run_host([*command, *flags], tmp_path).stdout
    losses = losses_in(output)
    assert len(losses) == (2 if "--accum-freq" in flags else 4)
    # guessing among 8 pairs is ln 8 = 2.1; SigLIP starts at its logit_bias of -10, so near 10
    assert all(0.0 < loss < (20.0 if "--siglip" in flags else 4.0) for loss in losses), losses
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt").is_file()


# What still trains of a locked tower: the text tower's LayerNorms, and what is unlocked, from the last layer or group
# down. open_clip's main branch locks the projection too, and counts it first among the unlocked.
NORMS = r"transformer\.(layers\.\d\.ln_\d|ln_final)"
if hasattr(HFTextEncoder, "layer_groups"):
    TRAINED = {
        ("text", 0): rf"text\.{NORMS}\.",
        ("text", 1): rf"text\.(proj|{NORMS})\.",
        ("text", 2): rf"text\.(proj|{NORMS}|transformer\.layers\.1)\.",
        ("image", 0): r"(?!)",
        ("image", 1): r"visual\.head\.",
        ("image", 2): r"visual\.(head|trunk\.(norm|blocks\.3))\.",
    }
else:
    TRAINED = {
        ("text", 0): rf"text\.(proj|{NORMS})\.",
        ("text", 1): rf"text\.(proj|{NORMS}|transformer\.layers\.1)\.",
        ("image", 0): r"visual\.head\.",
        ("image", 1): r"visual\.(head|trunk\.(norm|blocks\.3))\.",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("tower", "unlocked"), TRAINED)
def test_locked_weights_stay(tower, unlocked, train_shard, tmp_path):
    """From the first epoch to the second, what trains changes, and nothing else."""
    command = [sys.executable, "-m", "open_clip_train.main", *train_arguments(train_shard), "--epochs", "2"]
    command += ["--lr", "1e-3", "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-8", f"--lock-{tower}"]
    if unlocked:
        command += [f"--lock-{tower}-unlocked-{'layers' if tower == 'text' else 'groups'}", str(unlocked)]
    run_host(command, tmp_path)
    first, second = (
        torch.load(tmp_path / "logs" / "run" / "checkpoints" / f"epoch_{epoch}.pt", weights_only=True)["state_dict"]
        for epoch in (1, 2)
    )
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    locked = {name for name in first if name.startswith("text." if tower == "text" else "visual.")}
    assert changed & locked == {name for name in locked if re.match(TRAINED[tower, unlocked], name)}
    assert first.keys() - locked <= changed
