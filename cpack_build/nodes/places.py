"""Where nodes may read and write: ComfyUI's own folders, whatever a workflow, a request or a link says.

A name is judged after all links in it are followed, so neither ``..`` nor an absolute path nor a link leads out. What
is written appears under its final name only when it is whole, and never through a link of that name.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ["Place", "allowed_path", "disable_metadata", "place", "readable"]

DEFAULT_PREFIX = "cpack_output_"


def _within(path: str, root: str) -> bool:
    root = os.path.realpath(root)
    try:
        return os.path.commonpath((root, os.path.realpath(path))) == root
    except ValueError:  # on another drive of Windows
        return False


def _folders() -> tuple[str, ...]:
    import folder_paths

    return (
        folder_paths.get_input_directory(),
        folder_paths.get_output_directory(),
        folder_paths.get_temp_directory(),
    )


def readable(name: str) -> str:
    """The path of the file *name* that a node is to read: a name in the input folder, one marked ``[output]`` or
    ``[temp]``, or a path to a file in any of the three. Raises ValueError for anything else."""
    import folder_paths

    name = str(name)
    if "\0" in name:
        raise ValueError("The name of the file holds a null byte.")
    plain, marked = folder_paths.annotated_filepath(name)
    if not plain:
        raise ValueError("There is no file's name.")
    # comfy-pack took a relative path from where ComfyUI was started, which is usually its own folder.
    roots = [marked] if marked else [folder_paths.get_input_directory(), os.getcwd(), folder_paths.base_path]
    candidates = [os.path.join(root, plain) for root in roots]
    allowed = (marked,) if marked else _folders()
    inside = [path for path in candidates if any(_within(path, folder) for folder in allowed)]
    if not inside:
        raise ValueError(
            f"{name!r} lies outside ComfyUI's input, output and temp folders. Put the file into the input folder."
        )
    for path in inside:
        if os.path.isfile(path):
            return str(os.path.realpath(path))
    raise ValueError(f"There is no file {name!r} in ComfyUI's input folder.")


def allowed_path(name: str) -> None:
    """Raise ValueError if *name*, which another node will read, leads out of ComfyUI's and its models' folders, or to
    its users' settings or custom nodes, which may hold keys.

    What is no path at all (one of a list's values, a model's name) is let through.
    """
    import folder_paths

    if "\0" in name:
        raise ValueError("The path holds a null byte.")
    base = folder_paths.base_path
    known = folder_paths.folder_names_and_paths
    models = [folder for kind, (paths, *_) in known.items() if kind != "custom_nodes" for folder in paths]
    closed = [os.path.join(base, "user"), os.path.join(base, "custom_nodes"), *known.get("custom_nodes", [[]])[0]]
    if users := getattr(folder_paths, "get_user_directory", None):  # not before 0.3
        closed.append(users())
    path = os.path.join(base, os.path.expanduser(name))
    if any(_within(path, root) for root in (*_folders(), *models)):
        return
    if not _within(path, base) or any(_within(path, root) for root in closed):
        raise ValueError(f"{name!r} lies outside ComfyUI's folders. Put the file into its input folder.")


@dataclass(frozen=True)
class Place:
    """Where an output node writes: files named *name*… in *folder*, which is *subfolder* of ComfyUI's output folder."""

    folder: str
    subfolder: str
    name: str

    def first_free(self, between: str = "_") -> int:
        """The number after the highest one that a file of this name has, as in ``NAME_00007_.png``."""
        parts = map(re.escape, os.path.normcase(self.name + between).split("%batch_num%"))
        pattern = re.compile(r"(?:%batch_num%|\d+)".join(parts) + r"(\d+)")  # Not every node fills it in.
        found = (pattern.match(os.path.normcase(entry)) for entry in os.listdir(self.folder))
        return max((int(match[1]) for match in found if match), default=0) + 1

    def save(self, file: str, write: Callable[[str], Any]) -> dict[str, str]:
        """Have *write* write the file called *file*; returns what ComfyUI is told of it.

        *write* is given a path beside the final one, with the same extension.
        """
        if not file or os.path.basename(file) != file or file in (".", "..") or "\0" in file:
            raise ValueError(f"{file!r} is no file's name.")
        with _aside(self.folder, os.path.splitext(file)[1]) as path:
            write(path)
            os.replace(path, os.path.join(self.folder, file))
        return {"filename": file, "subfolder": self.subfolder, "type": "output"}


def place(filename_prefix: str) -> Place:
    """The place that *filename_prefix* means: relative to ComfyUI's output folder, or absolute and within it.

    Its folders are made. Raises ValueError if it leads out of the output folder.
    """
    import folder_paths

    root = os.path.abspath(folder_paths.get_output_directory())
    prefix = str(filename_prefix) or DEFAULT_PREFIX
    if "\0" in prefix:
        raise ValueError("The filename_prefix holds a null byte.")
    folder, name = os.path.split(os.path.normpath(os.path.join(root, prefix)))
    if name in ("", ".", "..") or os.path.commonpath((root, folder)) != root or not _within(folder, root):
        raise ValueError(f"The filename_prefix {prefix!r} leads out of ComfyUI's output folder.")
    os.makedirs(folder, exist_ok=True)
    subfolder = os.path.relpath(folder, root)
    return Place(folder, "" if subfolder == "." else subfolder, name)


@contextmanager
def _aside(folder: str, extension: str) -> Iterator[str]:
    path = os.path.join(folder, f".cpack-{secrets.token_hex(8)}{extension}")
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield path
    finally:
        if os.path.lexists(path):
            os.unlink(path)


def disable_metadata() -> bool:
    """Whether ComfyUI was started with ``--disable-metadata``."""
    from comfy.cli_args import args

    return bool(args.disable_metadata)
