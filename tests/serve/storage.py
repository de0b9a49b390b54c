"""A server that speaks enough of Amazon S3's protocol to be uploaded to and read from, and checks every signature.

AWS Signature Version 4, in headers and in links, computed here from the documentation, not by a client's library.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, quote, unquote, urlsplit

KEY, SECRET = "AKIDTEST", "a-secret-that-stays-one"


class Storage(ThreadingHTTPServer):
    """The server. *objects*: key → its bytes and headers; *refuse*: an error code that every upload gets."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.started: dict[str, dict[str, str]] = {}
        self.refuse = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Storage
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_PUT(self) -> None:
        body = self._body()
        if not self._is_signed():
            return
        kept = {name: self.headers[name] for name in ("Content-Type", "Content-Disposition") if name in self.headers}
        if "partNumber" in self._query:
            self.server.parts[self._query["uploadId"]][int(self._query["partNumber"])] = body
        else:
            self.server.objects[self._key] = (body, kept)
        self._answer(200, headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def do_POST(self) -> None:
        self._body()
        if not self._is_signed():
            return
        if "uploads" in self._query:
            self.server.parts["u1"] = {}
            self.server.started["u1"] = {
                name: self.headers[name] for name in ("Content-Type", "Content-Disposition") if name in self.headers
            }
            self._answer(200, b"<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>")
        else:
            parts = self.server.parts.pop(self._query["uploadId"])
            whole = b"".join(parts[number] for number in sorted(parts))
            self.server.objects[self._key] = (whole, self.server.started.pop("u1"))
            self._answer(200, b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>")

    def do_GET(self) -> None:
        if self._is_signed():
            body, headers = self.server.objects[self._key]
            self._answer(200, body, headers)

    @property
    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))

    @property
    def _key(self) -> str:
        return unquote(urlsplit(self.path).path)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        whole, rest = b"", data
        while True:
            head, _, rest = rest.partition(b"\r\n")
            size = int(head.split(b";")[0], 16)
            if not size:
                return whole
            whole, rest = whole + rest[:size], rest[size + 2 :]

    def _is_signed(self) -> bool:
        query = self._query
        if "X-Amz-Signature" in query:
            given, scope = query["X-Amz-Signature"], query["X-Amz-Credential"]
            when, signed, payload = query["X-Amz-Date"], query["X-Amz-SignedHeaders"], "UNSIGNED-PAYLOAD"
            query = {name: value for name, value in query.items() if name != "X-Amz-Signature"}
        else:
            match = re.fullmatch(
                r"AWS4-HMAC-SHA256 Credential=(\S+), SignedHeaders=(\S+), Signature=(\w+)",
                self.headers.get("Authorization", ""),
            )
            if match is None:
                self._refuse(403, "AccessDenied")
                return False
            scope, signed, given = match.groups()
            when, payload = self.headers["X-Amz-Date"], self.headers["X-Amz-Content-SHA256"]
        if self.server.refuse and self.command != "GET":
            self._refuse(403, self.server.refuse)
            return False
        if self._signature(query, scope=scope, when=when, signed=signed, payload=payload) != given:
            self._refuse(403, "SignatureDoesNotMatch")
            return False
        return True

    def _signature(self, query: Mapping[str, str], *, scope: str, when: str, signed: str, payload: str) -> str:
        names = signed.split(";")
        request = "\n".join(
            [
                self.command,
                urlsplit(self.path).path,
                "&".join(f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items())),
                *(f"{name}:{self.headers[name].strip()}" for name in names),
                "",
                signed,
                payload,
            ]
        )
        _, *place = scope.split("/")
        text = "\n".join(["AWS4-HMAC-SHA256", when, "/".join(place), hashlib.sha256(request.encode()).hexdigest()])
        key = f"AWS4{SECRET}".encode()
        for part in place:
            key = hmac.digest(key, part.encode(), "sha256")
        return hmac.digest(key, text.encode(), "sha256").hex()

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>".encode())

    def _answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def storage() -> Iterator[Storage]:
    """The server, for as long as the block runs."""
    server = Storage()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
