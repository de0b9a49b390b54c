"""``cpack-build check WORKSPACE -w WORKFLOW``: the same question before there is a pack."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from cpack_build.cli.objectinfo import read_object_info
from cpack_build.cli.terminal import Terminal

__all__ = ["check_workspace"]

_RISKY = 8
_CODES = {"workflow": 3, "missing_model": 4, "missing_input": 4}


def check_workspace(
    workspace: Path,
    workflow_file: Path,
    *,
    editor_workflow: Path | None,
    object_info: str | None,
    python: Path | None,
    folders: Path | None,
    strict: bool,
    terminal: Terminal,
) -> int:
    """Say what stands in the way of a pack of *workflow_file*; the exit code. Asks nobody, and reads no model."""
    from cpack_build.cpack.settings import SystemSettings
    from cpack_build.cpack.workflowfile import open_workflow
    from cpack_build.fetch.store import Store
    from cpack_build.workspace import draft_pack
    from cpack_build.workspace.folders import read_folders
    from cpack_build.workspace.survey import available, find_problems, interface_document, interface_of

    info = read_object_info(object_info)
    given = open_workflow(workflow_file)
    api, notes = given.in_api_format(info)
    for note in notes:
        terminal.progress.note(note)
    drawing = given.drawing if editor_workflow is None else open_workflow(editor_workflow).drawing
    draft = draft_pack(
        workspace, api, workflow=drawing, object_info=info, python=python,
        running=None if folders is None else read_folders(folders), progress=terminal.progress,
    )  # fmt: skip
    problems = find_problems(draft)
    interface, _ = interface_of(draft)
    codes = sorted(_CODES.get(one.code, 4) for one in problems if one.level == "error")
    code = codes[0] if codes else _RISKY if strict and any(one.level == "warning" for one in problems) else 0
    terminal.result(
        {
            "exit_code": code,
            "findings": [asdict(one) for one in problems],
            **interface_document(interface),
            **available(draft, store=Store(leased=False)),
            "system": list(SystemSettings().wanted()),
        }
    )
    for one in problems:
        where = f" (node {one.node_id})" if one.node_id else ""
        terminal.say(f"{one.level:<8} {one.message}{where}" + (f"\n         {one.next}" if one.next else ""))
    if interface is not None:
        takes = ", ".join(f"{item.name} ({item.type})" for item in interface.inputs) or "nothing"
        gives = ", ".join(f"{item.name} ({item.kind})" for item in interface.outputs)
        terminal.say(f"It takes {takes}; it gives {gives}.")
    counts = [f"{sum(one.level == level for one in problems)} {level}s" for level in ("error", "warning", "note")]
    terminal.say(f"{workflow_file}: {', '.join(counts)}.")
    return code
