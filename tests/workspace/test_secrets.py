"""What somebody may not want to give away is named by file and line, and its value never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpack_build.workspace.secrets import scan

TOKENS = {
    "a Hugging Face token": "token = 'hf_" + "A1b2" * 9 + "'",
    "a GitHub token": "ghp_" + "a" * 36,
    "an OpenAI or Anthropic key": 'key="sk-' + "Ab1-" * 8 + '"',
    "an AWS key": "AKIA" + "A" * 16,
    "a private key": "-----BEGIN RSA PRIVATE KEY-----",
    "a password in a URL": "https://alice:hunter22@hub.example/x",
    "what looks like a secret": 'API_KEY = "0123456789abcdef"',
    "a path of somebody's home folder": "/home/alice/ComfyUI/models",
}


@pytest.mark.parametrize(("kind", "line"), TOKENS.items())
def test_each_kind_is_found_with_its_line(kind: str, line: str) -> None:
    (finding,) = scan([("nodes/x/a.py", f"import os\n# fine\n{line}\n".encode())])
    assert str(finding) == f"nodes/x/a.py:3 holds {kind}"
    assert line not in str(finding)


@pytest.mark.parametrize(
    "line",
    ["api_key = os.environ['API_KEY']", 'token = "{token}"', "password: ''", "tokens = ['a', 'b']", "/home/user/x",
     "https://hub.example:8080/a@b", "def secret(token): pass", "max_tokens = 4096000000000",
     '"auth_token": "AUTH_TOKEN_OF_SOMETHING",', 'auth_token="your_auth_token_here",'],
)  # fmt: skip
def test_ordinary_code_is_not_suspected(line: str) -> None:
    assert list(scan([("a.py", line.encode())])) == []


def test_binary_files_are_passed_over_and_patches_count_only_what_they_add(tmp_path: Path) -> None:
    token = TOKENS["a GitHub token"].encode()
    (tmp_path / "a.bin").write_bytes(b"\0\1" + token)
    assert list(scan([("a.bin", tmp_path / "a.bin")])) == []
    patch = b"--- a/x\n+++ b/x\n-" + token + b"\n " + token + b"\n+" + token + b"\n"
    assert [finding.line for finding in scan([("patches/x.patch", patch)], added_only=True)] == [5]
