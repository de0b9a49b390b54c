"""``cpack_build.Client`` runs a served workflow, tells its progress, and raises what went wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

import cpack_build
from cpack_build.errors import NetworkError, RunError
from cpack_build.serve.caller import Client
from tests.serve.running import Service, free_port, wait_for
from tests.serve.workflows import picture


def test_it_runs_the_workflow_and_tells_the_progress(service: Service, tmp_path: Path) -> None:
    assert cpack_build.Client is Client
    photo = tmp_path / "photo.png"
    photo.write_bytes(picture())
    told: list[tuple[str, Any]] = []
    with Client(service.url) as client:
        assert client.parameters()["properties"]["size"]["maximum"] == 512
        result = client.generate(
            {"photo": photo, "caption": "123"}, size=50, seconds=0.21, on_progress=lambda *event: told.append(event)
        )
    assert result.files["note.txt"] == b"123"
    assert Image.open(io.BytesIO(result.files["picture.png"])).size == (50, 50)
    assert {"started", "node", "step"} <= {event for event, _ in told}
    assert sorted(path.name for path in result.save(tmp_path / "out")) == ["copied.txt", "note.txt", "picture.png"]


def test_it_raises_what_the_service_says(service: Service) -> None:
    with Client(service.url) as client:
        with pytest.raises(RunError, match="512") as caught:
            client.generate(size=9999)
        assert caught.value.status == 400
        with pytest.raises(RunError, match="no luck") as caught:
            client.generate(fail=True)
        assert (caught.value.status, caught.value.node_class) == (500, "StandinFail")
    with pytest.raises(NetworkError, match="does not answer"):
        Client(f"http://127.0.0.1:{free_port()}").generate()


def test_an_error_of_the_callers_takes_the_run_back(service: Service) -> None:
    def stop(event: str, data: Any) -> None:
        if event == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Client(service.url) as client:
        client.generate(seconds=500, size=51, on_progress=stop)
    queue = f"{service.comfyui}/queue"
    wait_for(lambda: not requests.get(queue, timeout=60).json()["queue_running"], "ComfyUI to be free")
