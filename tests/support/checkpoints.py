"""Checkpoints as others write them, and whether two models compute the same."""

import argparse
from pathlib import Path, PosixPath

import numpy as np
import open_clip
import torch

from diffclip_openclip import to_reference


def save_as_published(model, path: Path) -> Path:
    """As in the authors' repositories: everything that their training script kept."""
    arguments = argparse.Namespace(output_dir=PosixPath("/run/x"), lr=np.float32(5e-4), gpu=0, root=[PosixPath("a")])
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": np.float64(1e-5)}]}
    torch.save(
        {
            "epoch": 40,
            "state_dict": {f"module.{key}": tensor for key, tensor in to_reference(model.state_dict()).items()},
            "optimizer": optimizer,
            "scaler": {"scale": 65536.0},
            "best_acc1": np.float64(33.8),
            "args": arguments,
        },
        path,
    )
    return path


def embeddings(model):
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(["a mug", "two lamps"])
    images = torch.rand(2, 3, *model.visual.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


def same_function(a, b):
    return all(torch.equal(x, y) for x, y in zip(embeddings(a), embeddings(b), strict=True))


def load_directory(folder):
    return open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()


def write_run(folder: Path, model, name: str) -> Path:
    """A run of the trainer that was given ``--model NAME``; its checkpoint."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "params.txt").write_text(f"model: {name}\npretrained: \n")
    torch.save({"state_dict": model.state_dict()}, folder / "checkpoints" / "epoch_1.pt")
    return folder / "checkpoints" / "epoch_1.pt"
