"""What is in folders, to be compared before and after."""

from pathlib import Path


def tree(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder: the content of files, None for directories."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }
