"""What the Check and Package dialogs show before anything is done: the tool's ``check`` of this ComfyUI, and what only
a running ComfyUI knows: which node classes it has loaded, who brought them, and what recent prompts used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import Refused
from .packing import observing, require_prompt

if TYPE_CHECKING:
    from .asked import Asked
    from .plugin import Plugin

__all__ = ["checked", "inventory"]


def checked(plugin: Plugin, asked: Asked) -> dict[str, Any]:
    """The document of ``POST /cpack/check``."""
    found = _check(plugin, asked)
    unknown = [
        {
            "level": "error",
            "code": "unknown_class",
            "message": f"This ComfyUI has no node {name}.",
            "next": "Install the custom node that brings it, and start ComfyUI again.",
            "node_id": "",
            "item": name,
        }
        for name in plugin.comfyui.unknown_classes(asked.classes)
    ]
    return {
        "findings": [*unknown, *found["findings"]],
        "parameters": found["parameters"],
        "outputs": found["outputs"],
    }


def inventory(plugin: Plugin, asked: Asked) -> dict[str, Any]:
    """The document of ``POST /cpack/inventory``."""
    found = _check(plugin, asked)
    recent = plugin.comfyui.recent_values()
    used = set(plugin.comfyui.modules(asked.classes).values())
    for model in found["models"]:
        model["recent"] = model.pop("below") in recent
    for file in (*found["models"], *found["inputs"]):
        file["path"] = file.pop("name")
    for node in found["nodes"]:
        node["used"] = node["name"] in used
        node["note"] = " ".join(node["notes"])
    return {key: found[key] for key in ("models", "inputs", "packages", "nodes", "comfyui", "python")} | {
        "system": found.get("system", [])
    }


def _check(plugin: Plugin, asked: Asked) -> dict[str, Any]:
    """What the tool says; takes about a second."""
    prompt = require_prompt(asked)
    found = plugin.ask("check", *observing(plugin, asked, prompt))
    if "findings" not in found:
        raise Refused("no_result", "The tool's answer cannot be used.", next="Update cpack-build.", status=502)
    return found
