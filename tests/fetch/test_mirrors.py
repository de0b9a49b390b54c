"""Mirrors map whole parts of URLs, the longest prefix first."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpack_build.errors import UsageError
from cpack_build.fetch.mirrors import Mirrors, local_path


def test_the_longest_prefix_wins() -> None:
    mirrors = Mirrors.parse(["https://hub.example/=/srv/", "https://hub.example/models/=https://near.example/m/"])

    assert mirrors.apply("https://hub.example/models/x.bin") == "https://near.example/m/x.bin"
    assert mirrors.apply("https://hub.example/other") == "/srv/other"
    assert mirrors.apply("https://else.example/x") == "https://else.example/x"


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://hub.example/a", True),
        ("https://hub.example/a.git", True),
        ("https://hub.example/a/b", True),
        ("https://hub.example/a?x=1", True),
        ("https://hub.example/a-manager", False),
        ("https://hub.example/ab", False),
    ],
)
def test_a_prefix_fits_whole_parts_only(url: str, fits: bool) -> None:
    assert Mirrors({"https://hub.example/a": "/srv/a"}).is_mirrored(url) is fits


def test_an_image_may_be_mapped_with_its_tag() -> None:
    assert Mirrors({"docker.io/library/debian": "localhost:5000/d"}).apply("docker.io/library/debian:12") == (
        "localhost:5000/d:12"
    )


@pytest.mark.parametrize("pair", ["", "=", "https://x.example", "https://x.example=", "=/srv"])
def test_half_a_pair_is_a_usage_error(pair: str) -> None:
    with pytest.raises(UsageError, match="PREFIX=PREFIX"):
        Mirrors.parse([pair])


def test_targets_are_local_or_not() -> None:
    assert local_path("/srv/a b") == Path("/srv/a b")
    assert local_path("file:///srv/a%20b") == Path("/srv/a b")
    assert local_path("relative/folder") == Path("relative/folder")
    assert local_path("https://x.example/a") is None
    assert local_path("git@x.example:a/b") is None
