"""Files come by URL only from where the operator allows, whatever a caller tries."""

from __future__ import annotations

import asyncio
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import requests
from PIL import Image

from cpack_build.errors import RunError
from cpack_build.serve.remote import Remote, is_public
from tests.serve.running import Service, serving, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, picture


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers by path: a picture, a redirect to what follows ``/to/``, more than was said, nothing."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(64):
                self.wfile.write(b"x" * (1 << 16))
        elif self.path == "/photo.png":
            data = picture()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fetch(remote: Remote, url: str, target: Path, *, most: int = 1 << 20) -> None:
    asyncio.run(remote.fetch(url, target, most=most))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.1.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff02::1",
    ],
)
def test_an_address_inside_is_not_public(address: str) -> None:
    assert not is_public(address)


def test_addresses_of_the_open_internet_are_public() -> None:
    for address in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "0.0.0.0",
        "localhost.",
        "①②⑦.0.0.1",
    ],
)
def test_no_spelling_of_this_machine_is_reached(host: str, pages: str, tmp_path: Path) -> None:
    Pages.asked.clear()
    port = pages.rpartition(":")[2]
    with pytest.raises(RunError) as caught:
        fetch(Remote(["*"]), f"http://{host}:{port}/photo.png", tmp_path / "x")
    assert caught.value.status == 400
    assert not Pages.asked


@pytest.mark.parametrize(
    "url",
    [
        "ftp://files.example/x",
        "file:///etc/passwd",
        "http://user:secret@files.example/x",
        "http://other.example/x",
        "http://files.example.other.example/x",
        "http://evilfiles.example/x",
        "http:///x",
        "http://[",
        "http://files.example:99999/x",
    ],
)
def test_only_urls_of_the_allow_list_are_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        fetch(Remote(["files.example", "*.cdn.example"]), url, tmp_path / "x")
    assert "secret" not in str(caught.value)


def test_a_redirect_is_checked_as_a_url_of_its_own(pages: str, tmp_path: Path) -> None:
    allowed = Remote(["127.0.0.1"], private=True)
    fetch(allowed, f"{pages}/to//photo.png", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == picture()
    port = pages.rpartition(":")[2]
    for target in (f"http://localhost:{port}/photo.png", "file:///etc/passwd", f"{pages}/to/" * 8 + f"{pages}/x"):
        with pytest.raises(RunError):
            fetch(allowed, f"{pages}/to/{target}", tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_more_than_the_limit_is_not_taken(pages: str, tmp_path: Path) -> None:
    for path, most in (("/photo.png", 10), ("/endless", 1 << 20)):
        with pytest.raises(RunError, match="larger than"):
            fetch(Remote(["*"], private=True), pages + path, tmp_path / "x", most=most)
    assert not (tmp_path / "x").exists() or (tmp_path / "x").stat().st_size <= 1 << 20


def test_a_request_may_name_a_file_by_url_where_that_is_allowed(service: Service, pages: str, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    allowed = {"CPACK_URL_HOSTS": "127.0.0.1", "CPACK_URL_PRIVATE": "1"}
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui, **allowed) as fetching:
        body = {"photo": f"{pages}/photo.png"}
        headers = {"Accept": "image/png"}
        answer = requests.post(f"{fetching.url}/generate", json=body, headers=headers, timeout=60)
        assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
        answer = fetching.generate(photo=f"{pages}/none.png")
        assert answer.status_code == 400
        assert answer.json()["detail"][0]["loc"] == ["photo"]
        assert "status 404" in answer.text
        assert not fetching.leftovers()
    answer = service.generate(photo=f"{pages}/photo.png")
    assert answer.status_code == 400
    assert "CPACK_URL_HOSTS" in answer.text
