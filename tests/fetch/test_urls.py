"""No credential and no query value is ever shown, and only http(s) is spoken."""

from __future__ import annotations

import pytest

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.urls import check_http, redact, without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@hub.example/a/b", "https://hub.example/a/b"),
        ("https://hub.example/a?token=secret", "https://hub.example/a?…"),
        ("https://hub.example/a#secret", "https://hub.example/a"),
        ("https://hub.example?token=secret", "https://hub.example?…"),
        ("cannot read https://u:secret@hub.example/x?y=secret today", "cannot read https://hub.example/x?… today"),
        ("'https://u:secret@hub.example/x' and ssh://secret@b.example/y", "'https://hub.example/x' and ssh://b.example/y"),
        ("https://a:sec@ret@hub.example/x", "https://hub.example/x"),
    ],
)  # fmt: skip
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_credentials_are_taken_off() -> None:
    assert without_credentials("https://u:p@hub.example:8443/a?b=c") == "https://hub.example:8443/a?b=c"


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://hub.example/x",
        "https://",
        "javascript:1",
        "http://a b/",
        "http://[x",
    ],
)
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(UnsafeInput, match="the model names"):
        check_http(url, what="the model")
