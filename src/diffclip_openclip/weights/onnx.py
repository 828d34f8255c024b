"""Export both towers of a model directory to ONNX; each file is compared with PyTorch before it is put in place."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.factory import LOCAL_DIR_PREFIX
from torch import nn

from diffclip_openclip.extras import require
from diffclip_openclip.files import Folder, check_place, staged
from diffclip_openclip.weights.foreign import loading_errors
from diffclip_openclip.weights.loading import checked_config
from diffclip_openclip.weights.spec import parse_spec

BATCH_SIZES = (1, 3)  # of the comparison
TOLERANCE = 1e-4  # largest absolute difference, in float32
_EXPORT = Folder("an export", ("image.onnx", "text.onnx", "*.onnx.data"), mark="image.onnx")


class _Encoder(nn.Module):
    """Make one tower with its projection a module of its own."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.model, self.method)(x, normalize=True)


def export_onnx(directory: str | Path, output: str | Path, *, overwrite: bool = False) -> list[str]:
    """Write ``image.onnx`` and ``text.onnx`` into a new folder ``output``.

    ``image.onnx`` takes ``pixel_values`` (B, 3, H, W), float32, and gives ``image_embeds`` (B, embed_dim).
    ``text.onnx`` takes ``input_ids`` (B, context_length), int64, and gives ``text_embeds`` (B, embed_dim). Embeddings
    are L2-normalised, and the batch size B is free. The metadata of both files say what else a user needs:
    ``logit_scale`` (the factor itself), ``image_mean``, ``image_std``, ``image_size`` [H, W] and ``context_length`` in
    JSON, ``interpolation`` and ``resize_mode`` as text. Weights above ONNX's limit of 2 GB are in a file
    ``.onnx.data`` beside it.

    Args:
        directory: model directory in open_clip's form, as ``diffclip convert`` makes them.

    Returns:
        A line for each file, with its largest absolute difference from PyTorch.

    Raises:
        ImportError: onnx, onnxruntime or onnxscript is not installed.
        FileExistsError: as :func:`~diffclip_openclip.files.check_place`.
        FileNotFoundError: ``directory`` is not a model directory with weights.
        ValueError: ``directory`` was moved or copied, so that open_clip would take another's text tower; or a tower
            gives other values in ONNX Runtime than in PyTorch; nothing is written then.
    """
    require("exporting to ONNX", "export", "onnx", "onnxruntime", "onnxscript")
    directory, output = Path(directory), Path(output)
    model = _load(directory)
    check_place(output, overwrite, _EXPORT)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(max(BATCH_SIZES), 3, *model.visual.image_size, generator=generator)
    texts = torch.randint(model.vocab_size, (max(BATCH_SIZES), model.context_length), generator=generator)
    metadata, written = _metadata(model), []
    with staged(output, overwrite, _EXPORT) as folder, loading_errors(directory):
        folder.mkdir()
        for tower, sample, names in (
            ("image", images, ("pixel_values", "image_embeds")),
            ("text", texts, ("input_ids", "text_embeds")),
        ):
            encoder = _Encoder(model, f"encode_{tower}").eval()
            path = folder / f"{tower}.onnx"
            _write(path, encoder, sample, names, metadata)
            difference = _compare(path, encoder, sample)
            written.append(f"{output / path.name} differs from PyTorch by at most {difference:.2g}")
    return written


def _load(directory: Path) -> Any:
    weights = directory / HF_SAFE_WEIGHTS_NAME
    if not weights.is_file():  # open_clip would initialise the model at random
        raise FileNotFoundError(
            f"there is no {weights}; give a model directory in open_clip's form, as diffclip convert makes them"
        )
    spec = parse_spec(f"{LOCAL_DIR_PREFIX}{directory}")
    checked_config(spec)
    with loading_errors(spec):
        return open_clip.create_model(spec.name).eval()


def _metadata(model: Any) -> dict[str, str]:
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return {
        "logit_scale": json.dumps(model.logit_scale.exp().item()),
        "image_mean": json.dumps(preprocess["mean"]),
        "image_std": json.dumps(preprocess["std"]),
        "image_size": json.dumps(model.visual.image_size),
        "interpolation": preprocess["interpolation"],
        "resize_mode": preprocess["resize_mode"],
        "context_length": json.dumps(model.context_length),
    }


def _write(
    path: Path, encoder: _Encoder, sample: torch.Tensor, names: tuple[str, str], metadata: dict[str, str]
) -> None:
    program = torch.onnx.export(
        encoder,
        (sample,),
        dynamo=True,
        input_names=names[:1],
        output_names=names[1:],
        # torch 2.7 proves nothing about a batch without an end
        dynamic_shapes=({0: torch.export.Dim("batch", max=2**31 - 1)},),
        verbose=False,
    )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with paths of this machine
    program.model.metadata_props.update(metadata)
    program.save(path)


@torch.no_grad()
def _compare(path: Path, encoder: _Encoder, sample: torch.Tensor) -> float:
    """Return the largest absolute difference between a file and what it was made from.

    Raises:
        ValueError: it is above :data:`TOLERANCE`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for batch_size in BATCH_SIZES:
        expected = encoder(sample[:batch_size])
        (actual,) = session.run(None, {session.get_inputs()[0].name: sample[:batch_size].numpy()})
        difference = (torch.from_numpy(actual) - expected).abs().max().item()
        if not difference <= TOLERANCE:  # so that NaN is refused too
            raise ValueError(
                f"{path.name} differs from PyTorch by {difference:.2g} at batch size {batch_size}, more than "
                f"{TOLERANCE:g}; check that the weights are finite, and try other versions of onnxscript and torch"
            )
        largest = max(largest, difference)
    return largest
