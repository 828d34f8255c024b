"""Give an editable install the start-up file only; the rest it finds in the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STARTUP_FILE = "diffclip_openclip_autoload.pth"


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # generic over the builder's config, unused here
    """Copy no JSONs out of the checkout, of which a folder would stay behind after uninstalling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {f"src/{STARTUP_FILE}": STARTUP_FILE}
