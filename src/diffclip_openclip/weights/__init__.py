"""Weights in and out: checkpoints of any layout -> an open_clip model directory -> the hub and other libraries.

To read in this order: ``checkpoint`` (a file's tensors, safely), ``reference`` (key map of the authors' layout),
``architecture`` (which model they belong to), ``source`` (SRC: file, directory or hub), ``directory`` (OUT, verified),
``conversion`` and ``warm_starting`` (the two commands), ``hub`` (download and push), ``card`` (OUT's README.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffclip_openclip.weights.checkpoint import read_checkpoint
    from diffclip_openclip.weights.conversion import convert
    from diffclip_openclip.weights.hub import push
    from diffclip_openclip.weights.source import Source, load_source
    from diffclip_openclip.weights.warm_starting import warm_start

__all__ = [
    "Source",
    "convert",
    "load_source",
    "push",
    "read_checkpoint",
    "warm_start",
]
_MODULES = {
    "Source": "source",
    "convert": "conversion",
    "load_source": "source",
    "push": "hub",
    "read_checkpoint": "checkpoint",
    "warm_start": "warm_starting",
}


def __getattr__(name: str) -> Any:
    """A public name from its module when it is asked for (PEP 562); registering models needs ``reference`` alone."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
