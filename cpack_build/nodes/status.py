"""What a page asks first: the plugin's version, whether the tool is there, what is under way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .tool import HOW_TO_GET

if TYPE_CHECKING:
    from .plugin import Plugin

__all__ = ["status"]


def status(plugin: Plugin) -> dict[str, Any]:
    """The document of ``GET /cpack/status``. Takes a moment: not for the event loop."""
    from .. import __version__

    found = plugin.tool.found
    tool: dict[str, Any] = {"found": found is not None, "looking": plugin.tool.is_looking}
    if found is not None:
        tool |= {"path": found.path, "version": found.version}
    else:
        tool |= {"how": HOW_TO_GET, "problem": plugin.tool.problem}
    serving = plugin.jobs.running("serve")
    return {
        "version": __version__,
        "tool": tool,
        "jobs": [job.snapshot() for job in plugin.jobs.all()],
        "serve": None if serving is None else serving.snapshot(),
        "comfyui": {"version": plugin.comfyui.version},
        "folder": plugin.comfyui.root.name,
        "token_known": plugin.knows_a_token,
    }
