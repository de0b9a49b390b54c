"""Looks for secrets and personal paths in files before they travel: it warns, with file and line, and changes nothing.

What cpack-build writes of its own accord holds neither; files that it captures (a node without a remote, a patch, the
workflow) are somebody's own words.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "scan"]

_SIZE_LIMIT = 4 << 20
"""Bytes read of one file; keys are kept in small ones."""
_LINE_LIMIT = 1 << 16
_KINDS = (
    ("a Hugging Face token", re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")),
    ("a GitHub token", re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,})\b")),
    ("an OpenAI or Anthropic key", re.compile(rb"\bsk-[A-Za-z0-9_-]{20,}\b")),
    ("an AWS key", re.compile(rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b")),
    ("a Google key", re.compile(rb"\bAIza[A-Za-z0-9_-]{35}\b")),
    ("a Slack token", re.compile(rb"\bxox[abprs]-[A-Za-z0-9-]{10,}\b")),
    ("a private key", re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("a password in a URL", re.compile(rb"[a-z][a-z0-9+.-]*://[^\s/:@'\"]+:[^\s/:@'\"{}$<]{3,}@")),
    (
        "what looks like a secret",
        re.compile(
            rb"""(?i)\b[\w-]*(api[_-]?key|access[_-]?key|secret|token|passwd|password)["']?\s*[:=]\s*"""
            rb"""["'](?!(?-i:[A-Z_]+)["']|your[_-])[^\s"'{}$<>]{12,}["']"""
        ),
    ),
    (
        "what looks like a secret",
        re.compile(rb"^[A-Z][A-Z0-9_]*(API_KEY|SECRET|TOKEN|PASSWORD)\s*=\s*[^\s\"'$<>{}()]{12,}\s*$"),
    ),
)  # fmt: skip
_HOME = re.compile(
    rb"(/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})(?!user\b|username\b|you\b|runner\b)([^\s/\\\"'<>:$]+)"
)


@dataclass(frozen=True)
class Finding:
    """Something in *file* at *line* (from 1 on) that its owner may not want to give away; the value is never shown."""

    file: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} holds {self.kind}"


def scan(files: Iterable[tuple[str, bytes | Path]], *, added_only: bool = False) -> Iterator[Finding]:
    """Go through *files*, by name; *added_only* reads them as patches, of which only what is added counts.

    Binary files are passed over, and of a large file only the first 4 MiB are read.
    """
    personal = _personal()
    for name, content in files:
        data = content[:_SIZE_LIMIT] if isinstance(content, bytes) else _head(content)
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.split(b"\n"), 1):
            if added_only and (not line.startswith(b"+") or line.startswith(b"+++ ")):
                continue
            if kind := _kind(line[:_LINE_LIMIT], personal):
                yield Finding(name, number, kind)


def _kind(line: bytes, personal: re.Pattern[bytes] | None) -> str:
    for kind, pattern in _KINDS:
        if pattern.search(line):
            return kind
    if _HOME.search(line) or (personal is not None and personal.search(line)):
        return "a path of somebody's home folder"
    return ""


def _personal() -> re.Pattern[bytes] | None:
    """This user's own home folder, where it is no system account's."""
    try:
        home = os.path.expanduser("~")
        name = getpass.getuser()
    except (KeyError, OSError):
        return None
    if home in ("/", "/root", "") or name == "root" or len(home) < 4:
        return None
    return re.compile(re.escape(os.fsencode(home)) + rb"(?=[/\\\"'\s]|$)")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SIZE_LIMIT)
