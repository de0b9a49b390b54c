"""A registry in memory that does what the distribution spec says, until a test has it do something else; or the way to
another, which then goes wrong in the same manners.

``fault`` is asked before each request is served and may answer with a :class:`Fault`. What arrived is recorded, so a
test can tell what was sent, how often, and with which headers. Specification: distribution-spec v1.1.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from cpack_build.oci.types import INDEX, Image


@dataclass
class Fault:
    """What to do instead of serving: answer *status*, or break the connection."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Of the answer to *status*; without a status, put over those of the right answer."""
    body: bytes = b""
    early: bool = False
    """Answer *status* without reading the request's body, and break the connection."""
    take: int | None = None
    """Take so many bytes of the body, keep them, and break the connection."""
    forget: bool = False
    """Answer rightly, but to nobody: the connection breaks instead."""
    send: int | None = None
    """Answer rightly, but with so many bytes of the body, and break the connection."""
    stall: bool = False
    """Having sent so many bytes, send no more, and wait for the client to hang up."""
    spoil: bool = False
    """Answer with a body of the right size whose last byte is another."""
    silent: bool = False
    """Take the body, and answer nothing until the client hangs up."""
    drip: bool = False
    """Answer rightly, a byte every hundredth of a second."""
    whole: bool = False
    """Answer with the whole body though a range is asked for."""
    away: bool = False
    """Have the registry behind take the request for its own, so that it names its own host in its answer."""


@dataclass
class Request:
    """One request, as it came."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    """The last value of each name."""
    headers: dict[str, str]
    taken: int = 0
    """Bytes of the body that were read."""
    scopes: tuple[str, ...] = ()
    """What a token is asked for."""


@dataclass
class Misbehaving:
    """The registry's state; tests read it and set :attr:`fault`."""

    fault: Callable[[Request], Fault | None] = lambda request: None
    before: str = ""
    """The registry (``host:port``) that is asked what to answer, in place of our own memory."""
    minimum: int = 0
    """``OCI-Chunk-Min-Length``."""
    has_referrers: bool = False
    """Whether it keeps the list of what refers to a manifest, as distribution-spec 1.1 has it."""
    remembers: bool = True
    """Whether an upload that was cut can be asked for and gone on with."""
    blobs: dict[tuple[str, str], bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[str, bytes]] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)
    host: str = ""

    @property
    def uploaded(self) -> int:
        """Bytes of bodies that were taken."""
        return sum(request.taken for request in self.seen if request.method in ("PATCH", "PUT"))

    def hold(self, image: Image, name: str = "x", version: str = "v1") -> None:
        """Have *image* as if it had been pushed."""
        for blob in (image.config, *image.layers):
            self.blobs[name, blob.descriptor.digest] = b"".join(blob.chunks())
        for key in (version, image.digest):
            self.manifests[name, key] = (image.manifest.media_type, image.manifest.data)

    def methods(self, part: str = "") -> list[str]:
        """The methods of the requests whose path holds *part*."""
        return [request.method for request in self.seen if part in request.path]


@contextmanager
def run_misbehaving(*, certificate: Path | None = None, before: str = "") -> Iterator[Misbehaving]:
    """The registry on a free port of loopback; with *certificate* (PEM, with its key) over TLS, or *before* another."""
    registry = Misbehaving(before=before)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # Clients that hang up are the point.

    class Handler(_Handler):
        state = registry

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    registry.host = f"localhost:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Broken(Exception):
    """The connection is to break now."""


class _Handler(BaseHTTPRequestHandler):
    state: Misbehaving
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        values = parse_qs(parts.query, keep_blank_values=True)
        query = {key: given[-1] for key, given in values.items()}
        headers = {key.lower(): value for key, value in self.headers.items()}
        with self.state.lock:
            self.request_ = Request(len(self.state.seen), self.command, parts.path, query, headers)
            self.request_.scopes = tuple(values.get("scope", ()))
            self.state.seen.append(self.request_)
            fault = self.state.fault(self.request_)
        self._left = int(headers.get("content-length", "0"))
        self._fault = fault or Fault()
        try:
            if self._fault.silent:
                for _ in self._body():
                    pass
                self.rfile.read(1)
                raise _Broken
            if self._fault.status is not None and self._fault.early:
                self._answer(self._fault.status, self._fault.headers, self._fault.body)
                self.wfile.flush()
                raise _Broken
            if self._fault.status is not None:
                for _ in self._body():
                    pass
                self._answer(self._fault.status, self._fault.headers, self._fault.body)
            else:
                self._route()
        except _Broken:
            # A reset rather than an end: what lay unread is thrown away.
            self.close_connection = True
            with suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - http.server's names

    # -- the wire ------------------------------------------------------------------------------------------------------

    def _body(self) -> Iterator[bytes]:
        limit = self._fault.take
        if limit is not None and self._left == 0:
            raise _Broken
        while self._left:
            size = min(self._left, 1 << 16)
            if limit is not None:
                size = min(size, limit - self.request_.taken)
                if size <= 0:
                    raise _Broken
            data = self.rfile.read(size)
            if not data:
                raise _Broken
            self._left -= len(data)
            self.request_.taken += len(data)
            yield data

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        if self._fault.forget:
            raise _Broken
        self.send_response(status)
        given = {"Content-Length": str(len(body)), **(headers or {}), **self._fault.headers}
        for key, value in given.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self._fault.spoil and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        if self._fault.drip:
            for index in range(len(body)):
                self.wfile.write(body[index : index + 1])
                self.wfile.flush()
                time.sleep(0.01)
            return
        self.wfile.write(body[: self._fault.send])
        if self._fault.send is not None:
            self.wfile.flush()
            if self._fault.stall:
                self.rfile.read(1)
            raise _Broken

    def _pass_on(self) -> None:
        """What the registry behind answers to the request; it is cut off where we are."""
        behind = HTTPConnection(self.state.before)
        try:
            behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for key, value in self.headers.items():
                if key.lower() == "host" and self._fault.away:
                    value = self.state.before
                if key.lower() != "range" or not self._fault.whole:
                    behind.putheader(key, value)
            behind.endheaders()
            for chunk in self._body():
                behind.send(chunk)
            answer = behind.getresponse()
            body = answer.read()
            kept = {key: value for key, value in answer.getheaders() if key not in ("Date", "Transfer-Encoding")}
            self._answer(answer.status, kept, body)
        finally:
            behind.close()

    def _error(self, status: int, code: str) -> None:
        for _ in self._body():
            pass
        body = json.dumps({"errors": [{"code": code, "message": "no"}]}).encode()
        self._answer(status, {"Content-Type": "application/json"}, body)

    # -- the spec ------------------------------------------------------------------------------------------------------

    def _route(self) -> None:
        path = self.request_.path
        if self.request_.method in ("GET", "HEAD") and self._fault.take is not None:
            raise _Broken
        if self.state.before:
            self._pass_on()
        elif found := re.fullmatch(r"/v2/(.+)/manifests/([^/]+)", path):
            self._manifest(*found.groups())
        elif found := re.fullmatch(r"/v2/(.+)/referrers/([^/]+)", path):
            self._referrers(*found.groups())
        elif found := re.fullmatch(r"/v2/(.+)/blobs/uploads/", path):
            self._begin(found.group(1))
        elif found := re.fullmatch(r"/v2/(.+)/blobs/uploads/([^/]+)", path):
            self._upload(*found.groups())
        elif found := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", path):
            data = self.state.blobs.get((found.group(1), found.group(2)))
            if data is None:
                self._error(404, "BLOB_UNKNOWN")
            else:
                self._blob(found.group(2), data)
        else:
            self._error(404, "NAME_UNKNOWN")

    def _blob(self, digest: str, data: bytes) -> None:
        """RFC 9110, section 14: one range of bytes."""
        asked = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", self.request_.headers.get("range", ""))
        headers = {"Docker-Content-Digest": digest}
        if asked is None or self._fault.whole or self.command == "HEAD":
            self._answer(200, headers, data)
            return
        start, end = int(asked.group(1)), min(int(asked.group(2) or len(data)), len(data) - 1)
        if start >= len(data):
            self._answer(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
        self._answer(206, headers, data[start : end + 1])

    def _manifest(self, name: str, version: str) -> None:
        if self.request_.method == "PUT":
            data = b"".join(self._body())
            document = json.loads(data)
            parts = (document["config"], *document["layers"]) if "layers" in document else ()
            for part in parts:
                if (name, part["digest"]) not in self.state.blobs:
                    self._error(404, "MANIFEST_BLOB_UNKNOWN")
                    return
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            for key in (version, digest):
                self.state.manifests[name, key] = (self.request_.headers["content-type"], data)
            headers = {"Location": f"/v2/{name}/manifests/{digest}", "Docker-Content-Digest": digest}
            if self.state.has_referrers and "subject" in document:
                headers["OCI-Subject"] = document["subject"]["digest"]
            self._answer(201, headers)
            return
        found = self.state.manifests.get((name, version))
        if found is None:
            self._error(404, "MANIFEST_UNKNOWN")
            return
        digest = "sha256:" + hashlib.sha256(found[1]).hexdigest()
        self._answer(200, {"Content-Type": found[0], "Docker-Content-Digest": digest}, found[1])

    def _referrers(self, name: str, subject: str) -> None:
        if not self.state.has_referrers:
            self._error(404, "NAME_UNKNOWN")
            return
        entries = {}
        for (repository, _), (kind, data) in self.state.manifests.items():
            document = json.loads(data)
            if repository == name and document.get("subject", {}).get("digest") == subject:
                digest = "sha256:" + hashlib.sha256(data).hexdigest()
                entries[digest] = {
                    "mediaType": kind, "digest": digest, "size": len(data), "artifactType": document["artifactType"]
                }  # fmt: skip
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries.values())}
        self._answer(200, {"Content-Type": INDEX}, json.dumps(index).encode())

    def _begin(self, name: str) -> None:
        mount, source = self.request_.query.get("mount"), self.request_.query.get("from")
        if mount and source and (source, mount) in self.state.blobs:
            self.state.blobs[name, mount] = self.state.blobs[source, mount]
            self._answer(201, {"Location": f"/v2/{name}/blobs/{mount}", "Docker-Content-Digest": mount})
            return
        upload = uuid4().hex
        self.state.uploads[upload] = bytearray()
        headers = {"Location": f"/v2/{name}/blobs/uploads/{upload}?state=x", "Range": "0-0"}
        if self.state.minimum:
            headers["OCI-Chunk-Min-Length"] = str(self.state.minimum)
        self._answer(202, headers)

    def _upload(self, name: str, upload: str) -> None:
        data = self.state.uploads.get(upload)
        method = self.request_.method
        if data is None:
            self._error(404, "BLOB_UPLOAD_UNKNOWN")
            return
        where = {"Location": f"/v2/{name}/blobs/uploads/{upload}?state={len(data)}"}
        if method == "GET":
            self._answer(204, {**where, "Range": f"0-{max(len(data) - 1, 0)}"})
        elif method == "DELETE":
            del self.state.uploads[upload]
            self._answer(204)
        elif method == "PATCH":
            start, _, end = self.request_.headers["content-range"].partition("-")
            if int(start) != len(data) or int(end) - int(start) + 1 != self._left:
                self._error(416, "RANGE_INVALID")
                return
            self._take(upload, data)
            headers = {"Location": f"{where['Location']}&then={len(data)}", "Range": f"0-{len(data) - 1}"}
            self._answer(202, headers)
        else:
            self._take(upload, data)
            digest = self.request_.query["digest"]
            if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
                self._error(400, "DIGEST_INVALID")
                return
            self.state.blobs[name, digest] = bytes(data)
            del self.state.uploads[upload]
            self._answer(201, {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest})

    def _take(self, upload: str, data: bytearray) -> None:
        try:
            for chunk in self._body():
                data += chunk
        except _Broken:
            if not self.state.remembers:
                self.state.uploads.pop(upload, None)
            raise


@contextmanager
def run_cutting(target: str, *, after: int, times: int) -> Iterator[str]:
    """A way to the registry at *target* (``host:port``) that breaks the first *times* connections which have carried
    *after* bytes to it."""
    host, _, port = target.partition(":")
    left = [times]
    listener = socket.create_server(("127.0.0.1", 0))
    open_: list[socket.socket] = [listener]

    def carry(source: socket.socket, sink: socket.socket, counted: bool) -> None:
        count = 0
        with suppress(OSError):
            while data := source.recv(1 << 14):
                sink.sendall(data)
                count += len(data)
                if counted and count >= after and left[0] > 0:
                    left[0] -= 1
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                open_.extend((near, far))
                Thread(target=carry, args=(near, far, True), daemon=True).start()
                Thread(target=carry, args=(far, near, False), daemon=True).start()

    Thread(target=accept, daemon=True).start()
    try:
        yield f"localhost:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for end in open_:
            end.close()
