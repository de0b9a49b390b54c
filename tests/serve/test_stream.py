"""Long jobs tell how they go on, can be left and taken back, and take nobody else's with them."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from cpack_build.serve.webhook import signature
from tests.serve.running import Engine, Service, children, serving, wait_for, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, picture

Event = tuple[str, dict[str, Any]]


@contextlib.contextmanager
def streaming(service: Service, **values: Any) -> Iterator[Iterator[Event]]:
    """The events of ``POST /generate/stream``; leaving the block hangs up."""
    with requests.post(f"{service.url}/generate/stream", json=values, stream=True, timeout=60) as answer:
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield events_of(answer)


def events_of(answer: requests.Response) -> Iterator[Event]:
    name = ""
    for line in answer.iter_lines(chunk_size=1):
        if line.startswith(b"event: "):
            name = line[7:].decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


def queue(service: Service) -> tuple[int, int]:
    found = requests.get(f"{service.comfyui}/queue", timeout=60).json()
    return len(found["queue_running"]), len(found["queue_pending"])


def test_a_stream_tells_nodes_steps_previews_and_the_result(engine: Engine, service: Service) -> None:
    with streaming(service, seconds=0.31, caption="streamed", size=21) as events:
        found = list(events)
    names = [name for name, _ in found]
    assert names[-1] == "result"
    assert names.count("result") == 1
    assert "error" not in names
    assert names.index("started") < names.index("node") < names.index("step")
    node = next(data for name, data in found if name == "node" and data["node"]["title"] == "Wait")
    assert node["node"]["class"] == "StandinSleep"
    assert 0 < node["done"] < node["nodes"] == len(everything())
    steps = [data for name, data in found if name == "step"]
    assert (steps[-1]["step"], steps[-1]["steps"], steps[-1]["node"]["title"]) == (6, 6, "Wait")
    if engine.python == sys.executable:  # the stand-in's node shows pictures; the real one has none to show
        preview = next(data for name, data in found if name == "preview")
        assert preview["media_type"] == "image/jpeg"
        assert Image.open(io.BytesIO(base64.b64decode(preview["data"]))).format == "JPEG"
    outputs = {item["name"]: item["url"] for item in found[-1][1]["outputs"]}
    assert service.get(outputs["note.txt"]).text == "streamed"
    assert Image.open(io.BytesIO(service.get(outputs["picture.png"]).content)).size == (21, 21)


def test_a_stream_ends_with_the_error_that_generate_would_give(service: Service) -> None:
    with streaming(service, fail=True) as events:
        found = list(events)
    name, data = found[-1]
    assert (name, data["status"], data["node"]["title"]) == ("error", 500, "Fail on request")
    assert "/app" not in json.dumps(data)


def test_wrong_parameters_are_refused_before_a_stream_begins(service: Service) -> None:
    answer = requests.post(f"{service.url}/generate/stream", json={"size": 9999}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["detail"][0]["loc"] == ["size"]


@pytest.mark.parametrize("path", ["/generate/stream", "/generate_task/submit"])
def test_what_generate_refuses_every_way_of_asking_refuses_alike(path: str, service: Service) -> None:
    before = len(service.log)
    headers = {"Content-Type": "application/json"}
    for body in (rb'{"caption": "\ud83d"}', b'{"sise": "secret"}', b'{"size": "secret"}', b"[]", b"{"):
        asked = [
            requests.post(f"{service.url}{where}", data=body, headers=headers, timeout=60)
            for where in ("/generate", path)
        ]
        assert [answer.status_code for answer in asked] == [400, 400]
        assert asked[0].json() == asked[1].json()
    assert "Traceback" not in service.log[before:]
    assert "secret" not in service.log[before:]
    assert not service.leftovers()


def test_a_waiting_request_tells_its_place_and_leaving_takes_back_one_alone(service: Service) -> None:
    with contextlib.ExitStack() as first:
        running = first.enter_context(streaming(service, seconds=500, size=22))
        assert "started" in (name for name, _ in running)
        with streaming(service, seconds=0, size=24) as waiting:
            assert next(waiting) == ("queued", {"position": 1})
            with streaming(service, seconds=500, size=23) as left:
                assert next(left) == ("queued", {"position": 2})
            wait_for(lambda: queue(service) == (1, 1), "the one that was left to be taken back, and no other")
            first.close()
            assert list(waiting)[-1][0] == "result"
    wait_for(lambda: not service.leftovers(), "nothing to be left")


def test_leaving_a_running_request_interrupts_it_and_the_next_one_runs(service: Service) -> None:
    left = streaming(service, seconds=500, size=25)
    events = left.__enter__()
    while next(events)[0] != "step":
        pass
    with streaming(service, caption="after") as waiting:
        assert next(waiting) == ("queued", {"position": 1})
        task = submit(service, caption="task")
        wait_for(lambda: queue(service) == (1, 2), "two to wait")
        left.__exit__(None, None, None)
        assert list(waiting)[-1][0] == "result"
    wait_for(lambda: status(service, task)["status"] == "completed", "the task of another to complete")


def status(service: Service, task: str) -> dict[str, Any]:
    return dict(service.get(f"/generate_task/status?task_id={task}").json())


def submit(service: Service, /, **values: Any) -> str:
    answer = requests.post(f"{service.url}/generate_task/submit", json=values, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["task_id"])


def test_a_task_is_fetched_later_as_generate_would_answer(service: Service) -> None:
    task = submit(service, caption="later")
    wait_for(lambda: status(service, task)["status"] == "completed", "the task")
    found = status(service, task)
    assert found["completed_at"] >= found["executed_at"] >= found["created_at"]
    assert {item["name"] for item in found["result"]["outputs"]} == {"picture.png", "note.txt", "copied.txt"}
    for _ in range(2):
        answer = service.get(f"/generate_task/get?task_id={task}")
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.read("note.txt") == b"later"
    headers = {"Accept": "image/png"}
    one = requests.get(f"{service.url}/generate_task/get?task_id={task}", headers=headers, timeout=60)
    assert one.headers["content-type"] == "image/png"


def test_a_task_that_fails_says_so_with_the_node(service: Service) -> None:
    task = submit(service, fail=True)
    wait_for(lambda: status(service, task)["status"] == "failed", "the task to fail")
    answer = service.get(f"/generate_task/get?task_id={task}")
    assert answer.status_code == 500
    assert answer.json()["node"]["title"] == "Fail on request"


def test_a_cancelled_task_is_interrupted_and_the_others_go_on(service: Service) -> None:
    running, waiting, other = (
        submit(service, seconds=500, size=26),
        submit(service, seconds=500, size=27),
        submit(service, caption="other"),
    )
    wait_for(lambda: queue(service) == (1, 2), "one to run and two to wait")
    assert service.get(f"/generate_task/get?task_id={running}").status_code == 400
    for task in (waiting, running):
        answer = requests.put(f"{service.url}/generate_task/cancel?task_id={task}", timeout=60)
        assert answer.json()["status"] == "canceled"
    wait_for(lambda: status(service, other)["status"] == "completed", "the other to complete")
    assert service.get(f"/generate_task/get?task_id={running}").status_code == 410
    assert not service.leftovers()


def test_an_unknown_task_is_not_found(service: Service) -> None:
    assert service.get("/generate_task/status?task_id=x").status_code == 404
    assert service.get("/generate_task/status").status_code == 400
    assert service.get("/generate_task/get?task_id=../x").status_code == 404


def test_bentomls_own_client_runs_tasks(service: Service, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    # The asynchronous client: in BentoML 1.4.39 the other one's submit() ends in an AttributeError of its own.
    script = (
        "import asyncio, bentoml, pathlib, sys\n"
        "async def main():\n"
        "    async with bentoml.AsyncHTTPClient(sys.argv[1]) as client:\n"
        "        task = await client.generate_task.submit(photo=pathlib.Path(sys.argv[2]), caption='a task')\n"
        "        while (await task.get_status()).value not in ('completed', 'failed'): await asyncio.sleep(0.05)\n"
        "        print(pathlib.Path(await task.get()).read_bytes()[:2])\n"
        "        other = await client.generate_task.submit(seconds=500, size=28)\n"
        "        await other.cancel()\n"
        "        print((await other.get_status()).value)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, service.url, photo], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["b'PK'", "canceled"]


def test_comfyui_killed_under_a_stream_ends_it_with_the_cause(own_standin: Engine, tmp_path: Path) -> None:
    app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, tmp_path, engine=own_standin) as service:
        (child,) = children(service.process.pid)
        with streaming(service, seconds=500) as events:
            while next(events)[0] != "step":
                pass
            os.kill(child, signal.SIGKILL)
            found = list(events)
        name, data = found[-1]
        assert (name, data["status"]) == ("error", 502)
        assert "SIGKILL" in data["error"]
        service.wait_ready()
        with streaming(service, caption="again") as events:
            assert list(events)[-1][0] == "result"
        metrics = service.get("/metrics").text
        assert "cpack_comfyui_losses_total 1\n" in metrics


@pytest.mark.parametrize("secret", ["s3cret", ""])
def test_a_webhook_is_told_the_end_signed_and_again_if_it_failed(
    own_standin: Engine, tmp_path: Path, secret: str
) -> None:
    taken: list[tuple[dict[str, str], bytes]] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            taken.append((dict(self.headers), body))
            self.send_response(500 if len(taken) == 1 else 204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as hook:
        threading.Thread(target=hook.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{hook.server_port}/told"
        app = write_app(tmp_path / "app", everything(), inputs=EVERYTHING_INPUTS)
        environment = {"CPACK_URL_HOSTS": "127.0.0.1", "CPACK_URL_PRIVATE": "1", "CPACK_WEBHOOK_SECRET": secret}
        with serving(app, tmp_path, engine=own_standin, **environment) as service:
            headers = {"X-CPack-Webhook": "http://elsewhere.example/"}
            refused = requests.post(f"{service.url}/generate_task/submit", json={}, headers=headers, timeout=60)
            assert refused.status_code == 400
            headers = {"X-CPack-Webhook": url}
            answer = requests.post(f"{service.url}/generate_task/submit", json={}, headers=headers, timeout=60)
            wait_for(lambda: len(taken) == 2, "the webhook to be told again")
        hook.shutdown()
    assert taken[0][1] == taken[1][1]
    told, body = taken[1]
    document = json.loads(body)
    assert (document["task_id"], document["status"]) == (answer.json()["task_id"], "completed")
    signed = told.get("X-CPack-Signature", "")
    if secret:
        assert signed == signature(body, secret=secret, when=int(signed[2:].partition(",")[0]))
    else:
        assert not signed
