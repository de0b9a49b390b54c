"""The door through which ComfyUI finds the plugin when this repository is cloned into ``custom_nodes``.

Nothing else belongs into this file; the program is in ``cpack_build/``, the plugin in ``cpack_build/nodes`` and
``cpack_build/web``.
"""

from __future__ import annotations

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]

WEB_DIRECTORY: str | None = "./cpack_build/web"

if __package__:  # not where a tool reads this file by itself
    from .cpack_build.nodes.registration import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, start

    if not start():
        NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, WEB_DIRECTORY = {}, {}, None
