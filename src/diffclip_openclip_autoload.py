"""Register diffclip_openclip's models when, and only when, open_clip is imported.

``diffclip_openclip_autoload.pth`` puts a finder on ``sys.meta_path``, importlib's extension point, at interpreter
start. It imports this module only when open_clip is looked for, since importing anything costs an interpreter
milliseconds. Set ``DIFFCLIP_OPENCLIP_AUTOLOAD=0`` to switch it off; ``import diffclip_openclip`` then registers the
models.

Python 3.18 will ignore the line of the ``.pth``, and run the function that a ``.start`` names (PEP 829). There is none
before: in 3.15, which reads both, it costs each interpreter 7 ms.

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
OFF = {"0", "false", "no", "off"}


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
        # a copy has no _loader yet when it is asked for its methods
        return getattr(object.__getattribute__(self, "_loader"), name)

    def create_module(self, spec: "ModuleSpec") -> "Any":
        return self._loader.create_module(spec)

    def exec_module(self, module: "Any") -> None:
        module.__loader__ = module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        disarm()
        _register()


def _is_ours(finder: object) -> bool:
    return getattr(finder, "armed_by", None) == __name__


def find_spec(
    fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
) -> "ModuleSpec | None":
    """Find open_clip with the other finders and wrap its loader; leave every other module alone."""
    if fullname != HOST or os.environ.get(SWITCH, "").strip().lower() in OFF:
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


def disarm() -> None:
    """Take the finder of the ``.pth`` away again."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_ours(finder)]
