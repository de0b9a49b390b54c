"""Git repositories made for a test: real ones, by git itself, with fixed dates and names."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests import need


def git(folder: Path, *arguments: str, stdin: bytes = b"", date: int = 1_700_000_000) -> str:
    """Run git in *folder* without any configuration of this machine; its output, stripped."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@x.example", "GIT_AUTHOR_DATE": f"{date} +0100",
        "GIT_COMMITTER_NAME": "C", "GIT_COMMITTER_EMAIL": "c@x.example", "GIT_COMMITTER_DATE": f"{date} +0100",
    }  # fmt: skip
    command = [word.encode() for word in (need.tool("git"), "-C", str(folder), *arguments)]  # whatever the locale
    return (
        subprocess.run(command, env=environment, input=stdin, check=True, capture_output=True).stdout.decode().strip()
    )


def make_repository(
    folder: Path,
    files: Mapping[str, str | bytes],
    *,
    executable: tuple[str, ...] = (),
    links: Mapping[str, str] | None = None,
    submodules: Mapping[str, str] | None = None,
    date: int = 1_700_000_000,
) -> str:
    """A repository (or one more commit of it) with exactly *files*, and *submodules* (path → commit), which git itself
    is not asked to clone; the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "read-tree", "--empty")
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        oid = git(folder, "hash-object", "-w", "--stdin", stdin=data)
        mode = "100755" if path in executable else "100644"
        git(folder, "update-index", "--add", "--cacheinfo", f"{mode},{oid},{path}")
    for path, target in (links or {}).items():
        oid = git(folder, "hash-object", "-w", "--stdin", stdin=target.encode())
        git(folder, "update-index", "--add", "--cacheinfo", f"120000,{oid},{path}")
    for path, commit in (submodules or {}).items():
        git(folder, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "commit", date=date)
    return git(folder, "rev-parse", "HEAD")
