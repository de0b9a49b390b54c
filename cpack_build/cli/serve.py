"""``cpack-build serve SOURCE``: the service of the image, here, with a ComfyUI of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack

__all__ = ["serve"]


@click.command(
    epilog="Example: cpack-build serve upscale.cpack.zip --comfyui 127.0.0.1:8188    (exit codes: docs/exit-codes.md)"
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=3000, show_default=True, help="Where to listen.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on; 0.0.0.0 for all.")
@click.option(
    "--comfyui",
    envvar="COMFYUI_SERVER",
    metavar="URL",
    help="A running ComfyUI, or several with commas; else COMFYUI_SERVER.",
)
@click.option(
    "--workspace",
    envvar="COMFYUI_DIR",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A ComfyUI folder to start it from; else COMFYUI_DIR.",
)
@click.option(
    "--python",
    envvar="COMFYUI_PYTHON",
    metavar="FILE",
    help="The Python of that ComfyUI; by default its own .venv or venv, else python3.",
)
@click.option(
    "-w",
    "--workflow",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What a workspace serves, in the API format; by default what it was restored with.",
)
@click.option(
    "--input-directory",
    "inputs",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the files lie that a workspace's workflow names, as ComfyUI's own option; by default its input folder.",
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Where to write; by default a temporary.")
@click.option("--json", "as_json", is_flag=True, help="Each request as one line of JSON.")
def serve(
    source: Path,
    port: int,
    host: str,
    comfyui: str | None,
    workspace: Path | None,
    python: str | None,
    workflow: Path | None,
    inputs: Path | None,
    data: Path | None,
    as_json: bool,
) -> None:
    """Serve SOURCE, a NAME.cpack.zip, a workflow_api.json or a workspace (the folder of a ComfyUI), as its image would:
    POST /generate, and a page at /.

    ComfyUI either runs already (--comfyui) or is started (--workspace, or SOURCE itself). The environment variables of
    the image's service (docs/serving.md) work here, too.
    """
    import os
    import tempfile

    from cpack_build.errors import ToolMissing, UsageError

    if source.is_dir():
        workspace = workspace or source
    elif workflow is not None or inputs is not None:
        raise UsageError(
            "-w and --input-directory are for a workspace.", hint=f"Leave them out: {source} is served itself."
        )
    if comfyui is None and workspace is None:
        raise UsageError(
            "No ComfyUI is named.",
            hint="Give --comfyui URL for one that runs (such as 127.0.0.1:8188), or --workspace DIR to start one.",
        )
    with tempfile.TemporaryDirectory(prefix="cpack-serve-") as folder:
        app = Path(folder) / "app"
        _lay_out(source, app, workflow=workflow, inputs=inputs)
        given = {
            "CPACK_APP": str(app),
            "CPACK_DATA": str((data or Path(folder) / "data").absolute()),
            "CPACK_HOST": host,
            "PORT": str(port),
            "COMFYUI_SERVER": comfyui or "",
            "COMFYUI_DIR": str(expanded(workspace).absolute()) if workspace is not None and comfyui is None else "",
            "COMFYUI_PYTHON": python or _python_of(workspace),
        }
        if as_json:
            given["CPACK_LOG"] = "json"
        os.environ.update(given)
        try:
            from cpack_build.serve.__main__ import main
        except ImportError as error:
            raise ToolMissing(
                f"The service's packages are not installed ({error.name}).", hint="Install cpack-build[serve]."
            ) from None
        code = main()
    if code:
        raise SystemExit(code)


def _python_of(workspace: Path | None) -> str:
    for name in (".venv", "venv"):
        if workspace is not None and (candidate := expanded(workspace) / name / "bin" / "python").is_file():
            return str(candidate.absolute())
    return "python3"


def _lay_out(source: Path, app: Path, *, workflow: Path | None, inputs: Path | None) -> None:
    """Write what an image has in its application folder to *app*: the workflow, and the inputs that come with it."""
    from cpack_build.errors import BadInput, UsageError

    (app / "input").mkdir(parents=True)
    if source.is_dir():
        own = workflow or source / ".cpack" / "workflow_api.json"
        if not own.is_file():
            raise UsageError(
                f"{source} has no workflow of its own: {own} is not there.",
                hint="Name one with -w FILE (Workflow > Export (API) in ComfyUI).",
            )
        (app / "workflow_api.json").write_bytes(own.read_bytes())
        _copy_used_inputs(own, inputs or source / "input", app / "input")
        return
    if source.suffix == ".json":
        try:
            (app / "workflow_api.json").write_bytes(source.read_bytes())
        except OSError as error:
            raise BadInput(
                f"{source} cannot be read: {error.strerror}.", hint="Name a pack or a workflow_api.json."
            ) from None
        return
    from cpack_build.cpack.reader import read_pack

    pack = read_pack(source)
    (app / "workflow_api.json").write_bytes(pack.open_member("workflow_api.json"))
    _copy_inputs(pack, app)


def _copy_used_inputs(workflow: Path, folder: Path, target: Path) -> None:
    """Copy those files of a workspace's input *folder* that *workflow* names: they are its parameters' defaults."""
    import shutil

    from cpack_build.workflow import read_workflow
    from cpack_build.workflow.references import references

    read = read_workflow(workflow.read_bytes(), name=workflow.name)
    for reference in references(read.nodes).inputs:
        below = reference.path.removeprefix("input/") if reference.place == "base" else reference.path
        path = folder / below
        is_ours = reference.place in ("input", "base") and path.resolve().is_relative_to(folder.resolve())
        if is_ours and path.is_file():
            place = target / path.resolve().relative_to(folder.resolve())
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)


def _copy_inputs(pack: Pack, app: Path) -> None:
    for item in pack.inputs:  # their names have been checked by the reader
        target = app / "input" / item.name.removeprefix("input/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for block in pack.stream_member(item.name):
                file.write(block)
