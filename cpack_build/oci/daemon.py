"""Docker's daemon, spoken to over its Unix socket: no program is started, and an image goes straight into the socket.

Only a daemon that listens on a socket of this machine is one: by ``DOCKER_HOST``, by the context that the docker
command would use, or at the usual place. Whatever else there is (ssh, TLS) is the command's to know
(docs/decisions/002-engines.md).

API: Docker Engine API v1.24 and later, https://docs.docker.com/reference/api/engine/. Paths without a version are
answered by the daemon's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from cpack_build.errors import ToolMissing, writing

__all__ = ["Daemon", "Refusal", "docker_socket"]

_SOCKET = "/var/run/docker.sock"
_PING_SECONDS = 15
_ANSWER_SECONDS = 120
"""For one question: a daemon that unpacks an image may be slow to answer."""
_ANSWER_BYTES = 64 << 20
_KEPT_OUTPUT = 64 << 10
_PIECE = 1 << 20


class Refusal(Exception):
    """The daemon says no, in the words of *args*."""


class Daemon:
    """A daemon that listens at the Unix socket *path*.

    Every method raises :class:`ToolMissing` when it does not answer, and :class:`Refusal` with its own words.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def answers(self) -> bool:
        """Whether there is a daemon at all."""
        try:
            with self._asked("GET", "/_ping", seconds=_PING_SECONDS) as answer:
                return answer.status == 200
        except (ToolMissing, Refusal):
            return False

    def get(self, path: str) -> Any:
        """The document at *path*; ``None`` where there is none."""
        with self._asked("GET", path, missing_ok=True) as answer:
            return None if answer.status == 404 else _document(answer.read(_ANSWER_BYTES))

    def inspect(self, kind: str, name: str, *, query: str = "") -> dict[str, Any] | None:
        """What it knows of the ``image`` or ``container`` *name*."""
        found = self.get(f"/{kind}s/{quote(name, safe='/:@')}/json{query}")
        return found if isinstance(found, dict) else None

    def load(self, archive: Iterable[bytes], size: int) -> None:
        """Give it the *archive* of *size* bytes (``POST /images/load``).

        An archive that breaks off hangs up: the daemon misses the rest, and keeps nothing.
        """
        headers = {"Content-Type": "application/x-tar", "Content-Length": str(size)}
        with self._asked("POST", "/images/load?quiet=1", body=archive, headers=headers, seconds=None) as answer:
            # Errors of the load itself come after the status, as one object of many (moby: pkg/jsonmessage).
            for line in answer.read(_KEPT_OUTPUT).splitlines():
                said = _document(line) if line.strip() else None
                if isinstance(said, dict) and said.get("error"):
                    raise Refusal(str(said["error"]))

    def save(self, name: str, file: BinaryIO) -> None:
        """Write the archive of the image *name* to *file* (``GET /images/{name}/get``)."""
        with self._asked("GET", f"/images/{quote(name, safe='/:@')}/get", seconds=None) as answer:
            while piece := answer.read(_PIECE):
                with writing(Path(file.name)):
                    file.write(piece)

    @contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        *,
        body: Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = _ANSWER_SECONDS,
        missing_ok: bool = False,
    ) -> Iterator[HTTPResponse]:
        connection = _SocketConnection(self.path, seconds)
        try:
            # It may answer and hang up before it has read all; then it says why.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            if answer.status >= 400 and not (missing_ok and answer.status == 404):
                raise Refusal(_message(answer.read(_KEPT_OUTPUT)) or f"it answered with {answer.status}")
            yield answer
        except TimeoutError as error:
            raise _silent(f"Docker did not answer within {seconds} seconds.") from error
        except (OSError, HTTPException) as error:
            raise _silent(f"Docker stopped answering: {str(error) or type(error).__name__}") from error
        finally:
            connection.close()


class _SocketConnection(HTTPConnection):
    def __init__(self, path: str, seconds: float | None) -> None:
        super().__init__("docker", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        if sys.platform == "win32":
            raise OSError("this system's Python has no Unix sockets")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def docker_socket(
    environment: Mapping[str, str] = os.environ, *, reads: Callable[[Path], object] | None = None
) -> str | None:
    """Where the daemon listens that the docker command would speak to; ``None`` if that is no socket of this machine.

    Its order: ``DOCKER_HOST``, ``DOCKER_CONTEXT``, the current context of ``config.json``, the usual place. Each file
    that it depends on is told to *reads* just before it is read, whether it is there or not.
    """
    if host := environment.get("DOCKER_HOST"):
        return _path_of(host)
    folder = Path(environment.get("DOCKER_CONFIG") or Path(environment.get("HOME") or "/") / ".docker")
    context = environment.get("DOCKER_CONTEXT") or _read(folder / "config.json", reads).get("currentContext")
    if not context or context == "default":
        return _SOCKET
    # A context's folder is named by the hash of its name (docker/cli: cli/context/store).
    named = hashlib.sha256(str(context).encode()).hexdigest()
    endpoints = _read(folder / "contexts/meta" / named / "meta.json", reads).get("Endpoints")
    docker = endpoints.get("docker") if isinstance(endpoints, dict) else None
    return _path_of(str(docker.get("Host"))) if isinstance(docker, dict) else None


def _path_of(host: str) -> str | None:
    return host.removeprefix("unix://") if host.startswith("unix:///") else None


def _read(path: Path, reads: Callable[[Path], object] | None) -> dict[str, Any]:
    if reads is not None:
        reads(path)
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _document(said: bytes) -> Any:
    try:
        return json.loads(said)
    except ValueError as error:
        raise Refusal(f"it answered with {said[:100]!r}") from error


def _message(said: bytes) -> str:
    with suppress(Refusal):
        document = _document(said)
        if isinstance(document, dict) and document.get("message"):
            return str(document["message"])
    return said.decode("utf-8", "replace").strip()[:500]


def _silent(problem: str) -> ToolMissing:
    return ToolMissing(
        problem, hint="Start its daemon, or see that you may use its socket and that DOCKER_HOST is right."
    )
