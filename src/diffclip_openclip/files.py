"""Outputs that appear whole or not at all, written beside their place and then renamed; and hashes of files."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_place(out: Path, overwrite: bool = False) -> None:
    """Refuse an output path before work for it begins; raises as :func:`staged`."""
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; name another place, or replace it with --overwrite")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.absolute().parent} to put {out.name} in")


@contextmanager
def staged(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """A path inside a new temporary folder, to be made into ``out`` (a file or a directory) by the body.

    It takes ``out``'s place when the body ends well; otherwise nothing of it stays and an old ``out`` is untouched.

    Raises:
        FileExistsError: ``out`` exists, and ``overwrite`` is not given.
        FileNotFoundError: the folder that ``out`` is to lie in does not exist.
    """
    check_place(out, overwrite)
    out = out.absolute()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", ignore_cleanup_errors=True) as folder:
        new, old = Path(folder, out.name), Path(folder, f"{out.name}.old")
        yield new
        if out.is_dir():  # a directory cannot be renamed over
            out.rename(old)
            try:
                new.rename(out)
            except BaseException:
                old.rename(out)
                raise
            shutil.rmtree(old)
        else:
            new.replace(out)


def sha256(path: Path) -> str:
    """Of the file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
