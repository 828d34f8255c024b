"""Make a fresh virtual environment with a build of the package, and the dependencies of the running one."""

import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Environment:
    """Hold a virtual environment, of which only its own site-packages are processed for start-up files."""

    root: Path

    @property
    def bin(self) -> Path:
        return self.root / ("Scripts" if sys.platform == "win32" else "bin")

    @property
    def python(self) -> str:
        return str(self.bin / "python")

    @property
    def site_packages(self) -> Path:
        return Path(sysconfig.get_path("purelib", vars={"base": str(self.root), "platbase": str(self.root)}))

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", self.python, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, kind: str, wheel: Path, checkout: Path) -> None:
        """Install ``wheel``, or for the kind "editable" the checkout, without dependencies."""
        source = [str(wheel)] if kind == "wheel" else ["--no-build-isolation", "--editable", str(checkout)]
        self.pip("install", "--no-deps", "--ignore-installed", *source)


def new_environment(root: Path) -> Environment:
    """Create an environment whose path has the running one's packages, without its start-up files."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    environment = Environment(root)
    (environment.site_packages / "zz_dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment
