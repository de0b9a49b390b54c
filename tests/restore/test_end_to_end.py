"""Workspace → pack → image → registry → an empty machine with nothing in reach but that registry → the same pixels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from cpack_build.cpack.reader import read_pack
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.python import Target, lock_environment
from cpack_build.lock.resolve import this_platform
from cpack_build.lock.wheels import fetch_wheel, wheels_of
from cpack_build.oci.archive import write_archive
from cpack_build.oci.layout import write_layout
from cpack_build.oci.reference import parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from tests.asking import ask_comfyui, pixels, png, until_ready
from tests.cli.calling import Caller
from tests.engines import Registry, free_port
from tests.example import PICTURE_IN, PICTURE_OUT, WORKFLOW, make_example, system_python
from tests.restore.images import COMFYUI_URL, StoredWheel, lock_of, make_image

pytestmark = [pytest.mark.network]

_NODE_URL = "https://nodes.example/standin-tint"
_NOTHING = "http://127.0.0.1:9"
"""A proxy that nobody is: whatever is not on this machine is out of reach."""


@dataclass(frozen=True)
class Built:
    """The example's image in a layout, its pack and lock, and the store of the machine that built it."""

    pack: Path
    layout: Path
    mirrors: Mapping[str, str]
    home: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("example")
    example = make_example(folder, sample=png())
    mirrors = {COMFYUI_URL: str(folder / "ComfyUI"), _NODE_URL: str(folder / "standin-tint")}
    store, sources = Store(folder / "store"), Sources(Mirrors(mirrors))
    pack = read_pack(example.pack)
    target = Target(system_python(), this_platform(), 36)
    environment = lock_environment(pack.snapshot.requirements, target=target, store=store, sources=sources)
    wheels = []
    for wheel in wheels_of(environment):
        file = fetch_wheel(wheel, store=store, sources=sources)
        wheels.append(StoredWheel(wheel.name, wheel.version, wheel.filename, wheel.sha256, file.path, file.size))
    model = folder / "models/upscale_models/tiny.safetensors"
    lock = lock_of(pack, model, python=environment, store=store, mirrors=mirrors)
    example.pack.with_name("example.cpack.lock").write_bytes(lock.to_bytes())
    layout = folder / "example.oci"
    with make_image(pack, lock, model, wheels=tuple(wheels), store=store, mirrors=mirrors) as image:
        write_layout(image, layout)
    return Built(example.pack, layout, mirrors, store.root)


def cpack_build(*arguments: object, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "cpack_build", *map(str, arguments), "--json", "--progress", "none"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} gave {done.returncode}:\n{done.stdout}{done.stderr}"
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def nothing_in_reach(home: Path) -> dict[str, str]:
    """An empty machine: a new home and store, and no network but its own loopback."""
    return {
        "HOME": str(home), "CPACK_HOME": str(home / "store"), "UV_CACHE_DIR": str(home / "uv"),
        "HTTP_PROXY": _NOTHING, "HTTPS_PROXY": _NOTHING, "http_proxy": _NOTHING, "https_proxy": _NOTHING,
        "ALL_PROXY": _NOTHING, "NO_PROXY": "localhost,127.0.0.1", "no_proxy": "localhost,127.0.0.1",
    }  # fmt: skip


def started(
    root: Path,
    picture: bytes,
    *,
    workflow: dict[str, Any] = WORKFLOW,
    output: str = PICTURE_OUT,
    into: str = PICTURE_IN,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> tuple[tuple[int, int], bytes]:
    """What the ComfyUI in the workspace *root*, started as `restore` says, makes of *picture* by *workflow*: what
    the node *output* has, with ours in the node *into*."""
    port = free_port()
    command = [str(root / ".venv/bin/python"), "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    said = {**os.environ, **environment}
    with subprocess.Popen(command, cwd=root, env=said, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until_ready(f"http://127.0.0.1:{port}/system_stats", seconds=240)
            return pixels(ask_comfyui(f"http://127.0.0.1:{port}", workflow, output, picture=picture, into=into))
        finally:
            process.kill()


def test_from_a_registry_alone_comfyui_gives_the_same_pixels(built: Built, registry: Registry, tmp_path: Path) -> None:
    reference = f"{registry.host}/team/example:1"
    cpack_build("push", f"oci:{built.layout}", reference, CPACK_HOME=str(built.home))
    original = tmp_path / "original"
    flags = [flag for url, place in built.mirrors.items() for flag in ("--mirror", f"{url}={place}")]
    cpack_build("restore", built.pack, "-d", original, "--config", _empty(tmp_path), *flags, CPACK_HOME=str(built.home))
    environment = nothing_in_reach(tmp_path / "home")
    root = tmp_path / "restored"
    done = cpack_build("restore", reference, "-d", root, **environment)
    assert {part["origin"] for part in done["parts"] if part["kind"] in ("comfyui", "node")} == {"image"}
    assert cpack_build("restore", "--verify", root, **environment)["same"]
    picture = png(40, 40)
    expected = started(original, picture)
    assert expected[0] == (128, 128)
    assert started(root, picture) == expected

    photo = tmp_path / "photo.png"
    photo.write_bytes(picture)
    ran = cpack_build("run", reference, "--photo", photo, "--size", 64, "-o", tmp_path / "out", **environment)
    assert [Path(path).name for path in ran["files"]] == ["picture.png"]
    assert pixels(Path(ran["files"][0]).read_bytes()) == expected
    again = cpack_build("run", reference, "--photo", photo, "--size", 64, "-o", tmp_path / "out", **environment)
    assert again["made"] == 0, "the workspace is kept"
    assert [Path(path).name for path in again["files"]] == ["picture-1.png"]


def test_from_a_docker_archive_alone_comfyui_gives_the_same_pixels(built: Built, tmp_path: Path) -> None:
    archive = tmp_path / "example.tar"
    image = open_source(parse_image_name(f"oci:{built.layout}")).as_image(this_platform())
    write_archive(image, archive, name=parse_reference("example:1"))
    root, original = tmp_path / "restored", tmp_path / "original"
    cpack_build("restore", f"docker-archive:{archive}", "-d", root, **nothing_in_reach(tmp_path / "home"))
    cpack_build("restore", built.pack, "-d", original, "--offline", CPACK_HOME=str(built.home))
    picture = png(40, 40)
    assert started(root, picture) == started(original, picture)


def _empty(folder: Path) -> Path:
    path = folder / "empty.yaml"
    path.write_text("{}")
    return path


def test_the_exported_pack_is_restored_as_well(built: Built, tmp_path: Path) -> None:
    exported = cpack_build("export", f"oci:{built.layout}", "-o", tmp_path / "again.cpack.zip")
    assert exported["exact"]
    assert Path(exported["pack"]).read_bytes() == built.pack.read_bytes()
    done = cpack_build("restore", exported["pack"], "-d", tmp_path / "w", "--offline", CPACK_HOME=str(built.home))
    assert {part["origin"] for part in done["parts"] if part["kind"] in ("comfyui", "node")} == {"git"}


def test_a_pack_that_was_pushed_runs_by_its_reference(built: Built, registry: Registry, tmp_path: Path) -> None:
    reference = f"{registry.host}/team/packs/example:1"
    lock = built.pack.with_name("example.cpack.lock")
    cpack_build("push", built.pack, reference, "--attach", lock, CPACK_HOME=str(built.home))
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(40, 40))
    arguments = ("run", reference, "--photo", photo, "--size", 64, "-o", tmp_path / "out", "--offline")
    ran = cpack_build(*arguments, CPACK_HOME=str(built.home))
    assert [Path(path).name for path in ran["files"]] == ["picture.png"]
    assert pixels(Path(ran["files"][0]).read_bytes())[0] == (128, 128)
    assert Path(ran["workspace"], ".cpack/cpack.lock").read_bytes() == lock.read_bytes()


def test_the_workflow_s_parameters_are_the_flags(built: Built, call: Caller, tmp_path: Path) -> None:
    helped = call("run", built.pack, "--help")
    assert helped.code == 0, helped
    assert "--photo FILE" in helped.out
    assert "--size INTEGER[8..512]" in helped.out
    assert "default: 64" in helped.out
    for arguments, told in (
        (("--size", "many"), "is not INTEGER[8..512]"),
        (("--size", "1000"), "is not INTEGER[8..512]"),
        (("--phot", "x"), "Did you mean --photo?"),
        (("--photo", tmp_path / "gone.png"), "is no file"),
        (("--size",), "needs a value"),
    ):
        refused = call("run", built.pack, *arguments)
        assert refused.code == 2, refused
        assert told in refused.err
