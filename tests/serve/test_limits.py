"""The service holds its limits: on bodies however they come, on how many are under way, on time, on who may ask."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import requests

from tests.serve.running import Engine, Service, serving, wait_for, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything

TOKEN = "a-t0ken"
LIMITS = {
    "CPACK_TOKEN": TOKEN,
    "CPACK_MAX_UPLOAD_MIB": "1",
    "CPACK_MAX_REQUESTS": "8",
    "CPACK_BODY_SECONDS": "2",
    "CPACK_TIMEOUT": "20",
    "CPACK_LOG": "json",
}
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def limited(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with small limits and a token, on the other one's ComfyUI."""
    folder = tmp_path_factory.mktemp("limited")
    app = write_app(folder / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, folder, COMFYUI_SERVER=service.comfyui, **LIMITS) as running:
        yield running


def ask(service: Service, **values: object) -> requests.Response:
    return requests.post(f"{service.url}/generate", json=values, headers=AUTHORIZED, timeout=120)


def test_without_the_token_only_health_and_the_page_answer(limited: Service) -> None:
    for path in ("/livez", "/readyz", "/healthz", "/", "/page/page.js"):
        assert limited.get(path).status_code == 200, path
    for path in ("/interface.json", "/workflow.json", "/metrics", "/schema.json", "/outputs/x/y", "/no/such"):
        answer = limited.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
    for wrong in ("", "Bearer", "Bearer x", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"):
        headers = {"Authorization": wrong.encode("latin-1")}
        assert requests.post(f"{limited.url}/generate", json={}, headers=headers, timeout=60).status_code == 401
    assert ask(limited).status_code == 200
    assert requests.get(f"{limited.url}/metrics", headers=AUTHORIZED, timeout=60).status_code == 200


def test_a_body_too_large_is_refused_with_its_length_and_without(limited: Service) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"caption": "'
        for _ in range(64):
            yield b"x" * (1 << 16)
        yield b'"}'

    for path in ("/generate", "/generate/stream", "/generate_task/submit", "/generate_task"):
        for body in (b"x" * (2 << 20), chunks()):
            headers = {**AUTHORIZED, "Content-Type": "application/json"}
            try:
                answer = requests.post(f"{limited.url}{path}", data=body, headers=headers, timeout=60)
            except requests.ConnectionError:
                continue  # it closed while we still sent: refused, too
            assert answer.status_code == 413, (path, answer.text)
            assert "1 MiB" in answer.json()["error"]
    assert not limited.leftovers()


def test_a_body_that_never_comes_is_given_up(limited: Service) -> None:
    where = urlsplit(limited.url)
    with socket.create_connection((where.hostname, where.port), timeout=60) as connection:
        head = f"POST /generate HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n{{"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_a_thousand_at_once_are_answered_or_told_to_come_back(limited: Service) -> None:
    async def all_of_them() -> list[tuple[int, str]]:
        async def one(number: int) -> tuple[int, str]:
            body = {"seconds": 0.01, "size": 30 + number % 7}
            async with session.post(f"{limited.url}/generate", json=body) as answer:
                await answer.read()
                return answer.status, answer.headers.get("retry-after", "")

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, headers=AUTHORIZED) as session:
            return await asyncio.gather(*map(one, range(1000)))

    answers = Counter(asyncio.run(all_of_them()))
    assert set(answers) == {(200, ""), (429, "2")}
    assert answers[200, ""] >= 8
    assert ask(limited).status_code == 200
    metrics = requests.get(f"{limited.url}/metrics", headers=AUTHORIZED, timeout=60).text
    assert "cpack_queue_depth 0\n" in metrics
    assert "cpack_running 0\n" in metrics
    (start,) = re.findall(r"^cpack_start_seconds ([0-9.]+)$", metrics, re.MULTILINE)
    assert float(start) > 0
    assert 'cpack_phase_seconds_count{phase="run"}' in metrics
    assert 'cpack_requests_total{status="429"}' in metrics
    assert "cpack_device_memory_bytes" in metrics


def test_tasks_count_against_the_limit_until_they_end(limited: Service) -> None:
    def submit() -> requests.Response:
        body = {"seconds": 500, "size": 31}
        return requests.post(f"{limited.url}/generate_task/submit", json=body, headers=AUTHORIZED, timeout=60)

    tasks = [submit() for _ in range(8)]
    assert [answer.status_code for answer in tasks] == [200] * 8
    assert submit().status_code == 429
    assert ask(limited).status_code == 429
    for answer in tasks:
        url = f"{limited.url}/generate_task/cancel?task_id={answer.json()['task_id']}"
        assert requests.put(url, headers=AUTHORIZED, timeout=60).json()["status"] == "canceled"
    assert ask(limited).status_code == 200


def test_a_request_that_takes_too_long_is_taken_back(service: Service, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path, COMFYUI_SERVER=service.comfyui, CPACK_TIMEOUT="1") as hasty:
        answer = hasty.generate(seconds=500, size=33)
        assert answer.status_code == 504
        assert "1 s" in answer.json()["error"]
        queue = f"{service.comfyui}/queue"
        wait_for(lambda: not requests.get(queue, timeout=60).json()["queue_running"], "ComfyUI to be free")
        assert hasty.generate().status_code == 200


def test_pages_of_other_sites_cannot_use_it(service: Service) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Origin": "https://elsewhere.example"}
    assert requests.post(f"{service.url}/generate", json={}, headers=headers, timeout=60).status_code == 403


def test_each_request_is_one_line_of_json_with_its_id(limited: Service) -> None:
    headers = {**AUTHORIZED, "X-Request-ID": "find-me"}
    requests.post(f"{limited.url}/generate", json={"size": 9999}, headers=headers, timeout=60)

    def found() -> list[dict[str, object]]:
        lines = [json.loads(line) for line in limited.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["request_id"] == "find-me"]

    (line,) = wait_for(found, "the line")
    assert (line["method"], line["path"], line["status"], line["client"]) == ("POST", "/generate", 400, "127.0.0.1")
    assert TOKEN not in limited.log


def test_two_backends_share_the_requests(own_standin: Engine, service: Service, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path / "own", engine=own_standin) as other:
        both = f"{service.comfyui},{other.comfyui}"
        with serving(app, tmp_path / "both", COMFYUI_SERVER=both) as shared:
            metrics = "cpack_comfyui_ready 2\n"
            wait_for(lambda: metrics in shared.get("/metrics").text, "both to answer")
            with ThreadPoolExecutor(2) as pool:
                work = [pool.submit(shared.generate, seconds=1.5 + n / 10, size=40) for n in range(2)]
                busy = [f"{address}/queue" for address in both.split(",")]
                wait_for(
                    lambda: all(requests.get(url, timeout=60).json()["queue_running"] for url in busy), "both to work"
                )
                assert [item.result().status_code for item in work] == [200, 200]
            other.process.send_signal(signal.SIGTERM)
            other.process.wait(60)
            wait_for(lambda: "cpack_comfyui_ready 1\n" in shared.get("/metrics").text, "one to be gone")
            assert shared.get("/readyz").status_code == 200
            assert shared.generate().status_code == 200


def test_told_to_stop_it_ends_a_stream_with_its_result(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path, engine=own_standin, CPACK_SHUTDOWN_SECONDS="60") as service:
        body = {"seconds": 1.5}
        with requests.post(f"{service.url}/generate/stream", json=body, stream=True, timeout=60) as answer:
            lines = answer.iter_lines(chunk_size=1)
            for line in lines:
                if line == b"event: step":
                    break
            service.process.send_signal(signal.SIGTERM)
            assert b"event: result" in list(lines)
        assert service.process.wait(60) == 0, service.log
