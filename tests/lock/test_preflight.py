"""Before a build, everything that a lock names and nobody has is told at once; nothing is downloaded to find out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, Unresolvable, UnsafeInput
from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.limits import REGISTRY_LAYER_BYTES, layer_count, limits_of
from cpack_build.lock.preflight import preflight
from cpack_build.lock.python import Target, lock_environment, parse_requirements
from cpack_build.lock.schema import (
    Deb,
    DebInterpreter,
    GitTree,
    Inputs,
    Lock,
    Model,
    PythonEnvironment,
    ScratchBase,
    ServiceCode,
)
from cpack_build.lock.wheels import Wheel, pylock_text
from tests.fetch.repositories import make_repository
from tests.fetch.servers import Answer, Request, serving, serving_files
from tests.lock.indexes import Index

HASH = "0" * 64


def environment(*wheels: Wheel) -> PythonEnvironment:
    text = pylock_text(wheels, python_version="3.11")
    return PythonEnvironment(pylock=text, pylock_sha256=hashlib.sha256(text.encode()).hexdigest())


def model(number: int, *, size: int = 5, sources: tuple[str, ...] = ()) -> Model:
    sha256 = f"{number:064x}"
    return Model(path=f"models/a/{number}.ckpt", sha256=sha256, size=size, layer_digest=f"sha256:{sha256}",
                 sources=sources)  # fmt: skip


def lock(folder: Path, url: str, **changes: object) -> Lock:
    """A lock of a ComfyUI and a node that are there, and of files below *url*."""
    trees = []
    for name, text in (("ComfyUI", ""), ("node", "import os\n\nos.system('x')\n")):
        commit = make_repository(folder / name, {"__init__.py": text})
        mirrors = Mirrors({f"https://code.example/{name}": str(folder / name)})
        tree = fetch_tree(f"https://code.example/{name}", commit, store=Store(folder / "other"), mirrors=mirrors)
        trees.append(GitTree(name=name, url=tree.url, commit=commit, tree_sha256=tree.tree_digest(), committed_at=1))
    deb = Deb(name="libx", version="1", architecture="all", source="x", url=f"{url}/x.deb", sha256=HASH, size=7)
    wheel = Wheel("a", "1", "a-1-py3-none-any.whl", f"{url}/a-1-py3-none-any.whl", "1" * 64, 11)
    made = Lock(
        builder="0",
        inputs=Inputs(pack=HASH, settings=HASH),
        source_date_epoch=1,
        platform="linux/amd64",
        base=ScratchBase(),
        system=(),
        interpreter=DebInterpreter(version="3.11", path="/usr/bin/python3.11", packages=(deb,)),
        service=environment(wheel),
        service_code=ServiceCode(version="0", tree_sha256=HASH),
        python=environment(wheel),
        comfyui=trees[0],
        nodes=(trees[1],),
        models=(),
        environment={},
        comfyui_args=(),
    )
    return made.model_copy(update=changes)


def sources(folder: Path) -> Sources:
    return Sources(Mirrors({"https://code.example/": f"{folder}/"}))


def test_what_is_there_is_counted_and_not_downloaded(tmp_path: Path, store: Store) -> None:
    files = {"/x.deb": b"1234567", "/a-1-py3-none-any.whl": b"wheel", "/m": b"model"}
    with serving_files(files) as server:
        made = lock(tmp_path, server.url, models=(model(1, sources=(f"{server.url}/m",)),))
        found = preflight(made, store=store, sources=sources(tmp_path))
    assert found.missing == ()
    assert (found.download, found.unsized) == (7 + 11 + 5, 0)
    assert not (store.root / "blobs").exists()


def test_all_that_is_missing_is_named_at_once(tmp_path: Path, store: Store) -> None:
    with serving_files({}) as server:
        gone = GitTree(name="gone", url="https://code.example/gone", commit="1" * 40, tree_sha256=HASH, committed_at=1)
        made = lock(tmp_path, server.url, models=(model(1), model(2, sources=(f"{server.url}/m",))))
        made = made.model_copy(update={"nodes": (*made.nodes, gone)})
        found = preflight(made, store=store, sources=sources(tmp_path))
    told = "\n".join(map(str, found.missing))
    for name in ("libx", "a-1-py3-none-any.whl", "models/a/1.ckpt", "models/a/2.ckpt", "code.example/gone"):
        assert name in told
    assert all(error.hint for error in found.missing)
    assert len(found.missing) == 5


def test_risks_have_file_and_line(tmp_path: Path, store: Store) -> None:
    with serving_files({}) as server:
        found = preflight(lock(tmp_path, server.url, models=(model(1),)), store=store, sources=sources(tmp_path))
    first = found.risks[0]
    assert (first.owner, first.path, first.line, first.what) == (
        "node", "__init__.py", 3, "os.system",
    )  # fmt: skip
    assert found.risks[-1].owner == "models"


def test_a_folder_with_the_model_or_wheel_is_enough(tmp_path: Path, store: Store) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "1.ckpt").write_bytes(b"12345")
    (tmp_path / "here" / "a-1-py3-none-any.whl").write_bytes(b"x")
    with serving_files({"/x.deb": b""}) as server:
        found = preflight(
            lock(tmp_path, server.url, models=(model(1),)), store=store, sources=sources(tmp_path),
            models=[str(tmp_path / "here")], find_links=[str(tmp_path / "here")],
        )  # fmt: skip
    assert found.missing == ()
    assert found.download == 7


def test_too_many_layers_and_too_big_ones_are_told(tmp_path: Path) -> None:
    made = lock(tmp_path, "https://index.example", models=tuple(model(number) for number in range(300)))
    assert layer_count(made) <= 120
    assert limits_of(made) == []
    (fatal,) = limits_of(made, base_layers=118)
    assert fatal.is_fatal
    big = lock(tmp_path, "https://index.example", models=(model(1, size=max(REGISTRY_LAYER_BYTES.values())),))
    assert {limit.whose for limit in limits_of(big)} == set(REGISTRY_LAYER_BYTES)
    small = lock(tmp_path, "https://index.example")
    assert limits_of(small) == []
    assert [limit.is_fatal for limit in limits_of(small, base_layers=121)] == [True]


@pytest.mark.usefixtures("plain_uv")
def test_every_package_that_no_index_has_is_named_in_one_run(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0")
    index.add("beta", "1.0")
    index.add("delta", "1.0", tag="cp311-cp311-win_amd64")
    with index.serve() as server, pytest.raises(Unresolvable) as caught:
        lock_environment(
            ["alpha==1.0", "beta==2.0", "gamma==1.0", "delta==1.0"], target=Target("3.11"), store=store,
            sources=Sources(), index_url=f"{server.url}/simple/",
        )  # fmt: skip
    assert len(caught.value.parts) == 3
    told = str(caught.value)
    for name in ("beta==2.0", "gamma", "delta==1.0"):
        assert name in told


def test_every_requirement_that_is_refused_is_named_in_one_run() -> None:
    hostile = ["--index-url https://evil.example", "-e .", "x @ file:///etc", "y @ git+https://code.example/y", "z==1"]
    with pytest.raises(UnsafeInput) as caught:
        parse_requirements(hostile)
    assert len(caught.value.parts) == 4
    assert all(isinstance(part, CpackError) and part.hint for part in caught.value.parts)


def test_a_gated_model_is_missing_without_a_token_and_there_with_one(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gate(request: Request) -> Answer:
        if request.headers.get("authorization") == "Bearer hf_x":
            return Answer(206, b"m", {"Content-Range": "bytes 0-0/5"})
        return Answer(404 if "/api/" in request.path else 401, headers={"X-Error-Code": "GatedRepo"})

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    with serving(gate) as server:
        made = lock(
            tmp_path, server.url, models=(model(1, sources=("https://huggingface.co/o/m/resolve/main/x.ckpt",)),)
        )
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found = {}
        for token in ("", "hf_x"):
            monkeypatch.setenv("HF_TOKEN", token)
            result = preflight(made, store=store, sources=sources(tmp_path))
            found[token] = [error for error in result.missing if "models/a/1.ckpt" in error.message]
    (gated,) = found[""]
    assert "is gated" in gated.message
    assert "HF_TOKEN" in gated.hint
    assert found["hf_x"] == []
