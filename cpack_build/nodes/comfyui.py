"""The ComfyUI that the plugin runs in, as it is at this moment: its folders, its Python, its address, its node classes.

The tool looks at files; a running ComfyUI may have been told of other folders (``--base-directory``,
``--extra-model-paths-config``, ``--input-directory``) or a custom node may have added some. So what it says itself is
written to a small file for the tool. ComfyUI's modules are imported when they are asked, in no event loop's thread.
"""

from __future__ import annotations

import ipaddress
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Comfyui"]

_RECENT = 50
"""Prompts of the history that count as recent."""
_OWN_MODULES = ("nodes", "comfy_extras.", "comfy_api_nodes.")


class Comfyui:
    """The running ComfyUI; *server* is its ``PromptServer``."""

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def root(self) -> Path:
        """Its own folder."""
        import folder_paths

        return Path(folder_paths.base_path)

    @property
    def version(self) -> str:
        """What it says of itself, or nothing."""
        try:
            import comfyui_version
        except ImportError:  # before 0.3
            return ""
        return str(comfyui_version.__version__)

    @property
    def saved(self) -> Path:
        """Where packs and images are saved for its user: below its output folder."""
        import folder_paths

        return Path(folder_paths.get_output_directory()) / "cpack"

    @property
    def input(self) -> Path:
        """Its folder of input files."""
        import folder_paths

        return Path(folder_paths.get_input_directory())

    @property
    def address(self) -> str:
        """Where a program on this machine reaches it, as ``http://127.0.0.1:8188``."""
        from comfy.cli_args import args

        host = str(getattr(self._server, "address", None) or args.listen).split(",")[0].strip()
        port = int(getattr(self._server, "port", None) or args.port)
        scheme = "https" if getattr(args, "tls_keyfile", None) and getattr(args, "tls_certfile", None) else "http"
        try:
            ip = ipaddress.ip_address(host)
        except ValueError:
            return f"{scheme}://{host or '127.0.0.1'}:{port}"
        if ip.is_unspecified:
            host = "127.0.0.1" if ip.version == 4 else "::1"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def model_folders(self) -> dict[str, list[str]]:
        """Folder name → its directories, in the order in which it searches them; custom nodes' are not among them."""
        import folder_paths

        known = folder_paths.folder_names_and_paths
        return {str(name): [str(path) for path in known[name][0]] for name in list(known) if name != "custom_nodes"}

    def write_folders(self, file: Path) -> Path:
        """Write what the tool's ``--folders`` takes to *file*."""
        import folder_paths

        document = {
            "models": self.model_folders(),
            "custom_nodes": list(folder_paths.get_folder_paths("custom_nodes")),
            "input": str(self.input),
        }
        file.write_text(json.dumps(document), "utf-8")
        return file

    def write_object_info(self, file: Path, classes: Iterable[str]) -> Path:
        """Write the inputs of *classes* and of ComfyUI's own loaders to *file*, as ``/object_info`` tells them."""
        import nodes

        mappings: Mapping[str, Any] = nodes.NODE_CLASS_MAPPINGS
        own = [name for name, known in list(mappings.items()) if _module(known) == "nodes"]
        with file.open("w", encoding="utf-8") as out:
            _write_object(out, ((name, _info(mappings[name])) for name in {*own, *classes} if name in mappings))
        return file

    def modules(self, classes: Iterable[str]) -> dict[str, str]:
        """Node class → the custom node (its folder's or file's name) that brought it; nothing for ComfyUI's own."""
        import nodes

        found = {}
        for name in classes:
            module = _module(nodes.NODE_CLASS_MAPPINGS.get(name))
            if module.startswith("custom_nodes."):
                found[name] = module.removeprefix("custom_nodes.")
        return found

    def custom_nodes(self) -> set[str]:
        """The names of what lies in its folders of custom nodes, as a pack would call it."""
        import folder_paths

        found = set()
        for folder in folder_paths.get_folder_paths("custom_nodes"):
            if os.path.isdir(folder):
                found |= {name for name in os.listdir(folder) if not name.endswith(".disabled")}
        return found

    def unknown_classes(self, classes: Iterable[str]) -> list[str]:
        """Those of *classes* that this ComfyUI has not loaded."""
        import nodes

        return sorted({name for name in classes if name not in nodes.NODE_CLASS_MAPPINGS})

    def recent_values(self) -> set[str]:
        """The texts that the inputs of recent prompts had, with ``/``: names of models and files are among them."""
        history = self._server.prompt_queue.get_history(max_items=_RECENT)
        found: set[str] = set()
        for entry in history.values():
            prompt = entry["prompt"][2] if isinstance(entry, Mapping) and len(entry.get("prompt", ())) > 2 else {}
            for node in prompt.values() if isinstance(prompt, Mapping) else ():
                values = node.get("inputs", {}).values() if isinstance(node, Mapping) else ()
                found |= {value.replace("\\", "/") for value in values if isinstance(value, str) and len(value) < 1024}
        return found

    @property
    def python(self) -> str:
        """The Python that runs it."""
        return sys.executable

    def send(self, event: str, data: Mapping[str, Any]) -> None:
        """Send *event* to every page, from any thread."""
        try:
            self._server.send_sync(event, dict(data))
        except RuntimeError:  # its event loop has ended, and with it every page
            return

    @property
    def beside(self) -> Path:
        """The folder that its own folder lies in, as the user sees it."""
        return Path(os.path.abspath(self.root)).parent


def _module(known: Any) -> str:
    return str(getattr(known, "RELATIVE_PYTHON_MODULE", "") or ("nodes" if known is not None else ""))


def _info(known: Any) -> dict[str, Any]:
    try:
        return {"input": known.INPUT_TYPES()}
    except Exception:  # a custom node's code: ComfyUI, too, leaves out a node that cannot tell its inputs
        return {}


def _write_object(out: TextIO, items: Iterator[tuple[str, Any]]) -> None:
    """Write a JSON object item by item: one call for all of it would keep every other thread waiting."""
    out.write("{")
    for number, (key, value) in enumerate(items):
        text = json.dumps(value, default=str)
        out.write(f"{', ' if number else ''}{json.dumps(key)}: {text}")
    out.write("}")
