"""What a model's sources say of it: Hugging Face, Civitai, any other address; gated, private, gone, another file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import Offline, RequestsTransport, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.hub import Seen, confirmed, look_at
from cpack_build.lock.schema import Model
from tests.fetch.servers import Answer, Request, Server, serving
from tests.lock.progress import Heard

SHA256, SIZE = "a" * 64, 1234
COMMIT = "0123456789" * 4
HUB = f"https://huggingface.co/someone/nets/resolve/{COMMIT}/up/x.safetensors"
CIVITAI = "https://civitai.com/api/download/models/77"
PLAIN = "https://files.example/x.safetensors"


def model(*urls: str) -> Model:
    return Model(path="models/x.safetensors", sha256=SHA256, size=SIZE, layer_digest=f"sha256:{'b' * 64}", sources=urls)


@contextmanager
def hub(answers: Mapping[str, Answer]) -> Iterator[tuple[Server, Sources]]:
    """A server that stands for every host, and answers by path; nothing else is there."""

    def answer(request: Request) -> Answer:
        told = answers.get(request.path.partition("?")[0], Answer(404))
        return Answer(405) if request.method == "HEAD" and told.status == 206 else told

    with serving(answer) as server:
        hosts = {f"https://{host}/": f"{server.url}/" for host in ("huggingface.co", "civitai.com", "files.example")}
        yield server, Sources(Mirrors(hosts), RequestsTransport())


def repository(**changes: Any) -> Answer:
    files = [{"rfilename": "README.md", "size": 3}, {"rfilename": "up/x.safetensors", "size": SIZE,
              "lfs": {"sha256": SHA256, "size": SIZE, "pointerSize": 130}}]  # fmt: skip
    return document({"sha": COMMIT, "private": False, "gated": False, "siblings": files, **changes})


def document(value: Any) -> Answer:
    return Answer(body=json.dumps(value).encode(), headers={"Content-Type": "application/json"})


AT_HUB = f"/api/models/someone/nets/revision/{COMMIT}"
AT_CIVITAI = "/api/v1/model-versions/77"


def version(sha256: str = SHA256, **changes: Any) -> Answer:
    return document({"id": 77, "modelId": 5, "files": [{"hashes": {"SHA256": sha256.upper()}}], **changes})


@pytest.mark.parametrize(
    ("url", "answers", "state", "access"),
    [
        (HUB, {AT_HUB: repository()}, "same", "public"),
        (HUB, {AT_HUB: repository(gated="manual")}, "same", "gated"),
        (HUB, {AT_HUB: repository(private=True)}, "same", "private"),
        (HUB, {AT_HUB: repository(siblings=[{"rfilename": "up/x.safetensors", "lfs": {"sha256": "c" * 64}}])}, "other",
         "public"),
        (HUB, {AT_HUB: repository(siblings=[{"rfilename": "up/x.safetensors", "size": 7}])}, "other", "public"),
        (HUB, {AT_HUB: repository(siblings=[])}, "gone", "public"),
        (HUB, {AT_HUB: repository(siblings="?")}, "gone", "public"),
        (HUB, {AT_HUB: Answer(401)}, "refused", "private"),
        (HUB, {}, "gone", None),
        (HUB, {AT_HUB: Answer(500)}, "unknown", None),
        (HUB, {AT_HUB: Answer(body=b"[")}, "unknown", None),
        (CIVITAI, {AT_CIVITAI: version()}, "same", "public"),
        (CIVITAI, {AT_CIVITAI: version(availability="EarlyAccess")}, "same", "gated"),
        (CIVITAI, {AT_CIVITAI: version("d" * 64)}, "other", "public"),
        (CIVITAI, {AT_CIVITAI: version(files=None)}, "unknown", "public"),
        (CIVITAI, {}, "gone", None),
        (PLAIN, {"/x.safetensors": Answer(headers={"Content-Length": str(SIZE)})}, "same", "public"),
        (PLAIN, {"/x.safetensors": Answer(headers={"Content-Length": "9"})}, "other", "public"),
        (PLAIN, {"/x.safetensors": Answer(206, b"x", {"Content-Range": f"bytes 0-0/{SIZE}"})}, "same", "public"),
        (PLAIN, {"/x.safetensors": Answer(headers={"Content-Length": "9", "Content-Type": "text/html"})}, "unknown",
         "public"),
        (PLAIN, {"/x.safetensors": Answer(403)}, "refused", "private"),
        (PLAIN, {}, "gone", None),
    ],
)  # fmt: skip
def test_each_source_is_asked_in_its_own_way(
    url: str, answers: dict[str, Answer], state: str, access: str | None, store: Store
) -> None:
    with hub(answers) as (server, sources):
        seen = look_at(model(url), url, asker=Asker(sources), store=store)
        assert (seen.state, seen.access) == (state, access), seen
        assert (
            all(request.method == "HEAD" or "range" in request.headers for request in server.requests) or url != PLAIN
        )
        assert "authorization" not in server.requests[0].headers


def test_the_lock_says_who_may_have_a_model_and_drops_what_is_no_source(store: Store) -> None:
    heard = Heard()
    answers = {AT_HUB: repository(gated="auto"), "/x.safetensors": Answer(headers={"Content-Length": "9"})}
    with hub(answers) as (_, sources):
        (found,) = confirmed([model(HUB, PLAIN, CIVITAI)], store=store, sources=sources, progress=heard)
    assert found.sources == (HUB, CIVITAI), "one that is gone may come back, one with another file is none"
    assert found.access == "gated"
    told = "\n".join(heard.notes)
    assert "is gated" in told
    assert f"{PLAIN} has another file (9 bytes, not {SIZE})" in told
    assert f"{CIVITAI} is not there any more" in told


def test_offline_says_what_was_said_before_and_an_unknown_host_is_asked_once(store: Store) -> None:
    with hub({AT_HUB: repository(gated="auto")}) as (_, sources):
        online = confirmed([model(HUB)], store=store, sources=sources)
    offline = Sources(Mirrors({}, is_offline=True), Offline())
    assert confirmed([model(HUB)], store=store, sources=offline) == online
    heard = Heard()
    nowhere = Sources(Mirrors({"https://files.example/": "http://127.0.0.1:9/"}), RequestsTransport())
    urls = [f"{PLAIN}?{number}" for number in range(3)]
    (found,) = confirmed([model(*urls)], store=store, sources=nowhere, progress=heard)
    assert (found.sources, found.access, heard.notes) == (tuple(urls), None, []), "that is no error of a lock"


def test_a_local_mirror_of_a_hub_is_no_hub(store: Store) -> None:
    sources = Sources(Mirrors({"https://huggingface.co/": "/srv/models/"}), RequestsTransport())
    assert look_at(model(HUB), HUB, asker=Asker(sources), store=store) == Seen(HUB, "unknown")
