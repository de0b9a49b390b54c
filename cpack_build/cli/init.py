"""``cpack-build init [DIR]``: a new workspace, its parts at pinned versions."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from cpack_build.cli.lock import make_locks
from cpack_build.cli.options import terminal_options
from cpack_build.cli.restore import next_command
from cpack_build.cli.sources import restore_options, sources_of
from cpack_build.cli.terminal import Terminal
from cpack_build.filesystem import expanded

if TYPE_CHECKING:
    from cpack_build.fetch.http import Sources
    from cpack_build.fetch.store import Store
    from cpack_build.fetch.tree import Tree

__all__ = ["init"]

_COMFYUI = "https://github.com/comfyanonymous/ComfyUI.git"
_COMFYUI_COMMIT = "a125cd84b054a57729b5eecab930ca9408719832"
"""ComfyUI 0.3.64, with which all of this is tested."""
_MANAGER = "https://github.com/ltdrdata/ComfyUI-Manager.git"
_MANAGER_COMMIT = "3f030a2121d1ad42fcabac67946f2a67afe4cc31"
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REQUIREMENTS_LIMIT = 1 << 20


@click.command(epilog="Example: cpack-build init ComfyUI    (exit codes: docs/exit-codes.md)")
@click.argument("folder", type=click.Path(path_type=Path), default="ComfyUI", metavar="[DIR]")
@click.option(
    "--comfyui",
    default=_COMFYUI_COMMIT,
    metavar="COMMIT|TAG",
    help="ComfyUI's version; by default the one tested with.",
)
@click.option(
    "--manager",
    default=_MANAGER_COMMIT,
    metavar="COMMIT|TAG",
    help="ComfyUI-Manager's version; by default the one tested with.",
)
@click.option("--no-manager", is_flag=True, help="Leave ComfyUI-Manager out.")
@click.option("--no-plugin", is_flag=True, help="Leave cpack-build's own plugin out.")
@click.option("--node", "nodes", multiple=True, metavar="URL@COMMIT", help="One more custom node, at a commit or tag.")
@click.option("--python", "version", default="3.11", show_default=True, metavar="3.X", help="The environment's Python.")
@click.option("--offline", is_flag=True, help="Use what is on this machine; ask nobody.")
@click.option(
    "--mirror", metavar="PREFIX=PREFIX", help="Take what begins with the first from the second.", multiple=True
)
@restore_options
@terminal_options
def init(
    folder: Path,
    comfyui: str,
    manager: str,
    no_manager: bool,
    no_plugin: bool,
    nodes: tuple[str, ...],
    version: str,
    offline: bool,
    mirror: tuple[str, ...],
    terminal: Terminal,
    **flags: Any,
) -> None:
    """Make a new workspace in DIR: ComfyUI, ComfyUI-Manager and other nodes at commits, and an environment for them.

    The result is a workspace as `restore` makes one: what it has is locked, and running it again repairs it.
    """
    from cpack_build.cpack.reader import read_pack
    from cpack_build.cpack.writer import write_pack
    from cpack_build.errors import UsageError
    from cpack_build.fetch.http import Offline, RequestsTransport, Sources
    from cpack_build.fetch.mirrors import Mirrors
    from cpack_build.fetch.store import Store
    from cpack_build.lock.schema import Lock, read_lock
    from cpack_build.restore.goal import Goal, Options
    from cpack_build.restore.restoring import restore
    from cpack_build.workspace.plugin import FOLDER, plugin_files

    if not re.fullmatch(r"3\.[0-9]{1,2}", version):
        raise UsageError(f"--python {version!r} is no minor version.", hint="Write it as 3.11.")
    settings = sources_of(platform=None, mirror=mirror, **flags).alone()
    store = Store()
    sources = Sources(Mirrors(settings.mirrors, offline), Offline() if offline else RequestsTransport())
    root = expanded(folder)
    wanted = [] if no_manager else [f"{_MANAGER}@{manager}"]
    trees = [_tree(_COMFYUI, comfyui, store, sources, terminal)]
    trees += [_tree(*_divided(node), store, sources, terminal) for node in (*wanted, *nodes)]
    own = root / ".cpack" / "cpack.lock"
    with TemporaryDirectory(prefix="cpack-init-") as aside:
        path = Path(aside) / f"{root.absolute().name}.cpack.zip"
        requirements = dict.fromkeys(line for tree in trees for line in _requirements(tree))
        snapshot = {
            "comfyui": trees[0].commit,
            "git_custom_nodes": {tree.url: {"hash": tree.commit, "disabled": False} for tree in trees[1:]},
            "cnr_custom_nodes": {},
            "file_custom_nodes": [],
            # ComfyUI 0.3.64 imports requests, and does not ask for it.
            "pips": dict.fromkeys((*requirements, "requests"), ""),
            "python": version,
            "models": [],
        }
        own_nodes: dict[str, bytes | Path] = {}
        if not no_plugin:  # as a pack of a workspace with the plugin has it: locked and verified like every other part
            snapshot["cpack"] = {"local_nodes": [FOLDER]}
            own_nodes = {f"nodes/{FOLDER}/{name}": data for name, data in plugin_files().items()}
        write_pack(path, snapshot_document=snapshot, workflow_api={}, other=own_nodes)
        pack = read_pack(path)
        earlier: Lock | None = read_lock(own.read_bytes(), name=own) if own.is_file() else None
        if earlier is not None and earlier.inputs.pack == pack.content_sha256:
            lock = earlier
        else:
            (lock,) = make_locks(pack, settings, sources=sources, served=False, workspace=True, terminal=terminal)
        python = settings.python
        done = restore(
            Goal(pack.name, lock, pack.documents(), pack=pack),
            root,
            options=Options(
                offline=offline,
                find_links=python.find_links,
                index_urls=tuple(url for url in (python.index_url, *python.extra_index_urls) if url),
            ),
            store=store,
            sources=sources,
            progress=terminal.progress,
        )
    command = next_command(done.root, venv=True)
    terminal.result(
        {
            "workspace": str(done.root),
            "made": done.made,
            "comfyui": trees[0].commit,
            "nodes": {tree.url: tree.commit for tree in trees[1:]},
            "plugin": not no_plugin,
            "next": command,
        }
    )
    terminal.say(f"{done.root} is a workspace with ComfyUI {trees[0].commit[:12]} and {len(trees) - 1} custom nodes.")
    terminal.say(f"Start ComfyUI:\n  {command}")
    terminal.say(f"Pack a workflow of it:\n  cpack-build pack {shlex.quote(str(root))} -w WORKFLOW.json")


def _divided(node: str) -> tuple[str, str]:
    from cpack_build.errors import UsageError

    url, at, reference = node.rpartition("@")
    if not at or "/" in reference:
        raise UsageError(f"--node {node!r} says no version.", hint="Write URL@COMMIT or URL@TAG.")
    return url, reference


def _tree(url: str, reference: str, store: Store, sources: Sources, terminal: Terminal) -> Tree:
    from cpack_build.fetch.git import fetch_tree, named_commit

    commit = reference if _COMMIT.fullmatch(reference) else named_commit(url, reference, mirrors=sources.mirrors)
    return fetch_tree(url, commit, store=store, mirrors=sources.mirrors, progress=terminal.progress)


def _requirements(tree: Tree) -> list[str]:
    """The lines of ``requirements.txt`` that name a package; options and files of other places are left out."""
    for file in tree.files():
        if file.path == "requirements.txt" and file.size < _REQUIREMENTS_LIMIT:
            lines = tree.read(file.oid).decode("utf-8", "replace").splitlines()
            plain = (line.partition(" #")[0].strip() for line in lines)
            return [line for line in plain if line and not line.startswith(("#", "-")) and not line.startswith("./")]
    return []
