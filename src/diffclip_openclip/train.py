"""``open_clip_train``: open_clip's trainer as a command, with the arguments of ``python -m open_clip_train.main``."""

import sys


def main() -> None:
    """Run open_clip's trainer.

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
