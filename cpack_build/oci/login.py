"""Logging in to a registry, and out of it again: credentials proved first, then written where Docker has them.

They go to the credential helper that ``config.json`` names for the registry (``credHelpers``, ``credsStore``), else
into the file itself, which only its owner may read; everything else in it stays as it was. ``$REGISTRY_AUTH_FILE``
names another file, as for podman.

Specification: docker/cli, "docker login" ("Credential stores", "Credential helpers"); containers-auth.json(5).
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpack_build import filesystem
from cpack_build.errors import BadInput, StorageError, ToolMissing, UsageError, writing
from cpack_build.oci.connection import Connection
from cpack_build.oci.credentials import HELPER_SECONDS, Credentials, helper_program, login_file, store_key
from cpack_build.oci.reference import Reference, parse_reference
from cpack_build.oci.storage import whole_file
from cpack_build.oci.transport import Access

__all__ = ["Login", "check_login", "log_in", "log_out", "parse_registry"]

_LIMIT = 16 << 20


@dataclass(frozen=True)
class Login:
    """Where a login was written, or removed: *place* is a file, or the name of a helper's program."""

    registry: str
    place: str
    is_plain: bool
    """Whether the password is in a file that is not encrypted."""


def parse_registry(text: str) -> str:
    """The registry that *text* names: ``registry.example:5000``, ``docker.io``. Raises :class:`UsageError`."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    name = name.removesuffix("/v1").removesuffix("/v2")
    if not name or "/" in name:
        raise UsageError(f"{text!r} is no registry.", hint="Write its host: registry.example or localhost:5000.")
    if name in ("docker.io", "index.docker.io", "registry-1.docker.io", "hub.docker.com"):
        return "docker.io"
    reference = parse_reference(f"{name}/x")
    if reference.registry != name:
        raise UsageError(f"{text!r} is no registry.", hint="Write its host: registry.example or localhost:5000.")
    return name


def check_login(registry: str, credentials: Credentials, *, access: Access | None = None) -> bool:
    """Ask *registry* whether it knows *credentials*; ``False`` if it asks nobody who they are.

    Raises :class:`NetworkError` when it refuses them. Specification: distribution-spec v1.1, "Determining Support".
    """
    connection = Connection(
        Reference(registry, ""), verb="Logging in to", actions="", access=access, credentials=credentials
    )
    connection.ask("GET", connection.root, what="user and password").close()
    return connection.was_challenged


def log_in(registry: str, credentials: Credentials) -> Login:
    """Write *credentials* down as Docker does. Raises :class:`StorageError`, :class:`BadInput`, ``ToolMissing``."""
    key = store_key(registry)
    with _config() as (path, document):
        helper = _helper(document, key)
        auths = document.setdefault("auths", {})
        if helper is not None:
            said = {"ServerURL": key, "Username": credentials.user, "Secret": credentials.password}
            _tell_helper(helper, "store", json.dumps(said), path)
            auths[key] = {}
            return Login(registry, f"docker-credential-{helper}", False)
        auths[key] = {"auth": base64.b64encode(":".join(credentials).encode()).decode()}
        return Login(registry, str(path), True)


def log_out(registry: str) -> Login | None:
    """Remove what is written down for *registry*; ``None`` if there was nothing."""
    keys = [store_key(registry), registry, f"https://{registry}"]
    with _config() as (path, document):
        auths = document.get("auths", {})
        known = [key for key in dict.fromkeys(keys) if key in auths]
        helper = _helper(document, keys[0])
        if helper is not None:
            _tell_helper(helper, "erase", keys[0], path)
        for key in known:
            del auths[key]
        if helper is not None:
            return Login(registry, f"docker-credential-{helper}", False) if known else None
        return Login(registry, str(path), True) if known else None


@contextmanager
def _config() -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file and what it says; what it says at the end of the context is written, whole or not at all."""
    path = login_file()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = Path(os.path.realpath(path))
        folder = filesystem.open_folder(path.parent)
    try:
        filesystem.lock(folder)
        before = _read(path)
        document: dict[str, Any] = json.loads(before) if before.strip() else {}
        if not isinstance(document, dict) or not all(
            isinstance(document.get(key, {}), dict) for key in ("auths", "credHelpers")
        ):
            raise BadInput(f"{path} is no configuration of Docker's.", hint="Correct it, or move it away.")
        yield path, document
        # As docker writes it; other keys keep their order.
        after = json.dumps(document, indent="\t", ensure_ascii=False)
        if after != before:
            with whole_file(path, mode=0o600) as file:
                file.write(after.encode())
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON.", hint="Correct it, or move it away.") from error
    finally:
        os.close(folder)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_LIMIT).decode()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}.", hint="See that it is yours.") from error


def _helper(document: dict[str, Any], key: str) -> str | None:
    """The credential helper that is to keep the login of *key*, if one is."""
    named = document.get("credHelpers", {}).get(key) or document.get("credsStore")
    return named if isinstance(named, str) and named else None


def _tell_helper(helper: str, action: str, said: str, path: Path) -> None:
    """Run ``docker-credential-HELPER ACTION``, which reads *said* ("Credential helpers protocol")."""
    program, problem = helper_program(helper, path)
    hint = "Correct credHelpers or credsStore in that file."
    if program is None:
        raise ToolMissing(f"{problem}.", hint=hint)
    try:
        done = subprocess.run([program, action], input=said.encode(), capture_output=True, timeout=HELPER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        # What the exception says may hold what was said to it.
        raise ToolMissing(f"docker-credential-{helper} cannot be run or does not answer.", hint=hint) from error
    missing = b"credentials not found" in done.stdout + done.stderr
    if done.returncode and not (action == "erase" and missing):
        # Nor is what the helper says repeated: some helpers say what they hold.
        raise ToolMissing(f"docker-credential-{helper} {action} failed (exit code {done.returncode}).", hint=hint)
