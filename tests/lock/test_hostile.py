"""What a pack, a lock or an index says that is not so: each is refused by name, or has no effect.

Requirements that are options or paths are in ``test_python``, refs and URLs of git in ``fetch/test_git``, a lock of a
newer revision in ``cli/test_check``.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import pytest

from cpack_build.errors import CpackError, HashMismatch, Unresolvable, UnsafeInput
from cpack_build.fetch.http import RequestsTransport, Sources
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.lock.cuda import driver_of
from cpack_build.lock.python import Target, lock_environment, parse_requirements
from cpack_build.lock.schema import Platform, PythonEnvironment
from cpack_build.lock.target import check_target, retarget
from cpack_build.lock.wheels import fetch_wheel, wheels_of
from tests.fetch.servers import serving_files
from tests.lock.indexes import Index
from tests.lock.test_target import pytorch

COMMIT = "0123456789" * 4
pytestmark = pytest.mark.usefixtures("plain_uv")


def names(requirements: list[str], store: Store, on: Platform = "linux/amd64", python: str = "3.11") -> set[str]:
    index = Index()
    index.add("alpha", "1.0")
    index.add("beta", "1.0")
    with index.serve() as server:
        environment = lock_environment(
            requirements, target=Target(python, on), store=store, sources=Sources(), index_url=f"{server.url}/simple/"
        )
    return {wheel.name for wheel in wheels_of(environment)}


@pytest.mark.parametrize(
    "marker",
    [
        'platform_machine == "aarch64"',
        'sys_platform == "win32"',
        'python_version < "3"',
        'extra == "never"',
        'implementation_name == "pypy"',
        f'python_version >= "3.12" and platform_release == "{platform.release()}"',
    ],
)
@pytest.mark.parametrize("source", ["beta", f"beta @ git+https://evil.example/beta@{COMMIT}"])
def test_a_marker_is_about_the_image_and_what_it_leaves_out_is_not_even_fetched(
    source: str, marker: str, store: Store
) -> None:
    assert names(["alpha", f"{source} ; {marker}"], store) == {"alpha"}


def test_a_marker_that_is_true_only_elsewhere_counts_there(store: Store) -> None:
    requirement = 'beta ; platform_machine == "aarch64" and python_version == "3.12"'
    assert names(["alpha", requirement], store, "linux/arm64", "3.12") == {"alpha", "beta"}


@pytest.mark.parametrize(
    ("requirement", "error"),
    [
        ('alpha ; evil_variable == "x"', UnsafeInput),
        ('alpha ; os.system("x")', UnsafeInput),
        ('alpha ; sys_platform == "linux"\n--index-url=https://evil.example/', UnsafeInput),
        ('alpha ; sys_platform == "linux" --index-url=https://evil.example/', UnsafeInput),
        ("-ealpha", UnsafeInput),
        ("--editable=git+https://evil.example/a", UnsafeInput),
        ("alpha @ FILE:///etc/passwd", UnsafeInput),
        ("alpha @ git+https://code.example/a@--upload-pack=x", Unresolvable),
        (f"alpha @ git+https://code.example/--upload-pack=x@{COMMIT}^", Unresolvable),
    ],
)
def test_what_only_looks_like_a_requirement_is_refused(requirement: str, error: type[CpackError]) -> None:
    with pytest.raises(error):
        parse_requirements([requirement])


def locked(first: Index, store: Store) -> PythonEnvironment:
    with first.serve() as server:
        sources = Sources(Mirrors({"https://index.example/": f"{server.url}/"}), RequestsTransport())
        return lock_environment(
            ["alpha"], target=Target("3.11"), store=store, sources=sources, index_url="https://index.example/simple/"
        )


def test_an_index_that_serves_other_bytes_than_it_promised_is_found_out(store: Store, tmp_path: Path) -> None:
    honest, other = Index(), Index()
    promised = honest.add("alpha", "1.0")
    served = other.add("alpha", "1.0", requires=["evil"])
    (alpha,) = wheels_of(locked(honest, store))
    assert (alpha.url, alpha.sha256) == ("https://index.example/files/alpha-1.0-py3-none-any.whl", promised)
    with other.serve() as server:
        fetching = Store(tmp_path / "other")
        sources = Sources(Mirrors({"https://index.example/": f"{server.url}/"}), RequestsTransport())
        with pytest.raises(HashMismatch, match=r"alpha-1\.0-py3-none-any\.whl") as caught:
            fetch_wheel(alpha, store=fetching, sources=sources)
    assert promised in str(caught.value)
    assert served in str(caught.value)
    assert fetching.find(promised) is None
    assert fetching.find(served) is None


def test_a_lock_tampered_with_so_well_that_it_fits_itself_gets_other_bytes_in_nowhere(
    store: Store, tmp_path: Path
) -> None:
    index = Index()
    promised = index.add("alpha", "1.0")
    environment = locked(index, store)
    text = environment.pylock.replace(promised, "0" * 64)
    again = PythonEnvironment(pylock=text, pylock_sha256=hashlib.sha256(text.encode()).hexdigest())
    (alpha,) = wheels_of(again)
    with index.serve() as server:
        sources = Sources(Mirrors({"https://index.example/": f"{server.url}/"}), RequestsTransport())
        with pytest.raises(HashMismatch, match="0" * 64):
            fetch_wheel(alpha, store=Store(tmp_path / "other"), sources=sources)


def test_a_pack_for_cuda_becomes_a_lock_for_rocm(store: Store) -> None:
    """torch and its triton come from ROCm's index; what CUDA's torch brought along is gone."""
    public = Index()
    public.add("numpy", "2.0")
    public.add("nvidia-cublas-cu12", "12.8.4.1")
    own = pytorch(
        "rocm6.4", ("torch", "2.9.1+rocm6.4"), ("torchvision", "0.24.1+rocm6.4"), ("pytorch-triton-rocm", "3.5.1")
    )
    pins = ["torch==2.9.1+cu128", "torchvision==0.24.1+cu128", "nvidia-cublas-cu12==12.8.4.1", "triton==3.5.1"]
    changed = retarget(pins, "rocm6.4", platform="linux/amd64").requirements
    with public.serve() as server, serving_files(own) as rocm:
        environment = lock_environment(
            [*changed, "pytorch-triton-rocm==3.5.1"], target=Target("3.11"), store=store,
            sources=Sources(Mirrors({"https://download.pytorch.org/": f"{rocm.url}/"})),
            index_url=f"{server.url}/simple/",
        )  # fmt: skip
    wheels = wheels_of(environment)
    assert {wheel.name: wheel.version for wheel in wheels} == {
        "torch": "2.9.1+rocm6.4", "torchvision": "0.24.1+rocm6.4", "pytorch-triton-rocm": "3.5.1", "numpy": "2.0",
    }  # fmt: skip
    check_target(wheels, "rocm6.4", platform="linux/amd64")
    assert driver_of("rocm6.4") is None
