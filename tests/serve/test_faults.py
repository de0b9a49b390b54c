"""Whatever ComfyUI does, a request ends, with its result or with what went wrong; the next one is served."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import requests

from tests.serve.faulty import Faulty, faulty
from tests.serve.running import Engine, Service, serving, wait_for, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, picture


@pytest.fixture(scope="module")
def proxy(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    """A ComfyUI to be spoilt, behind a proxy. It is nobody else's: uploads stay where only its own machine could remove
    them."""
    folder = tmp_path_factory.mktemp("spoilt")
    app = write_app(folder / "app", everything(), inputs=EVERYTHING_INPUTS)
    with serving(app, folder, engine=engine) as service, faulty(service.comfyui) as running:
        yield running


@pytest.fixture(scope="module")
def attached(proxy: Faulty, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on that ComfyUI; a request may take 6 s."""
    folder = tmp_path_factory.mktemp("attached")
    workflow = everything()
    del workflow["13"]  # it writes where only ComfyUI's machine can read
    app = write_app(folder / "app", workflow, inputs=EVERYTHING_INPUTS)
    with serving(app, folder, COMFYUI_SERVER=proxy.address, CPACK_TIMEOUT="6") as running:
        yield running


@pytest.fixture
def faults(proxy: Faulty, attached: Service) -> Iterator[dict[str, str]]:
    """What is spoilt; nothing any more after the test, and then the service works again."""
    yield proxy.faults
    proxy.faults.clear()
    attached.wait_ready()
    assert ask(attached).status_code == 200, "it recovered"
    assert not attached.leftovers()


def ask(service: Service, **values: object) -> requests.Response:
    answer: requests.Response = service.generate(accept="image/png", files={"photo": ("x.png", picture())}, **values)
    return answer


@pytest.mark.parametrize(
    ("route", "fault", "status", "told"),
    [
        ("POST /prompt", "html", 502, "unreadable"),
        ("POST /prompt", "list", 502, "no object"),
        ("POST /prompt", "reset", 502, "lost"),
        ("POST /prompt", "hang", 504, "longer than 6 s"),
        ("POST /upload", "html", 502, "unreadable"),
        ("POST /upload", "list", 502, "unreadable"),
        ("POST /upload", "error", 502, "did not take the file x.png"),
        ("POST /upload", "reset", 503, "not ready"),
        ("GET /view", "gone", 502, "'picture' (CPackOutputImage) is missing"),
        ("GET /view", "error", 502, "did not give the output"),
        ("GET /view", "short", 502, "unreadable"),
        ("GET /view", "reset", 502, "lost"),
    ],
)
def test_what_comfyui_answers_wrongly_is_told(
    attached: Service, faults: dict[str, str], route: str, fault: str, status: int, told: str
) -> None:
    faults[route] = fault
    answer = ask(attached, size=40)
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
    assert "Traceback" not in attached.log
    assert attached.get("/livez").status_code == 200


@pytest.mark.parametrize("fault", ["garbage", "error", "hang"])
def test_a_websocket_that_is_of_no_use_costs_no_result(
    attached: Service, proxy: Faulty, faults: dict[str, str], fault: str
) -> None:
    faults["GET /ws"] = fault
    proxy.drop_sockets()
    assert ask(attached, size=41).status_code == 200


def test_a_websocket_that_breaks_while_the_request_runs_costs_no_result(
    attached: Service, proxy: Faulty, faults: dict[str, str]
) -> None:
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(ask(attached, size=42, seconds=1).status_code))
    asking.start()
    wait_for(lambda: requests.get(f"http://{proxy.address}/queue", timeout=60).json()["queue_running"], "it to run")
    faults["GET /ws"] = "error"
    proxy.drop_sockets()
    asking.join()
    assert answers == [200]


def test_a_history_that_cannot_be_read_ends_the_request(
    attached: Service, proxy: Faulty, faults: dict[str, str]
) -> None:
    faults |= {"GET /ws": "error", "GET /history": "list"}
    proxy.drop_sockets()
    answer = ask(attached, size=43)
    assert (answer.status_code, "unreadable" in answer.json()["error"]) == (502, True), answer.text
