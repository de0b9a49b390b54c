"""Peak memory of a push of a model of ``CPACK_BENCH_SPARSE_GB`` (20).

The model is a hole in a file and the registry a server that reads and forgets, so that no disk is needed for either.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from bench.measure import BenchError, Row, run
from cpack_build.oci.modellayer import ModelLayer

SPARSE_GB = int(os.environ.get("CPACK_BENCH_SPARSE_GB", "20"))
LIMIT_MB = 150


def rows(place: Path) -> Iterator[Row]:
    """One row; more than 150 MB is an error."""
    path = place / "sparse"
    with path.open("wb") as file:
        file.truncate(SPARSE_GB * 10**9)
    size = path.stat().st_size
    # Under a made-up name, which a push does not prove: the layer's bytes are read once here, and once by the push.
    sha256 = "0" * 64
    hasher = hashlib.sha256()
    for chunk in ModelLayer(path, sha256, size, f"sha256:{sha256}").chunks():
        hasher.update(chunk)
    digest = f"sha256:{hasher.hexdigest()}"
    program = (
        "import sys; from pathlib import Path; from cpack_build.oci.modellayer import ModelLayer;"
        "from cpack_build.oci.push import push; from cpack_build.oci.reference import parse_reference;"
        "from bench.registry import image_of;"
        "layer = ModelLayer(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]);"
        "push(image_of([layer]), [parse_reference(sys.argv[1])])"
    )
    with _sink() as host:
        here = Path(__file__).resolve()
        environment = {"PYTHONPATH": os.pathsep.join(map(str, (here.parents[2], here.parents[1])))}
        words = [sys.executable, "-c", program, f"{host}/x:1", path, sha256, str(size), digest]
        done = run(words, environment=environment)
    path.unlink()
    if done.peak_mb > LIMIT_MB:
        raise BenchError(f"a push of {SPARSE_GB} GB took {done.peak_mb:.0f} MB of memory, and {LIMIT_MB} are allowed")
    note = f"{SPARSE_GB} GB, a hole; to a server that keeps nothing"
    yield Row("memory", "push of a large model", done.seconds, "", None, None, done.peak_mb, note)


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
