"""Say where a benchmark's figures come from."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from diffclip_openclip.bench.outputs import machine

REPOSITORY = Path(__file__).resolve().parents[1]


def commit() -> str:
    """Return the commit that figures are of; a changed tree has a + behind it."""

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True)
        return asked.stdout.strip() if asked.returncode == 0 else "unknown"

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain") else "")


def origin(device: str) -> dict[str, Any]:
    """Return the command line, the commit, and the machine with its versions."""
    return {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "machine": machine(device)}
