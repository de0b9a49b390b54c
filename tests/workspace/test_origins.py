"""Where a model can be had again is found from what lies at hand, then asked, and confirmed by its hash."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cpack_build.fetch.asking import Asker
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.workspace.hints import Hint, listed_hints, workflow_hints
from cpack_build.workspace.models import ModelFile
from cpack_build.workspace.origins import find_origins
from cpack_build.workspace.place import find_comfyui
from tests.fetch.servers import Answer, Request, Server, serving, serving_files
from tests.workspace.installs import make_install

DATA = b"the model"
SHA = hashlib.sha256(DATA).hexdigest()
COMMIT = "d" * 40
VERSION = {
    "id": 22, "modelId": 11, "name": "v2", "model": {"name": "A Model"},
    "files": [{"name": "m.safetensors", "primary": True, "hashes": {"SHA256": SHA.upper()}}],
}  # fmt: skip
CIVITAI = {
    "download_url": "https://civitai.com/api/download/models/22",
    "url": "https://civitai.com/models/11?modelVersionId=22",
    "repo": 11, "commit": 22, "source": "civitai", "repo_name": "A Model", "version_name": "v2",
}  # fmt: skip
HUB = {
    "download_url": f"https://huggingface.co/org/repo/resolve/{COMMIT}/sub/m.safetensors",
    "url": f"https://huggingface.co/org/repo/blob/{COMMIT}/sub/m.safetensors",
    "repo": "org/repo", "commit": COMMIT, "path": "sub/m.safetensors", "source": "huggingface",
}  # fmt: skip
REVISION = {"sha": COMMIT, "siblings": [{"rfilename": "a"}, {"rfilename": "sub/m.safetensors", "lfs": {"sha256": SHA}}]}


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    path = tmp_path / "loras/m.safetensors"
    path.parent.mkdir()
    path.write_bytes(DATA)
    return ModelFile("models/loras/m.safetensors", path, len(DATA), "loras", "m.safetensors")


def origin(
    model: ModelFile, *, server: Server | None = None, hints: tuple[Hint, ...] = (), caches: tuple[Path, ...] = ()
) -> dict[str, Any]:
    place = server.url if server else "http://127.0.0.1:9"
    mirrors = Mirrors({"https://civitai.com": f"{place}/civitai", "https://huggingface.co": f"{place}/hf"})
    store = Store(model.path.parents[1] / f"store-{len(os.listdir(model.path.parents[1]))}")
    asker = Asker(Sources(mirrors), offline=server is None)
    found = find_origins({model.name: (model, SHA)}, hints=hints, asker=asker, store=store, caches=caches)
    return found[model.name]


@pytest.mark.parametrize(
    ("ending", "document"),
    [
        (".civitai.info", VERSION),
        (".metadata.json", {"file_name": "m", "sha256": SHA, "civitai": VERSION}),
        (".cm-info.json", {"ModelId": 11, "VersionId": 22, "ModelName": "A Model", "VersionName": "v2",
                           "Hashes": {"SHA256": SHA}}),
    ],
)  # fmt: skip
def test_sidecar_files_are_believed_when_the_hash_fits(model: ModelFile, ending: str, document: Any) -> None:
    sidecar = model.path.with_suffix("").with_name("m" + ending)
    sidecar.write_text(json.dumps(document))
    assert origin(model) == CIVITAI
    sidecar.write_text(json.dumps(document).replace(SHA, "0" * 64).replace(SHA.upper(), "0" * 64))
    assert origin(model) == {}
    sidecar.write_bytes(b"\xff{")
    assert origin(model) == {}


def test_hugging_faces_cache_needs_no_network(model: ModelFile, tmp_path: Path) -> None:
    repository = tmp_path / "hub/models--org--repo"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / SHA).write_bytes(DATA)
    link = repository / f"snapshots/{COMMIT}/sub/m.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../../blobs/{SHA}")
    assert origin(model, caches=(tmp_path / "hub",)) == HUB


def test_a_download_record_names_the_commit_where_the_workflow_names_the_repository(model: ModelFile) -> None:
    record = model.path.parent / ".cache/huggingface/download/m.safetensors.metadata"
    record.parent.mkdir(parents=True)
    record.write_text(f"{COMMIT}\n{SHA}\n1700000000.0\n")
    hint = Hint("m.safetensors", "loras", "https://huggingface.co/org/repo/resolve/main/m.safetensors")
    assert origin(model, hints=(hint,))["commit"] == COMMIT


def test_the_workflows_hints_are_read_from_nodes_and_subgraphs() -> None:
    entry = {"name": "m.safetensors", "url": "https://hub.example/m?x=1&token=abc", "directory": "loras"}
    bad = [{"name": "x", "url": "file:///etc/passwd"}, {"name": 3, "url": "https://x.example/"}, "text"]
    node = {"properties": {"models": [entry, *bad]}}
    inner = {"nodes": [{"properties": {"models": [{**entry, "name": "n.pt", "hash": SHA, "hash_type": "SHA256"}]}}]}
    found = workflow_hints({"nodes": [node, 3, {"properties": []}], "definitions": {"subgraphs": [inner]}})
    assert [(hint.name, hint.sha256) for hint in found] == [("m.safetensors", ""), ("n.pt", SHA)]
    assert workflow_hints(None) == workflow_hints({"nodes": {}, "models": 3}) == ()


def test_a_hint_stands_unconfirmed_without_a_network_and_without_its_token(model: ModelFile) -> None:
    hint = Hint("m.safetensors", "loras", "https://me:pw@hub.example/m?x=1&token=abc")
    assert origin(model, hints=(hint,)) == {
        "download_url": "https://hub.example/m?x=1", "url": "https://hub.example/m?x=1", "source": "url",
    }  # fmt: skip


def test_civitai_is_asked_by_hash(model: ModelFile) -> None:
    path = f"/civitai/api/v1/model-versions/by-hash/{SHA}"
    with serving_files({path: json.dumps(VERSION).encode()}) as server:
        assert origin(model, server=server) == CIVITAI
    assert not [request for request in server.requests if "authorization" in request.headers]


def test_civitai_is_asked_about_many_models_at_once(tmp_path: Path) -> None:
    files = {}
    for number in range(130):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(str(number).encode())
        sha256 = hashlib.sha256(str(number).encode()).hexdigest()
        files[f"models/loras/{path.name}"] = (
            ModelFile(f"models/loras/{path.name}", path, 1, "loras", path.name),
            sha256,
        )
    known = {sha256: number for number, (_, sha256) in enumerate(files.values()) if number % 2}

    def answer(request: Request) -> Answer:
        if request.method != "POST":
            return Answer(404)
        assert request.path == "/civitai/api/v1/model-versions/by-hash"
        asked = [sha256.lower() for sha256 in json.loads(request.body)]
        assert len(asked) <= 100
        found = [
            {"id": known[sha256], "modelId": 7, "files": [{"hashes": {"SHA256": sha256.upper()}}]}
            for sha256 in reversed(asked)
            if sha256 in known
        ]
        return Answer(body=json.dumps([None, 3, *found]).encode())

    with serving(answer) as server:
        mirrors = Mirrors(
            {"https://civitai.com": f"{server.url}/civitai", "https://huggingface.co": f"{server.url}/hf"}
        )
        asker = Asker(Sources(mirrors))
        found = find_origins(files, hints=(), asker=asker, store=Store(tmp_path / "s"), caches=())
    assert [source.get("commit") for source in found.values()] == [n if n % 2 else None for n in range(130)]
    to_civitai = [request for request in server.requests if request.path.startswith("/civitai")]
    assert [request.method for request in to_civitai] == ["POST", "POST"]


def test_managers_own_list_says_where_a_model_is(model: ModelFile, tmp_path: Path) -> None:
    entry = {
        "name": "A", "type": "lora", "save_path": "default", "filename": "m.safetensors", "size": "0.01KB",
        "url": "https://hub.example/files/m.safetensors",
    }  # fmt: skip
    others = [{**entry, "url": "file:///etc/passwd"}, {**entry, "filename": 3}, "text"]
    root = make_install(tmp_path / "ComfyUI", with_git=False)
    for place in ("custom_nodes/ComfyUI-Manager/model-list.json", "user/__manager/cache/123_model-list.json"):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text(json.dumps({"models": [entry, *others]}))
    (root / "user/__manager/cache/124_model-list.json").write_text("{")
    (hint,) = listed_hints(find_comfyui(root))
    assert (hint.directory, hint.sizes) == ("loras", (0, 20))
    assert origin(model, hints=(hint,))["url"] == entry["url"]
    # its word alone is not enough where size or folder say that it means another file
    assert origin(model, hints=(replace(hint, sizes=(100, 200)),)) == {}
    assert origin(model, hints=(replace(hint, directory="checkpoints"),)) == {}
    confirmed = replace(hint, url="https://huggingface.co/org/repo/resolve/main/sub/m.safetensors", sizes=None)
    with serving_files({"/hf/api/models/org/repo/revision/main": json.dumps(REVISION).encode()}) as server:
        assert origin(model, server=server, hints=(confirmed,)) == HUB
    other = replace(confirmed, sizes=(10_000, 20_000))  # another file of that name is not asked for
    with serving_files({}) as server:
        assert origin(model, server=server, hints=(other,)) == {}
        assert not [request for request in server.requests if "org/repo" in request.path]


def test_addresses_in_the_workflows_notes_are_hints(model: ModelFile) -> None:
    text = "Put [m.safetensors](https://hub.example/x/m.safetensors) into loras; see https://hub.example/page."
    hints = workflow_hints({"nodes": [{"type": "MarkdownNote", "widgets_values": [text]}]})
    assert [(hint.name, hint.url) for hint in hints] == [("m.safetensors", "https://hub.example/x/m.safetensors")]
    assert origin(model, hints=hints)["download_url"] == "https://hub.example/x/m.safetensors"


def test_hugging_face_is_asked_by_name_and_confirmed_by_hash(model: ModelFile) -> None:
    files = {
        "/hf/api/models": json.dumps([{"id": "other/repo"}, {"id": "org/repo"}]).encode(),
        "/hf/api/models/other/repo/revision/main": json.dumps({**REVISION, "siblings": []}).encode(),
        "/hf/api/models/org/repo/revision/main": json.dumps(REVISION).encode(),
    }
    with serving_files(files) as server:
        assert origin(model, server=server) == HUB
    files["/hf/api/models/org/repo/revision/main"] = json.dumps(REVISION).replace(SHA, "0" * 64).encode()
    with serving_files(files) as server:
        assert origin(model, server=server) == {}


def test_a_hint_to_hugging_face_is_pinned_to_the_commit(model: ModelFile) -> None:
    hint = Hint(
        "m.safetensors", "loras", "https://huggingface.co/org/repo/resolve/main/sub/m.safetensors?download=true"
    )
    with serving_files({"/hf/api/models/org/repo/revision/main": json.dumps(REVISION).encode()}) as server:
        assert origin(model, server=server, hints=(hint,)) == HUB


@pytest.mark.parametrize(
    "answer", [Answer(500), Answer(429), Answer(body=b"<html>"), Answer(body=b"[[[["), Answer(body=b"3")]
)
def test_a_service_that_fails_is_no_error(model: ModelFile, answer: Answer) -> None:
    with serving(lambda _: answer) as server:
        assert origin(model, server=server) == {}


def test_a_host_that_does_not_answer_is_asked_once(tmp_path: Path) -> None:
    asker = Asker(Sources(Mirrors({"https://civitai.com": "http://127.0.0.1:9"})))
    assert [asker.get("https://civitai.com/a"), asker.get("https://civitai.com/b")] == [None, None]
    assert list(asker.silent) == ["127.0.0.1"]
