"""Read and write weights: checkpoints of any layout -> an open_clip model directory -> the hub and other libraries.

To read in this order: ``checkpoint`` (a file's tensors, safely), ``layouts`` (key tables), ``architecture`` (which
model they belong to), ``directory`` (OUT, verified) with ``processors`` and ``card`` (what else lies in it), ``runs``
(a training run's folder), ``hub`` (download and push), ``spec`` (how models and weights are named), ``source`` (SRC),
``conversion`` (one command), ``twin_towers``, ``twins`` and ``warm_starting`` (the other), ``loading`` (models to be
measured) and ``onnx``. ``mapped`` loads weights that stay in their file.

The modules of the two commands are not called ``convert`` and ``warm_start``, since the functions of these names are
here, and a module would hide them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffclip_openclip.weights.checkpoint import read_checkpoint as read_checkpoint
    from diffclip_openclip.weights.conversion import convert as convert
    from diffclip_openclip.weights.hub import push as push
    from diffclip_openclip.weights.source import Source as Source
    from diffclip_openclip.weights.source import load_source as load_source
    from diffclip_openclip.weights.warm_starting import warm_start as warm_start

_MODULES = {
    "Source": "source",
    "convert": "conversion",
    "load_source": "source",
    "push": "hub",
    "read_checkpoint": "checkpoint",
    "warm_start": "warm_starting",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is asked for (PEP 562); registering needs ``layouts`` alone."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
