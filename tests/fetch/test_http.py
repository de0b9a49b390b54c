"""Downloads are kept only when they are right, and retried only where that can help. A real server on loopback."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from cpack_build.errors import HashMismatch, NetworkError, Unresolvable, UnsafeInput
from cpack_build.fetch.http import RequestsTransport, Sources, download
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.fetch.tuning import Tuning
from tests.fetch.servers import Answer, Request, serving, serving_files
from tests.fetch.test_transfer import ranged

BODY = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def left_behind(store: Store) -> list[Path]:
    return [path for folder in ("tmp", "blobs") for path in (store.root / folder).rglob("*") if path.is_file()]


def test_a_file_is_streamed_into_the_store_and_fetched_once(store: Store) -> None:
    with serving_files({"/x.bin": BODY}) as server:
        first = download(f"{server.url}/x.bin", store=store, sources=Sources(), sha256=SHA256, size=len(BODY))
        second = download(f"{server.url}/x.bin", store=store, sources=Sources(), sha256=SHA256)

    assert first.path.read_bytes() == BODY
    assert second == first
    assert len(server.requests) == 1


def test_another_hash_names_both_and_leaves_nothing(store: Store) -> None:
    with serving_files({"/x.bin": BODY}) as server, pytest.raises(HashMismatch) as caught:
        download(f"{server.url}/x.bin?key=secret", store=store, sources=Sources(), sha256="0" * 64)

    assert SHA256 in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 5
    assert left_behind(store) == []


def test_more_bytes_than_announced_are_not_read(store: Store) -> None:
    with serving_files({"/x.bin": BODY}) as server, pytest.raises(HashMismatch, match="more than 10 bytes"):
        download(f"{server.url}/x.bin", store=store, sources=Sources(), sha256=SHA256, size=10)
    assert left_behind(store) == []


def test_a_broken_connection_is_taken_up_where_it_broke(store: Store) -> None:
    def answer(request: Request) -> Answer:
        wanted = request.headers.get("range")
        if wanted is None:
            return Answer(body=BODY, cut=3_000_000)
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        return Answer(206, BODY[start:])

    with serving(answer) as server:
        file = download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256, sleep=lambda _: None)

    assert file.path.read_bytes() == BODY
    first, second = (request.headers.get("range") for request in server.requests)
    assert first is None
    assert second is not None
    assert int(second.removeprefix("bytes=").removesuffix("-")) >= 2_000_000


def test_a_server_without_ranges_is_read_again(store: Store) -> None:
    cuts = iter([1_500_000, 3_000_000, None])
    with serving(lambda _: Answer(body=BODY, cut=next(cuts))) as server:
        file = download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256, sleep=lambda _: None)
    assert file.path.read_bytes() == BODY


def test_without_a_hash_a_broken_download_is_not_patched_together(store: Store) -> None:
    with serving(lambda _: Answer(body=BODY, cut=3_000_000)) as server, pytest.raises(NetworkError):
        download(f"{server.url}/x", store=store, sources=Sources(), sleep=lambda _: None)
    assert len(server.requests) == 1
    assert left_behind(store) == []


def test_a_busy_server_is_asked_again_when_it_says(store: Store) -> None:
    waits: list[float] = []
    answers = iter([Answer(503), Answer(429, headers={"Retry-After": "7"}), Answer(body=BODY)])
    with serving(lambda _: next(answers)) as server:
        download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256, sleep=waits.append)
    assert waits == [1.0, 7.0]


@pytest.mark.parametrize(
    ("status", "said"), [(404, "is not there"), (403, "refuses access"), (401, "netrc"), (418, "418")]
)
def test_what_will_not_change_is_not_asked_again(store: Store, status: int, said: str) -> None:
    with serving(lambda _: Answer(status)) as server, pytest.raises(NetworkError, match=said):
        download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256, sleep=lambda _: None)
    assert len(server.requests) == 1


def test_a_web_page_is_told_from_a_file(store: Store) -> None:
    page = Answer(body=b"<!doctype html><p>Log in", headers={"Content-Type": "text/html; charset=utf-8"})
    with serving(lambda _: page) as server, pytest.raises(NetworkError, match="a web page instead of a file"):
        download(f"{server.url}/x.safetensors", store=store, sources=Sources(), sha256=SHA256)
    assert len(server.requests) == 1


def test_a_redirect_to_a_local_file_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(BODY)
    answer = Answer(302, headers={"Location": (tmp_path / "secret").as_uri()})
    with serving(lambda _: answer) as server, pytest.raises(UnsafeInput, match="no http"):
        download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256)


@pytest.mark.parametrize("location", ["http://[::1/x", "https://[", "http://["])
def test_a_redirect_to_what_is_no_address_is_refused(store: Store, location: str) -> None:
    answer = Answer(302, headers={"Location": location})
    with serving(lambda _: answer) as server, pytest.raises(UnsafeInput, match="no http"):
        download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256)


def test_the_body_of_a_redirect_is_not_read(store: Store) -> None:
    """Nobody wants it, and it may have no end."""
    end = threading.Event()

    def answer(request: Request) -> Answer:
        if request.path == "/there":
            return Answer(body=BODY)
        return Answer(302, b"x", {"Location": "/there", "Content-Length": str(1 << 40)}, silent=end)

    sources = Sources(http=RequestsTransport(timeouts=(2, 2)))
    with serving(answer) as server:
        try:
            file = download(f"{server.url}/x", store=store, sources=sources, sha256=SHA256)
        finally:
            end.set()
    assert file.path.read_bytes() == BODY


def test_endless_redirects_end(store: Store) -> None:
    answer = Answer(302, headers={"Location": "/again"})
    with serving(lambda _: answer) as server, pytest.raises(NetworkError, match="redirects without end"):
        download(f"{server.url}/x", store=store, sources=Sources(), sha256=SHA256)


def test_an_unreachable_host_is_a_network_error_with_a_way_out(store: Store) -> None:
    sources = Sources(http=RequestsTransport(timeouts=(2, 2)))
    with serving_files({}) as server:
        gone = server.url
    with pytest.raises(NetworkError, match=r"Connection refused.*--mirror") as caught:
        download(f"{gone}/x?token=secret", store=store, sources=sources, sha256=SHA256, sleep=lambda _: None)
    assert "secret" not in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_mirrored_url_is_adopted_in_place(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(BODY)
    sources = Sources(Mirrors({"https://hub.example/": f"{tmp_path}/"}))

    file = download("https://hub.example/x.bin", store=store, sources=sources, sha256=SHA256)

    assert file.path == tmp_path / "x.bin"
    assert left_behind(store) == []


def test_a_mirrored_file_with_another_hash_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"other")
    sources = Sources(Mirrors({"https://hub.example/": f"{tmp_path}/"}))
    with pytest.raises(HashMismatch, match=SHA256):
        download("https://hub.example/x.bin", store=store, sources=sources, sha256=SHA256)


def test_a_mirror_without_the_file_says_so(store: Store, tmp_path: Path) -> None:
    sources = Sources(Mirrors({"https://hub.example/": f"{tmp_path}/"}))
    with pytest.raises(Unresolvable, match="where no file is"):
        download("https://hub.example/none", store=store, sources=sources, sha256=SHA256)


def test_a_document_may_not_name_a_local_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(BODY)
    for url in (str(tmp_path / "x.bin"), (tmp_path / "x.bin").as_uri()):
        with pytest.raises(UnsafeInput):
            download(url, store=store, sources=Sources(), sha256=SHA256)


def test_a_mirror_reads_urls_as_a_server_would(store: Store, tmp_path: Path) -> None:
    (tmp_path / "x+y z.bin").write_bytes(BODY)
    sources = Sources(Mirrors({"https://hub.example/": f"{tmp_path}/"}))
    file = download("https://hub.example/x%2by%20z.bin?download=true", store=store, sources=sources, sha256=SHA256)
    assert file.path == tmp_path / "x+y z.bin"


def test_a_large_file_comes_in_parts_and_goes_on_in_another_run(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel of torch has nearly a gigabyte."""
    monkeypatch.setattr("cpack_build.fetch.http._LARGE", 1 << 20)
    sources = Sources(tuning=Tuning(connections=1, part=1 << 20, sleep=lambda _: None))
    inner, count = ranged(BODY), 0

    def failing(request: Request) -> Answer:
        nonlocal count
        count += 1
        return inner(request) if count <= 2 else Answer(404)

    with serving(failing) as server, pytest.raises(NetworkError, match="is not there"):
        download(f"{server.url}/x", store=store, sources=sources, sha256=SHA256, size=len(BODY))
    with serving(inner) as server:
        file = download(f"{server.url}/x", store=store, sources=sources, sha256=SHA256, size=len(BODY), what="x.whl")
        assert len(server.requests) == 3
    assert file.path.read_bytes() == BODY
    assert file == store.find(SHA256)
