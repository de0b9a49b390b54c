"""A daemon's BuildKit as a builder elsewhere: an address by TLS with certificates on both sides, as buildkitd's.

dockerd gives its BuildKit's gRPC on its own socket after ``POST /grpc`` with ``Upgrade: h2c`` (so buildx's driver
``docker`` reaches it); each connection to the address is led there, and from then on bytes are passed on."""

from __future__ import annotations

import selectors
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests import need

__all__ = ["Relay", "certify", "run_relay"]

_ASK = b"POST /grpc HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Relay:
    """The address, and the folder with ``ca.pem``, ``cert.pem`` and ``key.pem`` by which it is reached."""

    url: str
    folder: Path
    connections: int = 0

    @property
    def options(self) -> list[str]:
        """``--driver-opt`` for ``docker buildx create --driver remote``."""
        names = {"cacert": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
        listed = ",".join(f"{key}={self.folder / name}" for key, name in names.items())
        return ["--driver-opt", f"{listed},servername=localhost"]


@contextmanager
def run_relay(host: str, folder: Path) -> Iterator[Relay]:
    """The BuildKit of the daemon at *host* (``unix://…``) on a port of loopback, for as long as the context lasts."""
    certify(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"tcp://127.0.0.1:{server.getsockname()[1]}", folder)

        def serve() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=_serve_one, args=(plain, context, host, relay), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield relay
        server.shutdown(socket.SHUT_RDWR)


def _serve_one(plain: socket.socket, context: ssl.SSLContext, host: str, relay: Relay) -> None:
    with (
        suppress(OSError),
        context.wrap_socket(plain, server_side=True) as client,
        socket.socket(socket.AF_UNIX) as daemon,
    ):
        daemon.connect(host.removeprefix("unix://"))
        daemon.sendall(_ASK)
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += daemon.recv(1)
        assert answer.split()[1] == b"101", answer
        relay.connections += 1
        _pass_on(client, daemon)


def _pass_on(client: ssl.SSLSocket, daemon: socket.socket) -> None:
    """In both directions. One TLS connection must not be read and written by two threads at once."""
    client.setblocking(False)
    daemon.setblocking(False)
    waiting = {client: bytearray(), daemon: bytearray()}
    """What each has yet to be sent."""
    other = {client: daemon, daemon: client}
    with selectors.DefaultSelector() as selector:
        for one in waiting:
            selector.register(one, selectors.EVENT_READ)
        while True:
            for one, to in other.items():
                events = selectors.EVENT_READ if len(waiting[to]) < 1 << 20 else 0
                events |= selectors.EVENT_WRITE if waiting[one] else 0
                if events:
                    try:
                        selector.modify(one, events)
                    except KeyError:
                        selector.register(one, events)
                elif one in selector.get_map():
                    selector.unregister(one)
            for key, ready in selector.select(timeout=60):
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if ready & selectors.EVENT_READ:
                    with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                        while True:
                            data = source.recv(1 << 16)
                            if not data:
                                return
                            waiting[other[source]] += data
                if waiting[source]:
                    with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
                        del waiting[source][: source.send(waiting[source])]


def certify(folder: Path) -> None:
    """A CA that is server and client in one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(need.tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())
