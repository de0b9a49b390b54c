"""How long a client waits before it tries again: as long as it is told to, else longer each time, never all alike."""

from __future__ import annotations

import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate

import pytest

from cpack_build.fetch.http import RequestsTransport
from cpack_build.oci import transport
from cpack_build.oci.connection import Connection
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.transport import Lost, Transport, pause
from tests.oci.misbehaving import Fault, run_misbehaving


class Waited(threading.Event):
    """Writes down how long it was waited for, and does not wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.seconds.append(timeout)
        return False


@pytest.fixture
def waited() -> Waited:
    return Waited()


def test_retry_after_is_waited_for_in_seconds_or_until_a_date_but_not_for_ever(waited: Waited) -> None:
    for after in ("7", "0", "100000", formatdate(time.time() + 30, usegmt=True), formatdate(0, usegmt=True)):
        pause(0, after, waited)
    assert waited.seconds[:3] == [7, 0, 60]
    assert 25 <= waited.seconds[3] <= 30
    assert waited.seconds[4] == 0


@pytest.mark.parametrize("after", [None, "", "soon", "-5", "1e9", "\u0665", "Mon, 99 Foo 2026 99:99:99 GMT"])
def test_without_it_the_wait_doubles_and_no_two_clients_wait_alike(waited: Waited, after: str | None) -> None:
    for attempt in range(4):
        pause(attempt, after, waited)
    for attempt, seconds in enumerate(waited.seconds):
        assert 0.25 * 2**attempt <= seconds <= 0.75 * 2**attempt
    for _ in range(20):
        pause(0, after, waited)
    assert len(set(waited.seconds[4:])) > 10


def test_what_a_registry_asks_for_is_waited_for(waited: Waited) -> None:
    answers = [Fault(status=429, headers={"Retry-After": "11"}), Fault(status=503, headers={"Retry-After": "12"})]
    with run_misbehaving() as fake:
        fake.fault = lambda request: answers.pop(0) if answers else Fault(status=200)
        connection = Connection(parse_reference(f"{fake.host}/x:v1"), stop=waited)
        connection.ask("GET", f"{connection.base}manifests/v1", what="manifest v1").close()
    assert waited.seconds == [11, 12]


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server whose headers come a byte at a time, without end; its address."""

    class Dripping(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while True:
                    self.request.sendall(b"x")
                    time.sleep(0.02)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Dripping) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "127.0.0.1:{1}".format(*server.server_address)
        server.shutdown()


def test_headers_that_drip_are_no_answer(dripping: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and all of them never."""
    monkeypatch.setattr(transport, "_TIMEOUT", (0.1, 0.2))
    monkeypatch.setattr(transport, "_PATIENCE", 0.2)
    with pytest.raises(Lost, match="no answer in time"):
        Transport(dripping).send("GET", f"http://{dripping}/v2/", {}, None)
    download = RequestsTransport(timeouts=(0.1, 0.1))
    with pytest.raises(ConnectionError, match="no answer in time"), download.get(f"http://{dripping}/x", headers={}):
        pass
