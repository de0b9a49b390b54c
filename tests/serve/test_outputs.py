"""Several outputs come as the caller accepts them, and what is kept for links is bounded in time and space."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import io
import os
import time
from pathlib import Path

import pytest
import requests
from PIL import Image

from cpack_build.errors import RunError
from cpack_build.serve.answer import choose_bundle, choose_file, names_of
from cpack_build.serve.exchange import Produced
from cpack_build.serve.kept import Kept, sweep
from cpack_build.workflow import Output
from tests.serve.running import Service

NAMES = {"picture.png", "note.txt", "copied.txt"}


@pytest.mark.parametrize(
    ("accept", "bundle"),
    [
        ("*/*", "zip"),
        ("application/zip", "zip"),
        ("multipart/mixed", "multipart"),
        ("application/json", "base64"),
        ("application/json; files=base64", "base64"),
        ("application/json;files=links", "links"),
        ("application/json;q=0.1;files=links, multipart/mixed;q=0.2", "multipart"),
        ("application/json;q=0", "zip"),
        ("nonsense", "zip"),
    ],
)
def test_accept_chooses_how_several_come_together(accept: str, bundle: str) -> None:
    assert choose_bundle(accept) == bundle


def test_an_only_file_is_wrapped_only_when_json_with_files_is_asked_for() -> None:
    only = Produced(Output("x", "x", "CPackOutputImage", "image"), Path("a.png"))
    assert choose_file([only], "application/json") is only
    assert choose_file([only], "application/json;files=links") is None


def test_names_never_meet() -> None:
    twins = [Produced(Output(name, name, "X", "file"), Path("a.txt")) for name in ("a/b", "a_b")]
    assert names_of(twins) == ["a_b.txt", "_a_b.txt"]


def test_multipart_has_each_output_under_its_name(service: Service) -> None:
    answer = service.generate(accept="multipart/mixed", caption="in parts")
    assert answer.status_code == 200
    head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
    parts = {
        part.get_filename(): part
        for part in email.message_from_bytes(head + answer.content, policy=email.policy.HTTP).walk()
        if not part.is_multipart()
    }
    assert set(parts) == NAMES
    assert parts["picture.png"].get_content_type() == "image/png"
    assert Image.open(io.BytesIO(parts["picture.png"].get_payload(decode=True))).size == (64, 64)
    assert parts["note.txt"].get_payload(decode=True) == b"in parts"


def test_json_has_each_output_in_base64(service: Service) -> None:
    answer = service.generate(accept="application/json", caption="in base64", size=300)
    outputs = {item["name"]: item for item in answer.json()["outputs"]}
    assert set(outputs) == NAMES
    picture = base64.b64decode(outputs["picture.png"]["data"])
    assert len(picture) == outputs["picture.png"]["size"]
    assert Image.open(io.BytesIO(picture)).size == (300, 300)
    assert base64.b64decode(outputs["note.txt"]["data"]) == b"in base64"
    assert (outputs["note.txt"]["output"], outputs["note.txt"]["media_type"]) == ("note", "text/plain")


def test_links_give_the_outputs_after_the_request_and_nothing_else(service: Service) -> None:
    document = service.generate(accept="application/json; files=links", caption="linked").json()
    outputs = {item["name"]: item for item in document["outputs"]}
    assert set(outputs) == NAMES
    note = service.get(outputs["note.txt"]["url"])
    assert (note.text, note.headers["x-content-type-options"]) == ("linked", "nosniff")
    assert Image.open(io.BytesIO(service.get(outputs["picture.png"]["url"]).content)).size == (64, 64)
    base = f"/outputs/{document['id']}"
    for path in (
        f"{base}/no.txt",
        f"{base}/..%2f..%2fservice.log",
        f"/outputs/{'0' * 32}/note.txt",
        "/outputs/..%2f..%2fscratch/note.txt",
        f"{base}/0%2fout_1.txt",
    ):
        assert service.get(path).status_code == 404, path


def kept(folder: Path, **limits: float) -> Kept:
    return Kept(folder / "kept", seconds=limits.get("seconds", 60), most=int(limits.get("most", 1000)))


def produced(folder: Path, name: str, size: int) -> list[Produced]:
    path = folder / name
    path.write_bytes(b"x" * size)
    return [Produced(Output("o", "1", "X", "file"), path)]


def test_the_oldest_results_make_room_and_one_too_large_is_refused(tmp_path: Path) -> None:
    place = kept(tmp_path)

    async def fill() -> None:
        first = await place.put(produced(tmp_path, "a", 600), ["a"])
        second = await place.put(produced(tmp_path, "b", 300), ["b"])
        third = await place.put(produced(tmp_path, "c", 300), ["c"])
        assert place.get(first.id) is None
        assert place.get(second.id) is not None
        assert place.get(third.id) is not None
        with pytest.raises(RunError, match="CPACK_KEEP_MIB") as caught:
            await place.put(produced(tmp_path, "d", 1001), ["d"])
        assert caught.value.status == 507

    asyncio.run(fill())
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_result_is_gone_after_its_time(tmp_path: Path) -> None:
    place = kept(tmp_path, seconds=0)
    result = asyncio.run(place.put(produced(tmp_path, "a", 1), ["a"]))
    assert place.get(result.id) is None
    assert list((tmp_path / "kept").iterdir()) == []


def test_a_sweep_removes_the_oldest_and_neither_the_young_nor_those_of_requests(tmp_path: Path) -> None:
    (tmp_path / "cpack" / "1").mkdir(parents=True)
    for number, name in enumerate(("old.png", "less.png", "cpack/1/own.png", "young.png")):
        (tmp_path / name).write_bytes(b"x" * 100)
        when = time.time() - (0 if name == "young.png" else 5000 - number)
        os.utime(tmp_path / name, (when, when))
    assert sweep(tmp_path, most=250) == 100
    assert sweep(tmp_path, most=0) == 100
    left = sorted(path.name for path in tmp_path.rglob("*.png"))
    assert left == ["own.png", "young.png"]


def test_a_request_id_comes_back_or_is_made(service: Service) -> None:
    given = requests.get(f"{service.url}/livez", headers={"X-Request-ID": "mine-1"}, timeout=60)
    assert given.headers["x-request-id"] == "mine-1"
    made = requests.get(f"{service.url}/livez", headers={"X-Request-ID": "a b\tc"}, timeout=60)
    assert len(made.headers["x-request-id"]) == 32
