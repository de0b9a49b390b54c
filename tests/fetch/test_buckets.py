"""Files come from S3, Google Cloud Storage and Azure by the clouds' real clients, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, HashMismatch, NetworkError, Unresolvable
from cpack_build.fetch.remote import BucketFile
from cpack_build.fetch.store import Store
from cpack_build.fetch.transfer import Transferred, transfer
from cpack_build.fetch.tuning import Tuning
from tests.fetch.clouds import CLOUDS, SECRET, Cloud
from tests.fetch.servers import Answer, Request, Server, serving
from tests.need import missing

BODY = random.Random(11).randbytes(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
OBJECTS = {"loras/x.safetensors": BODY}
PART = 200_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


@pytest.fixture(params=CLOUDS, ids=lambda cloud: cloud.needed)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    asked: Cloud = request.param
    if importlib.util.find_spec(asked.needed) is None:
        missing(f"{asked.needed} (pip install 'cpack-build[buckets]')")
    return asked


@contextmanager
def at(cloud: Cloud, answer: Callable[[Request], Answer]) -> Iterator[Server]:
    with serving(answer) as server, pytest.MonkeyPatch.context() as patch:
        cloud.use(server.url, patch)
        yield server


def get(
    cloud: Cloud, store: Store, *, size: int | None = len(BODY), connections: int = 4
) -> tuple[Transferred | None, list[CpackError]]:
    problems: list[CpackError] = []
    tuning = Tuning(part=PART, retries=2, sleep=lambda _: None, connections=connections)
    remote = BucketFile(f"{cloud.scheme}://bucket/loras/x.safetensors")
    done = transfer([remote], sha256=SHA256, size=size, name="x", store=store, tuning=tuning, problems=problems)
    for problem in problems:
        assert SECRET not in f"{problem} {problem.hint}"
    return done, problems


def there(store: Store) -> bool:
    found = store.find(SHA256)
    return found is not None and found.path.read_bytes() == BODY


@pytest.mark.parametrize("size", [len(BODY), None])
def test_a_file_comes_whole_in_ranges(cloud: Cloud, store: Store, size: int | None) -> None:
    with at(cloud, cloud.service(OBJECTS)) as server:
        _, problems = get(cloud, store, size=size)
    assert problems == []
    assert there(store)
    asked = [request.headers.get("x-ms-range", request.headers.get("range")) for request in server.requests]
    ranges = {one for one in asked if one}
    assert len(ranges) >= 5


def test_what_broke_off_goes_on_in_the_next_run(cloud: Cloud, store: Store) -> None:
    """It refuses after two parts, and gives again the next day: nothing comes twice."""
    inner, parts, lock = cloud.service(OBJECTS), 0, threading.Lock()
    sent = 0

    def answer(request: Request) -> Answer:
        nonlocal parts, sent
        told = inner(request)
        if told.status == 206:
            with lock:
                parts += 1
                if parts > 2:
                    return cloud.service(OBJECTS, is_open=False)(request)
                sent += len(told.body)
        return told

    with at(cloud, answer):
        done, problems = get(cloud, store, connections=1)
    assert done is None
    assert len(problems) == 1
    assert sent == 2 * PART
    parts, again = 0, cloud.service(OBJECTS)

    def counting(request: Request) -> Answer:
        nonlocal sent
        told = again(request)
        with lock:
            sent += len(told.body) if told.status == 206 else 0
        return told

    with at(cloud, counting):
        get(cloud, Store(store.root, further=()))
    assert there(store)
    assert sent == len(BODY)


def test_a_connection_that_breaks_off_is_tried_again(cloud: Cloud, store: Store) -> None:
    inner, cuts = cloud.service(OBJECTS), iter([1000, 1000])
    lock = threading.Lock()

    def answer(request: Request) -> Answer:
        told = inner(request)
        with lock:
            return replace(told, cut=next(cuts, None)) if told.status == 206 else told

    with at(cloud, answer):
        _, problems = get(cloud, store)
    assert problems == []
    assert there(store)


def test_other_bytes_are_kept_aside_under_their_own_hash(cloud: Cloud, store: Store) -> None:
    wrong = BODY[::-1]
    with at(cloud, cloud.service({"loras/x.safetensors": wrong})):
        done, (problem,) = get(cloud, store)
    assert done is None
    assert isinstance(problem, HashMismatch)
    actual = hashlib.sha256(wrong).hexdigest()
    assert (store.root / "rejected" / actual).read_bytes() == wrong
    assert store.find(SHA256) is None
    assert store.find(actual) is None


def test_another_size_is_another_file(cloud: Cloud, store: Store) -> None:
    with at(cloud, cloud.service({"loras/x.safetensors": BODY[:-1]})):
        _, (problem,) = get(cloud, store)
    assert "has 999999 bytes, where 1000000 were promised" in problem.message


def test_a_missing_file_is_told_as_missing(cloud: Cloud, store: Store) -> None:
    with at(cloud, cloud.service({})):
        done, (problem,) = get(cloud, store)
    assert done is None
    assert isinstance(problem, Unresolvable)
    assert problem.message == f"{cloud.scheme}://bucket/loras/x.safetensors is not there."


def test_a_refusal_says_whose_credentials_are_wanted(cloud: Cloud, store: Store) -> None:
    with at(cloud, cloud.service(OBJECTS, is_open=False)):
        done, (problem,) = get(cloud, store)
    assert done is None
    assert isinstance(problem, NetworkError)
    assert problem.message == f"{cloud.scheme}://bucket/loras/x.safetensors refuses access."
    assert "credentials" in problem.hint
