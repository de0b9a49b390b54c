"""A hub and its Xet storage on loopback, as the Xet Protocol Specification has them (1.0.0: "CAS API", "Xorb Format"),
for the real ``hf_xet`` to read from. A test changes what is answered by setting a field.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.fetch.servers import Answer, Request, Server, serving

CHUNK = 64 << 10
"""Bytes of a chunk. Real ones are cut by their content, to about as much."""
XORB = 3 << 20
"""Bytes of a file that one xorb has here."""
HF_TOKEN = "hf_of_the_hub"


@dataclass
class XetHub:
    """The file *body* at ``org/model``, *path*. Requests are remembered in *hub* and *cas*."""

    body: bytes
    path: str = "deep/x.safetensors"
    xet_hash: str = "ab" * 32
    stored: bytes | None = None
    """What the storage really has."""
    uses: int = 1_000_000
    """Queries that a token is good for."""
    gated: bool = False
    hub_changes: dict[str, Any] = field(default_factory=dict)
    """What the hub says otherwise: of the file (``paths-info``) or of the storage (``xet-read-token``)."""
    cas_status: dict[str, int] = field(default_factory=dict)
    """HTTP statuses of the storage, by the beginning of a path."""
    cut: int | None = None
    """Bytes of a xorb after which the connection breaks."""
    ends_at: int | None = None
    """Bytes that the file's address gives, and no more."""
    hub: Server = field(init=False)
    cas: Server = field(init=False)
    tokens: int = 0
    used: int = 0

    @property
    def url(self) -> str:
        return f"https://huggingface.co/org/model/resolve/main/{self.path}"

    def paths(self, server: Server, part: str) -> list[Request]:
        """Requests to *server* for a path with *part* in it."""
        return [request for request in server.requests if part in request.path]

    def answer_hub(self, request: Request) -> Answer:
        if self.gated and request.headers.get("authorization") != f"Bearer {HF_TOKEN}":
            return Answer(401, headers={"X-Error-Code": "GatedRepo"})
        if request.path == "/api/models/org/model/paths-info/main":
            assert json.loads(request.body) == {"paths": [self.path]}
            lfs = {"oid": hashlib.sha256(self.body).hexdigest(), "size": len(self.body), "pointerSize": 135}
            file = {"type": "file", "oid": "0" * 40, "path": self.path, "size": len(self.body), "lfs": lfs}
            return _json([{**file, "xetHash": self.xet_hash, **self.hub_changes}])
        if request.path == "/api/models/org/model/xet-read-token/main":
            self.tokens, self.used = self.tokens + 1, 0
            told = {"accessToken": f"xet-{self.tokens}", "exp": 1, "casUrl": self.cas.url}
            return _json({**told, **self.hub_changes})
        if request.path == f"/org/model/resolve/main/{self.path}":
            return self._at_its_address(request)
        return Answer(404)

    def _at_its_address(self, request: Request) -> Answer:
        answer = _ranged(request, self.body)
        if self.ends_at is not None:
            answer.cut = max(0, self.ends_at - (len(self.body) - len(answer.body)))
        return answer

    def answer_cas(self, request: Request) -> Answer:
        for beginning, status in self.cas_status.items():
            if request.path.startswith(beginning):
                return Answer(status)
        if request.path.startswith("/v2/"):
            return Answer(404)  # an older storage; the client then asks in the first version
        if request.path == f"/v1/reconstructions/{self.xet_hash}":
            self.used += 1
            if request.headers.get("authorization") != f"Bearer xet-{self.tokens}" or self.used > self.uses:
                return Answer(401)
            first, last = (int(number) for number in re.findall(r"\d+", request.headers["range"]))
            return _json(self._reconstruction(first, min(last + 1, len(self.body))))
        if match := re.fullmatch(r"/xorb/0*(\d+)\?signature=secret", request.path):
            assert "authorization" not in request.headers
            answer = _ranged(request, _xorb(self.stored or self.body, int(match[1])))
            answer.cut = self.cut
            return answer
        return Answer(404)

    def _reconstruction(self, start: int, stop: int) -> dict[str, Any]:
        """Which chunks of which xorbs make up the bytes from *start* to *stop*, and where those lie."""
        terms, places = [], {}
        for number in range(start // XORB, (stop - 1) // XORB + 1):
            begin = number * XORB
            first = (max(start, begin) - begin) // CHUNK
            end = (min(stop, begin + XORB) - begin + CHUNK - 1) // CHUNK
            size = min(begin + end * CHUNK, len(self.body)) - begin - first * CHUNK
            name, chunks = f"{number:064d}", {"start": first, "end": end}
            terms.append({"hash": name, "unpacked_length": size, "range": chunks})
            at = first * (CHUNK + 8)
            span = {"start": at, "end": at + size + 8 * (end - first) - 1}
            url = f"{self.cas.url}/xorb/{name}?signature=secret"
            places[name] = [{"range": chunks, "url": url, "url_range": span}]
        return {"offset_into_first_range": start % CHUNK, "terms": terms, "fetch_info": places}


@contextmanager
def xet_hub(body: bytes) -> Iterator[XetHub]:
    """Run both."""
    running = XetHub(body)
    with serving(running.answer_hub) as hub, serving(running.answer_cas) as cas:
        running.hub, running.cas = hub, cas
        yield running


def _xorb(body: bytes, number: int) -> bytes:
    """Chunks as a xorb has them: version, length stored (u24), compression (none), length (u24), bytes."""
    part = body[number * XORB : (number + 1) * XORB]
    chunks = [part[begin : begin + CHUNK] for begin in range(0, len(part), CHUNK)]
    lengths = [len(chunk).to_bytes(3, "little") for chunk in chunks]
    return b"".join(b"\0" + length + b"\0" + length + chunk for length, chunk in zip(lengths, chunks, strict=True))


def _json(document: Any) -> Answer:
    return Answer(body=json.dumps(document).encode(), headers={"Content-Type": "application/json"})


def _ranged(request: Request, body: bytes) -> Answer:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "bytes=0-"))
    assert match is not None
    begin, end = int(match[1]), min(int(match[2] or len(body) - 1) + 1, len(body))
    return Answer(206, body[begin:end], {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"})
