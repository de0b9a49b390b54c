"""With ``CPACK_OUTPUT_URL`` the outputs go to S3-compatible storage, and callers get links that work."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator

import pytest
import requests
from PIL import Image

from tests.serve.running import Engine, Service, children, serving, wait_for, write_app
from tests.serve.storage import KEY, SECRET, Storage, storage
from tests.serve.workflows import EVERYTHING_INPUTS, everything


@pytest.fixture(scope="module")
def bucket() -> Iterator[Storage]:
    with storage() as server:
        yield server


@pytest.fixture(scope="module")
def storing(engine: Engine, bucket: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("storing")
    app = write_app(folder / "app", everything(), inputs=EVERYTHING_INPUTS)
    environment = {
        "CPACK_OUTPUT_URL": "s3://pictures/some/place",
        "CPACK_KEEP_SECONDS": "120",
        "AWS_ENDPOINT_URL_S3": bucket.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with serving(app, folder, engine=engine, **environment) as running:
        yield running


def test_the_outputs_are_links_into_the_bucket_that_anyone_can_follow(storing: Service, bucket: Storage) -> None:
    answer = storing.generate(size=48)
    assert answer.status_code == 200, answer.text
    outputs = {item["name"]: item for item in answer.json()["outputs"]}
    assert set(outputs) == {"picture.png", "note.txt", "copied.txt"}
    assert outputs["picture.png"]["url"].startswith(f"{bucket.url}/pictures/some/place/{answer.json()['id']}/")
    picture = requests.get(outputs["picture.png"]["url"], timeout=60)
    assert picture.headers["content-type"] == "image/png"
    assert picture.headers["content-disposition"] == 'inline; filename="picture.png"'
    assert Image.open(io.BytesIO(picture.content)).size == (48, 48)
    assert requests.get(outputs["note.txt"]["url"], timeout=60).text == "hello"
    changed = outputs["note.txt"]["url"].replace("note.txt", "picture.png")
    assert requests.get(changed, timeout=60).status_code == 403, "a link is for one file"
    assert not storing.leftovers()


def test_a_caller_who_names_a_type_still_gets_the_file(storing: Service) -> None:
    assert storing.generate(accept="text/plain").text == "hello"
    assert storing.generate(accept="application/zip").content.startswith(b"PK")


def test_streams_and_tasks_end_with_the_links(storing: Service) -> None:
    url = f"{storing.url}/generate_task"
    task = requests.post(f"{url}/submit", json={"size": 49}, timeout=60).json()

    def ended() -> bool:
        return bool(requests.get(f"{url}/status", params=task, timeout=60).json()["status"] == "completed")

    wait_for(ended, "the task to end")
    result = requests.get(f"{url}/get", params=task, timeout=60).json()
    assert requests.get(result["outputs"][0]["url"], timeout=60).status_code == 200
    stream = requests.post(f"{storing.url}/generate/stream", json={}, timeout=60).text
    assert "event: result" in stream
    assert "X-Amz-Signature" in stream


def test_what_the_storage_refuses_is_told_without_its_keys(storing: Service, bucket: Storage) -> None:
    bucket.refuse = "AccessDenied"
    try:
        answer = storing.generate()
    finally:
        bucket.refuse = ""
    assert answer.status_code == 502
    assert "could not be put into their storage" in answer.json()["error"]
    assert "AccessDenied" in storing.log
    assert not storing.leftovers()
    for secret in (KEY, SECRET):
        assert secret not in answer.text
        assert secret not in storing.log


def test_comfyui_does_not_get_to_see_the_keys(storing: Service) -> None:
    (child,) = children(storing.process.pid)
    with open(f"/proc/{child}/environ", "rb") as file:
        assert b"AWS_SECRET_ACCESS_KEY" not in file.read()


def test_a_url_that_names_no_bucket_is_refused_at_the_start(
    own_standin: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("wrong")
    app = write_app(folder / "app", everything())
    with serving(app, folder, engine=own_standin, wait=False, CPACK_OUTPUT_URL="https://x.example/y") as service:
        assert service.process.wait(60) == 2
        assert "s3://BUCKET" in service.log


def test_several_at_once_and_a_large_one_arrive_whole(storing: Service, bucket: Storage) -> None:
    sizes: list[tuple[int, int]] = []

    def ask(size: int) -> None:
        outputs = storing.generate(size=size).json()["outputs"]
        (link,) = (item["url"] for item in outputs if item["name"] == "picture.png")
        sizes.append(Image.open(io.BytesIO(requests.get(link, timeout=60).content)).size)

    threads = [threading.Thread(target=ask, args=(60 + number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sizes) == [(60 + number, 60 + number) for number in range(6)]
    large = os.urandom(20 << 20)
    answer = storing.generate(files={"attachment": ("large.bin", large)})
    (link,) = (item["url"] for item in answer.json()["outputs"] if item["output"] == "copied")
    assert requests.get(link, timeout=60).content == large
