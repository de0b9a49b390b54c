"""The door through which ComfyUI finds the plugin when this repository is cloned into ``custom_nodes``."""

from __future__ import annotations

WEB_DIRECTORY = "./cpack_build/web"
NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
