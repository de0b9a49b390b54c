"""How long a client waits before it tries again: as long as it is told to, else longer each time, never all alike."""

from __future__ import annotations

import threading
import time
from email.utils import formatdate

import pytest

from cpack_build.oci.connection import Connection
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.transport import pause
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
