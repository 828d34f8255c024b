"""Run open_clip's trainer as the command ``open_clip_train``.

Importing this module's package registers the models, also where the start-up hook is switched off.
"""

import sys


def main() -> None:
    """Run the trainer on the command line's arguments, which are those of ``python -m open_clip_train.main``.

    Raises:
        ImportError: a package that the trainer needs is not installed; names the extra that brings it.
    """
    try:
        from open_clip_train.main import main as train
    except ImportError as error:
        raise ImportError(
            f"open_clip's trainer needs {error.name}; install it with: pip install 'diffclip-openclip[train]'"
        ) from error
    train(sys.argv[1:])
