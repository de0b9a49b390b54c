"""``plan`` shows the layers of a pack's image, or of a lock's alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cpack_build.fetch.store import Store
from cpack_build.image.build import build
from cpack_build.lock.schema import locks_to_bytes
from tests.cli.calling import Caller
from tests.image.golden.building import INPUTS, LOCK, golden_lock, materials_from

KINDS = ["system", "interpreter", "service", "wheel", "model", "wheels", "comfyui", "node", "app"]


def test_a_lock_alone_is_planned_as_text_and_as_json(call: Caller) -> None:
    done = call("plan", LOCK, "--json")
    assert done.code == 0, done.err
    layers = done.document["layers"]
    assert [layer["kind"] for layer in layers] == KINDS
    assert [layer["kind"] for layer in layers if layer["known"]] == ["model"]
    assert {"size", "compressed", "digest", "shared", "changed", "pushed", "above"} <= set(layers[0])
    assert done.document["compression"] == "zstd:3"
    lines = call("plan", LOCK).out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["kind", *KINDS]
    assert re.search(r"^model .* 10\.2 kB +10\.2 kB  known +every image with this model$", "\n".join(lines), re.M)
    assert lines[-1] == "9 layers, 10.2 kB known, 8 to be made."


def test_explain_tells_what_a_change_makes_pushes_and_unpacks(call: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    with materials_from(INPUTS, store) as materials, build(golden_lock(), materials, store=store):
        pass
    lines = call("plan", LOCK, "--explain").out.splitlines()
    after = {
        line.split()[0]: lines[number + 1] for number, line in enumerate(lines[2:-1], 2) if not line.startswith(" ")
    }
    assert re.fullmatch(
        r" +a change makes 2 layers anew, pushes about 7\.\d kB and unpacks at least 7\.\d kB", after["node"]
    )
    assert "makes this layer anew" in after["app"]
    assert int(re.findall(r"unpacks at least (\d+)", after["system"])[0]) > 30


def test_a_lock_for_two_platforms_is_planned_for_each_with_what_they_share(call: Caller, tmp_path: Path) -> None:
    one = golden_lock()
    other = "linux/arm64" if one.platform == "linux/amd64" else "linux/amd64"
    two = one.model_copy(update={"platform": other, "system": ()})
    path = tmp_path / "two.cpack.lock"
    path.write_bytes(locks_to_bytes([one, two]))
    plans = call("plan", path, "--json").document["platforms"]
    assert {plan["platform"]: [layer["kind"] for layer in plan["layers"]] for plan in plans} == {
        one.platform: KINDS,
        other: KINDS[1:],
    }
    lines = call("plan", path).out.splitlines()
    assert sum(", over scratch, from the bottom:" in line for line in lines) == 2
    assert lines[-1] == "1 known layers (10.2 kB) are the same on every platform.", "the model"


def test_a_lock_has_no_other_lock(call: Caller, tmp_path: Path) -> None:
    done = call("plan", LOCK, "--lock", tmp_path / "x")
    assert (done.code, "is a lock itself" in done.err) == (2, True)
