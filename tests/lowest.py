"""Print the lowest versions that pyproject.toml admits as pip constraints:  python tests/lowest.py pyproject.toml"""

import re
import sys
from pathlib import Path


def lowest(pyproject: str) -> list[str]:
    """Return ``name==floor`` for each dependency that has a floor, also of the extras; build-system is left out."""
    body = pyproject[pyproject.index("[project]") : pyproject.index("[project.scripts]")]
    floors = re.findall(r'"([\w-]+)\s*>=\s*([\w.]+)', body)
    return [f"{name}=={floor}" for name, floor in dict(floors).items()]


if __name__ == "__main__":
    print("\n".join(lowest(Path(sys.argv[1]).read_text(encoding="utf-8"))))
