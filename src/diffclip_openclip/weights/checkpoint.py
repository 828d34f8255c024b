"""Read a checkpoint file's tensors without executing anything that it holds, and write tensors to a file."""

import argparse
import pathlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.torch
import torch

if TYPE_CHECKING:
    from diffclip_openclip.weights.pickles import Contents

StateDict = dict[str, torch.Tensor]

_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
# of eight bits only whole numbers: float8 and quantized tensors mean something only with scales from elsewhere
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8}
_DTYPES |= {torch.int8, torch.int16, torch.int32, torch.int64}
_MOST_TENSORS = 20_000  # the largest CLIPs have some 1,000
_MOST_SHARED = 4  # names that a tensor may have on average
_STATE_DICT_KEYS = ("state_dict", "model")  # of open_clip, SLIP and the authors; of timm


def _admitted_types() -> list[Any]:
    """List what the authors' checkpoints hold beside tensors: ``args`` with paths in it, and numpy scalars.

    A path is admitted as its pure form, which exists on every system and touches no file. numpy renamed its module in
    2.0, Python 3.13 pathlib's; pickles hold the name of the version that wrote them.
    """
    scalar = np.float64(0).__reduce__()[0]
    dtypes = {type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")}
    admitted: list[Any] = [argparse.Namespace, np.dtype, *dtypes]
    admitted += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    for module in ("pathlib", "pathlib._local"):
        admitted += [
            (pathlib.PurePosixPath, f"{module}.PosixPath"),
            (pathlib.PurePosixPath, f"{module}.PurePosixPath"),
            (pathlib.PureWindowsPath, f"{module}.WindowsPath"),
            (pathlib.PureWindowsPath, f"{module}.PureWindowsPath"),
        ]
    return admitted


def _kind(path: Path) -> str:
    """Return "torch" or "safetensors", by content, since a name's ending may be wrong."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head.lstrip()[:1] == b"<":
        raise ValueError(
            f"{path} is an HTML page, not weights: perhaps a login or an error page was saved; fetch it again"
        )
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the weights; fetch them with: git lfs pull")
    if head.startswith((b"PK", b"\x80")):
        return "torch"
    if head[8:9] == b"{":
        return "safetensors"
    raise ValueError(f"{path} is no checkpoint: neither PyTorch's format (.pt, .pth, .bin) nor safetensors")


def _load_torch(path: Path) -> Any:
    found = check_pickle(path)
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        with torch.serialization.safe_globals(_admitted_types()):
            if path.suffix == ".safetensors":  # torch goes by a path's ending where it is given one
                with path.open("rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            # mapped, so that an optimizer state is never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a damaged file may make torch raise anything
        raise ValueError(f"{path} {_diagnosis(error, found)}") from error


def check_pickle(path: Path) -> "Contents":
    """Look through a file that torch is to read, and return what it would make.

    Raises:
        ValueError: it is damaged, or would have torch make more than a file of its size holds.
    """
    from diffclip_openclip.weights.pickles import contents  # registering needs this module, and reads no file

    found = contents(path)
    if not found.complete:  # torch cannot read it either
        raise ValueError(f"{path} {_diagnosis(pickle.UnpicklingError(), found)}")
    size = path.stat().st_size
    if found.elements > size or found.copied > 64 * size + (1 << 24):
        raise ValueError(
            f"{path} has {size} bytes and asks for {max(found.elements, found.copied)} and more, which it cannot hold; "
            "it was not loaded"
        )
    for name in sorted(found.called):
        if name.endswith(("Storage", "Tensor", ".bytearray")):
            raise ValueError(f"{path} wants to make a {name} of any size, which no checkpoint does; it was not loaded")
    return found


def _diagnosis(error: Exception, found: "Contents") -> str:
    """Say what is wrong with a file that torch refuses."""
    message = str(error)
    if "TorchScript" in message:
        return "is a TorchScript archive, which holds code; save its state_dict() alone"
    wanted = re.search(r"(?:GLOBAL|global|class|function) ((?:\w+\.)+\w+)", message)
    name = found.foreign[0] if found.foreign else wanted[1] if wanted else None
    if name is not None and (found.foreign or isinstance(error, pickle.UnpicklingError)):
        return (
            f"wants to run or build {name}, which no checkpoint of weights needs; it was not loaded and nothing in it "
            "was run"
        )
    if isinstance(error, MemoryError) or "memory" in message:
        return "does not fit into the memory that is free; close other programs, or use a machine with more"
    return "is cut short or damaged; copy or download it again"


def _tensors(checkpoint: Any, path: Path) -> Mapping[str, torch.Tensor]:
    if isinstance(checkpoint, Mapping):
        checkpoint = next((checkpoint[key] for key in _STATE_DICT_KEYS if key in checkpoint), checkpoint)
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"{path} holds {type(checkpoint).__name__}, not a state dict")
    if len(checkpoint) > _MOST_TENSORS:
        raise ValueError(f"{path} holds {len(checkpoint)} tensors; no CLIP has more than {_MOST_TENSORS}")
    bytes_left = _MOST_SHARED * path.stat().st_size
    for key, value in checkpoint.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} holds a {type(value).__name__} as {key!r}, where a state dict has tensors only")
        if value.layout != torch.strided or value.is_meta or value.dtype not in _DTYPES:
            kind = "without data" if value.is_meta else f"{value.dtype}, {value.layout}".replace("torch.", "")
            raise ValueError(f"{path} holds {key!r} as a tensor {kind}; it must be dense, of whole or real numbers")
        bytes_left -= value.nbytes
        if value.nbytes > value.untyped_storage().nbytes() or bytes_left < 0:
            raise ValueError(
                f"{path} holds {key!r} with shape {list(value.shape)}, whose values are not all in a file of "
                f"{path.stat().st_size} bytes: it repeats them. Save contiguous tensors"
            )
    return checkpoint


def _unwrapped(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    unwrapped = dict(state_dict)
    while any(all(key.startswith(prefix) for key in unwrapped) for prefix in _WRAPPERS):
        unwrapped = {key.split(".", 1)[1]: tensor for key, tensor in unwrapped.items()}
    return unwrapped


def read_checkpoint(path: Path) -> StateDict:
    """Return the state dict in ``path``, without ``module.`` and ``_orig_mod.`` before its keys.

    Takes safetensors files and PyTorch's, bare or under ``state_dict`` or ``model`` beside optimizer state and the
    like, which is left out. PyTorch files are read with ``weights_only=True``; admitted are, beyond torch's own types,
    ``argparse.Namespace``, paths and numpy scalars.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is truncated, no checkpoint, holds no tensors, or asks for any other type, which the
            message names.
    """
    return _unwrapped(_tensors(_content(path), path))


def _content(path: Path) -> Any:
    """Load what a file holds, as :func:`read_checkpoint`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if _kind(path) == "torch":
        return _load_torch(path)
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, RuntimeError, MemoryError, KeyError) as error:
        raise ValueError(
            f"{path} is a safetensors file that is cut short or damaged; copy or download it again"
        ) from error


def read_epoch(path: Path) -> int:
    """Return how many epochs open_clip's trainer had done (open_clip@v3.3.0:src/open_clip_train/main.py).

    Raises:
        FileNotFoundError, ValueError: as :func:`read_checkpoint`.
        ValueError: the checkpoint does not say.
    """
    content = _content(path)
    _tensors(content, path)  # says what is wrong with a damaged or unsafe file
    if _kind(path) != "torch" or "epoch" not in content:
        raise ValueError(f"{path} does not say after which epoch it was written; open_clip's trainer writes that")
    if type(epoch := content["epoch"]) is not int:
        raise ValueError(f"{path} has the epoch {str(epoch)[:40]!r}; it must be a whole number")
    return epoch


def save_safetensors(state_dict: StateDict, path: Path) -> None:
    """Write tensors as safetensors.

    Raises:
        OSError: writing fails, say because the disk is full.
    """
    try:
        path.touch()
        mode = path.stat().st_mode  # safetensors makes files that nobody else can read
        safetensors.torch.save_file(_apart(state_dict), path, metadata={"format": "pt"})
        path.chmod(mode)
    except safetensors.SafetensorError as error:
        raise OSError(f"{path.name} could not be written: {error}") from error


def save_torch(content: object, path: Path) -> None:
    """Write anything in PyTorch's format.

    Raises:
        OSError: writing fails, say because the disk is full.
    """
    try:
        torch.save(content, path)
    except RuntimeError as error:  # how torch reports that writing failed
        raise OSError(f"{path.name} could not be written: {error}") from error


def _apart(state_dict: StateDict) -> StateDict:
    """Copy what overlaps with another tensor, since safetensors saves no memory twice; tensors of one file do not."""
    apart = {key: tensor.contiguous() for key, tensor in state_dict.items()}
    end = 0
    for key, tensor in sorted(apart.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            apart[key] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return apart
