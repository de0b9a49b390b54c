"""The door through which ComfyUI finds the plugin when this repository is cloned into ``custom_nodes``.

The plugin itself is not written yet: this version offers no nodes, and says so by an empty table. Workflows use the
nodes of comfy-pack (``CPackInput…``, ``CPackOutput…``) until then. Nothing else belongs into this file; the program is
in ``cpack_build/``.
"""

from __future__ import annotations

NODE_CLASS_MAPPINGS: dict[str, type] = {}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {}
