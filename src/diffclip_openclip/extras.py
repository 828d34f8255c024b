"""Ask for the packages that only some commands need, which pip's extras bring."""

import importlib


def require(purpose: str, extra: str, *packages: str) -> None:
    """Check that optional packages are there before work for which they are needed begins.

    Raises:
        ImportError: one is not; names it and the extra to install.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ImportError(
                f"{purpose} needs {package} ({error}); install it: pip install 'diffclip-openclip[{extra}]'"
            ) from error
