"""The pack's torch decides what an image computes on, unless the user says otherwise; then its family follows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cpack_build.cpack.settings import parse_settings
from cpack_build.errors import BadSettings, NetworkError, Unresolvable
from cpack_build.fetch.http import RequestsTransport, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.python import Target, lock_environment
from cpack_build.lock.target import check_target, label_of, retarget, target_of
from cpack_build.lock.wheels import Wheel, fetch_wheel, wheels_of
from tests.fetch.servers import serving_files
from tests.lock.indexes import Index
from tests.lock.indexes import wheel as made_wheel


def wheel(name: str, version: str) -> Wheel:
    return Wheel(name, version, f"{name}-{version}-py3-none-any.whl", None, "0" * 64, 1)


@pytest.mark.parametrize(
    ("version", "more", "platform", "expected"),
    [
        ("2.9.1+cpu", {}, "linux/amd64", "cpu"),
        ("2.9.1+cu128", {}, "linux/amd64", "cuda12.8"),
        ("2.5.1+cu124", {"nvidia-cuda-runtime-cu12": "12.4.127"}, "linux/amd64", "cuda12.4"),
        ("2.9.1+rocm6.4", {}, "linux/amd64", "rocm6.4"),
        ("2.8.0+cu129.with.more", {}, "linux/amd64", "cuda12.9"),
        ("2.9.1", {}, "linux/amd64", "cuda12.8"),
        ("2.7.1", {}, "linux/amd64", "cuda12.6"),
        ("2.13.0", {}, "linux/amd64", "cuda13.0"),
        ("2.99.0", {"nvidia-cuda-runtime": "14.1.3"}, "linux/amd64", "cuda14.1"),
        ("2.9.1", {}, "linux/arm64", "cpu"),
        ("2.11.0", {}, "linux/arm64", "cuda13.0"),
    ],
)
def test_the_locked_torch_says_what_it_is_for(version: str, more: dict[str, str], platform: str, expected: str) -> None:
    wheels = [wheel("torch", version), *(wheel(*item) for item in more.items())]
    assert target_of(wheels, platform=platform) == expected  # type: ignore[arg-type]


def test_without_torch_an_image_computes_on_the_processor() -> None:
    assert target_of([wheel("numpy", "2.0")], platform="linux/amd64") == "cpu"


def test_a_plain_torch_of_the_future_is_not_guessed() -> None:
    with pytest.raises(Unresolvable, match=r"torch 2\.99\.0"):
        target_of([wheel("torch", "2.99.0")], platform="linux/amd64")


@pytest.mark.parametrize(
    ("pinned", "target", "expected"),
    [
        ("torch==2.9.1+cu128", "cpu", "torch==2.9.1+cpu"),
        ("torch==2.9.1", "cpu", "torch==2.9.1+cpu"),
        ("torch==2.9.1+cpu", "cuda12.8", "torch==2.9.1,!=2.9.1+cpu"),
        ("torch==2.9.1+cpu", "cuda12.6", "torch==2.9.1+cu126"),
        ("torch==2.9.1+cpu", "rocm6.4", "torch==2.9.1+rocm6.4"),
    ],
)
def test_torch_and_its_family_follow_the_target(pinned: str, target: str, expected: str) -> None:
    family = pinned.replace("torch", "torchvision").replace("2.9.1", "0.24.1")
    changed = retarget([pinned, family, "numpy==2.0"], target, platform="linux/amd64")
    vision = expected.replace("torch", "torchvision").replace("2.9.1", "0.24.1")
    assert changed.requirements == (expected, vision, "numpy==2.0")
    assert len(changed.changed) == 2


def test_what_the_other_accelerator_brought_along_goes() -> None:
    pins = ["torch==2.9.1", "triton==3.5.1", "nvidia-cublas-cu12==12.8.4.1", "nvidia-ml-py==13.0", "numpy==2.0"]
    assert "triton==3.5.1" not in retarget(pins, "cpu", platform="linux/amd64").requirements
    assert retarget(pins, "cuda12.8", platform="linux/amd64").requirements == tuple(pins)


def test_a_target_that_torch_was_never_released_for_is_told_with_those_that_are() -> None:
    with pytest.raises(Unresolvable, match=r"2\.9\.1 was not released for cuda12\.4, only for cuda12\.6, cuda12\.8"):
        retarget(["torch==2.9.1+cpu"], "cuda12.4", platform="linux/amd64")


@pytest.mark.usefixtures("plain_uv")
def test_nvidia_wheels_that_the_packer_left_out_are_locked_again(store: Store) -> None:
    index = Index()
    index.add("torch", "2.9.1", requires=["nvidia-cuda-runtime-cu12==12.8.90"])
    index.add("torch", "2.9.1+cpu")
    index.add("nvidia-cuda-runtime-cu12", "12.8.90")
    target = Target("3.11")
    pins = retarget(["torch==2.9.1+cpu"], "cuda12.8", platform="linux/amd64").requirements
    with index.serve() as server:
        url = f"{server.url}/simple/"
        environment = lock_environment(pins, target=target, store=store, sources=Sources(), index_url=url)
    found = {one.name: one.version for one in wheels_of(environment)}
    assert found == {"torch": "2.9.1", "nvidia-cuda-runtime-cu12": "12.8.90"}
    check_target(wheels_of(environment), "cuda12.8", platform="linux/amd64")


def test_a_target_that_came_out_otherwise_is_refused() -> None:
    with pytest.raises(Unresolvable, match=r"target is cuda12\.6, but torch 2\.9\.1 is for cuda12\.8"):
        check_target([wheel("torch", "2.9.1")], "cuda12.6", platform="linux/amd64")
    with pytest.raises(Unresolvable, match="nothing in the pack needs torch"):
        check_target([], "cuda12.6", platform="linux/amd64")


def test_labels_are_pytorch_s() -> None:
    assert (label_of("cuda12.8"), label_of("rocm6.4"), label_of("cpu")) == ("cu128", "rocm6.4", "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda", "cuda12", "cu128", "cuda12.8; rm", "rocm"])
def test_a_target_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(BadSettings, match="target"):
        parse_settings("", name="the flags", overrides={"target": name})


def pytorch(label: str, *versions: tuple[str, str]) -> dict[str, bytes]:
    """PyTorch's index of *label*, with a page and a wheel for each of *versions*, and a package that is none of its."""
    files = {}
    for name, version in (*versions, ("numpy", "9.9")):
        filename, data = made_wheel(name, version, requires=["numpy"] if name == "torch" else [])
        quoted = filename.replace("+", "%2B")
        link = f'<a href="/whl/{label}/{quoted}#sha256={hashlib.sha256(data).hexdigest()}">{filename}</a>'
        files[f"/whl/{label}/{name}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()
        files[f"/whl/{label}/{filename}"] = data
    return files


@pytest.mark.usefixtures("plain_uv")
@pytest.mark.parametrize("label", ["cu128", "cpu", "rocm6.4"])
def test_a_label_leads_to_pytorch_s_own_index_and_only_for_its_own_packages(
    label: str, store: Store, tmp_path: Path
) -> None:
    index = Index()
    index.add("torch", "2.9.1")
    index.add("numpy", "2.0")
    own = pytorch(label, ("torch", f"2.9.1+{label}"), ("torchvision", f"0.24.1+{label}"))
    with index.serve() as public, serving_files(own) as server:
        sources = Sources(Mirrors({"https://download.pytorch.org/": f"{server.url}/"}), RequestsTransport())
        environment = lock_environment(
            [f"torch==2.9.1+{label}", f"torchvision==0.24.1+{label}"], target=Target("3.11"), store=store,
            sources=sources, index_url=f"{public.url}/simple/",
        )  # fmt: skip
        wheels = {one.name: one for one in wheels_of(environment)}
        assert {name: one.version for name, one in wheels.items()} == {
            "torch": f"2.9.1+{label}", "torchvision": f"0.24.1+{label}", "numpy": "2.0",
        }  # fmt: skip
        assert target_of(wheels.values(), platform="linux/amd64") == {"cu128": "cuda12.8"}.get(label, label)
        # where it really is, not where it was taken from
        at = f"https://download.pytorch.org/whl/{label}/torch-2.9.1%2B{label}-py3-none-any.whl"
        assert wheels["torch"].url == at
        stored = fetch_wheel(wheels["torch"], store=Store(tmp_path / "other"), sources=sources)
        assert stored.sha256 == wheels["torch"].sha256
        assert not any("numpy" in request.path for request in server.requests)


@pytest.mark.usefixtures("plain_uv")
def test_a_label_that_is_at_hand_asks_pytorch_nothing(store: Store, tmp_path: Path) -> None:
    filename, data = made_wheel("torch", "2.9.1+cpu")
    (tmp_path / filename).write_bytes(data)
    with Index().serve() as public, serving_files({}) as server:
        sources = Sources(Mirrors({"https://download.pytorch.org/": f"{server.url}/"}))
        lock_environment(
            ["torch==2.9.1+cpu"], target=Target("3.11"), store=store, sources=sources,
            index_url=f"{public.url}/simple/", find_links=[str(tmp_path)],
        )  # fmt: skip
        assert server.requests == []


@pytest.mark.usefixtures("plain_uv")
@pytest.mark.parametrize("offline", [False, True])
def test_a_label_whose_index_cannot_be_asked_says_which_and_what_to_do(store: Store, offline: bool) -> None:
    index = Index()
    index.add("torch", "2.9.1")
    with index.serve() as public:
        url = f"{public.url}/simple/"
        mirrors = {"https://download.pytorch.org/whl/": "http://127.0.0.1:9/whl/"}
        if offline:
            lock_environment(["torch"], target=Target("3.11"), store=store, sources=Sources(), index_url=url)
        with pytest.raises(NetworkError, match=r"torch==2\.9\.1\+cu128: PyTorch's own index.*--mirror") as caught:
            lock_environment(
                ["torch==2.9.1+cu128"], target=Target("3.11"), store=store, index_url=url,
                sources=Sources(Mirrors(mirrors, offline)),
            )  # fmt: skip
    assert "https://download.pytorch.org/whl/cu128/" in str(caught.value)


@pytest.mark.usefixtures("plain_uv")
def test_a_version_that_pytorch_s_index_lacks_is_told(store: Store) -> None:
    with Index().serve() as public, serving_files(pytorch("cu128", ("torch", "2.9.0+cu128"))) as server:
        sources = Sources(Mirrors({"https://download.pytorch.org/": f"{server.url}/"}))
        with pytest.raises(Unresolvable, match=r"2\.9\.1\+cu128"):
            lock_environment(
                ["torch==2.9.1+cu128"], target=Target("3.11"), store=store, sources=sources,
                index_url=f"{public.url}/simple/",
            )  # fmt: skip


@pytest.mark.usefixtures("plain_uv")
def test_offline_what_pytorch_s_index_said_before_still_counts(store: Store) -> None:
    index = Index()
    index.add("numpy", "2.0")
    own = pytorch("cu128", ("torch", "2.9.1+cu128"))
    with index.serve() as public, serving_files(own) as server:
        texts = {
            lock_environment(
                ["torch==2.9.1+cu128"], target=Target("3.11"), store=store, index_url=f"{public.url}/simple/",
                sources=Sources(Mirrors({"https://download.pytorch.org/": f"{server.url}/"}, offline)),
            ).pylock
            for offline in (False, True)
        }  # fmt: skip
    assert len(texts) == 1
