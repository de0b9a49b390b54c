"""No credential and no query value is ever shown, and only http(s) is spoken."""

from __future__ import annotations

import json

import pytest

from cpack_build.errors import UnsafeInput
from cpack_build.fetch.urls import check_http, redact, without_credentials, without_secrets


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


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://a.example/m?token=SECRET", "https://a.example/m"),
        ("https://a.example/m?type=Model&token=SECRET&format=x", "https://a.example/m?type=Model&format=x"),
        ("https://u:p@a.example/m?X-Amz-Signature=SECRET", "https://a.example/m"),
        ("https://a.example/m?tokens=3", "https://a.example/m?tokens=3"),
    ],
)
def test_no_secret_of_a_url_is_recorded(url: str, kept: str) -> None:
    assert without_credentials(url) == kept


def test_no_secret_of_a_document_enters_an_image() -> None:
    document = (
        b'{"download_url": "https://a.example/m?type=x&token=SECRET", "url": "https://a.example/m?token=SECRET&a=b"}'
    )
    assert b"SECRET" not in without_secrets(document)
    assert json.loads(without_secrets(document))["url"] == "https://a.example/m?token=removed&a=b"
    assert without_secrets(b'{"plain": "text?really"}') == b'{"plain": "text?really"}'


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (b'{"https://user:SECRET@h.example/x.git": 1}', b'{"https://h.example/x.git": 1}'),
        (b'{"https:\\/\\/SECRET@h.example\\/x": 1}', b'{"https:\\/\\/h.example\\/x": 1}'),
        (b'{"x @ git+https://SECRET@h.example/x@0123": ""}', b'{"x @ git+https://h.example/x@0123": ""}'),
        (b'"https://h.example/x?X-Goog-Signature=SECRET&a=b"', b'"https://h.example/x?X-Goog-Signature=removed&a=b"'),
        (b'"ssh://git@h.example/x, git@h.example:x"', b'"ssh://git@h.example/x, git@h.example:x"'),
        (b'"https://h.example/@user/x, see https://h.example, and mail a@b.example"',) * 2,
    ],
)
def test_a_document_keeps_no_user_and_no_signature_of_an_address(text: bytes, clean: bytes) -> None:
    assert without_secrets(text) == clean
