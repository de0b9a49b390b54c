"""Pushing, pulling and loading, beside skopeo, docker, podman and a raw PUT to the same local docker-registry.

The image has one model of ``CPACK_BENCH_MODEL_MIB`` (2048) and a small layer above it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Generator, Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from bench.measure import BenchError, Row, Run, cpack_build, run, timed
from cpack_build.oci import tar
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.types import CONFIG, LAYER, MANIFEST, BytesBlob, Image, canonical_json

MIB = int(os.environ.get("CPACK_BENCH_MODEL_MIB", "2048"))
TURNS = 3


def rows(place: Path) -> Iterator[Row]:
    """Measure in *place*, which needs four times the model's size."""
    if shutil.which("docker-registry") is None:
        raise BenchError("docker-registry is not installed")
    from tests.engines import run_registry

    model = _model(place)
    first, second = _image(model, "one"), _image(model, "two")
    layout = place / "image.oci"
    write_layout(first, layout, tag="one")
    write_layout(second, layout, tag="two")
    pushed = yield from _pushes(place, layout, first)
    with run_registry() as registry:
        yield from _again(place, registry.host, layout, first)
        yield from _pulls(place, registry.host, first)
        yield from _beside_docker(place, registry.host, pushed)
        yield from _beside_podman(place, registry.host)


def _pushes(place: Path, layout: Path, image: Image) -> Generator[Row, None, float]:
    """The rows; the seconds of a push to a registry that has nothing.

    Each push meets a registry of its own, whose data are gone before the next: who wrote to memory that the machine has
    handed out before was faster by half than who came next. The first push counts for nothing, of the others each
    one's best does.
    """
    from tests.engines import run_registry

    note = f"{image.size / 1e9:.1f} GB"
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    skopeo = _skopeo(place)
    raws, others, ours = [], [], []
    with run_registry() as registry:
        _put(registry.host, "raw", blob)
    for turn in range(TURNS):
        with run_registry() as registry:
            raws.append(timed(lambda host=registry.host: _put(host, "raw", blob)))
        with run_registry() as registry:
            words = ("push", f"oci:{layout}:one", f"{registry.host}/ours:one", "-q")
            ours.append(cpack_build(*words, home=place / f"push{turn}"))
        if skopeo:
            with run_registry() as registry:
                words = ("--dest-tls-verify=false", f"oci:{layout}:one", f"docker://{registry.host}/skopeo:one")
                others.append(run([*skopeo, *words]).seconds)
    best = min(ours, key=lambda one: one.seconds)
    yield Row("registry", "push, nothing there", best.seconds, "raw PUT", min(raws), 1.1, best.peak_mb, note)
    if others:
        yield Row("registry", "push, nothing there", best.seconds, "skopeo", min(others), 1.0, best.peak_mb, note)
    return best.seconds


def _again(place: Path, host: str, layout: Path, image: Image) -> Iterator[Row]:
    """Pushes of what the registry has, in whole or but for the top layer."""
    note = f"{image.size / 1e9:.1f} GB"
    skopeo = _skopeo(place)
    cpack_build("push", f"oci:{layout}:one", f"{host}/ours:one", "-q", home=place / "push")
    if skopeo:
        run([*skopeo, "--dest-tls-verify=false", f"oci:{layout}:one", f"docker://{host}/skopeo:one"])
    again = cpack_build("push", f"oci:{layout}:one", f"{host}/ours:one", "--json", home=place / "push")
    [pushed] = json.loads(again.stdout)["pushed"]
    requests = f"{pushed['requests']} request"
    yield Row("registry", "push, unchanged", again.seconds, "", None, 0.3, again.peak_mb, requests)
    changed = cpack_build("push", f"oci:{layout}:two", f"{host}/ours:two", "-q", home=place / "push")
    if skopeo:
        other = run([*skopeo, "--dest-tls-verify=false", f"oci:{layout}:two", f"docker://{host}/skopeo:two"])
        yield Row("registry", "push, top layer changed", changed.seconds, "skopeo", other.seconds, note=note)


def _pulls(place: Path, host: str, image: Image) -> Iterator[Row]:
    note = f"{image.size / 1e9:.1f} GB"
    program = (
        "import sys; from pathlib import Path; from cpack_build.fetch.store import Store;"
        "from cpack_build.oci.pull import pull; from cpack_build.oci.reference import parse_reference;"
        "from cpack_build.oci.sources import open_source;"
        "pull(open_source(parse_reference(sys.argv[1]), store=Store(Path(sys.argv[2]))), sys.argv[3])"
    )
    name = f"{host}/ours:one"
    ours = run([sys.executable, "-c", program, name, place / "pulled", image.platform])
    if skopeo := _skopeo(place):
        peer = run([*skopeo, "--src-tls-verify=false", f"docker://{name}", f"dir:{place}/skopeo"])
        yield Row(
            "registry", "pull into the store", ours.seconds, "skopeo to dir:", peer.seconds, 1.0, ours.peak_mb, note
        )
    again = cpack_build("pull", name, "-o", f"oci:{place}/out.oci", "-q", home=place / "pulled")
    yield Row("registry", "pull to a layout, all in the store", again.seconds, "", peak_mb=again.peak_mb, note=note)
    shutil.rmtree(place / "out.oci")
    shutil.rmtree(place / "pulled")
    shutil.rmtree(place / "skopeo", ignore_errors=True)


def _beside_docker(place: Path, host: str, pushed: float) -> Iterator[Row]:
    """Into a Docker that has nothing, and into one that has the image but for its top layer; and Docker's own pull, and
    its push to a registry that has nothing."""
    if shutil.which("dockerd") is None or os.geteuid():
        return
    from tests.engines import run_docker, run_registry

    ours: dict[str, Run] = {}
    with run_docker() as docker:
        for tag in ("one", "two"):
            words = ("pull", f"{host}/ours:{tag}", "-o", f"docker:bench:{tag}", "-q")
            ours[tag] = cpack_build(*words, home=place / "loaded", environment=docker.environment)
        shutil.rmtree(place / "loaded")
        with run_registry() as fresh:
            name = f"{fresh.host}/docker:one"
            run(["docker", "tag", "bench:one", name], environment=docker.environment)
            push = run(["docker", "push", "-q", name], environment=docker.environment)
    with run_docker() as docker:
        pull = run(["docker", "pull", "-q", f"{host}/ours:one"], environment=docker.environment)
    yield Row("registry", "pull and load, Docker empty", ours["one"].seconds, "docker pull", pull.seconds)
    yield Row("registry", "pull and load, top layer changed", ours["two"].seconds, "", None, 0.5)
    yield Row("registry", "push, nothing there", pushed, "docker push", push.seconds, 1.0)


def _beside_podman(place: Path, host: str) -> Iterator[Row]:
    """The same into podman, whose own pull skips what it has as well."""
    if shutil.which("podman") is None or os.geteuid():
        return
    from tests.engines import run_podman

    ours: dict[str, Run] = {}
    theirs: dict[str, Run] = {}
    with run_podman() as podman:
        for tag in ("one", "two"):
            words = ("pull", f"{host}/ours:{tag}", "-o", f"podman:bench:{tag}", "-q")
            ours[tag] = cpack_build(*words, home=place / "loaded", environment=podman.environment)
        shutil.rmtree(place / "loaded")
        podman("rmi", "--all", "--force")
        for tag in ("one", "two"):
            pull = ["podman", "pull", "-q", "--tls-verify=false", f"{host}/ours:{tag}"]
            theirs[tag] = run(pull, environment=podman.environment)
    for tag, what in (("one", "podman empty"), ("two", "podman has all but its top layer")):
        seconds = theirs[tag].seconds
        yield Row("registry", f"pull and load, {what}", ours[tag].seconds, "podman pull", seconds)


# -- parts -------------------------------------------------------------------------------------------------------------


def _model(place: Path) -> ModelLayer:
    path = place / "model"
    with path.open("wb") as file:
        for _ in range(MIB // 16):
            file.write(os.urandom(16 << 20))
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(4 << 20):
            hasher.update(chunk)
    size = path.stat().st_size
    return ModelLayer(path, hasher.hexdigest(), size, hash_model(path, hasher.hexdigest(), size), "models/bench")


def _image(model: ModelLayer, text: str) -> Image:
    entry = tar.Entry("etc/motd", "file", content=tar.BytesContent(text.encode()))
    return image_of([model, BytesBlob(LAYER, b"".join(tar.stream([entry])))])


def image_of(layers: list[ModelLayer | BytesBlob]) -> Image:
    """An image of uncompressed *layers* that says nothing else."""
    import platform

    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    diff_ids = [layer.descriptor.digest for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = BytesBlob(CONFIG, canonical_json({"architecture": machine, "os": "linux", "rootfs": rootfs}))
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config.descriptor.to_json(),
        "layers": [layer.descriptor.to_json() for layer in layers],
    }
    return Image(BytesBlob(MANIFEST, canonical_json(manifest)), config, tuple(layers))


def _skopeo(place: Path) -> list[str]:
    if (program := shutil.which("skopeo")) is None:
        return []
    nobody = place / "no-logins.json"
    nobody.write_text("{}")
    return [program, "copy", "-q", "--insecure-policy", "--preserve-digests", f"--authfile={nobody}"]


def _put(host: str, name: str, blob: Path) -> None:
    """The least that a push of one blob can be: POST, and a PUT of the file as the kernel sends it."""
    connection = HTTPConnection(host)
    connection.request("POST", f"/v2/{name}/blobs/uploads/", headers={"Content-Length": "0"})
    answer = connection.getresponse()
    answer.read()
    parts = urlsplit(answer.headers["Location"])
    where = f"{parts.path}?{parts.query}&digest=sha256:{blob.name}"
    with blob.open("rb") as file:
        connection.putrequest("PUT", where)
        connection.putheader("Content-Length", str(blob.stat().st_size))
        connection.putheader("Content-Type", "application/octet-stream")
        connection.endheaders()
        connection.sock.sendfile(file)
    status = connection.getresponse().status
    if status != 201:
        raise BenchError(f"the raw PUT was answered with {status}")
