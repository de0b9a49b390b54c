"""A large file comes once, over several connections, from wherever it is had, and is kept only when it is right."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, StorageError, UnsafeInput
from cpack_build.fetch.http import RequestsTransport
from cpack_build.fetch.partial import Partial, alone
from cpack_build.fetch.remote import HttpFile
from cpack_build.fetch.store import Store
from cpack_build.fetch.transfer import Transferred, transfer
from cpack_build.fetch.tuning import RateLimit, Tuning
from tests.fetch.servers import Answer, Request, serving
from tests.lock.progress import Heard

BODY = random.Random(7).randbytes(5_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = Tuning(part=1 << 20, sleep=lambda _: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


def ranged(body: bytes, **more: object) -> Callable[[Request], Answer]:
    """A server with ranges (RFC 9110, section 14)."""

    def answer(request: Request) -> Answer:
        wanted = request.headers.get("range")
        if wanted is None:
            return Answer(body=body, **more)  # type: ignore[arg-type]
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), min(int(last or len(body)) + 1, len(body))
        if begin >= len(body):
            return Answer(416)
        headers = {"Content-Range": f"bytes {begin}-{end - 1}/{len(body)}"}
        return Answer(206, body[begin:end], headers, **more)  # type: ignore[arg-type]

    return answer


def get(
    store: Store, *urls: str, size: int | None = len(BODY), tuning: Tuning = QUICK, **more: object
) -> tuple[Transferred | None, list[CpackError]]:
    problems: list[CpackError] = []
    http = RequestsTransport()
    remotes = [HttpFile(url, http) for url in urls]
    done = transfer(
        remotes, sha256=SHA256, size=size, name="x", store=store, tuning=tuning, problems=problems, **more  # type: ignore[arg-type]
    )  # fmt: skip
    return done, problems


def there(store: Store) -> bool:
    found = store.find(SHA256)
    return found is not None and found.path.read_bytes() == BODY


def test_parts_come_over_several_connections_and_are_hashed_on_the_way(store: Store) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    inner = ranged(BODY)

    def answer(request: Request) -> Answer:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1
        return inner(request)

    with serving(answer) as server:
        done, problems = get(store, server.url, frame=lambda size: (b"<%d>" % size, b"</>"))
    assert problems == []
    assert there(store)
    assert done is not None
    assert done.framed == hashlib.sha256(b"<5000000>" + BODY + b"</>").hexdigest()
    assert len(server.requests) == 5
    assert most > 1
    assert list((store.root / "partial").iterdir()) == []


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_server_without_ranges_sends_it_in_one_go(store: Store, size: int | None) -> None:
    with serving(lambda _: Answer(body=BODY)) as server:
        get(store, server.url, size=size)
    assert there(store)
    assert len(server.requests) <= 2


def test_without_any_size_it_is_as_long_as_what_comes(store: Store) -> None:
    with serving(lambda _: Answer(body=BODY, headers={"Content-Length": ""})) as server:
        get(store, server.url, size=None, frame=lambda size: (b"", b""))
    assert there(store)


def test_cut_twenty_times_it_goes_on(store: Store) -> None:
    inner, cuts = ranged(BODY), iter([200_000] * 20)
    lock = threading.Lock()

    def answer(request: Request) -> Answer:
        with lock:
            return replace(inner(request), cut=next(cuts, None))

    heard = Heard()
    with serving(answer) as server:
        get(store, server.url, progress=heard)
    assert there(store)
    assert len(server.requests) >= 20
    assert heard.amounts["x"] == len(BODY)


def test_cut_twenty_times_without_ranges_it_goes_on_too(store: Store) -> None:
    cuts = iter([200_000 * count for count in range(1, 21)])
    with serving(lambda _: Answer(body=BODY, cut=next(cuts, None))) as server:
        get(store, server.url)
    assert there(store)
    assert len(server.requests) == 21


def test_a_place_that_brings_nothing_is_given_up_and_the_next_goes_on_where_it_broke(store: Store) -> None:
    inner, count = ranged(BODY), 0

    def failing(request: Request) -> Answer:
        nonlocal count
        count += 1
        return inner(request) if count <= 2 else Answer(503)

    with serving(failing) as first, serving(ranged(BODY)) as second:
        _, (problem,) = get(store, first.url, second.url, tuning=replace(QUICK, connections=1))
    assert there(store)
    assert len(second.requests) == 3
    assert "HTTP 503 again and again" in str(problem)


def test_a_source_that_moves_to_another_host_midway_is_followed(store: Store) -> None:
    with serving(ranged(BODY)) as old, serving(ranged(BODY)) as new:
        count = 0

        def moving(request: Request) -> Answer:
            nonlocal count
            count += 1
            return Answer(302, headers={"Location": f"{(old if count <= 3 else new).url}/x"})

        with serving(moving) as server:
            get(store, server.url)
        assert there(store)
        assert (len(old.requests), len(new.requests)) == (3, 2)


def test_what_comes_next_time_goes_on_where_it_was(store: Store) -> None:
    inner, count = ranged(BODY), 0

    def failing(request: Request) -> Answer:
        nonlocal count
        count += 1
        return inner(request) if count <= 3 else Answer(404)

    with serving(failing) as server:
        done, _ = get(store, server.url, tuning=replace(QUICK, connections=1))
    assert done is None
    with serving(ranged(BODY)) as server:
        get(Store(store.root), server.url)
    assert there(store)
    assert len(server.requests) == 2


def test_parts_of_two_different_files_do_not_become_one(store: Store) -> None:
    """A first source with other bytes fails halfway; the second alone is right."""
    other, count = ranged(BODY[::-1]), 0

    def failing(request: Request) -> Answer:
        nonlocal count
        count += 1
        return other(request) if count <= 2 else Answer(404)

    heard = Heard()
    with serving(failing) as first, serving(ranged(BODY)) as second:
        get(store, first.url, second.url, progress=heard)
    assert there(store)
    assert any("does not fit" in note for note in heard.notes)


def test_what_has_another_hash_is_kept_aside_and_the_next_source_is_asked(store: Store) -> None:
    wrong = BODY[::-1]
    with serving(ranged(wrong)) as first, serving(ranged(BODY)) as second:
        _, (problem,) = get(store, f"{first.url}/x?token=secret", second.url)
    actual = hashlib.sha256(wrong).hexdigest()
    aside = store.root / "rejected" / actual
    assert there(store)
    assert aside.read_bytes() == wrong
    assert store.find(actual) is None
    for part in (actual, SHA256, str(aside)):
        assert part in str(problem)
    assert "secret" not in str(problem)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(body=b"<!DOCTYPE html><p>hello"), "a web page instead of a file"),
        (Answer(body=b"x", headers={"Content-Type": "text/html"}), "a web page instead of a file"),
        (Answer(body=b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "a Git LFS pointer"),
        (Answer(body=BODY[:-1]), "has 4999999 bytes, where 5000000 were promised"),
        (Answer(206, BODY[:10], {"Content-Range": "bytes 5-14/5000000"}), "another range"),
        (Answer(206, BODY[:10]), "another range"),
        (Answer(401), "refuses access"),
        (Answer(404), "is not there"),
        (Answer(416), "fewer bytes"),
        (Answer(429, headers={"Retry-After": "3600"}), "HTTP 429 again and again"),
        (Answer(body=BODY, cut=10), "cannot be downloaded"),
        (Answer(302, headers={"Location": "/again"}), "redirects without end"),
    ],
)
def test_what_is_not_the_file_is_named_and_leaves_nothing(store: Store, answer: Answer, said: str) -> None:
    with serving(lambda _: answer) as server:
        done, (problem,) = get(store, server.url)
    assert done is None
    assert said in str(problem)
    assert [
        path for path in store.root.rglob("*") if path.is_file() and path.parent.name in ("blobs", "rejected")
    ] == []


def test_a_login_page_is_told_with_its_host(store: Store) -> None:
    def answer(request: Request) -> Answer:
        if request.path.startswith("/login"):
            return Answer(body=b"<html>", headers={"Content-Type": "text/html"})
        return Answer(302, headers={"Location": "/login?next=/x"})

    with serving(answer) as server:
        _, (problem,) = get(store, f"{server.url}/x")
    assert "leads to the login page of 127.0.0.1" in str(problem)


def test_a_link_planted_in_place_of_a_download_is_refused(store: Store, tmp_path: Path) -> None:
    (store.root / "partial").mkdir(parents=True)
    (store.root / "partial" / SHA256).symlink_to(tmp_path / "victim")
    with serving(ranged(BODY)) as server, pytest.raises(UnsafeInput, match="is a link"):
        get(store, server.url)
    assert not (tmp_path / "victim").exists()


def test_a_journal_that_lies_costs_time_only(store: Store) -> None:
    partial = Partial(store.root, SHA256, part=1 << 20)
    partial.expect(len(BODY), "x")
    for number in range(5):
        begin, end = partial.span(number)
        partial.write(number, bytes(end - begin))
    partial.close()
    with serving(ranged(BODY)) as server:
        get(store, server.url)
    assert there(store)


def test_two_threads_that_want_it_download_it_once(store: Store) -> None:
    with serving(ranged(BODY)) as server:
        threads = [threading.Thread(target=get, args=(Store(store.root), server.url)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert there(store)
    assert len(server.requests) == 5


SCRIPT = """
import sys
from pathlib import Path
from cpack_build.fetch.http import RequestsTransport
from cpack_build.fetch.remote import HttpFile
from cpack_build.fetch.store import Store
from cpack_build.fetch.transfer import transfer
from cpack_build.fetch.tuning import Tuning
root, url, sha256, size = sys.argv[1:]
done = transfer(
    [HttpFile(url, RequestsTransport())], sha256=sha256, size=int(size), name="x", store=Store(Path(root)),
    tuning=Tuning(part=1 << 20, sleep=lambda _: None),
)
assert done is not None
"""


def process(store: Store, url: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(store.root), url, SHA256, str(len(BODY))], env=environment
    )


def test_two_processes_that_want_it_download_it_once(store: Store) -> None:
    with serving(ranged(BODY)) as server:
        processes = [process(store, server.url) for _ in range(2)]
        assert [one.wait(60) for one in processes] == [0, 0]
    assert there(store)
    assert len(server.requests) == 5


FORKING = """
import os, random, signal, sys, time
moments = random.Random(1)
def work():
{script}
for _ in range(50):
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(moments.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store = Store(Path(root), further=())
    found = store.find(sha256)
    print("whole" if found else "none", flush=True)
    if found:
        assert __import__("hashlib").sha256(found.path.read_bytes()).hexdigest() == sha256
        found.path.unlink()
"""


def test_killed_at_fifty_moments_it_is_never_half_there(store: Store) -> None:
    """Children are forked from a process that has imported everything, so that fifty cost no fifty starts."""
    head, _, work = SCRIPT.partition("done = ")
    script = head + FORKING.format(script="    done = " + work.replace("\n", "\n    "))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    inner = ranged(BODY)

    def slow(request: Request) -> Answer:
        time.sleep(0.003)
        return inner(request)

    with serving(slow) as server:
        arguments = [str(store.root), server.url, SHA256, str(len(BODY))]
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments], env=environment, check=True, capture_output=True, text=True
        )
        assert len(done.stdout.split()) == 50
        assert "none" in done.stdout
        get(store, server.url)
    assert there(store)
    assert list((store.root / "partial").iterdir()) == []


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(small_disk: Path) -> None:
    store = Store(small_disk / "store", further=())
    with serving(ranged(BODY)) as server, pytest.raises(StorageError, match=r"No space left for x: it has 5\.0 MB"):
        get(store, server.url)
    assert len(server.requests) == 0
    assert list((store.root / "partial").iterdir()) == []


def test_a_disk_that_fills_is_told(small_disk: Path) -> None:
    store = Store(small_disk / "store", further=())
    with (
        serving(lambda _: Answer(body=BODY, headers={"Content-Length": ""})) as server,
        pytest.raises(StorageError, match="No space left"),
    ):
        get(store, server.url, size=None)


def test_the_rate_limit_is_that_of_all_together() -> None:
    slept: list[float] = []
    limit = RateLimit(1000, sleep=slept.append)
    for _ in range(5):
        limit.take(1000)
    assert 9.5 < sum(slept) <= 10.0


def test_a_token_does_not_follow_a_redirect_to_another_host(store: Store) -> None:
    with serving(ranged(BODY)) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        with serving(lambda _: Answer(302, headers={"Location": elsewhere})) as server:
            remote = HttpFile(server.url, RequestsTransport(), {"Authorization": "Bearer secret"})
            transfer([remote], sha256=SHA256, size=len(BODY), name="x", store=store, tuning=QUICK)
    assert there(store)
    assert all(request.headers.get("authorization") == "Bearer secret" for request in server.requests)
    assert all("authorization" not in request.headers for request in other.requests)


def test_who_waits_for_another_says_so_and_then_has_what_that_one_brought(store: Store) -> None:
    heard = Heard()
    with serving(ranged(BODY)) as server:
        with alone(store.root, SHA256, waiting=lambda: None):
            waiter = threading.Thread(target=get, args=(Store(store.root), server.url), kwargs={"progress": heard})
            waiter.start()
            while not heard.titles:
                time.sleep(0.01)
            store.put([BODY], what="x")
        waiter.join()
        assert server.requests == []
    assert heard.titles == ["x: waiting for another cpack-build that downloads it"]
