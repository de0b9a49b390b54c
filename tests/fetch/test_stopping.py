"""A download that nobody waits for any more ends while its source says nothing, and what came is kept: read timeouts
are a minute here, as they are for users, and every server stays silent until the test is over."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpack_build.errors import Cancelled
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.remote import BucketFile
from cpack_build.fetch.store import Store
from cpack_build.fetch.transfer import transfer
from cpack_build.fetch.tuning import RateLimit, Tuning
from cpack_build.progress import SILENT, Stop, check, on_stop, pause, waiting_for, working
from tests.fetch.servers import Answer, Request, serving
from tests.fetch.test_transfer import BODY, SHA256, get, ranged, there

PATIENCE = 30.0
"""Seconds in which a download has to end: half a read timeout, and many times what it takes."""
PARALLEL = Tuning(part=1 << 20)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Set when the test is over: until then servers say nothing."""
    event = threading.Event()
    yield event
    event.set()


def stopped(work: Callable[[], object], *, when: Callable[[], bool]) -> None:
    """Do *work* in a pool as stages do, and end it with Ctrl-C *when* it hangs; it must end then, by that alone."""
    began = 0.0

    def interrupted() -> None:
        nonlocal began, future
        with working(1, SILENT) as (pool, _):
            future = pool.submit(work)
            while not when():
                assert not future.done(), future.exception()
                time.sleep(0.01)
            time.sleep(0.05)
            began = time.monotonic()
            raise KeyboardInterrupt

    future: Any = None
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < PATIENCE
    assert isinstance(future.exception(), Cancelled)


def silent_after(count: int, over: threading.Event) -> Callable[[Request], Answer]:
    inner = ranged(BODY)
    return lambda request: replace(inner(request), cut=count, silent=over)


@pytest.mark.parametrize("connections", [1, 4])
def test_it_ends_while_every_connection_is_silent_and_goes_on_next_time(
    store: Store, over: threading.Event, connections: int
) -> None:
    with serving(silent_after(300_000, over)) as server:
        stopped(
            lambda: get(store, server.url, tuning=replace(PARALLEL, connections=connections)),
            when=lambda: len(server.requests) == connections and came(store) == connections * 300_000,
        )
    with serving(ranged(BODY)) as server:
        get(store, server.url)
    assert there(store)
    assert sum(length(request) for request in server.requests) == len(BODY) - connections * 300_000


def came(store: Store) -> int:
    """Bytes that a download in another thread has in its journal."""
    journal = store.root / "partial" / f"{SHA256}.journal"
    data = journal.read_bytes() if journal.exists() else b""
    return sum(int.from_bytes(data[at : at + 8], "little") for at in range(24, len(data), 8))


def length(request: Request) -> int:
    first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


def test_it_ends_before_there_is_an_answer(store: Store, over: threading.Event) -> None:
    def hold(request: Request) -> Answer:
        over.wait(120)
        return Answer(404)

    with serving(hold) as server:
        stopped(lambda: get(store, server.url, tuning=PARALLEL), when=lambda: bool(server.requests))


def test_it_ends_while_a_name_is_looked_up(
    store: Store, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = threading.Event()

    def hold(*arguments: object, **more: object) -> Any:
        asked.set()
        over.wait(120)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hold)
    stopped(lambda: get(store, "http://hub.example/x", tuning=PARALLEL), when=asked.is_set)


def test_it_ends_while_the_source_asks_for_patience(store: Store) -> None:
    with serving(lambda _: Answer(503, headers={"Retry-After": "59"})) as server:
        stopped(lambda: get(store, server.url, tuning=PARALLEL), when=lambda: bool(server.requests))


def test_it_ends_while_the_rate_is_limited(store: Store) -> None:
    slow = replace(PARALLEL, limit=RateLimit(1000))
    with serving(ranged(BODY)) as server:
        stopped(lambda: get(store, server.url, tuning=slow), when=lambda: len(server.requests) >= 2)


def test_a_small_file_ends_too_and_leaves_nothing(store: Store, over: threading.Event) -> None:
    with serving(lambda _: Answer(body=BODY, cut=100, silent=over)) as server:
        stopped(
            lambda: download(server.url, store=store, sources=Sources(), sha256=SHA256),
            when=lambda: bool(server.requests),
        )
    assert [path for path in store.root.rglob("*") if path.is_file() and not path.name.startswith("memo.")] == []


def test_a_question_ends_too(over: threading.Event) -> None:
    def hold(request: Request) -> Answer:
        over.wait(120)
        return Answer(body=b"{}")

    with serving(hold) as server:
        asker = Asker(Sources())
        stopped(lambda: asker.get(server.url), when=lambda: bool(server.requests))


def test_a_file_in_a_bucket_ends_too(store: Store, over: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    asked = threading.Event()

    def hold(*arguments: object, **more: object) -> bytes:
        asked.set()
        over.wait(120)
        return b""

    MemoryFileSystem().pipe_file("/stopping/x", BODY)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", hold)
    remotes = [BucketFile("memory://stopping/x")]
    stopped(
        lambda: transfer(remotes, sha256=SHA256, size=len(BODY), name="x", store=store, tuning=PARALLEL),
        when=asked.is_set,
    )


def test_one_connection_that_fails_for_good_ends_the_silent_others(store: Store, over: threading.Event) -> None:
    inner, lock, count = silent_after(1000, over), threading.Lock(), 0

    def answer(request: Request) -> Answer:
        nonlocal count
        with lock:
            count += 1
            return inner(request) if count < 4 else Answer(404)

    began = time.monotonic()
    with serving(answer) as first, serving(ranged(BODY)) as second:
        _, (problem,) = get(store, first.url, second.url, tuning=PARALLEL)
    assert time.monotonic() - began < PATIENCE
    assert there(store)
    assert "is not there" in str(problem)


def test_a_stop_reaches_the_work_within_and_not_the_work_around() -> None:
    outer = Stop()
    with outer.applied():
        inner = Stop()
        called: list[str] = []
        with inner.applied(), on_stop(lambda: called.append("woken")):
            inner.set()
            assert called == ["woken"]
            with pytest.raises(Cancelled):
                check()
            with pytest.raises(Cancelled):
                pause(60)
            with pytest.raises(Cancelled):
                waiting_for(int)
        check()
        another = Stop()
        with another.applied(), on_stop(lambda: called.append("from around")):
            outer.set()
            assert called == ["woken", "from around"]
            with pytest.raises(Cancelled):
                check()
    check()


def test_what_was_left_to_itself_is_dropped_when_it_comes() -> None:
    go, dropped = threading.Event(), threading.Event()
    stop = Stop()
    threading.Timer(0.1, stop.set).start()
    with stop.applied(), pytest.raises(Cancelled):
        waiting_for(lambda: go.wait(60), drop=lambda result: dropped.set())
    assert not dropped.is_set()
    go.set()
    assert dropped.wait(60)


@pytest.mark.parametrize("error", [TimeoutError("late"), ValueError("bad"), SystemExit(3)])
def test_what_it_waits_for_raises_as_ever(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        waiting_for(fail)
