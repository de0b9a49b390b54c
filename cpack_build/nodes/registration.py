"""What ComfyUI is given when it loads the plugin: the nodes, and, where its server runs, the routes.

Everything below this folder imports by relative names: ComfyUI loads it from the plugin's own folder, under a name made
of that folder's path, and the ``cpack_build`` distribution need not be installed in its environment.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from .inputs import INPUTS
from .outputs import OUTPUTS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "start"]

_NODES = {**INPUTS, **OUTPUTS}
NODE_CLASS_MAPPINGS: dict[str, type] = {name: node for name, (node, _) in _NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS: dict[str, str] = {name: title for name, (_, title) in _NODES.items()}


_FOLDER = Path(__file__).parents[2]
_MARK = "cpack_build_folder"
"""The server's attribute that names the folder of the copy which takes part: copies share no module."""


def start() -> bool:
    """Take part in ComfyUI's server, if there is one: a tool that only reads the nodes has none.

    The service's own ComfyUI (``CPACK_SERVED``) gets the nodes alone: there is nobody at an editor. False where another
    copy of the plugin, such as a clone beside the registry's, was loaded before: this one must offer nothing.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return True
    if (other := getattr(server, _MARK, None)) is not None:
        logging.warning("cpack-build: the plugin is here twice; %s is used. Remove %s.", other, _FOLDER)
        return False
    if not os.environ.get("CPACK_SERVED"):
        from .routes import install

        install(server)
    server.app.on_startup.append(_claim)
    setattr(server, _MARK, str(_FOLDER))
    return True


async def _claim(app: object) -> None:
    """Make our classes those of their names, whichever plugin ComfyUI loaded last.

    comfy-pack has nodes of the same names, and ComfyUI loads plugins in the order in which the folder lists them.
    """
    registered: Any = sys.modules["nodes"]
    taken = [name for name, node in NODE_CLASS_MAPPINGS.items() if registered.NODE_CLASS_MAPPINGS.get(name) is not node]
    if taken:
        registered.NODE_CLASS_MAPPINGS.update(NODE_CLASS_MAPPINGS)
        registered.NODE_DISPLAY_NAME_MAPPINGS.update(NODE_DISPLAY_NAME_MAPPINGS)
        logging.info(
            "cpack-build: another plugin (comfy-pack?) has nodes of the same names; these are used: cpack-build's"
        )
