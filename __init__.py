"""The door through which ComfyUI finds the plugin when this repository is cloned into ``custom_nodes``."""

from __future__ import annotations

import sys

WEB_DIRECTORY = "./cpack_build/web"
NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}

if getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None) is not None:
    from .cpack_build.nodes.routes import install

    install(sys.modules["server"].PromptServer.instance)
