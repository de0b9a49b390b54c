"""What a workflow takes and gives: ``workflow_api.json`` read into a typed interface, and filled in again.

A workflow in ComfyUI's API format marks what a caller may set with ``CPackInput…`` nodes and what it gets back with
``CPackOutput…`` nodes. :func:`read_workflow` checks the document and names them, :func:`json_schema` tells the
parameters to the world, :func:`fill` makes the prompt that ComfyUI is asked to run, :func:`references` says which
models, files and node classes it uses.
"""

from __future__ import annotations

from cpack_build.workflow.filling import FILE_TYPES, fill, json_schema
from cpack_build.workflow.interface import Input, Interface, Output, Workflow, read_workflow
from cpack_build.workflow.references import InputReference, ModelReference, References, references

__all__ = [
    "FILE_TYPES",
    "Input",
    "InputReference",
    "Interface",
    "ModelReference",
    "Output",
    "References",
    "Workflow",
    "fill",
    "json_schema",
    "read_workflow",
    "references",
]
