"""What the code of custom nodes could do, told from its source: a report for people, not a proof.

Every Python file of a tree is parsed, never imported, and calls are named by what their modules were imported as. What
hides behind ``getattr`` or data is not found; that an image runs third-party code at all is what the report is about.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from cpack_build.fetch.tree import Tree

__all__ = ["Risk", "risks_of_models", "risks_of_source", "risks_of_tree"]

Kind = Literal["install", "startup", "network", "code", "process", "pickle", "unreadable"]
_LARGEST = 4 << 20
"""Bytes of a source file that is parsed."""

_NETWORK = (
    "requests.", "httpx.", "aiohttp.ClientSession", "urllib.request.", "http.client.", "urllib3.", "socket.socket",
    "socket.create_connection", "ftplib.", "smtplib.", "paramiko.", "wget.download", "websocket.create_connection",
    "huggingface_hub.hf_hub_download", "huggingface_hub.snapshot_download", "torch.hub.", "gdown.", "boto3.",
    "torch.utils.model_zoo.load_url", "torchvision.datasets.utils.download_url",
)  # fmt: skip
_PROCESS = (
    "subprocess.", "os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn", "pty.spawn",
    "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "pip.main", "pip._internal.",
)  # fmt: skip
_CODE = ("eval", "exec", "compile", "__import__", "marshal.loads", "marshal.load", "runpy.", "code.interact")
_PICKLE = (
    "pickle.load", "pickle.Unpickler", "_pickle.", "cPickle.", "dill.load", "cloudpickle.load", "joblib.load",
    "shelve.open", "pandas.read_pickle",
)  # fmt: skip
_CALLS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("network", _NETWORK),
    ("process", _PROCESS),
    ("code", _CODE),
    ("pickle", _PICKLE),
)
_PICKLED = frozenset({".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib"})
"""File formats that are, or may be, Python pickles: loading one can run code."""


@dataclass(frozen=True, order=True)
class Risk:
    """One place: *owner* is a node's name or ``models``, *line* counts from 1 (0: the whole file)."""

    owner: str
    path: str
    line: int
    kind: Kind
    what: str


def risks_of_tree(name: str, tree: Tree) -> list[Risk]:
    """What the files of the custom node *name* could do, by path and line. Raises as reading the *tree* does."""
    found: list[Risk] = []
    with tree.reader() as read:
        for file in tree.files():
            if file.mode == "120000":
                continue
            found += _risks_of_name(name, file.path)
            if not file.path.endswith(".py"):
                continue
            if file.size > _LARGEST:
                found.append(Risk(name, file.path, 0, "unreadable", f"{file.size} bytes of source are not looked at"))
                continue
            found += risks_of_source(name, file.path, read(file.oid))
    return sorted(found)


def _risks_of_name(name: str, path: str) -> Iterator[Risk]:
    if path == "install.py":
        what = "an install script; unless nodes.install names the node, it is not run, and what it would do is missing"
        yield Risk(name, path, 0, "install", what)
    elif path == "prestartup_script.py":
        yield Risk(name, path, 0, "startup", "ComfyUI runs it before anything else")
    elif PurePosixPath(path).suffix.lower() in _PICKLED:
        yield Risk(name, path, 0, "pickle", "a file of a format that may run code when it is loaded")


def risks_of_models(paths: Iterable[str]) -> list[Risk]:
    """The models of formats that may run code when they are loaded, by their *paths*."""
    return [
        Risk("models", path, 0, "pickle", "a model of a format that may run code when it is loaded")
        for path in paths
        if PurePosixPath(path).suffix.lower() in _PICKLED
    ]


def risks_of_source(owner: str, path: str, source: bytes) -> list[Risk]:
    """The risky calls of one Python file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source, filename=path)
        names = _imported(module)
        calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
        found = [risk for call in calls for risk in _risks_of_call(owner, path, call, names)]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        return [Risk(owner, path, line or 0, "unreadable", f"it cannot be parsed ({type(error).__name__})")]
    return sorted(set(found))


def _imported(module: ast.Module) -> dict[str, str]:
    """Local name → dotted name that it was imported as."""
    names = {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    # a bare name that was not imported is a builtin, or the file's own
    start = names.get(node.id, node.id if not parts else "")
    return ".".join([start, *reversed(parts)]) if start else ""


def _risks_of_call(owner: str, path: str, call: ast.Call, names: dict[str, str]) -> Iterator[Risk]:
    name = _dotted(call.func, names).removeprefix("builtins.")
    if not name:
        return
    arguments = {keyword.arg: keyword.value for keyword in call.keywords}
    if name == "torch.load" and not _is(arguments.get("weights_only"), True):
        yield Risk(owner, path, call.lineno, "pickle", "torch.load without weights_only=True")
    if name == "numpy.load" and _is(arguments.get("allow_pickle"), True):
        yield Risk(owner, path, call.lineno, "pickle", "numpy.load with allow_pickle=True")
    for kind, prefixes in _CALLS:
        if any(name == prefix or (_is_open(prefix) and name.startswith(prefix)) for prefix in prefixes):
            yield Risk(owner, path, call.lineno, kind, name)


def _is_open(prefix: str) -> bool:
    """Whether *prefix* stands for all that begin so: a module, or a family such as ``os.exec``."""
    return prefix.endswith(".") or prefix in ("os.exec", "os.spawn", "os.posix_spawn", "pickle.load", "dill.load",
                                              "cloudpickle.load")  # fmt: skip


def _is(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
