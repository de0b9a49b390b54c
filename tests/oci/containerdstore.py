"""As much of Docker's API as a load needs, with containerd's store, as Docker 28.5 was seen to behave: an archive that
lacks a blob is taken without a word, and the image is not ``Available`` then. It listens on a Unix socket."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import Any
from urllib.parse import unquote

__all__ = ["ContainerdStore", "run_containerd_store"]


class ContainerdStore:
    """What it has. *refuses* is what it says instead of loading; *with_manifests* whether it is 28.0 or later."""

    def __init__(self) -> None:
        self.host = ""
        self.blobs: dict[str, bytes] = {}
        self.unpacked: dict[str, list[str]] = {}
        """Layers (diff IDs) of each image, by its ID."""
        self.names: dict[str, str] = {}
        self.loads: list[set[str]] = []
        """The blobs that each load brought."""
        self.refuses = ""
        self.with_manifests = True

    def load(self, archive: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
            files = {item.name: opened.extractfile(item).read() for item in opened if item.isfile()}  # type: ignore[union-attr]
        came = {f"sha256:{name[13:]}": data for name, data in files.items() if name.startswith("blobs/sha256/")}
        self.loads.append(set(came))
        self.blobs |= came
        [entry] = json.loads(files["index.json"])["manifests"]
        config = json.loads(self.blobs[json.loads(self.blobs[entry["digest"]])["config"]["digest"]])
        self.unpacked[entry["digest"]] = config["rootfs"]["diff_ids"]
        self.names[json.loads(files["manifest.json"])[0]["RepoTags"][0]] = entry["digest"]

    def image(self, name: str, *, manifests: bool) -> dict[str, Any] | None:
        digest = name if name in self.unpacked else self.names.get(name)
        if digest is None:
            return None
        known: dict[str, Any] = {"Id": digest, "RootFS": {"Layers": self.unpacked[digest]}, "Config": {}}
        if manifests and self.with_manifests:
            layers = json.loads(self.blobs[digest])["layers"]
            available = all(layer["digest"] in self.blobs for layer in layers)
            known["Manifests"] = [{"Descriptor": {"digest": digest}, "Available": available, "Kind": "image"}]
        return known


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def run_containerd_store(folder: Path) -> Iterator[ContainerdStore]:
    """Its API at a socket in *folder*."""
    store = ContainerdStore()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            pass

        def address_string(self) -> str:
            return "socket"

        def answer(self, document: object, status: int = 200) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if path == "/_ping":
                self.answer("OK")
            elif path == "/info":
                self.answer({"DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]})
            elif path == "/images/json":
                self.answer([{"Id": digest} for digest in store.unpacked])
            else:
                name = unquote(path.removeprefix("/images/").removesuffix("/json"))
                known = store.image(name, manifests="manifests=1" in query)
                self.answer(known or {"message": "No such image"}, 200 if known else 404)

        def do_POST(self) -> None:
            if store.refuses:
                self.answer({"message": store.refuses}, 500)
                return
            size = int(self.headers["Content-Length"])
            archive = self.rfile.read(size)
            if len(archive) == size:
                store.load(archive)
                self.answer({"stream": "Loaded image"})

    path = folder / "docker.sock"
    with _Server(str(path), Handler) as server:
        store.host = f"unix://{path}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()
