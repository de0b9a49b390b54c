"""Each place is asked in its own way, its token goes to it alone, and what it refuses is told in words that help."""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, HashMismatch, NetworkError, ToolMissing, Unresolvable
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.civitai import Civitai
from cpack_build.fetch.folders import Folders, LocalFile, Wanted
from cpack_build.fetch.http import RequestsTransport, Sources
from cpack_build.fetch.huggingface import HuggingFace, parse_address, token_for
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.obtain import Obtained, obtain
from cpack_build.fetch.places import Addresses, MirroredAddresses, OtherStores, Place, places_of
from cpack_build.fetch.remote import BucketFile, HttpFile
from cpack_build.fetch.store import Store
from cpack_build.fetch.transfer import transfer
from cpack_build.fetch.tuning import Tuning
from tests.fetch.servers import Answer, Request, Server, serving
from tests.fetch.test_transfer import ranged

BODY = random.Random(3).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
COMMIT = "c" * 40
QUICK = Tuning(sleep=lambda _: None)
HTTP = RequestsTransport()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", further=())


def wanted(*urls: str, size: int | None = len(BODY)) -> Wanted:
    return Wanted("models/loras/x.safetensors", SHA256, size, urls)


def get(store: Store, want: Wanted, *places: Place) -> Obtained:
    return obtain(want, places, store=store, tuning=QUICK)


# -- Hugging Face ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Callable[[Request], Answer]], Server]]:
    """A hub of one's own at HF_ENDPOINT, without a token. Files come from their addresses: test_xet has the rest."""
    from contextlib import ExitStack

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with ExitStack() as stack:

        def start(answer: Callable[[Request], Answer]) -> Server:
            server = stack.enter_context(serving(answer))
            monkeypatch.setenv("HF_ENDPOINT", server.url)
            return server

        yield start


def hugging_face(mirrors: Mirrors | None = None) -> HuggingFace:
    return HuggingFace(mirrors or Mirrors(), HTTP, Asker(Sources()))


URL = f"https://huggingface.co/org/model/resolve/{COMMIT}/deep/x.safetensors"


def test_a_file_of_the_hub_comes_from_the_endpoint_with_the_token(
    hub: Callable[..., Server], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the hub does: a redirect to another host, where the signed address is enough."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(ranged(BODY)) as cdn:
        elsewhere = cdn.url.replace("127.0.0.1", "localhost")
        server = hub(lambda request: Answer(302, headers={"Location": f"{elsewhere}/signed"}))
        done = get(store, wanted(URL), hugging_face())
    assert done.file is not None
    assert server.requests[0].path == f"/org/model/resolve/{COMMIT}/deep/x.safetensors"
    assert server.requests[0].headers["authorization"] == "Bearer hf_secret"
    assert all("authorization" not in request.headers for request in cdn.requests)


def test_the_token_of_a_file_is_used_and_goes_to_no_other_host(
    hub: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text("hf_from_file\n")
    server = hub(lambda request: Answer(404))
    assert token_for(f"{server.url}/x") == "hf_from_file"
    for url in ("https://cdn.example/x", "https://huggingface.evil.example/x", f"{server.url}0/x"):
        assert token_for(url) is None
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert token_for("http://hub.example/x") is None, "anyone on the way could read it"
    monkeypatch.setenv("HF_TOKEN", "bad\ntoken")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    assert token_for("https://hub.example/x") is None


def test_a_mirrored_address_gets_no_token(
    hub: Callable[..., Server], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub(lambda request: Answer(404))
    with serving(ranged(BODY)) as mirror:
        mirrors = Mirrors({"https://huggingface.co/": f"{mirror.url}/"})
        done = get(store, wanted(URL), MirroredAddresses(mirrors, HTTP), hugging_face(mirrors))
    assert done.file is not None
    assert all("authorization" not in request.headers for request in mirror.requests)


@pytest.mark.parametrize(
    ("token", "status", "code", "said"),
    [
        ("", 401, "GatedRepo", "https://huggingface.co/org/model is gated: its owner wants its terms accepted"),
        ("hf_x", 403, "GatedRepo", "is gated, and your token has no access"),
        ("", 401, "RepoNotFound", "is not there, or is private"),
        ("hf_x", 404, "RepoNotFound", "is not there, and your token has no access"),
        ("", 404, "EntryNotFound", "has no such file any more"),
        ("", 404, "RevisionNotFound", "has no such revision any more"),
    ],
)
def test_what_the_hub_refuses_is_told_with_the_next_step(
    hub: Callable[..., Server],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    status: int,
    code: str,
    said: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    hub(lambda request: Answer(404 if "/api/" in request.path else status, headers={"X-Error-Code": code}))
    (problem,) = get(store, wanted(URL), hugging_face()).problems
    assert said in problem.message
    assert isinstance(problem, NetworkError)
    assert problem.hint
    if code == "GatedRepo" and not token:
        assert "HF_TOKEN" in problem.hint
        assert "accept its terms" in problem.hint
    assert "hf_x" not in str(problem)


def test_a_file_that_moved_within_its_repository_is_found_by_its_hash(
    hub: Callable[..., Server], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the user's token may list it, and at the endpoint that is set."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    new = "d" * 40

    def answer(request: Request) -> Answer:
        if request.path.startswith("/api/"):
            if request.headers.get("authorization") != "Bearer hf_secret":
                return Answer(401)
            files = [{"rfilename": "moved/y.safetensors", "lfs": {"sha256": SHA256}}]
            return Answer(body=json.dumps({"sha": new, "siblings": files}).encode())
        if request.path == f"/org/model/resolve/{new}/moved/y.safetensors":
            return ranged(BODY)(request)
        return Answer(404, headers={"X-Error-Code": "EntryNotFound"})

    hub(answer)
    assert get(store, wanted(URL), hugging_face()).file is not None


def test_addresses_of_the_endpoint_are_the_hubs_too(hub: Callable[..., Server]) -> None:
    server = hub(lambda request: Answer(404))
    assert parse_address(f"{server.url}/org/model/resolve/main/x") == ("org/model", "main", "x")
    assert parse_address("https://evil.example/org/model/resolve/main/x") is None


# -- Civitai -----------------------------------------------------------------------------------------------------------


def civitai(server: Server) -> Civitai:
    return Civitai(Mirrors(), HTTP, Asker(Sources()), site=server.url)


def test_a_model_of_civitai_is_had_by_its_page_its_version_or_its_hash(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_API_TOKEN", "civ_secret")

    def answer(request: Request) -> Answer:
        if request.path == f"/api/v1/model-versions/by-hash/{SHA256}":
            version = {"id": 7, "modelId": 3, "files": [{"primary": True, "hashes": {"SHA256": SHA256.upper()}}]}
            return Answer(body=json.dumps(version).encode())
        if request.path == "/api/download/models/7":
            return Answer(302, headers={"Location": elsewhere})
        return Answer(404)

    with serving(ranged(BODY)) as cdn:
        elsewhere = cdn.url.replace("127.0.0.1", "localhost")
        with serving(answer) as server:
            for urls in ([f"{server.url}/models/3?modelVersionId=7"], [f"{server.url}/api/download/models/7"], []):
                done = get(store, wanted(*urls), civitai(server))
                assert done.file is not None
                done.file.path.unlink()
            downloads = [request for request in server.requests if "/download/" in request.path]
            assert {request.headers.get("authorization") for request in downloads} == {"Bearer civ_secret"}
    assert all("authorization" not in request.headers for request in cdn.requests)


@pytest.mark.parametrize(("token", "said"), [("", "wants a login for this model"), ("civ_x", "refuses this model to")])
@pytest.mark.parametrize("way", ["status", "redirect"])
def test_a_model_that_wants_a_login_says_how(
    store: Store, monkeypatch: pytest.MonkeyPatch, token: str, said: str, way: str
) -> None:
    monkeypatch.setenv("CIVITAI_API_TOKEN", token)

    def answer(request: Request) -> Answer:
        if request.path.startswith("/login"):
            return Answer(body=b"<html>", headers={"Content-Type": "text/html"})
        if request.path.startswith("/api/v1"):
            return Answer(404)
        return Answer(401) if way == "status" else Answer(307, headers={"Location": "/login?returnUrl=/x"})

    with serving(answer) as server:
        (problem,) = get(store, wanted(f"{server.url}/api/download/models/7"), civitai(server)).problems
    assert said in problem.message
    assert token == "" or "CIVITAI_API_TOKEN" not in problem.hint
    assert "civ_x" not in str(problem)


# -- the others, and their order -------------------------------------------------------------------------------------


def test_a_bucket_is_read_by_ranges(store: Store) -> None:
    import fsspec

    files = fsspec.filesystem("memory")
    files.pipe("/bucket/x.safetensors", BODY)
    try:
        remote = BucketFile("memory://bucket/x.safetensors")
        transfer([remote], sha256=SHA256, size=len(BODY), name="x", store=store, tuning=Tuning(part=100_000))
        problems: list[Exception] = []
        gone = BucketFile("memory://bucket/none")
        transfer([gone], sha256="0" * 64, size=5, name="x", store=store, tuning=QUICK, problems=problems)  # type: ignore[arg-type]
    finally:
        files.rm("/bucket", recursive=True)
    found = store.find(SHA256)
    assert found is not None
    assert found.path.read_bytes() == BODY
    (problem,) = problems
    assert isinstance(problem, Unresolvable)


@pytest.mark.parametrize("when", ["info", "cat_file"])
def test_what_a_clouds_library_raises_is_told_and_the_next_place_asked(
    store: Store, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """botocore's, google-auth's and azure-core's exceptions have no class in common but ``Exception``."""
    from fsspec.implementations.memory import MemoryFileSystem

    class EndpointConnectionError(Exception):
        pass

    def failing(*_: object, **__: object) -> None:
        raise EndpointConnectionError('Could not connect to "https://bucket.example/x?X-Amz-Signature=secret"')

    MemoryFileSystem().pipe("/bucket/x", BODY)
    problems: list[CpackError] = []
    try:
        with monkeypatch.context() as patch, serving(ranged(BODY)) as server:
            patch.setattr(MemoryFileSystem, when, failing)
            remotes = [BucketFile("memory://bucket/x"), HttpFile(f"{server.url}/x", HTTP)]
            done = transfer(
                remotes, sha256=SHA256, size=len(BODY), name="x", store=store, tuning=QUICK, problems=problems
            )
    finally:
        MemoryFileSystem().rm("/bucket", recursive=True)
    assert done is not None
    (problem,) = problems
    assert isinstance(problem, NetworkError)
    assert "memory://bucket/x cannot be read: Could not connect" in problem.message
    assert "secret" not in problem.message


def test_a_bucket_whose_reader_is_not_installed_says_which_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = importlib.import_module("fsspec.registry")  # fsspec's own name for it is its table
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    with pytest.raises(ToolMissing, match=r"cpack-build\[buckets\]"), BucketFile("s3://bucket/x").read(0, None):
        pass


def test_a_mirror_may_lead_to_a_bucket_or_a_missing_file() -> None:
    mirrors = Mirrors({"https://a.example/": "s3://bucket/", "https://b.example/": "/nowhere/"})
    bucket, missing = MirroredAddresses(mirrors, HTTP).offers(
        wanted("https://a.example/x", "https://b.example/x", "https://c.example/x")
    )
    assert bucket == BucketFile("s3://bucket/x")
    assert isinstance(missing, Unresolvable)


def test_what_is_here_is_not_downloaded_and_a_wrong_one_is_passed_over(store: Store, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / SHA256).write_bytes(BODY[::-1])
    (tmp_path / "folder/loras").mkdir(parents=True)
    (tmp_path / "folder/loras/x.safetensors").write_bytes(BODY)
    with serving(ranged(BODY)) as server:
        places = [OtherStores([tmp_path / "cache"]), Folders([str(tmp_path / "folder")]), Addresses(Mirrors(), HTTP)]
        done = get(store, wanted(f"{server.url}/x"), *places)
    assert done.file is not None
    assert done.file.path == tmp_path / "folder/loras/x.safetensors"
    assert server.requests == []


def test_another_file_in_its_place_is_named_only_if_nobody_has_the_right_one(store: Store, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras/x.safetensors").write_bytes(BODY[:-1])
    with serving(ranged(BODY)) as server:
        here = Folders([str(tmp_path)])
        assert isinstance(get(store, wanted(), here).problems[0], HashMismatch)
        assert get(store, wanted(f"{server.url}/x"), here, Addresses(Mirrors(), HTTP)).file is not None


def test_the_order_is_that_of_the_documentation(tmp_path: Path) -> None:
    places = places_of(Sources(Mirrors({"https://a.example/": "https://b.example/"})), folders=[str(tmp_path)])
    assert [type(place).__name__ for place in places] == [
        "Folders",
        "OtherStores",
        "MirroredAddresses",
        "Addresses",
        "HuggingFace",
        "Civitai",
    ]
    urls = (
        "https://huggingface.co/o/m/resolve/main/x",
        "https://civitai.com/api/download/models/1",
        "https://c.example/x",
    )
    plain = [offer for place in places[3:4] for offer in place.offers(wanted(*urls))]
    assert [offer.url for offer in plain if isinstance(offer, HttpFile)] == ["https://c.example/x"]


def test_offline_nobody_is_asked_and_each_address_is_told(store: Store) -> None:
    sources = Sources(Mirrors({}, is_offline=True))
    done = get(store, wanted("https://c.example/x?token=secret"), *places_of(sources, stores=()))
    (problem,) = done.problems
    assert "--offline forbids" in problem.message
    assert "secret" not in str(problem)


def test_a_file_that_vanishes_is_passed_over(store: Store, tmp_path: Path) -> None:
    class Gone:
        def offers(self, wanted: Wanted) -> list[LocalFile]:
            return [LocalFile(tmp_path / "gone")]

    assert get(store, wanted(), Gone()).file is None
