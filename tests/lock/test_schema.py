"""A lock from a stranger is read as a document: a field that could lead elsewhere is refused by its name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cpack_build.cpack.settings import parse_settings
from cpack_build.errors import BadField, BadSettings, Unresolvable
from cpack_build.lock.schema import locks_to_bytes, read_lock, read_locks

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


def several() -> bytes:
    """A lock for two platforms."""
    amd64 = read_lock(json.dumps(LOCK).encode(), name="x")
    return locks_to_bytes([amd64, amd64.model_copy(update={"platform": "linux/arm64", "bytecode": "compiled"})])


def test_a_lock_for_several_platforms_has_what_they_share_once_and_is_read_as_one_for_each() -> None:
    data = several()
    document = json.loads(data)
    assert set(document["platforms"]) == {"linux/amd64", "linux/arm64"}
    assert "models" not in document["platforms"]["linux/amd64"]
    assert "base" not in document
    amd64, arm64 = read_locks(data, name="x")
    assert (amd64.platform, arm64.platform, arm64.bytecode) == ("linux/amd64", "linux/arm64", "compiled")
    # what the image of a platform carries is the lock for it alone
    assert amd64 == read_lock(json.dumps(LOCK).encode(), name="x")
    assert read_lock(data, name="x", platform="linux/arm64") == arm64


def test_a_lock_for_several_platforms_has_one_form_of_bytes() -> None:
    locks = read_locks(several(), name="x")
    assert locks_to_bytes(locks) == locks_to_bytes(locks[::-1]) == several()
    assert locks_to_bytes(locks[:1]) == locks[0].to_bytes()


def test_locks_that_are_not_of_one_pack_are_no_lock() -> None:
    amd64, arm64 = read_locks(several(), name="x")
    with pytest.raises(ValueError, match="differ"):
        locks_to_bytes([amd64, arm64.model_copy(update={"source_date_epoch": 2})])
    with pytest.raises(ValueError, match="one platform"):
        locks_to_bytes([amd64, amd64])


def test_a_platform_that_the_lock_lacks_is_named() -> None:
    with pytest.raises(Unresolvable, match="is for linux/amd64, not for linux/arm64"):
        read_lock(json.dumps(LOCK).encode(), name="x", platform="linux/arm64")
    with pytest.raises(Unresolvable, match="--platform"):
        read_lock(several(), name="x")


@pytest.mark.parametrize("platforms", [{}, {"linux/amd64": {}}, {"windows/amd64": {}, "linux/amd64": {}}, []])
def test_a_lock_of_no_platforms_or_strange_ones_is_refused_by_name(platforms: object) -> None:
    document = json.loads(several())
    document["platforms"] = platforms
    with pytest.raises(BadField, match="platforms"):
        read_locks(json.dumps(document).encode(), name="x")
