"""Image names: every form that a command line takes, the distribution spec's grammar, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpack_build.errors import UsageError
from cpack_build.oci.reference import ArchiveName, EngineName, LayoutName, Reference, parse_image_name, parse_reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("oci:out", LayoutName(Path("out"))),
        ("oci:out/x:v1", LayoutName(Path("out/x"), "v1")),
        ("oci:/srv/a:b/c", LayoutName(Path("/srv/a:b/c"))),
        ("oci:/srv/a:b/c:v1", LayoutName(Path("/srv/a:b/c"), "v1")),
        (f"oci:out:v1@{DIGEST}", LayoutName(Path("out"), "v1", DIGEST)),
        (f"oci:out@{DIGEST}", LayoutName(Path("out"), None, DIGEST)),
        ("oci-archive:a b.tar", ArchiveName(Path("a b.tar"), "oci")),
        ("docker-archive:x:y.tar", ArchiveName(Path("x:y.tar"), "docker")),
        ("docker", EngineName("docker")),
        ("podman", EngineName("podman")),
        ("docker:upscale", EngineName("docker", Reference("docker.io", "library/upscale", "latest"))),
        ("podman:ghcr.example/a/b:v1", EngineName("podman", Reference("ghcr.example", "a/b", "v1"))),
        ("debian", Reference("docker.io", "library/debian")),
        ("debian:12", Reference("docker.io", "library/debian", "12")),
        ("team/app", Reference("docker.io", "team/app")),
        ("docker.io/debian", Reference("docker.io", "library/debian")),
        ("index.docker.io/team/app", Reference("docker.io", "team/app")),
        ("docker.io/library/docker", Reference("docker.io", "library/docker")),
        ("localhost/x", Reference("localhost", "x")),
        ("localhost:5000/hub/x:1.0", Reference("localhost:5000", "hub/x", "1.0")),
        ("[::1]:5000/x", Reference("[::1]:5000", "x")),
        ("r.example/a__b/c.d/e--f", Reference("r.example", "a__b/c.d/e--f")),
        (f"r.example/a:1@{DIGEST}", Reference("r.example", "a", "1", DIGEST)),
        (f"r.example/a@{DIGEST}", Reference("r.example", "a", None, DIGEST)),
    ],
)
def test_every_form_is_understood(text: str, name: object) -> None:
    assert parse_image_name(text) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no image name"),
        (" debian", "no image name"),
        ("deb\nian", "no image name"),
        ("Debian", "'library/Debian' is no repository name"),
        ("a//b", "no repository name"),
        ("a/../b", "no repository name"),
        ("-a", "no repository name"),
        ("a___b", "no repository name"),
        ("a:", "no tag"),
        ("reg.example/a:-x", "no tag"),
        ("reg.example/a:" + "x" * 129, "no tag"),
        ("a@sha256:abc", "no digest"),
        ("a@sha512:" + "a" * 128, "no digest"),
        ("a@sha256:" + "A" * 64, "no digest"),
        ("a@sha256:../../etc/passwd", "no digest"),
        ("a@", "no digest"),
        ("http://reg.example/a", "is a URL"),
        ("docker://debian", "is a URL"),
        ("reg_x.example/a", "no registry host"),
        ("reg.example:/a", "no registry host"),
        ("oci:", "names no file"),
        ("oci::v1", "names no file"),
        ("oci:dir:-bad", "no tag"),
        ("oci-archive:", "names no file"),
        ("docker:", "names no image"),
        (f"docker:a@{DIGEST}", "not by a digest"),
        ("dir:/tmp/x", "'dir:' is no registry host"),
        ("a/" * 200 + "b", "longer than"),
    ],
)
def test_what_is_wrong_is_said_and_what_to_do(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=r".") as error:
        parse_image_name(text)
    assert said in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("text", "familiar", "tagged"),
    [
        ("debian", "debian:latest", "docker.io/library/debian:latest"),
        ("team/app:1", "team/app:1", "docker.io/team/app:1"),
        ("r.example/app:1", "r.example/app:1", "r.example/app:1"),
    ],
)
def test_an_engine_is_given_the_full_name_and_people_the_short_one(text: str, familiar: str, tagged: str) -> None:
    reference = parse_reference(text)
    assert (reference.familiar, reference.tagged) == (familiar, tagged)
    assert parse_reference(reference.familiar) == parse_reference(tagged)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_a_usage_error_and_a_name_is_stable(text: str) -> None:
    try:
        name = parse_image_name(text)
    except UsageError:
        return
    assert parse_image_name(str(name)) == name
