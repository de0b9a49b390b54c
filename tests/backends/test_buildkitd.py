"""buildkitd itself behind buildx's drivers that need one, each with an empty cache: it makes no difference which.

``CPACK_TEST_BUILDKITD`` names a folder with ``buildkitd`` and ``buildctl``; CONTRIBUTING.md tells how to build them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import need
from tests.backends.conftest import Built, root_in
from tests.backends.relay import certify
from tests.backends.roots import differences
from tests.backends.test_buildkit import KNOWN
from tests.engines import Docker, free_port, run_buildkitd

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]
if "CPACK_TEST_BUILDKITD" not in os.environ:
    pytest.skip("needs CPACK_TEST_BUILDKITD", allow_module_level=True)
BINARIES = Path(os.environ["CPACK_TEST_BUILDKITD"])


@contextmanager
def named(docker: Docker, name: str, *arguments: str) -> Iterator[str]:
    """A builder called *name* of a driver with its *arguments*."""
    docker("buildx", "create", "--name", name, *arguments)
    try:
        yield name
    finally:
        docker("buildx", "rm", name, check=False)


@contextmanager
def remote_by_socket(docker: Docker, folder: Path) -> Iterator[str]:
    with run_buildkitd(BINARIES) as address, named(docker, "socket", "--driver", "remote", address) as name:
        yield name


@contextmanager
def remote_by_tls(docker: Docker, folder: Path) -> Iterator[str]:
    certify(folder / "tls")
    url = f"tcp://127.0.0.1:{free_port()}"
    names = {"cacert": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
    here = {key: folder / "tls" / file for key, file in names.items()}
    options = ",".join(f"{key}={path}" for key, path in here.items())
    tls = [f"--tls{key}={path}" for key, path in here.items()]
    driver = ("--driver", "remote", "--driver-opt", f"{options},servername=localhost", url)
    with run_buildkitd(BINARIES, "--addr", url, *tls), named(docker, "tls", *driver) as name:
        yield name


@contextmanager
def in_a_container(docker: Docker, folder: Path) -> Iterator[str]:
    """The driver ``docker-container``, in an image of the binaries, runc, and what runc is linked to."""
    runc = Path(need.tool("runc")).resolve()
    linked = subprocess.run(["ldd", runc], check=True, capture_output=True, text=True).stdout
    files = {
        "usr/bin/buildkitd": BINARIES / "buildkitd",
        "usr/bin/buildctl": BINARIES / "buildctl",
        "usr/bin/runc": runc,
        "etc/ssl/certs/ca-certificates.crt": Path("/etc/ssl/certs/ca-certificates.crt"),
        **{path[1:]: Path(path) for path in re.findall(r"(/\S+) \(0x", linked)},
    }
    with tarfile.open(folder / "image.tar", "w") as archive:
        for name in ("tmp", "run", "proc", "sys", "dev"):
            archive.addfile(_folder(name))
        for name, path in files.items():
            archive.add(path.resolve(), name)
    image = "buildkitd:test"
    changes = ("--change", 'ENTRYPOINT ["buildkitd"]', "--change", "ENV PATH=/usr/bin")
    docker("import", *changes, str(folder / "image.tar"), image)
    options = ("--driver-opt", f"image={image},network=host")
    with named(docker, "container", "--driver", "docker-container", *options) as name:
        yield name


def _folder(name: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    return entry


def test_whichever_builder_makes_it_the_image_is_the_same(built: Built, new_docker: Docker, tmp_path: Path) -> None:
    digests = {}
    for make in (remote_by_socket, remote_by_tls, in_a_container):
        folder = tmp_path / make.__name__
        folder.mkdir()
        with make(new_docker, folder) as name:
            run = built.image(
                "--backend", "buildkit", "--builder", name, "--output", f"oci:{folder / 'layout'}",
                environment=new_docker.environment,
            )  # fmt: skip
        assert run.code == 0, run.said
        digests[make.__name__] = run.result["digest"]
    assert len(set(digests.values())) == 1, digests
    found = differences(dict(built.root), root_in(tmp_path / "in_a_container" / "layout"))
    assert not [path for path in found if not KNOWN.fullmatch(path)]
