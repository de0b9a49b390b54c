"""A lock from a stranger is read as a document: a field that could lead elsewhere is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cpack_build.cpack.settings import parse_settings
from cpack_build.errors import BadField, BadSettings
from cpack_build.lock.schema import read_lock

HASH = "0" * 64
TREE = {"name": "node", "url": "https://code.example/n", "commit": "0" * 40, "tree_sha256": HASH, "committed_at": 1}
DEB = {
    "name": "libfoo++1.2-dev", "version": "1:2~3", "architecture": "amd64", "source": "foo",
    "url": "https://deb.example/foo.deb", "sha256": HASH, "size": 1,
}  # fmt: skip
LOCK: dict[str, Any] = {
    "builder": "0",
    "inputs": {"pack": HASH, "settings": HASH},
    "source_date_epoch": 1,
    "platform": "linux/amd64",
    "base": {"kind": "scratch"},
    "system": [DEB],
    "interpreter": {"kind": "deb", "version": "3.11", "path": "/usr/bin/python3.11", "packages": [DEB]},
    "service": {"pylock": "", "pylock_sha256": HASH},
    "service_code": {"version": "0", "tree_sha256": HASH},
    "python": {"pylock": "", "pylock_sha256": HASH},
    "comfyui": {**TREE, "name": "ComfyUI"},
    "nodes": [TREE],
    "models": [],
    "environment": {"HF_HUB_OFFLINE": "1", "odd.name": "a=b\nc"},
    "comfyui_args": ["--fast"],
}


def changed(path: str, value: object) -> bytes:
    """The lock with *value* at a dotted *path*."""
    document = json.loads(json.dumps(LOCK))
    *above, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = document
    for part in above:
        place = place[part]
    place[last] = value
    return json.dumps(document).encode()


def test_a_lock_is_read_as_it_was_written() -> None:
    lock = read_lock(json.dumps(LOCK).encode(), name="x.cpack.lock")
    assert read_lock(lock.to_bytes(), name="x.cpack.lock") == lock


@pytest.mark.parametrize(
    ("path", "value"),
    [
        # this file is started to compile bytecode
        ("interpreter.path", "/../../../../bin/sh"),
        ("interpreter.path", "usr/bin/python3.11"),
        ("interpreter.path", "/usr/bin/python3.11\nhome = /tmp"),
        ("interpreter.path", "/usr/./bin/python3.11"),
        ("system.0.name", "../../../etc/passwd"),
        ("system.0.name", "a/b"),
        ("nodes.0.name", "../comfyui"),
        ("nodes.0.name", "a/b"),
        ("nodes.0.name", ""),
        ("nodes.0.name", "a\u0000"),
        ("environment", {"PATH=/evil": "x"}),
        ("environment", {"": "x"}),
        ("environment", {"A": "x\u0000y"}),
        ("comfyui_args.0", "x\u0000y"),
        # years that no calendar has
        ("source_date_epoch", 1 << 62),
        ("source_date_epoch", -1),
    ],
)
def test_a_field_that_could_lead_elsewhere_is_refused_by_name(path: str, value: object) -> None:
    with pytest.raises(BadField, match=f": {path.split('.')[0]}"):
        read_lock(changed(path, value), name="x.cpack.lock")


@pytest.mark.parametrize("text", ["environment: {'A=B': c}", "environment: {'': c}", 'environment: {A: "b\\0"}',
                                  'comfyui_args: ["\\0"]'])  # fmt: skip
def test_settings_that_no_lock_may_hold_are_refused_where_they_are_written(text: str) -> None:
    with pytest.raises(BadSettings, match=r"environment|comfyui_args"):
        parse_settings(text, name="cpack.yaml")
