"""The service's own OpenAPI document is true: what it promises is what anyone who follows it, or strays, is given."""

from __future__ import annotations

from collections.abc import Iterator

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from tests.serve.running import DEADLINE, Service, serving, write_app
from tests.serve.workflows import EVERYTHING_INPUTS, everything, picture


@pytest.fixture(scope="module")
def harmless(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose workflow neither waits nor fails when it is asked to, on the shared service's ComfyUI."""
    folder = tmp_path_factory.mktemp("harmless")
    workflow = {key: value for key, value in everything().items() if key not in ("5", "6", "7", "8")}
    workflow["9"]["inputs"]["images"] = ["4", 0]
    app = write_app(folder / "app", workflow, inputs=EVERYTHING_INPUTS)
    with serving(app, folder, COMFYUI_SERVER=service.comfyui) as running:
        yield running


_RIGHT, _WRONG = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
_FUZZED = [
    *(
        (path, "POST", mode)
        for path in ("/generate", "/generate/stream", "/generate_task/submit")
        for mode in (_RIGHT, _WRONG)
    ),
    *((f"/generate_task/{verb}", "GET", mode) for verb in ("status", "get") for mode in (_RIGHT, _WRONG)),
    *(("/generate_task/cancel", "PUT", mode) for mode in (_RIGHT, _WRONG)),
    *((path, "GET", _RIGHT) for path in ("/outputs/{id}/{name}", "/interface.json", "/workflow.json")),
]


@pytest.mark.parametrize(("path", "method", "mode"), _FUZZED)
def test_no_request_made_from_the_document_makes_the_service_fail(
    harmless: Service, path: str, method: str, mode: schemathesis.GenerationMode
) -> None:
    document = requests.get(f"{harmless.url}/docs.json", timeout=DEADLINE).json()
    described = document["paths"][path][method.lower()]
    operation = schemathesis.openapi.from_dict(document)[path][method]

    @settings(
        max_examples=25,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        answer = case.call(base_url=harmless.url, timeout=DEADLINE)
        assert answer.status_code < 500, (case.as_curl_command(), answer.text)
        # A path that was made wrong is another route's, or none's.
        assert str(answer.status_code) in described["responses"] or answer.status_code in (404, 405), answer.text

    ask()


def test_the_document_is_openapi_and_its_examples_run(service: Service) -> None:
    document = service.get("/docs.json").json()
    schemathesis.openapi.from_dict(document).validate()
    body = document["paths"]["/generate"]["post"]["requestBody"]
    assert not body["required"]  # the pack ships the defaults of both files
    example = body["content"]["application/json"]["example"]
    jsonschema.validate(example, body["content"]["application/json"]["schema"])
    assert requests.post(f"{service.url}/generate", json=example, timeout=DEADLINE).status_code == 200


def test_what_a_task_and_a_stream_answer_is_what_the_document_says(service: Service) -> None:
    components = service.get("/docs.json").json()["components"]["schemas"]
    url = f"{service.url}/generate_task"
    task = requests.post(f"{url}/submit", files={"photo": picture()}, timeout=DEADLINE).json()
    validator = jsonschema.Draft202012Validator({"components": {"schemas": components}, **components["Task"]})
    validator.validate(task)
    while (status := requests.get(f"{url}/status", params=task, timeout=DEADLINE).json())["status"] != "completed":
        validator.validate(status)
    validator.validate(status)
    linked = requests.get(service.url + status["result"]["outputs"][0]["url"], timeout=DEADLINE)
    assert linked.status_code == 200
    wrong = requests.post(f"{service.url}/generate", json={"size": "large"}, timeout=DEADLINE)
    jsonschema.validate(wrong.json(), components["Error"])
