"""``verify`` on a layout that somebody changed: the layer, entry and field, whichever layer it is."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from cpack_build.image.build import build
from cpack_build.lock.schema import Lock
from cpack_build.oci.layout import write_layout
from tests.cli.calling import Caller, Outcome
from tests.image.small import CODE, DEBS, gathered, make_parts

Verify = Callable[..., Outcome]


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return make_parts(tmp_path, models=[1000])


@pytest.fixture
def layout(lock: Lock, tmp_path: Path) -> Path:
    store = Store(tmp_path / "store")
    with build(lock, gathered(tmp_path, lock, store=store), store=store) as image:
        write_layout(image, tmp_path / "image.oci")
    return tmp_path / "image.oci"


@pytest.fixture
def verify(call: Caller, layout: Path, tmp_path: Path) -> Verify:
    parts = ("--mirror", f"{CODE}={tmp_path}/", "--mirror", f"{DEBS}={tmp_path}/", "--models", tmp_path / "models",
             "--find-links", tmp_path / "wheels", "--base", f"oci:{tmp_path}/base.oci")  # fmt: skip
    return lambda *more: call("verify", f"oci:{layout}", *parts, *more, "--json")


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs/sha256" / digest.removeprefix("sha256:")


def layer_of(layout: Path, kind: str) -> Path:
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    layers = json.loads(blob(layout, entry["digest"]).read_text())["layers"]
    (digest,) = (one["digest"] for one in layers if one.get("annotations", {}).get("io.cpack.layer.kind") == kind)
    return blob(layout, digest)


def tamper(path: Path, name: str, *, field: str) -> None:
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        member = archive.getmember(name)
    header = member.offset_data - 512
    if field == "content":
        data[member.offset_data] ^= 1
    else:
        data[header + 136 : header + 148] = b"%011o\0" % 5
        data[header + 148 : header + 156] = b" " * 8
        data[header + 148 : header + 156] = b"%06o\0 " % sum(data[header : header + 512])
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "name", "field"),
    [
        ("node", "app/comfyui/custom_nodes/node/main.py", "content"),
        ("system", "usr/share/tool/data", "mtime"),
        ("model", "models/sha256/{model}", "content"),
        ("app", "app/cpack/cpack.lock", "mtime"),
    ],
)
def test_a_changed_entry_is_named(kind: str, name: str, field: str, lock: Lock, layout: Path, verify: Verify) -> None:
    assert verify().document["same"] is True
    name = name.format(model=lock.models[0].sha256)
    tamper(layer_of(layout, kind), name, field=field)
    done = verify()
    assert (done.code, done.document["same"]) == (1, False)
    assert (done.document["difference"]["entry"], done.document["difference"]["field"]) == (name, field)


def test_a_damaged_lock_in_the_image_is_told_as_that_and_another_may_be_named(
    layout: Path, verify: Verify, tmp_path: Path
) -> None:
    """Its first byte is no JSON any more: what is to be said is that the layer is not what it was."""
    top = layer_of(layout, "app")
    tamper(top, "app/cpack/cpack.lock", field="content")
    done = verify()
    assert done.code == 5
    assert top.name in done.document["error"]["message"]
    named = verify("--lock", tmp_path / "cpack.lock")
    assert named.code == 1
    assert named.document["difference"]["entry"] == "app/cpack/cpack.lock"


def test_a_damaged_document_is_told_with_its_layer(layout: Path, verify: Verify) -> None:
    """Nobody else has it, so there is nothing to compare it with: its blob is not what the image says."""
    top = layer_of(layout, "app")
    tamper(top, "app/cpack/snapshot.json", field="content")
    done = verify()
    assert done.code == 1
    assert done.document["difference"]["where"] == "layer 8 (links and config)"
    assert top.name in done.document["difference"]["image"]


def test_another_lock_is_a_difference(lock: Lock, verify: Verify, tmp_path: Path) -> None:
    other = tmp_path / "other.lock"
    other.write_bytes(lock.model_copy(update={"environment": {"A": "1"}}).to_bytes())
    done = verify("--lock", other)
    assert done.code == 1
    assert done.document["difference"]["entry"] == "app/cpack/cpack.lock"
