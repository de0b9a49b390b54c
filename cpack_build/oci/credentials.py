"""Who we are to a registry, as Docker and podman have it written down.

In this order: ``CPACK_REGISTRY_USER`` and ``CPACK_REGISTRY_PASSWORD`` for the one registry that they are for, then
``$REGISTRY_AUTH_FILE``, Docker's ``config.json`` and podman's ``auth.json``, each with its ``credHelpers``,
``credsStore`` and ``auths``. A helper is a program ``docker-credential-NAME`` of the PATH, run without a shell and
given the registry's name on its stdin.

Specification: docker/cli, "Credential helpers protocol"; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

__all__ = [
    "HELPER_SECONDS",
    "Credentials",
    "Found",
    "credentials_for",
    "find_credentials",
    "helper_program",
    "login_file",
    "store_key",
]

HELPER_SECONDS = 60
"""A helper may ask the user to unlock a keyring."""
_HELPER_LIMIT = 1 << 20
_FILE_LIMIT = 16 << 20
_IDENTITY = "<token>"
"""The user name that marks the password as an OAuth2 refresh token (docker/cli: "Credential helpers protocol")."""


class Credentials(NamedTuple):
    """A user and a password; neither is shown."""

    user: str
    password: str

    @property
    def is_identity_token(self) -> bool:
        """Whether the password is a refresh token, which only a token service takes."""
        return self.user == _IDENTITY

    def __repr__(self) -> str:
        return "Credentials(…)"


@dataclass(frozen=True)
class Found:
    """What was found, and if a place that should have had them could not be asked, why: for the error to come."""

    credentials: Credentials | None = None
    problem: str = ""


def credentials_for(registry: str, *, repository: str = "", own: str | None = None) -> tuple[str, str] | None:
    """User and password for *registry*, or ``None``; see :func:`find_credentials`."""
    return find_credentials(registry, repository=repository, own=own).credentials


def find_credentials(registry: str, *, repository: str = "", own: str | None = None) -> Found:
    """What the environment and the files of Docker and podman have for *repository* of *registry*.

    *own* is the registry that ``CPACK_REGISTRY_USER`` is for if ``CPACK_REGISTRY`` does not name one.
    """
    user, password = os.environ.get("CPACK_REGISTRY_USER"), os.environ.get("CPACK_REGISTRY_PASSWORD")
    if user and password and (os.environ.get("CPACK_REGISTRY") or own) == registry:
        return Found(Credentials(user, password))
    problem = ""
    for path in _files():
        found = _in_file(path, registry, repository)
        if found.credentials is not None:
            return found
        problem = problem or found.problem
    return Found(None, problem)


def login_file() -> Path:
    """Where a new login is written: ``$REGISTRY_AUTH_FILE``, else Docker's ``config.json``."""
    named = os.environ.get("REGISTRY_AUTH_FILE")
    return Path(named) if named else _docker_file()


def _docker_file() -> Path:
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _files() -> list[Path]:
    named = os.environ.get("REGISTRY_AUTH_FILE")
    docker = _docker_file()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    config = os.environ.get("XDG_CONFIG_HOME")
    if named:
        return [Path(named), docker]
    podman = [Path(runtime) / "containers" / "auth.json"] if runtime else []
    podman.append((Path(config) if config else Path.home() / ".config") / "containers" / "auth.json")
    return [docker, *podman]


def _in_file(path: Path, registry: str, repository: str) -> Found:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT)
    except FileNotFoundError:
        return Found()
    except OSError as error:
        return Found(None, f"{path} cannot be read: {error.strerror}")
    try:
        document: Any = json.loads(data)
    except (ValueError, RecursionError):
        return Found(None, f"{path} is not JSON")
    if not isinstance(document, dict):
        return Found(None, f"{path} is not a JSON object")
    helpers = document.get("credHelpers")
    auths = document.get("auths")
    problem = ""
    for key in _keys(registry, repository):
        helper = helpers.get(key) if isinstance(helpers, dict) else None
        entry = auths.get(key) if isinstance(auths, dict) else None
        if helper:
            found = _ask_helper(helper, key, path)
        elif document.get("credsStore") and (entry == {} or key == store_key(registry)):
            found = _ask_helper(document["credsStore"], key, path)
        else:
            found = Found()
        if found.credentials is None and isinstance(entry, dict):
            found = Found(_decoded(entry), found.problem)
        if found.credentials is not None:
            return found
        problem = problem or found.problem
    return Found(None, problem)


def store_key(registry: str) -> str:
    """What the login of *registry* is kept under, by Docker's rules."""
    return "https://index.docker.io/v1/" if registry == "docker.io" else registry


def _keys(registry: str, repository: str) -> list[str]:
    """Most particular first: podman's files may have logins for a part of a registry."""
    parts = repository.split("/") if repository else []
    keys = ["/".join((registry, *parts[:count])) for count in range(len(parts), 0, -1)]
    if registry == "docker.io":
        return [*keys, "https://index.docker.io/v1/", "docker.io", "index.docker.io"]
    return [*keys, registry, f"https://{registry}"]


def _decoded(entry: dict[str, Any]) -> Credentials | None:
    identity = entry.get("identitytoken")
    if isinstance(identity, str) and identity:
        return Credentials(_IDENTITY, identity)
    try:
        user, colon, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (ValueError, KeyError, TypeError, binascii.Error):
        return None
    return Credentials(user, password) if colon and user else None


def helper_program(name: object, path: Path) -> tuple[str | None, str]:
    """The program of the credential helper that *path* names, or ``None`` and why; only one of the PATH is taken."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        return None, f"{path} names a credential helper whose name is no program's"
    program = shutil.which(f"docker-credential-{name}")
    if program is None:
        return None, f"{path} names the credential helper docker-credential-{name}, which is not here"
    return program, ""


def _ask_helper(name: object, key: str, path: Path) -> Found:
    """Ask ``docker-credential-NAME get`` for *key*."""
    program, problem = helper_program(name, path)
    if program is None:
        return Found(None, problem)
    try:
        done = subprocess.run(
            [program, "get"], input=key.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Found(None, f"docker-credential-{name} did not answer within {HELPER_SECONDS} seconds")
    except OSError as error:
        return Found(None, f"docker-credential-{name} cannot be run: {error.strerror}")
    if done.returncode:
        # What it says is not repeated: some helpers say what they hold. "Not found" is the usual reason.
        missing = b"credentials not found" in done.stdout + done.stderr
        return Found() if missing else Found(None, f"docker-credential-{name} failed (exit code {done.returncode})")
    try:
        answer: Any = json.loads(done.stdout[:_HELPER_LIMIT])
        user, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Found(None, f"docker-credential-{name} gave no user and secret")
    if not isinstance(user, str) or not isinstance(secret, str) or not user or not secret:
        return Found()
    return Found(Credentials(user, secret))
