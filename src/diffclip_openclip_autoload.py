"""Register diffclip_openclip's models when, and only when, open_clip is imported.

This module is a finder for ``sys.meta_path``, importlib's extension point. ``diffclip_openclip_autoload.pth`` puts a
stand-in there at interpreter start that imports this module only when open_clip is looked for, since importing anything
costs an interpreter milliseconds; from Python 3.15 on, ``.start`` (PEP 829) calls :func:`arm` instead. Set
``DIFFCLIP_OPENCLIP_AUTOLOAD=0`` to switch it off; ``import diffclip_openclip`` then registers the models.

Annotations are strings here: the names they need would have to be imported.
"""

import os
import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

HOST = "open_clip"
SWITCH = "DIFFCLIP_OPENCLIP_AUTOLOAD"
armed_by = __name__  # marks our finders: this module and the stand-in of the .pth


def _register() -> None:
    """Import the package, whose import registers the models; whatever fails in it is told and does not leave here.

    A process that was forked in there ends as it wants to.
    """
    process = os.getpid()
    try:
        import diffclip_openclip  # noqa: F401  its import registers the models
    except (Exception, SystemExit) as error:
        if os.getpid() != process:
            raise
        _tell(
            f"diffclip_openclip could not register its models with open_clip ({type(error).__name__}: {error}). "
            "open_clip itself works. Run `python -c 'import diffclip_openclip'` for the whole error, reinstall or "
            f"uninstall diffclip-openclip, or set {SWITCH}=0 to silence this."
        )


def _tell(message: str) -> None:
    import warnings

    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # of `python -W error`, whose user asked for errors of the program, not of a plugin
        print(message, file=sys.stderr)


class _HostLoader:
    """Run open_clip's own loader, then register; nothing of it stays on the loaded module."""

    def __init__(self, loader: "Any") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "Any":
        return self._loader.create_module(spec)

    def exec_module(self, module: "Any") -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        disarm()
        _register()


def _is_ours(finder: object) -> bool:
    return getattr(finder, "armed_by", None) == armed_by


def find_spec(
    fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
) -> "ModuleSpec | None":
    """Find open_clip with the other finders and wrap its loader; leave every other module alone."""
    if fullname != HOST or os.environ.get(SWITCH) == "0":
        return None
    for finder in sys.meta_path:
        if _is_ours(finder) or not hasattr(finder, "find_spec"):
            continue
        spec = finder.find_spec(fullname, path, target)
        if spec is not None:
            if hasattr(spec.loader, "exec_module"):
                spec.loader = _HostLoader(spec.loader)  # type: ignore[assignment]  # a loader by its methods
            return spec
    return None


def arm() -> None:
    """Put this finder on ``sys.meta_path``, once."""
    if not any(_is_ours(finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, sys.modules[__name__])


def disarm() -> None:
    """Take our finders away again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]
