"""Builders elsewhere (``--builder``), by TLS; and what a build attaches to the image: provenance and an SBOM."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from tests import need
from tests.backends.conftest import Built, root_in
from tests.backends.relay import Relay, run_relay
from tests.backends.roots import differences
from tests.backends.test_buildkit import KNOWN
from tests.engines import Docker, Registry

pytestmark = [pytest.mark.network, pytest.mark.xdist_group("builders")]


@pytest.fixture
def far(new_docker: Docker, tmp_path: Path) -> Iterator[Relay]:
    """A builder called ``far``, which only its address and its certificates lead to."""
    with run_relay(new_docker.host, tmp_path / "tls") as relay:
        new_docker("buildx", "create", "--name", "far", "--driver", "remote", *relay.options, relay.url)
        try:
            yield relay
        finally:
            new_docker("buildx", "rm", "far", check=False)


def test_a_builder_elsewhere_makes_the_same_root(built: Built, new_docker: Docker, far: Relay, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    run = built.image(
        "--backend", "buildkit", "--builder", "far", "--output", f"oci:{layout}",
        environment={**new_docker.environment, "DOCKER_HOST": "unix:///nonexistent.sock"},
    )  # fmt: skip
    assert run.code == 0, run.said
    assert far.connections >= 2, "asked what it can, and then to build"
    found = differences(dict(built.root), root_in(layout))
    assert not [path for path in found if not KNOWN.fullmatch(path)]


def test_the_printed_command_fits_the_driver_of_the_builder_and_runs_as_it_is(
    built: Built, new_docker: Docker, far: Relay, registry: Registry, tmp_path: Path
) -> None:
    commands = {}
    for builder in ("default", "far"):
        printed = ("--print", tmp_path / builder)
        run = built.image("--backend", "buildkit", "--builder", builder, *printed, environment=new_docker.environment)
        assert run.code == 0, run.said
        commands[builder] = run.result["build"].partition(" && ")[2]
        assert commands[builder] in (tmp_path / builder / "README.md").read_text()
        assert "REWRITE_TIMESTAMP" not in run.said, "its driver is known"
    assert commands["default"] == f"REWRITE_TIMESTAMP=false {commands['far']}"
    name = f"{registry.host}/printed:1"
    subprocess.run(
        ["/bin/sh", "-c", commands["default"].replace("NAME", name)],
        cwd=tmp_path / "default", env={**os.environ, **new_docker.environment,
        "PATH": f"{Path(new_docker.command).parent}:{os.environ['PATH']}"}, check=True,
    )  # fmt: skip
    assert new_docker("buildx", "imagetools", "inspect", name).returncode == 0


def test_a_builder_that_does_not_know_our_certificate_is_named(
    built: Built, new_docker: Docker, far: Relay, tmp_path: Path
) -> None:
    subprocess.run(
        [need.tool("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=stranger", "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    names = {"cacert": far.folder / "ca.pem", "cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    options = ",".join(f"{key}={path}" for key, path in names.items())
    new_docker("buildx", "create", "--name", "shy", "--driver", "remote", "--driver-opt", options, far.url)
    before = far.connections
    try:
        run = built.image(
            "--backend", "buildkit", "--builder", "shy", "--output", f"oci:{tmp_path / 'layout'}",
            environment=new_docker.environment,
        )  # fmt: skip
    finally:
        new_docker("buildx", "rm", "shy", check=False)
    assert (run.code, run.result["error"]["type"]) == (7, "ToolMissing"), run.said
    assert "shy" in run.result["error"]["message"]
    assert far.connections == before


def test_a_platform_that_the_builder_runs_nothing_for_is_named_before_anything_is_fetched(
    built: Built, buildx: Docker, tmp_path: Path
) -> None:
    lock = json.loads(built.example.pack.with_name("example.cpack.lock").read_text())
    other = {"linux/amd64": "linux/arm64", "linux/arm64": "linux/amd64"}[lock["platform"]]
    if other in buildx("buildx", "inspect").stdout:
        need.missing("a machine that emulates no other")
    (tmp_path / "other.lock").write_text(json.dumps({**lock, "platform": other}))
    run = built.image(
        "--backend", "buildkit", "--lock", tmp_path / "other.lock", "--frozen", "--platform", other, "--output",
        f"oci:{tmp_path / 'layout'}", environment={**buildx.environment, "CPACK_HOME": str(tmp_path / "empty")},
    )  # fmt: skip
    assert (run.code, run.result["error"]["type"]) == (7, "ToolMissing"), run.said
    assert f"runs nothing for {other}" in run.result["error"]["message"]
    assert not (tmp_path / "layout").exists()
    assert not [path for path in (tmp_path / "empty").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]


def test_an_image_has_the_lock_s_sbom_and_whole_provenance_attached(
    built: Built, buildx: Docker, registry: Registry, tmp_path: Path
) -> None:
    """By bake alone: the scanner is made from the same folder, and BuildKit runs it."""
    kept = {} if "BUILDX_BUILDER" in buildx.environment else {"REWRITE_TIMESTAMP": "false"}
    printed = tmp_path / "printed"
    assert built.image("--backend", "buildkit", "--print", printed, environment={}).code == 0
    scanner, image = f"{registry.host}/attested/scanner", f"{registry.host}/attested/image:1"

    def bake(*words: str, generator: str = "", folder: Path = printed) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [buildx.command, "buildx", "bake", *words, "--push", "--metadata-file", str(tmp_path / "made.json")],
            cwd=folder, env={"PATH": "/usr/bin:/bin", **buildx.environment, "SBOM_GENERATOR": generator, **kept},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = bake("sbom-scanner", "--set", f"sbom-scanner.tags={scanner}")
    assert done.returncode == 0, done.stderr[-3000:]
    digest = json.loads((tmp_path / "made.json").read_text())["sbom-scanner"]["containerimage.digest"]
    pinned = f"{scanner}@{digest}"
    done = bake("--set", f"image.tags={image}", generator=pinned)
    assert done.returncode == 0, done.stderr[-3000:]

    skopeo = [need.tool("skopeo"), "inspect", "--raw", "--tls-verify=false"]
    index = json.loads(subprocess.run([*skopeo, f"docker://{image}"], check=True, capture_output=True).stdout)
    made, attestation = index["manifests"]
    assert attestation["annotations"]["vnd.docker.reference.type"] == "attestation-manifest"
    assert attestation["annotations"]["vnd.docker.reference.digest"] == made["digest"]
    name = image.rpartition(":")[0]
    raw = subprocess.run([*skopeo, f"docker://{name}@{attestation['digest']}"], check=True, capture_output=True).stdout
    kinds = {layer["annotations"]["in-toto.io/predicate-type"] for layer in json.loads(raw)["layers"]}
    assert "https://spdx.dev/Document" in kinds
    assert any(kind.startswith("https://slsa.dev/provenance/") for kind in kinds)

    ask = ("buildx", "imagetools", "inspect", image, "--format")
    sbom = json.loads(buildx(*ask, "{{json .SBOM}}").stdout)["SPDX"]
    lock = built.example.pack.with_name("example.cpack.lock")
    ours = tmp_path / "ours.json"
    assert built.call("sbom", lock, "--format", "spdx", "-o", ours, environment={}).code == 0
    theirs = {package["name"] for package in sbom["packages"]}
    assert theirs == {package["name"] for package in json.loads(ours.read_text())["packages"]}
    assert len(theirs) > 100
    provenance = json.loads(buildx(*ask, "{{json .Provenance}}").stdout)["SLSA"]
    about = provenance.get("buildDefinition", {})  # SLSA 1.0, as newer BuildKits write it; else 0.2
    assert "buildConfig" in about.get("internalParameters", provenance), "mode=max"
    materials = about.get("resolvedDependencies") or provenance["materials"]
    assert any(sha256(b"").hexdigest() not in uri and digest[7:] in json.dumps(uri) for uri in materials)

    other = shutil.copytree(printed, tmp_path / "other")
    (other / "Dockerfile").write_text(
        (other / "Dockerfile").read_text().replace("ADD --link app.tar /\n", "ADD --link cpack.tar /\n")
    )
    done = bake("--set", f"image.tags={image}", generator=pinned, folder=other)
    assert done.returncode, "the scanner knows no other image than the lock's"
    assert os.listdir(other)
