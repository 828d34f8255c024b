"""Build hook: an editable install gets the start-up files only; the rest it finds in the checkout."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STARTUP_FILES = ("diffclip_openclip_autoload.pth", "diffclip_openclip_autoload.start")


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # generic over the builder's config, unused here
    """Without it, JSONs would be copied out of the checkout and a folder would stay behind after uninstalling."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            build_data["force_include_editable"] = {f"src/{name}": name for name in STARTUP_FILES}
