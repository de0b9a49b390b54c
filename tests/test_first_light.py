"""The main job, end to end with real parts: a pack becomes an image, runs in an engine, and answers ``/generate``.

The example's ComfyUI is the stand-in. :mod:`tests.test_real_comfyui` does the same with a real checkout, where
``CPACK_TEST_COMFYUI`` names one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cpack_build.deploy.compose import FILES, Options, compose_files
from cpack_build.deploy.folder import write_folder
from cpack_build.deploy.subject import Subject
from cpack_build.image.layer import arrange, text
from cpack_build.lock.resolve import this_platform
from cpack_build.oci.push import push
from cpack_build.oci.reference import LayoutName, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Image
from tests import need
from tests.asking import ask_comfyui, ask_service, pixels, png, until_ready
from tests.backends.nixstore import nix_store
from tests.backends.roots import differences, root_of
from tests.engines import Docker, Podman, Registry, free_port, run_docker
from tests.example import PICTURE_IN, PICTURE_OUT, WORKFLOW, Example, make_example, system_python
from tests.oci.images import image_of
from tests.oci.images import layer as layer_of
from tests.oci.specification import check_layout

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("engines")]


@dataclass(frozen=True)
class Built:
    """What ``cpack-build image --json`` said, and the layout that it wrote."""

    result: Mapping[str, Any]
    layout: Path
    example: Example
    environment: Mapping[str, str]


def cpack_build(
    *arguments: object, environment: Mapping[str, str], umask: int | None = None, before: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run the command line as a user would, with another command *before* it; its JSON result."""
    command = [*before, sys.executable, "-m", "cpack_build", *map(str, arguments), "--json", "--progress", "none"]
    preexec = (lambda: os.umask(umask)) if umask is not None else None  # type: ignore[func-returns-value]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False, preexec_fn=preexec
    )
    assert done.returncode == 0, f"{' '.join(command)} gave {done.returncode}:\n{done.stdout}{done.stderr}"
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The example's image, as a layout."""
    need.tool("apt-get")
    folder = tmp_path_factory.mktemp("example")
    example = make_example(folder, sample=png())
    environment = {"CPACK_HOME": str(folder / "store")}
    layout = folder / "example.oci"
    result = cpack_build("image", example.pack, "-t", "example:1", "--output", f"oci:{layout}", environment=environment)
    return Built(result, layout, example, environment)


@contextmanager
def running(
    engine: Docker | Podman, image: str, *flags: str, command: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """A container of *image*: its service's URL and its id."""
    port = free_port()
    publish = ("--publish", f"127.0.0.1:{port}:{8188 if command else 3000}")
    container = engine("run", "--detach", *publish, *flags, image, *command).stdout.strip()
    try:
        yield f"http://127.0.0.1:{port}", container
    except AssertionError as error:
        logs = engine("logs", container, check=False)
        raise AssertionError(f"{error}\nThe container said:\n{logs.stdout[-4000:]}{logs.stderr[-4000:]}") from error
    finally:
        engine("rm", "--force", container, check=False)


COMFYUI_ALONE = [
    "/app/comfyui/main.py",
    "--cpu",
    "--listen",
    "0.0.0.0",
    "--port",
    "8188",
    "--output-directory",
    "/tmp",
    "--temp-directory",
    "/tmp",
    "--input-directory",
    "/tmp",
    "--user-directory",
    "/tmp",
]


def direct_pixels(engine: Docker | Podman, image: str, picture: bytes) -> tuple[tuple[int, int], bytes]:
    """What the image's own ComfyUI, started without the service, makes of *picture*."""
    with running(engine, image, "--entrypoint", "/opt/comfyui/bin/python", command=tuple(COMFYUI_ALONE)) as (url, _):
        until_ready(f"{url}/system_stats")
        return pixels(ask_comfyui(url, WORKFLOW, PICTURE_OUT, picture=picture, into=PICTURE_IN))


def check_answers(engine: Docker | Podman, image: str) -> None:
    """The service's picture is pixel for pixel what the same ComfyUI gives when asked directly."""
    picture = png(40, 40)
    with running(engine, image) as (url, container):
        until_ready(f"{url}/readyz")
        body, media_type = ask_service(url, photo=picture, size=64)
        assert media_type == "image/png"
        size, answered = pixels(body)
        logs = engine("logs", container)
        assert "cpu" in (logs.stdout + logs.stderr).lower(), "it says that it runs on the CPU"
    assert size == (128, 128)
    assert (size, answered) == direct_pixels(engine, image, picture)


def test_two_platforms_make_an_index_of_the_very_images_that_each_alone_makes(built: Built) -> None:
    skopeo = need.tool("skopeo")
    layout, lock = built.layout.with_name("both.oci"), built.layout.with_name("both.lock")
    both = ("--platform", "linux/amd64,linux/arm64")
    cpack_build("lock", built.example.pack, "-o", lock, *both, environment=built.environment)
    result = cpack_build(
        "image", built.example.pack, "-t", "example:1", "--output", f"oci:{layout}", "--lock", lock,
        environment=built.environment,
    )  # fmt: skip
    shown = subprocess.run([skopeo, "inspect", "--raw", f"oci:{layout}:1"], check=True, capture_output=True).stdout
    raw = json.loads(shown)
    assert [entry["platform"]["architecture"] for entry in raw["manifests"]] == ["amd64", "arm64"]
    digests = {image["platform"]: image["digest"] for image in result["images"]}
    assert digests[built.result["platform"]] == built.result["digest"]
    manifests = [json.loads((layout / "blobs" / "sha256" / digest[7:]).read_bytes()) for digest in digests.values()]
    kinds = [
        {layer["digest"]: layer["annotations"]["io.cpack.layer.kind"] for layer in manifest["layers"]}
        for manifest in manifests
    ]
    # what depends on no platform is the same blob, bytecode and all
    assert {kinds[0][digest] for digest in kinds[0].keys() & kinds[1].keys()} == {"model", "comfyui", "node"}


@pytest.mark.docker
def test_docker_runs_the_image_and_it_answers_with_comfyui_s_own_pixels(built: Built, docker: Docker) -> None:
    result = cpack_build(
        "image", built.example.pack, "-t", "example:1", "--output", "docker",
        environment={**built.environment, **docker.environment},
    )  # fmt: skip
    assert result["image_id"] == built.result["image_id"]
    assert docker("inspect", "--format", "{{.Id}}", "example:1").stdout.strip() == built.result["image_id"]
    check_answers(docker, "example:1")


LOADER = """
import ctypes.util, struct, subprocess
print(ctypes.util.find_library("z"), ctypes.util.find_library("c"))
def cache():
    data = open("/etc/ld.so.cache", "rb").read()
    return data[: struct.unpack_from("<I", data, 32)[0]]  # up to who made it
ours = cache()
subprocess.run(["ldconfig", "-X"], check=True)
print(ours == cache(), struct.unpack_from("<I", ours, 20)[0] > 10)
"""


@pytest.mark.docker
def test_the_loader_s_cache_is_what_the_image_s_own_ldconfig_makes_of_it(built: Built, docker: Docker) -> None:
    docker("load", "--input", str(_archive(built)))
    run = ("run", "--rm", "--user", "0:0", "--entrypoint", "/opt/comfyui/bin/python", "example:archive", "-c")
    assert docker(*run, LOADER).stdout.splitlines() == ["libz.so.1 libc.so.6", "True True"]


@pytest.mark.podman
def test_podman_runs_the_image_and_it_answers_with_comfyui_s_own_pixels(built: Built, podman: Podman) -> None:
    result = cpack_build(
        "image", built.example.pack, "-t", "example:1", "--output", "podman",
        environment={**built.environment, **podman.environment},
    )  # fmt: skip
    assert result["image_id"] == built.result["image_id"]
    check_answers(podman, "example:1")


@pytest.mark.docker
def test_it_serves_with_a_read_only_root_as_any_user(built: Built, docker: Docker, tmp_path: Path) -> None:
    archive = tmp_path / "example.tar"
    cpack_build(
        "image", built.example.pack, "-t", "example:archive", "--output", f"docker-archive:{archive}",
        environment=built.environment,
    )  # fmt: skip
    docker("load", "--input", str(archive))
    for user in ("1000:1000", "54321:0"):
        with running(docker, "example:archive", "--read-only", "--cap-drop", "ALL", "--user", user) as (url, container):
            until_ready(f"{url}/readyz")
            body, _ = ask_service(url, photo=png(16, 16), size=16)
            assert pixels(body)[0] == (32, 32)
            assert docker("exec", container, "/bin/sh", "-c", "echo > /app/x", check=False).returncode != 0


@pytest.mark.docker
def test_a_stopped_container_ends_at_once_and_leaves_no_process(built: Built, docker: Docker) -> None:
    docker("load", "--input", str(_archive(built)))
    with running(docker, "example:archive") as (url, container):
        until_ready(f"{url}/readyz")
        docker("stop", "--time", "60", container)
        state = json.loads(docker("inspect", container).stdout)[0]["State"]
        assert state["ExitCode"] == 0, "it ended by itself, not by SIGKILL"


def _archive(built: Built) -> Path:
    archive = built.layout.parent / "example.tar"
    if not archive.exists():
        cpack_build(
            "image", built.example.pack, "-t", "example:archive", "--output", f"docker-archive:{archive}",
            environment=built.environment,
        )  # fmt: skip
    return archive


@pytest.mark.docker
def test_gpus_all_asks_the_nvidia_hook_for_every_gpu(built: Built, tmp_path: Path) -> None:
    with gpu_docker(tmp_path) as (docker, seen):
        docker("load", "--input", str(_archive(built)))
        docker("run", "--rm", "--gpus", "all", "--entrypoint", "/bin/sh", "example:archive", "-c", "true")
    environment = json.loads(seen.read_text())["process"]["env"]
    assert "NVIDIA_VISIBLE_DEVICES=all" in environment
    assert any(item.startswith("NVIDIA_DRIVER_CAPABILITIES=") and "compute" in item for item in environment)


@pytest.mark.docker
def test_compose_asks_the_nvidia_hook_for_the_gpus_of_its_file(built: Built, tmp_path: Path) -> None:
    compose = need.tool("docker-compose")
    subject = Subject(built.result["image_id"], "example", (built.result["platform"],), "cuda12.8")
    write_folder(tmp_path / "up", compose_files(subject, Options("example", port=free_port(), gpus=2)), possible=FILES)
    with gpu_docker(tmp_path) as (docker, seen):
        docker("load", "--input", str(_archive(built)))
        command = [compose, "-f", str(tmp_path / "up/compose.yaml"), "-p", "cpackgpu"]
        environment = {**os.environ, **docker.environment}
        done = subprocess.run([*command, "up", "-d"], env=environment, capture_output=True, text=True, check=False)
        subprocess.run([*command, "down", "--volumes"], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "NVIDIA_VISIBLE_DEVICES=0,1" in json.loads(seen.read_text())["process"]["env"]


@contextmanager
def gpu_docker(folder: Path) -> Iterator[tuple[Docker, Path]]:
    """A dockerd with a stub of the hook that it runs for GPUs, and the file in which that leaves what it was told."""
    seen = folder / "seen"
    hook = folder / "bin/nvidia-container-runtime-hook"
    hook.parent.mkdir()
    bundle = f'$(sed -E \'s/.*"bundle":"([^"]+)".*/\\1/\' {seen}.state)'
    hook.write_text(f'#!/bin/sh\ncat > {seen}.state\ncp "{bundle}/config.json" {seen}\n')
    hook.chmod(0o755)
    with run_docker(path=f"{hook.parent}:{os.environ['PATH']}") as docker:
        yield docker, seen


def test_other_tools_read_the_layout(built: Built, tmp_path: Path) -> None:
    check_layout({str(p.relative_to(built.layout)): p.read_bytes() for p in built.layout.rglob("*") if p.is_file()})
    skopeo, umoci = need.tool("skopeo"), need.tool("umoci")
    inspected = subprocess.run([skopeo, "inspect", f"oci:{built.layout}:1"], check=True, capture_output=True, text=True)
    assert json.loads(inspected.stdout)["Digest"] == built.result["digest"]
    bundle = tmp_path / "bundle"
    command = [umoci, "unpack", *(["--rootless"] if os.geteuid() else []), "--image", f"{built.layout}:1", bundle]
    subprocess.run(command, check=True, capture_output=True)
    model = bundle / "rootfs/app/comfyui/models/upscale_models/tiny.safetensors"
    source = built.example.pack.parent / "models/upscale_models/tiny.safetensors"
    assert model.is_symlink()
    assert model.read_bytes() == source.read_bytes()


def test_a_second_build_elsewhere_gives_the_same_image(built: Built, tmp_path: Path) -> None:
    """Another directory, store, umask, time zone, locale, hash seed and home; the lock is resolved again."""
    folder = tmp_path / "somewhere else" / "ü"
    folder.mkdir(parents=True)
    example = make_example(folder, sample=png())
    environment = {
        "CPACK_HOME": str(folder / "store"),
        "TZ": "Pacific/Chatham",
        "LC_ALL": "C",
        "PYTHONHASHSEED": "4242",
        "HOME": str(folder),
        "USER": "somebody",
    }
    result = cpack_build(
        "image",
        example.pack,
        "-t",
        "other:2",
        "--output",
        f"oci:{folder / 'layout'}",
        environment=environment,
        umask=0o077,
    )
    lock = "example.cpack.lock"
    assert (folder / lock).read_bytes() == (built.example.pack.parent / lock).read_bytes()
    assert result["image_id"] == built.result["image_id"]
    assert result["digest"] == built.result["digest"]


def test_nix_makes_the_same_image_and_it_answers(built: Built, docker: Docker, tmp_path: Path) -> None:
    """With real packages, its own Python as compiler and the loader's cache; entry by entry."""
    with nix_store(tmp_path / "nix") as nix:
        environment = {**built.environment, **nix.environment}
        where = f"oci:{tmp_path}/nix.oci"
        result = cpack_build(
            "image", built.example.pack, "--backend", "nix", "-t", "example:nix", "--output", where,
            "--output", "docker",
            environment=environment,
        )  # fmt: skip
        assert result["digest"] == built.result["digest"]
        assert not [name for name in nix.names() if "model" in name]
    images = [open_source(LayoutName(path)).as_image(this_platform()) for path in (built.layout, tmp_path / "nix.oci")]
    roots = [root_of(image) for image in images]
    assert len(roots[0]) > 10_000
    assert differences(*roots) == {}
    check_answers(docker, "example:nix")


@pytest.fixture(scope="module")
def elsewhere(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pack and its shaping settings, as on a machine that has nothing else."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(built.example.pack, folder)
    (folder / "example.cpack.yaml").write_text(json.dumps({"system": {"defaults": "none"}}))
    return folder


@pytest.mark.parametrize("name", ["bundle", "bundle.tar"])
def test_what_was_fetched_builds_the_same_image_where_there_is_no_network(
    built: Built, elsewhere: Path, tmp_path: Path, name: str
) -> None:
    bundle = tmp_path / name
    fetched = cpack_build("fetch", built.example.pack, "-o", bundle, environment=built.environment)
    assert fetched["fetched"] == 0, "the build has fetched everything"
    unshare = need.tool("unshare")
    if os.geteuid():
        need.missing("root (to cut the network off)")
    result = cpack_build(
        "image", elsewhere / "example.cpack.zip", "-t", "example:1", "--output", f"oci:{tmp_path / 'layout'}",
        "--offline", "--from", bundle, "--trust",
        environment={"CPACK_HOME": str(tmp_path / "store"), "HOME": str(tmp_path)}, before=(unshare, "-n"),
    )  # fmt: skip
    assert result["digest"] == built.result["digest"]
    lock = (elsewhere / "example.cpack.lock").read_bytes()
    assert lock == (built.example.pack.parent / "example.cpack.lock").read_bytes()


def test_no_path_of_this_machine_is_in_the_lock_or_the_image(built: Built) -> None:
    folder = str(built.example.pack.parent)
    assert folder not in (built.example.pack.parent / "example.cpack.lock").read_text()
    manifest = json.loads((built.layout / "blobs/sha256" / built.result["digest"].removeprefix("sha256:")).read_text())
    top = built.layout / "blobs/sha256" / manifest["layers"][-1]["digest"].removeprefix("sha256:")
    assert folder.encode() not in top.read_bytes()


@pytest.mark.parametrize("what", ["wheel", "deb", "tree", "model"])
def test_bytes_that_differ_from_the_lock_stop_the_build_and_leave_nothing(
    built: Built, tmp_path: Path, what: str
) -> None:
    lock = json.loads(built.example.pack.with_name("example.cpack.lock").read_text())
    wrong = "0" * 64
    if what == "wheel":
        pylock = re.sub(r'sha256 = "[0-9a-f]{64}"', f'sha256 = "{wrong}"', lock["python"]["pylock"], count=1)
        lock["python"] = {"pylock": pylock, "pylock_sha256": hashlib.sha256(pylock.encode()).hexdigest()}
        named = r"[\w.-]+\.whl"
    elif what == "deb":
        lock["system"][0]["sha256"] = wrong
        named = lock["system"][0]["name"]
    elif what == "tree":
        lock["comfyui"]["tree_sha256"] = wrong
        named = lock["comfyui"]["commit"]
    else:
        lock["models"][0]["sha256"] = wrong
        named = r"tiny\.safetensors"
    changed = tmp_path / "changed.lock"
    changed.write_text(json.dumps(lock))
    layout = tmp_path / "layout"
    command = [sys.executable, "-m", "cpack_build", "image", built.example.pack, "--lock", changed, "--trust"]
    done = subprocess.run(
        [*command, "--output", f"oci:{layout}"],
        env={**os.environ, **built.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert re.search(named, done.stderr)
    assert wrong in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [changed]


def test_a_lock_from_elsewhere_runs_its_python_here_only_when_it_is_trusted(built: Built, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    environment = {**os.environ, "CPACK_HOME": str(tmp_path / "store")}
    command = [
        sys.executable,
        "-m",
        "cpack_build",
        "image",
        built.example.pack,
        "--locked",
        "--output",
        f"oci:{layout}",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 8
    assert "--trust" in done.stderr
    assert not layout.exists()
    subprocess.run([*command, "--trust"], env=environment, capture_output=True, check=True)
    assert _digest(layout) == built.result["digest"]


def test_plan_tells_the_build_from_the_lock_alone(built: Built, tmp_path: Path) -> None:
    manifest = json.loads((built.layout / "blobs/sha256" / built.result["digest"].removeprefix("sha256:")).read_text())
    blank = {"CPACK_HOME": str(tmp_path / "store")}
    after = cpack_build("plan", built.example.pack, environment=built.environment)["layers"]
    before = cpack_build("plan", built.example.pack, environment=blank)["layers"]
    assert [(layer["digest"], layer["size"]) for layer in after] == [
        (layer["digest"], layer["size"]) for layer in manifest["layers"]
    ]
    assert all(layer["known"] for layer in after)
    assert [layer["kind"] for layer in before] == [layer["kind"] for layer in after]
    assert [layer["kind"] for layer in before if layer["known"]] == ["model"], "a lock knows its models' layers"
    assert {path.name for path in (tmp_path / "store").iterdir()} <= {
        "memo.lock", "memo.sqlite", "memo.sqlite-wal", "memo.sqlite-shm",
    }, "nothing was fetched"  # fmt: skip


def _verified(built: Built, layout: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "cpack_build", "verify", f"oci:{layout}", "--json", "--config"]
    done = subprocess.run(
        [*command, built.example.settings],
        env={**os.environ, **built.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


def test_verify_makes_the_image_again_and_names_the_first_entry_that_differs(built: Built, tmp_path: Path) -> None:
    code, answer = _verified(built, built.layout)
    assert (code, answer["same"]) == (0, True), answer
    manifest = json.loads((built.layout / "blobs/sha256" / built.result["digest"].removeprefix("sha256:")).read_text())
    (comfyui,) = (layer for layer in manifest["layers"] if layer["annotations"]["io.cpack.layer.kind"] == "comfyui")
    blob = "blobs/sha256/" + comfyui["digest"].removeprefix("sha256:")
    with tarfile.open(built.layout / blob) as archive:
        member = archive.getmember("app/comfyui/main.py")
    changes = {
        "content": (member.offset_data + 10, b"X"),
        "mode": (member.offset_data - 512 + 100, b"0000755\0"),
    }
    for field, (offset, data) in changes.items():
        layout = tmp_path / field
        shutil.copytree(built.layout, layout, copy_function=os.link)
        (layout / blob).unlink()
        tampered = bytearray((built.layout / blob).read_bytes())
        tampered[offset : offset + len(data)] = data
        if field == "mode":
            header = tampered[member.offset_data - 512 : member.offset_data]
            header[148:156] = b" " * 8
            tampered[offset + 48 : offset + 56] = b"%06o\0 " % sum(header)
        (layout / blob).write_bytes(tampered)
        code, answer = _verified(built, layout)
        assert (code, answer["same"]) == (1, False)
        assert "(ComfyUI)" in answer["difference"]["where"]
        assert (answer["difference"]["entry"], answer["difference"]["field"]) == ("app/comfyui/main.py", field)


@pytest.mark.docker
def test_an_image_over_a_base_from_a_registry_or_a_layout(
    built: Built, docker: Docker, registry: Registry, tmp_path: Path
) -> None:
    """The base brings the system and the Python; only what is ours goes on top, and it answers."""
    base = _base_layout(built, tmp_path / "base")
    skopeo = need.tool("skopeo")
    name = f"{registry.host}/team/base:1"
    copy = [skopeo, "copy", "--preserve-digests", "--dest-tls-verify=false", f"oci:{base}:1", f"docker://{name}"]
    subprocess.run(copy, check=True, capture_output=True)
    results = {}
    for kind, place in (("layout", f"oci:{base}:1"), ("registry", name)):
        folder = tmp_path / kind
        example = make_example(folder, sample=png())
        results[kind] = cpack_build(
            "image", example.pack, "-t", f"based:{kind}", "--base", place, "--output", "docker",
            environment={"CPACK_HOME": str(folder / "store"), **docker.environment},
        )  # fmt: skip
        lock = json.loads((folder / "example.cpack.lock").read_text())
        assert lock["base"]["digest"] == _digest(base)
        assert lock["interpreter"] == {
            "kind": "base",
            "version": system_python(),
            "path": f"/usr/bin/python{system_python()}",
        }
        assert lock["system"] == []
    # A bundle brings the base along: elsewhere, with neither its registry nor a network, the image is the same.
    pack, lock_path = tmp_path / "registry/example.cpack.zip", tmp_path / "registry/example.cpack.lock"
    bundle = tmp_path / "registry.tar"
    cpack_build(
        "fetch", pack, "--base", name, "-o", bundle, environment={"CPACK_HOME": str(tmp_path / "registry/store")}
    )
    carried = tmp_path / "carried.oci"
    cpack_build(
        "image", pack, "--lock", lock_path, "--base", name, "--offline", "--from", bundle, "--trust", "--output",
        f"oci:{carried}", environment={"CPACK_HOME": str(tmp_path / "elsewhere")},
    )  # fmt: skip
    assert _digest(carried) == results["registry"]["digest"]
    layers = json.loads(docker("inspect", "based:registry").stdout)[0]["RootFS"]["Layers"]
    below = json.loads(docker("inspect", "example:1", check=False).stdout or "[]")
    if below:
        assert layers[:2] == below[0]["RootFS"]["Layers"][:2]
    check_answers(docker, "based:registry")


def _digest(layout: Path) -> str:
    digest: str = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    return digest


def _base_layout(built: Built, folder: Path) -> Path:
    """The example's two lowest layers, system packages and interpreter, as an image of their own."""
    from cpack_build.oci.layout import write_layout
    from cpack_build.oci.reference import parse_reference
    from cpack_build.oci.types import CONFIG, LAYER, MANIFEST, BytesBlob, Descriptor, FileBlob, Image, canonical_json

    blobs = built.layout / "blobs/sha256"
    manifest = json.loads((blobs / built.result["digest"].removeprefix("sha256:")).read_text())
    lower = manifest["layers"][:2]
    layers = tuple(
        FileBlob(Descriptor(LAYER, layer["digest"], layer["size"]), blobs / layer["digest"].removeprefix("sha256:"))
        for layer in lower
    )
    system, architecture = built.result["platform"].split("/")
    config = BytesBlob(
        CONFIG,
        canonical_json(
            {
                "architecture": architecture,
                "os": system,
                "config": {"Env": ["PATH=/usr/bin:/bin", "FROM_BASE=1"]},
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in lower]},
            }
        ),
    )
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor.to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
    }
    image = Image(BytesBlob(MANIFEST, canonical_json(document)), config, layers)
    write_layout(image, folder, tag="1", name=parse_reference("base:1"))
    return folder


@pytest.mark.docker
def test_an_image_with_a_standalone_python(built: Built, docker: Docker, tmp_path: Path) -> None:
    """A Python given by URL and hash lies at /opt/python, runs both environments and compiled their bytecode."""
    version = system_python()
    archive = tmp_path / "python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(f"/usr/bin/python{version}", f"python/bin/python{version}")
        library = Path(f"/usr/lib/python{version}")
        tar.add(library, f"python/lib/python{version}", filter=_without_caches)
    example = make_example(tmp_path / "x", sample=png())
    document = json.loads(example.settings.read_text())
    url = "https://python.example/python.tar.gz"
    document["interpreter"] = {"url": url, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    document["mirrors"][url] = str(archive)
    document["system"] = {
        "packages": ["libexpat1", "zlib1g", "libssl3", "libffi8", "libsqlite3-0", "libuuid1", "liblzma5", "libbz2-1.0"]
    }
    example.settings.write_text(json.dumps(document))
    cpack_build(
        "image", example.pack, "-t", "standalone:1", "--output", "docker",
        environment={"CPACK_HOME": str(tmp_path / "store"), **docker.environment},
    )  # fmt: skip
    with running(docker, "standalone:1") as (url, container):
        until_ready(f"{url}/readyz")
        assert pixels(ask_service(url, photo=png(16, 16), size=16)[0])[0] == (32, 32)
        code = "import os; print(os.path.realpath('/proc/self/exe'))"
        said = docker("exec", container, "/opt/comfyui/bin/python", "-c", code).stdout.split()
    assert said[0] == f"/opt/python/bin/python{version}"


def _without_caches(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    skipped = ("__pycache__", "/test/", "sitecustomize.py", "dist-packages")
    if any(part in info.name for part in skipped) or (info.issym() and info.linkname.startswith("/")):
        return None
    return info


def test_every_module_of_the_image_has_its_bytecode(built: Built) -> None:
    blobs = built.layout / "blobs/sha256"
    manifest = json.loads((blobs / built.result["digest"].removeprefix("sha256:")).read_text())
    names: set[str] = set()
    for layer in manifest["layers"]:
        with tarfile.open(blobs / layer["digest"].removeprefix("sha256:")) as archive:
            names.update(archive.getnames())
    for module in ("opt/cpack/lib/python{}/site-packages/bentoml/__init__.py", "app/comfyui/execution.py",
                   "usr/lib/python{}/json/decoder.py", "app/comfyui/custom_nodes/standin-tint/__init__.py",
                   "opt/cpack/lib/python{}/site-packages/cpack_build/serve/service.py"):  # fmt: skip
        path = Path(module.format(system_python()))
        tag = "cpython-" + system_python().replace(".", "")
        assert str(path) in names
        assert str(path.parent / "__pycache__" / f"{path.stem}.{tag}.pyc") in names


@pytest.mark.docker
def test_compose_brings_the_image_up_behind_a_proxy_and_down_again(
    built: Built, docker: Docker, registry: Registry, tmp_path: Path
) -> None:
    """TLS and token as a client meets them; the service itself can be reached by nobody else, and reaches nobody."""
    compose, token = need.tool("docker-compose"), "token-of-the-caller"
    docker("load", "--input", str(_archive(built)))
    proxy = f"{registry.host}/test/caddy:2"
    push(caddy_image(), [parse_reference(proxy)])
    ports = free_port(), free_port()
    result = cpack_build(
        "deploy", "compose", "docker:example:archive", "-o", tmp_path / "up", "--name", "upscale",
        "--lock", built.example.pack.with_name("example.cpack.lock"),
        *("--host", "upscale.example.com", "--tls", "internal", "--proxy-image", proxy),
        *("--http-port", ports[0], "--https-port", ports[1]),
        environment=built.environment,
    )  # fmt: skip
    assert result["image"] == built.result["image_id"]
    (tmp_path / "up/.env").write_text(f"CPACK_TOKEN={token}\n")
    environment = {**os.environ, **docker.environment, "COMPOSE_PROJECT_NAME": "cpackup"}

    def run(*words: str, check: bool = True) -> str:
        command = [compose, "-f", str(tmp_path / "up/compose.yaml"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert not (check and done.returncode), done.stderr
        return done.stdout + done.stderr

    try:
        run("up", "--detach")
        asked = ("--resolve", f"upscale.example.com:{ports[1]}:127.0.0.1", f"https://upscale.example.com:{ports[1]}")
        service = run("ps", "--quiet", "upscale").strip()
        until_healthy(docker, service, told=lambda: run("logs", check=False))
        authority = tmp_path / "root.crt"
        run("exec", "-T", "proxy", "/bin/cat", "/data/caddy/pki/authorities/local/root.crt")
        authority.write_text(run("exec", "-T", "proxy", "/bin/cat", "/data/caddy/pki/authorities/local/root.crt"))
        picture = tmp_path / "in.png"
        picture.write_bytes(png(16, 16))
        curl = ["curl", "--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--cacert", str(authority)]
        form = ("-F", f"photo=@{picture}", "-F", "size=16", "-o", str(tmp_path / "out.png"))
        refused = subprocess.run([*curl, *asked[:2], *form, f"{asked[2]}/generate"], capture_output=True, check=False)
        assert (refused.returncode, b"401" in refused.stderr) == (22, True), refused.stderr
        bearer = ("-H", f"Authorization: Bearer {token}")
        done = subprocess.run(
            [*curl, *bearer, *asked[:2], *form, f"{asked[2]}/generate"], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr + (tmp_path / "out.png").read_bytes()
        assert pixels((tmp_path / "out.png").read_bytes())[0] == (32, 32)
        state = json.loads(docker("inspect", service).stdout)[0]
        assert state["HostConfig"]["PortBindings"] in ({}, None)
        assert state["HostConfig"]["ReadonlyRootfs"]
        assert list(state["NetworkSettings"]["Networks"]) == ["cpackup_inner"]
    finally:
        run("down", "--volumes", "--timeout", "30", check=False)
    assert docker("ps", "-aq").stdout == ""
    assert "cpackup" not in docker("network", "ls").stdout + docker("volume", "ls").stdout


def until_healthy(docker: Docker, container: str, *, told: Callable[[], str]) -> None:
    """Wait for the engine's own health check of *container*."""
    deadline = time.monotonic() + 180
    while (state := docker("inspect", "--format", "{{.State.Health.Status}}", container).stdout.strip()) != "healthy":
        assert time.monotonic() < deadline, f"it is {state}:\n{told()}"
        time.sleep(1)


def caddy_image() -> Image:
    """The machine's own Caddy with the libraries that it wants, where the official image has it."""
    caddy = Path(need.tool("caddy"))
    listed = subprocess.run(["ldd", caddy], check=True, capture_output=True, text=True).stdout
    files = {"usr/bin/caddy": caddy, "bin/cat": Path(need.tool("busybox"))}
    files |= {path.lstrip("/"): Path(path) for path in re.findall(r"(/\S+)(?= \(0x)", listed)}
    entries = arrange([text(name, path.read_bytes(), 0o755) for name, path in files.items()])
    command = ["/usr/bin/caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"]
    return image_of(
        [layer_of(entries)], config={"Cmd": command, "Env": ["XDG_DATA_HOME=/data", "XDG_CONFIG_HOME=/config"]}
    )


@pytest.fixture(scope="module")
def pushed(built: Built, registry: Registry) -> tuple[str, str, str]:
    """The image in a registry, also without its models, and the repository of these."""
    name = f"{registry.host}/deployed/example"
    whole, thin, models = f"{name}:1", f"{name}:thin", f"{registry.host}/deployed/models"
    place = f"oci:{built.layout}:1"
    cpack_build("push", place, whole, environment=built.environment)
    cpack_build("push", place, thin, "--models", models, "--without-models", environment=built.environment)
    return whole, thin, models


@pytest.mark.podman
def test_podman_plays_the_pod_of_the_manifests(
    built: Built, podman: Podman, pushed: tuple[str, str, str], tmp_path: Path
) -> None:
    """As a kubelet would run it: hardened as the manifest says, warmed up, and it answers."""
    need.tool("catatonit")
    cpack_build("deploy", "kubernetes", pushed[0], "-o", tmp_path / "k8s", environment=built.environment)
    document = yaml.safe_load((tmp_path / "k8s/deployment.yaml").read_text())
    (container,) = document["spec"]["template"]["spec"]["containers"]
    assert {"name": "CPACK_WARM_UP", "value": "1"} in container["env"]
    port = free_port()
    container["ports"][0] |= {"hostPort": port, "hostIP": "127.0.0.1"}  # a cluster's Service leads there otherwise
    file = tmp_path / "played.yaml"
    file.write_text(yaml.safe_dump(document))
    try:
        podman("play", "kube", "--tls-verify=false", str(file))
        until_ready(f"http://127.0.0.1:{port}/readyz", seconds=180)
        body, _ = ask_service(f"http://127.0.0.1:{port}", photo=png(16, 16), size=16)
        assert pixels(body)[0] == (32, 32)
        (made,) = json.loads(podman("inspect", "example-pod-0-service").stdout)
        assert made["HostConfig"]["ReadonlyRootfs"]
        assert not made["EffectiveCaps"]
        assert "The workflow was warmed up" in podman("logs", "example-pod-0-service").stdout
    finally:
        podman("pod", "rm", "--all", "--force", check=False)


@pytest.mark.podman
def test_models_that_are_mounted_from_images_serve_an_image_without_them(
    built: Built, podman: Podman, pushed: tuple[str, str, str], tmp_path: Path
) -> None:
    """The manifest's first container and mounts, done by podman, which mounts images as Kubernetes does."""
    _, thin, models = pushed
    result = cpack_build("deploy", "kubernetes", thin, "--models-from", models, "--dry-run",
                         environment=built.environment)  # fmt: skip
    pod = result["manifests"]["deployment.yaml"]["spec"]["template"]["spec"]
    (linker,), (service,) = pod["initContainers"], pod["containers"]
    images = {volume["name"]: volume["image"]["reference"] for volume in pod["volumes"] if "image" in volume}
    for image in (service["image"], *images.values()):
        podman("pull", "--tls-verify=false", image)
    links = tmp_path / "links"
    links.mkdir(mode=0o777)
    links.chmod(0o777)
    entrypoint, *words = linker["command"]
    podman(
        "run", "--rm", "--read-only", "--volume", f"{links}:/links", "--entrypoint", entrypoint, linker["image"], *words
    )
    flags = ["--read-only", "--cap-drop", "ALL", "--tmpfs", "/data:mode=1777", "--volume", f"{links}:/models/sha256:ro"]
    for mount in service["volumeMounts"]:
        if mount["name"] in images:
            flags += ["--mount", f"type=image,source={images[mount['name']]},destination={mount['mountPath']}"]
    assert len(images) == 1
    with running(podman, service["image"], *flags) as (url, container):
        until_ready(f"{url}/readyz")
        (model,) = json.loads(built.example.pack.with_name("example.cpack.lock").read_text())["models"]
        real = podman("exec", container, "/bin/sh", "-c", f"readlink -f /app/comfyui/{model['path']}").stdout.strip()
        assert real == f"/volumes/{model['sha256'][:12]}/models/sha256/{model['sha256']}"
        body, _ = ask_service(url, photo=png(16, 16), size=16)
    assert pixels(body)[0] == (32, 32)
