"""Do the work of ``diffclip convert``: weights of one layout into another."""

from dataclasses import replace
from pathlib import Path

from open_clip.constants import HF_CONFIG_NAME

from diffclip_openclip.files import check_place, staged
from diffclip_openclip.models import HALF_HEADS, TRUNK
from diffclip_openclip.weights.card import model_card
from diffclip_openclip.weights.checkpoint import StateDict, read_checkpoint, save_safetensors, save_torch
from diffclip_openclip.weights.directory import (
    MODEL_DIRECTORY,
    PREPROCESS,
    placed_towers,
    read_config,
    write_directory,
    write_place,
)
from diffclip_openclip.weights.layouts import to_reference
from diffclip_openclip.weights.processors import hf_tokenizer
from diffclip_openclip.weights.source import Source, load_source
from diffclip_openclip.weights.spec import parse_source

_SUFFIXES = (".safetensors", ".pt", ".pth")


def convert(
    src: str,
    out: Path,
    *,
    to: str = "open_clip",
    variant: str | None = None,
    preprocess: str | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Convert SRC and return what the user should know about the result.

    Args:
        src: any form of the grammar in :mod:`~diffclip_openclip.weights.spec` that has weights.
        out: for "open_clip" the directory to make; otherwise a ``.safetensors`` or ``.pt`` file.
        to: "open_clip"; "reference", the layout of the authors' checkpoints; or "timm", the image tower alone.
        variant: what SRC does not say, one of ``diffclip_openclip.models.VARIANTS``.
        preprocess: "slip" or "openai", for "open_clip" where SRC does not say.

    Raises:
        FileExistsError: as :func:`~diffclip_openclip.files.check_place`.
        ValueError: an argument that does not apply.
        ValueError, FileNotFoundError, OSError: as :func:`load_source` and :func:`write_directory`.
    """
    if preprocess is not None and to != "open_clip":
        raise ValueError(f"--to {to} writes no preprocessing; leave out --preprocess {preprocess}")
    spec = parse_source(src)
    place = Path(spec.pretrained)
    if to == "open_clip" and not spec.name and place.is_dir() and out.is_dir() and out.samefile(place):
        if variant is not None or preprocess is not None:
            raise ValueError(
                f"{src} to itself corrects its own place and nothing else; for --variant and --preprocess "
                "name another OUT"
            )
        return _repair(out)
    check_place(out, overwrite, MODEL_DIRECTORY if to == "open_clip" else None, inputs=[place])
    source = load_source(src, variant)
    if to == "open_clip":
        return _to_directory(source, out, preprocess, overwrite)
    return _to_file(source, out, to, overwrite)


def _repair(folder: Path) -> list[str]:
    """Correct the one path in a directory that was moved; nothing else changes, and no file is added."""
    model_cfg, _ = read_config(folder)
    if not (towers := placed_towers(model_cfg)):
        return [f"{folder} names no place, so there is nothing to correct"]
    write_place(folder)
    return [
        f"{folder / HF_CONFIG_NAME} now names {folder.resolve()} as the place of the {' and the '.join(towers)} tower"
    ]


def _to_directory(source: Source, out: Path, preprocess: str | None, overwrite: bool) -> list[str]:
    if preprocess is not None:
        source = replace(source, preprocess_cfg=PREPROCESS[preprocess])
    if source.preprocess_cfg is None:
        raise ValueError(
            f"{source.label} does not say how its images were preprocessed; add --preprocess slip (ImageNet's mean and "
            "std, bilinear: SLIP, DiffCLIP) or --preprocess openai (OpenAI's mean and std, bicubic: open_clip_train "
            "without --image-mean, --image-std and --image-interpolation)"
        )
    write_directory(
        out,
        state_dict=source.state_dict,
        architecture=source.architecture,
        preprocess_cfg=source.preprocess_cfg,
        card=model_card(source, "convert"),
        tokenizer=hf_tokenizer(source.architecture.model_cfg["text_cfg"], source.folder),
        overwrite=overwrite,
    )
    return [f"{out} is {source.architecture.name or source.architecture.tower}", *source.notes]


def _to_file(source: Source, out: Path, to: str, overwrite: bool) -> list[str]:
    if out.suffix not in _SUFFIXES:
        raise ValueError(f"{out} ends in {out.suffix or 'nothing'}; --to {to} writes one of {', '.join(_SUFFIXES)}")
    if to == "timm":
        weights = {
            key.removeprefix(TRUNK): tensor for key, tensor in source.state_dict.items() if key.startswith(TRUNK)
        }
        arguments = f"{source.architecture.tower!r}, checkpoint_path={str(out)!r}"
        if source.architecture.tower_arguments is not None:
            arguments += f", **{source.architecture.tower_arguments!r}"
        note = f"timm.create_model({arguments}) loads it"
        if not weights:
            raise ValueError(f"{source.label} has an image tower of open_clip's own, which timm does not know")
    else:
        if source.architecture.version == 2:
            raise ValueError(f"{source.label} has V2 attention, which the authors' layout does not know")
        if source.architecture.variant == HALF_HEADS:
            raise ValueError(f"{source.label} has half the usual heads, which the authors' layout does not tell")
        if source.architecture.kind == "gated":
            raise ValueError(f"{source.label} has gated attention, which the authors' layout does not know")
        weights = to_reference(source.state_dict)
        note = f"{out} holds {len(weights)} tensors in the authors' layout"
    with staged(out, overwrite) as new:
        if out.suffix == ".safetensors":
            save_safetensors(weights, new)
        else:
            save_torch(weights if to == "timm" else _as_published(weights), new)
        if read_checkpoint(new).keys() != weights.keys():
            raise OSError(f"{out} is not what was written; is the disk full?")
    return [note, *source.notes]


def _as_published(weights: StateDict) -> dict[str, StateDict]:
    """Nest and prefix weights as the authors' and SLIP's checkpoints do, whose scripts use DistributedDataParallel."""
    return {"state_dict": {f"module.{key}": tensor for key, tensor in weights.items()}}
