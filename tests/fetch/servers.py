"""A web server on loopback that does what a test tells it, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Request:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    method: str = "GET"
    body: bytes = b""


@dataclass
class Answer:
    """What to send; *cut* sends so many bytes and then closes the connection, unless it stays *silent* until then."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    silent: threading.Event | None = None


@dataclass
class Server:
    """Where it listens, and what it was asked."""

    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def serving(answer: Callable[[Request], Answer]) -> Iterator[Server]:
    """Run a server that asks *answer* about each request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {key.lower(): value for key, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", "0")))
            request = Request(self.path, headers, self.command, body)
            server.requests.append(request)
            told = answer(request)
            self.send_response(told.status)
            for key, value in {"Content-Length": str(len(told.body)), **told.headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(told.body if told.cut is None else told.body[: told.cut])
            if told.silent is not None:
                self.wfile.flush()
                told.silent.wait(120)
            self.close_connection = True

        do_HEAD = do_PATCH = do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        server = Server(f"http://127.0.0.1:{running.server_port}")
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()


def serving_files(files: dict[str, bytes]) -> AbstractContextManager[Server]:
    """:func:`serving` with fixed *files* by path."""

    def answer(request: Request) -> Answer:
        path = unquote(request.path.partition("?")[0])
        if path not in files or request.method == "POST":
            return Answer(404)
        kind = "text/html" if path.endswith("/") else "application/octet-stream"
        return Answer(body=files[path], headers={"Content-Type": kind})

    return serving(answer)
