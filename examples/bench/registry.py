"""Pushing, pulling and loading, beside skopeo, docker and a raw PUT to the same local docker-registry.

The image has one model of ``CPACK_BENCH_MODEL_MIB`` (2048) and a small layer above it. Memory is measured with a model
of ``CPACK_BENCH_SPARSE_GB`` (20) that is a hole in a file, pushed to a server that reads and forgets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from bench.measure import BenchError, Row, Run, cpack_build, run, timed
from cpack_build.oci import tar
from cpack_build.oci.layout import write_layout
from cpack_build.oci.modellayer import ModelLayer, hash_model
from cpack_build.oci.types import CONFIG, LAYER, MANIFEST, BytesBlob, Image, canonical_json

MIB = int(os.environ.get("CPACK_BENCH_MODEL_MIB", "2048"))
SPARSE_GB = int(os.environ.get("CPACK_BENCH_SPARSE_GB", "20"))


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
    with run_registry() as registry:
        yield from _pushes(place, registry.host, layout, first)
        yield from _pulls(place, registry.host, first)
        yield from _loads(place, registry.host)
    with run_registry() as registry:
        yield from _beside_docker(place, registry.host, layout)
    yield _memory(place)


def _pushes(place: Path, host: str, layout: Path, image: Image) -> Iterator[Row]:
    note = f"{image.size / 1e9:.1f} GB"
    blob = max((layout / "blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    raw = timed(lambda: _put(host, "raw", blob))
    ours = cpack_build("push", f"oci:{layout}:one", f"{host}/ours:one", "-q", home=place / "push")
    yield Row("registry", "push, nothing there", ours.seconds, "raw PUT", raw, 1.1, ours.peak_mb, note)
    if skopeo := _skopeo(place):
        other = run([*skopeo, "--dest-tls-verify=false", f"oci:{layout}:one", f"docker://{host}/skopeo:one"])
        yield Row("registry", "push, nothing there", ours.seconds, "skopeo", other.seconds, 1.0, ours.peak_mb, note)
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


def _loads(place: Path, host: str) -> Iterator[Row]:
    """Into a Docker that has the image but for its top layer, and into one that has nothing."""
    if shutil.which("dockerd") is None or os.geteuid():
        return
    from tests.engines import run_docker

    ours: dict[str, Run] = {}
    with run_docker() as docker:
        for tag in ("one", "two"):
            words = ("pull", f"{host}/ours:{tag}", "-o", f"docker:bench:{tag}", "-q")
            ours[tag] = cpack_build(*words, home=place / "loaded", environment=docker.environment)
    with run_docker() as docker:
        peer = run(["docker", "pull", "-q", f"{host}/ours:one"], environment=docker.environment)
    shutil.rmtree(place / "loaded")
    yield Row("registry", "pull and load, Docker empty", ours["one"].seconds, "docker pull", peer.seconds)
    yield Row("registry", "pull and load, top layer changed", ours["two"].seconds, "", None, 0.5)


def _beside_docker(place: Path, host: str, layout: Path) -> Iterator[Row]:
    """Docker's push, of an image that it has; each to a registry that has nothing of it."""
    if shutil.which("dockerd") is None or os.geteuid():
        return
    from tests.engines import run_docker, run_registry

    archive = place / "image.tar"
    ours = cpack_build("push", f"oci:{layout}:one", f"{host}/ours:one", "-q", home=place / "fresh")
    home = place / "source"
    cpack_build("pull", f"{host}/ours:one", "-o", f"docker-archive:{archive}", "-q", home=home)
    shutil.rmtree(home)
    with run_docker() as docker, run_registry() as fresh:
        run(["docker", "load", "-q", "-i", archive], environment=docker.environment)
        archive.unlink()
        run(["docker", "tag", f"{host}/ours:one", f"{fresh.host}/docker:one"], environment=docker.environment)
        peer = run(["docker", "push", "-q", f"{fresh.host}/docker:one"], environment=docker.environment)
    yield Row("registry", "push, nothing there", ours.seconds, "docker push", peer.seconds, 1.0)


def _memory(place: Path) -> Row:
    path = place / "sparse"
    with path.open("wb") as file:
        file.truncate(SPARSE_GB * 10**9)
    size = path.stat().st_size
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(4 << 20):
            hasher.update(chunk)
    sha256 = hasher.hexdigest()
    program = (
        "import sys; from pathlib import Path; from cpack_build.oci.modellayer import ModelLayer;"
        "from cpack_build.oci.push import push; from cpack_build.oci.reference import parse_reference;"
        "from bench.registry import image_of;"
        "layer = ModelLayer(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]);"
        "push(image_of([layer]), [parse_reference(sys.argv[1])])"
    )
    digest = hash_model(path, sha256, size)
    with _sink() as host:
        here = Path(__file__).resolve()
        environment = {"PYTHONPATH": os.pathsep.join(map(str, (here.parents[2], here.parents[1])))}
        words = [sys.executable, "-c", program, f"{host}/x:1", path, sha256, str(size), digest]
        done = run(words, environment=environment)
    path.unlink()
    if done.peak_mb > 150:
        raise BenchError(f"a push of {SPARSE_GB} GB took {done.peak_mb:.0f} MB of memory, and 150 are allowed")
    return Row(
        "registry", "push of a sparse model, memory", done.seconds, "", None, None, done.peak_mb, f"{SPARSE_GB} GB"
    )


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


@contextmanager
def _sink() -> Iterator[str]:
    """A registry that takes everything and keeps nothing."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def answer(self, status: int, **headers: str) -> None:
            left = int(self.headers.get("Content-Length", "0"))
            while left:
                left -= len(self.rfile.read(min(left, 1 << 20)))
            self.send_response(status)
            for key, value in {"Content-Length": "0", **headers}.items():
                self.send_header(key, value)
            self.end_headers()

        def do_HEAD(self) -> None:
            self.answer(404)

        def do_POST(self) -> None:
            self.answer(202, Location=f"{self.path}1")

        def do_PUT(self) -> None:
            self.answer(201)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
