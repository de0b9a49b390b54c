"""A base that is named by its family is the one of NVIDIA's images that fits the target, by digest, from a registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpack_build.cpack.settings import Settings, parse_settings
from cpack_build.errors import BadSettings, NetworkError, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.image.base import open_locked_base
from cpack_build.lock.cuda import BASES, CUDA_BUILDS, PLAIN_CUDA, base_of, driver_of
from cpack_build.lock.schema import BaseImage, BaseInterpreter
from cpack_build.lock.system import System, lock_system
from cpack_build.oci.push import push
from cpack_build.oci.reference import parse_reference
from tests.engines import Registry
from tests.lock.progress import Heard
from tests.oci.images import image_of, text_layer

STATUS = "Package: libc6\nStatus: install ok installed\nVersion: 2.35-0ubuntu3\n"


@pytest.mark.parametrize(
    ("family", "target", "python", "image"),
    [
        ("cuda", "cuda12.8", "3.12", "12.8.1-runtime-ubuntu24.04"),
        ("cuda", "cuda12.8", "3.11", "12.8.1-runtime-ubuntu22.04"),
        ("cuda-base", "cuda13.0", "3.13", "13.0.2-base-ubuntu24.04"),
        ("cuda-devel", "cuda12.4", "3.12", "12.4.1-devel-ubuntu22.04"),
    ],
)
def test_the_image_fits_the_cuda_and_the_python(family: str, target: str, python: str, image: str) -> None:
    assert base_of(family, target=target, python=python) == f"docker.io/nvidia/cuda:{image}"


def test_every_cuda_of_the_tables_has_a_driver_and_every_one_that_is_released_for_a_base() -> None:
    plain = {cuda for platform in PLAIN_CUDA.values() for cuda in platform.values()}
    released = {cuda for builds in CUDA_BUILDS.values() for cuda in builds}
    for cuda in plain | released | set(BASES):
        assert driver_of(f"cuda{cuda}") is not None
    assert plain | released <= {*BASES, "11.7"}, "torch 2.0's is no more"
    assert (driver_of("cpu"), driver_of("rocm6.4")) == (None, None)


def test_what_has_no_such_image_is_told() -> None:
    with pytest.raises(BadSettings, match=r"base is 'cuda', and the target is cpu"):
        base_of("cuda", target="cpu", python="3.12")
    with pytest.raises(BadSettings, match=r"rocm6\.4"):
        base_of("cuda", target="rocm6.4", python="3.12")
    with pytest.raises(Unresolvable, match=r"fits cuda11\.7 is not known.*--base docker\.io/nvidia/cuda:"):
        base_of("cuda", target="cuda11.7", python="3.12")


def lock(settings: Settings, registry: Registry | None, store: Store, target: str, heard: Heard) -> System:
    mirrors = {"docker.io/nvidia/": f"{registry.host}/vendor/"} if registry is not None else {}
    return lock_system(
        settings, python="3.11", platform="linux/amd64", target=target, store=store,
        sources=Sources(Mirrors(mirrors, is_offline=registry is None)), progress=heard,
    )  # fmt: skip


def test_a_family_becomes_the_digest_that_a_registry_has(registry: Registry, store: Store, tmp_path: Path) -> None:
    files = {"var/lib/dpkg/status": STATUS, "usr/bin/python3.11": "elf"}
    images = {}
    for tag in ("12.8.1-runtime-ubuntu22.04", "12.6.3-runtime-ubuntu22.04"):
        images[tag] = image_of([text_layer({**files, "usr/local/cuda/version.json": tag})], architecture="amd64")
        push(images[tag], [parse_reference(f"{registry.host}/vendor/cuda:{tag}")], memo=store)
    settings = parse_settings("{base: cuda, system: {defaults: none}}", name="the flags")
    for target, tag in (
        ("cuda12.8", "12.8.1-runtime-ubuntu22.04"),
        ("cuda12.6", "12.6.3-runtime-ubuntu22.04"),
    ):
        heard = Heard()
        system = lock(settings, registry, store, target, heard)
        assert isinstance(system.base, BaseImage)
        assert system.base.reference == f"docker.io/nvidia/cuda:{tag}"
        assert system.base.digest == images[tag].digest
        assert isinstance(system.interpreter, BaseInterpreter)
        assert system.glibc == 35
        assert heard.notes == [f"For {target}, the base is docker.io/nvidia/cuda:{tag}."]
        # and an image is built upon that one, by what the lock says
        sources = Sources(Mirrors({"docker.io/nvidia/": f"{registry.host}/vendor/"}))
        other = Store(tmp_path / target)
        base = open_locked_base(system.base, platform="linux/amd64", name="cuda", store=other, sources=sources)
        assert len(base.layers) == 1


def test_a_registry_that_cannot_be_asked_is_named_with_the_image(store: Store) -> None:
    settings = parse_settings("{base: cuda}", name="the flags")
    with pytest.raises(NetworkError, match=r"docker\.io/nvidia/cuda:12\.8\.1-runtime-ubuntu22\.04.*--mirror"):
        lock(settings, None, store, "cuda12.8", Heard())
