"""What cannot be resolved is told as who asks for what, and what the pack's writer left out comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cpack_build.errors import Unresolvable
from cpack_build.fetch.git import fetch_tree
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.asked import Asked, asked_by_tree, left_out
from cpack_build.lock.python import Target, lock_environment
from tests.fetch.repositories import make_repository
from tests.lock.indexes import Index

NODE = "the custom node upscaler"


def asks(who: str, *requirements: str) -> list[Asked]:
    return [Asked(who, Requirement(text)) for text in requirements]


def refused(index: Index, requirements: list[str], asked: list[Asked], store: Store, **options: object) -> Unresolvable:
    with index.serve() as server, pytest.raises(Unresolvable) as caught:
        lock_environment(
            requirements, target=Target("3.11"), store=store, sources=Sources(), index_url=f"{server.url}/simple/",
            asked=asked, **options,  # type: ignore[arg-type]
        )  # fmt: skip
    return caught.value


@pytest.mark.usefixtures("plain_uv")
def test_a_conflict_says_who_asks_for_what_and_keeps_the_resolver_s_words(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0", requires=["beta<2"])
    index.add("gamma", "3.0", requires=["beta>=2"])
    index.add("beta", "1.0")
    index.add("beta", "2.0")
    error = refused(index, ["alpha", "gamma"], asks("ComfyUI", "beta>=1.5"), store)
    assert "No version of beta is what everybody asks for" in error.message
    assert "alpha (the pack) needs beta<2" in error.message
    assert "gamma (the pack) needs beta>=2" in error.message
    assert "ComfyUI asks for beta>=1.5" in error.message
    assert "we can conclude" not in error.message
    assert "we can conclude" in error.detail


@pytest.mark.usefixtures("plain_uv")
def test_a_version_that_nobody_has_says_who_asks_for_it(store: Store) -> None:
    index = Index()
    index.add("alpha", "1.0")
    error = refused(index, ["alpha==9"], asks(NODE, "alpha>=1"), store)
    assert f"alpha is asked for by the pack and {NODE}" in error.message
    error = refused(index, ["alpha==1.0"], [], store, packages=["alpha==8"])
    assert "alpha is asked for by cpack.yaml or a flag" in error.message


def test_a_tree_s_list_is_read_and_what_is_no_requirement_is_not(store: Store, tmp_path: Path) -> None:
    text = "alpha>=1  # for speed\n-r other.txt\n--index-url https://evil.example\ngit+https://x.example/y\n\nBeta[x]\n"
    commit = make_repository(tmp_path / "git" / "node", {"requirements.txt": text})
    tree = fetch_tree(
        "https://code.example/node", commit, store=store, mirrors=Mirrors({"https://code.example/": f"{tmp_path}/git/"})
    )
    assert [(one.who, str(one.requirement)) for one in asked_by_tree("node", tree)] == [
        ("the custom node node", "alpha>=1"), ("the custom node node", "Beta[x]"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "have", "accelerator", "machine", "added"),
    [
        (["onnxruntime>=1.17", "numpy"], [], "cpu", "x86_64", ["onnxruntime>=1.17"]),
        (["onnxruntime"], ["onnxruntime"], "cpu", "x86_64", []),
        (["onnxruntime"], ["onnxruntime-gpu"], "cuda12.8", "x86_64", []),
        (["onnxruntime", "onnxruntime-gpu"], [], "cuda12.8", "x86_64", ["onnxruntime-gpu"]),
        (["onnxruntime-gpu==1.22"], [], "cpu", "x86_64", ["onnxruntime==1.22"]),
        (["onnxruntime-gpu"], [], "cuda13.0", "aarch64", ["onnxruntime"]),
        (["nvidia-ml-py", "bentoml"], ["torch"], "cuda12.8", "x86_64", ["bentoml", "nvidia-ml-py"]),
    ],
)
def test_what_the_writer_of_packs_left_out_comes_back_for_the_target(
    asked: list[str], have: list[str], accelerator: str, machine: str, added: list[str]
) -> None:
    found = left_out(asks(NODE, *asked), have, accelerator=accelerator, machine=machine)
    assert [str(one.requirement) for one in found] == added
