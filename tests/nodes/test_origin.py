"""No web page from elsewhere drives the plugin, whatever it tries; the page that ComfyUI served does."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from cpack_build.nodes.errors import Refused
from cpack_build.nodes.origin import check_origin
from tests.nodes.routing import Comfyui, settled

OURS = {"Host": "127.0.0.1:8188", "X-CPack": "1"}
ROUTES = [
    ("GET", "/cpack/status"),
    ("GET", "/cpack/jobs"),
    ("GET", "/cpack/jobs/x"),
    ("GET", "/cpack/jobs/x/log"),
    ("GET", "/cpack/jobs/x/download"),
    ("POST", "/cpack/jobs"),
    ("POST", "/cpack/jobs/x/cancel"),
    ("GET", "/api/cpack/status"),
    ("POST", "/api/cpack/jobs"),
]


def refused(method: str, headers: Mapping[str, str]) -> str:
    with pytest.raises(Refused) as caught:
        check_origin(method, headers)
    assert caught.value.status == 403
    return caught.value.code


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
        ({"Sec-Fetch-Site": "same-site"}, "cross_site"),  # another port of this machine is another program
        ({"Sec-Fetch-Site": "whatever"}, "cross_site"),
        ({"Origin": "https://evil.example"}, "cross_origin"),
        ({"Origin": "http://127.0.0.1:3000"}, "cross_origin"),
        ({"Origin": "http://127.0.0.1"}, "cross_origin"),
        ({"Origin": "http://localhost:8188"}, "cross_origin"),
        ({"Origin": "null"}, "cross_origin"),
        ({"Origin": ""}, "cross_origin"),
        ({"Origin": "file://127.0.0.1:8188"}, "cross_origin"),
        ({"Origin": "http://127.0.0.1:8188.evil.example"}, "cross_origin"),
        ({"Origin": "http://127.0.0.1:99999"}, "cross_origin"),
        ({"Host": "evil.example:8188", "Origin": "http://evil.example:8188"}, "unknown_host"),  # rebinding
        ({"Host": "127.0.0.1.evil.example:8188"}, "unknown_host"),
        ({"Host": "evil.example@127.0.0.1:8188"}, "unknown_host"),
        ({"Host": "localhost.evil.example"}, "unknown_host"),
        ({"Host": "127.0.0.1:8188/evil"}, "unknown_host"),
        ({"Host": "[::1"}, "unknown_host"),
        ({"Host": ""}, "unknown_host"),
    ],
)
def test_a_page_from_elsewhere_is_refused(method: str, changed: dict[str, str], code: str) -> None:
    assert refused(method, OURS | changed) == code


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8188"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "localhost:8188", "Origin": "http://localhost:8188"},
        {"Host": "comfy.localhost"},
        {"Host": "192.168.0.7:8188", "Origin": "http://192.168.0.7:8188"},
        {"Host": "[::1]:8188", "Origin": "http://[::1]:8188"},
        {"Host": "10.0.0.1", "Origin": "https://10.0.0.1"},
        {"Host": "10.0.0.1:443", "Origin": "https://10.0.0.1"},
        {"Host": f"{socket.gethostname().lower().partition('.')[0]}:8188"},
    ],
)
def test_our_own_page_and_a_program_on_this_machine_are_not(changed: dict[str, str]) -> None:
    check_origin("POST", OURS | changed)


def test_a_name_is_known_once_its_owner_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    proxied = OURS | {"Host": "Comfy.Example", "Origin": "https://comfy.example"}
    assert refused("GET", proxied) == "unknown_host"
    monkeypatch.setenv("CPACK_HOSTS", "other.example, comfy.example")
    check_origin("GET", proxied)


@pytest.mark.parametrize("value", [None, "", "0", "yes"])
def test_what_changes_something_needs_the_header_that_no_form_can_send(value: str | None) -> None:
    headers = {"Host": "localhost"} | ({} if value is None else {"X-CPack": value})
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert refused(method, headers) == "no_header"
    check_origin("GET", headers)


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_refuses_a_page_from_elsewhere_in_words(comfyui: Comfyui, method: str, path: str) -> None:
    for headers, code in (
        ({"Sec-Fetch-Site": "cross-site"}, "cross_site"),
        ({"Host": "evil.example"}, "unknown_host"),
        ({"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}, "cross_site"),
    ):
        done = requests.request(method, comfyui.url + path, json={}, headers={"X-CPack": "1", **headers}, timeout=60)
        assert done.status_code == 403, (path, done.text)
        if not done.content and "Origin" in headers:
            continue  # real ComfyUI has refused it before us, without a word
        error = done.json()["error"]
        assert error["code"] == code
        assert error["message"]
        assert error["next"]
        assert "Access-Control-Allow-Origin" not in done.headers


def test_a_form_of_another_site_starts_nothing(comfyui: Comfyui) -> None:
    """A form cannot send our header, nor JSON; its browser names its origin."""
    before = comfyui.get("/cpack/jobs").json()
    url = comfyui.url + "/cpack/jobs"
    form = {"kind": "pack"}
    assert requests.post(url, data=form, headers={"Origin": "https://evil.example"}, timeout=60).status_code == 403
    assert requests.post(url, data=form, timeout=60).status_code == 403
    simple = {"X-CPack": "1", "Content-Type": "text/plain"}
    plain = requests.post(url, data='{"kind": "pack"}', headers=simple, timeout=60)
    assert (plain.status_code, plain.json()["error"]["code"]) == (400, "no_json")
    settled()
    assert comfyui.get("/cpack/jobs").json() == before


def _raw(comfyui: Comfyui, method: str, target: str) -> tuple[int, bytes]:
    """A request with *target* just as it is: the client tidies no path."""
    address = urlsplit(comfyui.url)
    connection: Any = http.client.HTTPConnection(str(address.hostname), address.port, timeout=60)
    connection.putrequest(method, target)
    connection.putheader("X-CPack", "1")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize(
    "key",
    [
        "%2fetc%2fpasswd", "..%2f..%2f..%2fetc%2fpasswd", "../../../../etc/passwd", "/etc/passwd", "%00",
        "..", ".", "%2e%2e", "..%5c..%5cetc", "$(id)", ";id", "%0d%0aX:%20y", "~root",
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", ["download", "log"])
def test_no_name_in_a_path_reads_a_file(comfyui: Comfyui, key: str, what: str) -> None:
    status, body = _raw(comfyui, "GET", f"/cpack/jobs/{key}/{what}")
    assert status in (400, 404)
    assert b"root:" not in body
