"""Observing a ComfyUI install, without its server, its Manager or any of its code; and packing what a workflow uses.

:func:`draft_pack` looks at the install's commit, nodes, packages, models and inputs and says what a pack of a workflow
would hold; :func:`write_draft` hashes the models, finds where they can be had again, and writes it. Nothing of the
workspace is run, imported or changed.

>>> draft = draft_pack(Path("ComfyUI"), open_workflow(Path("upscale_api.json")).in_api_format()[0])  # doctest: +SKIP
>>> write_draft(draft, Path("upscale.cpack.zip"), store=Store()).sha256  # doctest: +SKIP
"""

from __future__ import annotations

from cpack_build.workspace.pack import Draft, Written, draft_pack, write_draft
from cpack_build.workspace.place import Comfyui, find_comfyui
from cpack_build.workspace.upstream import Upstream

__all__ = [
    "Comfyui",
    "Draft",
    "Upstream",
    "Written",
    "draft_pack",
    "find_comfyui",
    "write_draft",
]
