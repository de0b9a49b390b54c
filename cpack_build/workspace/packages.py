"""The Python packages of a workspace's own environment, read from its ``dist-info`` folders; its Python is never run.

An environment is a virtual environment, a conda prefix, a portable embedded Python as on Windows, or a system's own.
What was installed from elsewhere than an index keeps where it came from (PEP 610), as far as others can reach it.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from cpack_build.errors import BadInput, Unresolvable
from cpack_build.workspace.address import public_url
from cpack_build.workspace.gitfolder import observe
from cpack_build.workspace.gitprogram import BrokenRepository
from cpack_build.workspace.place import Comfyui, lexical

__all__ = ["LEFT_OUT", "Environment", "find_environment", "read_packages"]

LEFT_OUT = ("bentoml", "conda", "cpack-build", "nvidia-*")
"""Packages that a pack does not pin: the service's, conda's, and what torch's wheels bring for the device at hand."""
_BESIDE = ("venv", ".venv", "env", ".env", "python_embeded", "python_embedded", "python")
_LIBRARIES = ("lib/python3*/site-packages", "lib64/python3*/site-packages", "Lib/site-packages")
_SYSTEM = ("lib/python3/dist-packages", "local/lib/python3*/dist-packages", "local/lib/python3*/site-packages")
_MINOR = re.compile(r"python(3\.\d{1,2})$")
_SIZE_LIMIT = 1 << 20


@dataclass(frozen=True)
class Environment:
    """A Python environment: its *kind* for people, its minor *version* (``3.11``), and where its packages lie, the
    first to win."""

    kind: str
    prefix: Path
    version: str
    libraries: tuple[Path, ...]


@dataclass(frozen=True)
class Packages:
    """Packages as ComfyUI-Manager's snapshot keeps them: ``{"name==version": "", "name": "git+https://…"}``."""

    pins: dict[str, str]
    notes: tuple[str, ...]


def find_environment(comfyui: Comfyui, python: Path | None = None) -> Environment:
    """The environment that runs *comfyui*: *python* (its folder or its interpreter) if given, else one in or beside the
    workspace, else the one that is active in this shell, else the system's.

    Raises :class:`Unresolvable` where there is none, :class:`BadInput` for a *python* that is none.
    """
    if python is not None:
        found = _environment(_prefix(python))
        if found is None:
            raise BadInput(
                f"{python} is no Python environment: no site-packages below it.",
                hint="Name the folder of the environment, or its python.",
            )
        return found
    root = comfyui.root
    candidates = [folder / name for folder in (root, root.parent) for name in _BESIDE]
    candidates += [Path(os.environ[name]) for name in ("VIRTUAL_ENV", "CONDA_PREFIX") if os.environ.get(name)]
    for name in ("python3", "python"):
        if program := shutil.which(name):
            candidates.append(_prefix(Path(program)))
    for candidate in candidates:
        if candidate.is_dir() and (found := _environment(candidate)) is not None:
            return found
    raise Unresolvable(
        f"{root} has no Python environment in it or beside it.",
        hint="Name the one that runs ComfyUI with --python: its folder, or its python itself.",
    )


def _prefix(python: Path) -> Path:
    """The environment that an interpreter (or the environment's own folder) stands for."""
    path = lexical(python)
    if path.is_dir():
        return path
    # bin/python of a virtual environment is a link out of it; that of a system is a link within.
    for interpreter in (path, Path(os.path.realpath(path))):
        folder = interpreter.parent.parent if interpreter.parent.name in ("bin", "Scripts") else interpreter.parent
        if _environment(folder) is not None:
            return folder
    return path.parent


def _environment(prefix: Path) -> Environment | None:
    settings = _pyvenv(prefix / "pyvenv.cfg")
    libraries = _existing(prefix, _LIBRARIES)
    conda = sorted((prefix / "conda-meta").glob("python-3.*.json")) if (prefix / "conda-meta").is_dir() else []
    embedded = sorted(prefix.glob("python3*._pth"))
    kind, version = "", ""
    if settings is not None:
        kind = "virtual environment"
        version = _minor(settings.get("version_info", "") or settings.get("version", ""))
        if settings.get("include-system-site-packages", "").lower() == "true" and settings.get("home"):
            home = Path(settings["home"])
            base = home.parent if home.name in ("bin", "Scripts") else home
            libraries += [path for path in _existing(base, (*_LIBRARIES, *_SYSTEM)) if path not in libraries]
    elif conda:
        kind, version = "conda environment", _minor(conda[-1].name.removeprefix("python-"))
    elif embedded:
        digits = re.sub(r"\D", "", embedded[-1].name.partition(".")[0])
        kind, version = "embedded Python", f"{digits[0]}.{digits[1:]}" if len(digits) > 1 else ""
    else:
        libraries += [path for path in _existing(prefix, _SYSTEM) if path not in libraries]
        kind = "system Python"
    if not version:
        minors = [match[1] for path in libraries if (match := _MINOR.search(str(path.parent)))]
        minors += [match[1] for path in sorted(prefix.glob("lib/python3.*")) if (match := _MINOR.search(str(path)))]
        version = minors[0] if minors else ""
    if not version or not libraries:
        return None
    mine = [path for path in libraries if (match := _MINOR.search(str(path.parent))) is None or match[1] == version]
    return Environment(kind, prefix, version, tuple(mine or libraries))


def _existing(prefix: Path, patterns: Iterable[str]) -> list[Path]:
    found: list[Path] = []
    for pattern in patterns:
        for path in sorted(prefix.glob(pattern), reverse=True):
            # lib64 is often a link to lib
            if path.is_dir() and not any(os.path.samefile(path, other) for other in found):
                found.append(path)
    return found


def _pyvenv(path: Path) -> dict[str, str] | None:
    try:
        text = path.read_text("utf-8", "replace")[:_SIZE_LIMIT]
    except OSError:
        return None
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def _minor(text: str) -> str:
    match = re.match(r"(3\.\d{1,2})(\D|$)", text.strip())
    return match[1] if match else ""


# -- packages ----------------------------------------------------------------------------------------------------------


def read_packages(environment: Environment) -> Packages:
    """Every package of *environment* but :data:`LEFT_OUT`, sorted by name.

    A package that was installed from a folder becomes its repository's commit when others can reach it, else the
    version it says it has, with a note; no path of this machine is kept.
    """
    pins: dict[str, tuple[str, str]] = {}
    notes: list[str] = []
    for info in _distributions(environment):
        name, version = _identity(info)
        if not name:
            notes.append(f"{info.name!a:.80} among the Python packages says no name and version; it is left out.")
            continue
        canonical = canonicalize_name(name)
        if canonical in pins or any(fnmatch.fnmatch(canonical, pattern) for pattern in LEFT_OUT):
            continue
        origin = _origin(info, canonical, version, notes)
        pins[canonical] = (canonical, origin) if origin else (f"{canonical}=={version}", "")
    for link in _egg_links(environment):
        canonical = canonicalize_name(link.stem)
        if canonical not in pins:
            origin = _from_folder(Path(_first_line(link)), canonical, "", notes)
            if origin:
                pins[canonical] = (canonical, origin)
    return Packages({pins[name][0]: pins[name][1] for name in sorted(pins)}, tuple(notes))


def _distributions(environment: Environment) -> Iterator[Path]:
    for library in environment.libraries:
        try:
            names = sorted(os.listdir(library))
        except OSError:
            continue
        # dist-info first: where both are, egg-info is what an older pip left behind.
        yield from (library / name for name in names if name.endswith(".dist-info"))
        yield from (library / name for name in names if name.endswith(".egg-info"))


def _identity(info: Path) -> tuple[str, str]:
    """Name and version, both valid, or empty."""
    for file in (info / "METADATA", info / "PKG-INFO", info):
        if file.is_file():
            try:
                headers = HeaderParser().parsestr(file.read_bytes()[:_SIZE_LIMIT].decode("utf-8", "replace"), True)
            except OSError:
                return "", ""
            name, version = str(headers.get("Name", "")).strip(), str(headers.get("Version", "")).strip()
            break
    else:
        # pip leaves such folders behind when it is interrupted (`~orch-2.1.dist-info`); others have no metadata
        return "", ""
    try:
        return canonicalize_name(name, validate=True), str(Version(version)) if version else ""
    except (InvalidName, InvalidVersion):
        return "", ""


def _origin(info: Path, name: str, version: str, notes: list[str]) -> str:
    """Where it was installed from (PEP 610), as a requirement's URL; empty for an index."""
    file = info / "direct_url.json" if info.is_dir() else None
    try:
        if file is None or not file.is_file() or file.stat().st_size > _SIZE_LIMIT:
            return ""
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        notes.append(f"{name}: its direct_url.json cannot be read; {name}=={version} is taken.")
        return ""
    url = document.get("url") if isinstance(document, dict) else None
    if not isinstance(url, str):
        return ""
    if url.lower().startswith("file:"):
        folder = Path(unquote(urlsplit(url).path))
        if isinstance(document.get("dir_info"), dict):
            return _from_folder(folder / str(document.get("subdirectory", "")), name, version, notes)
        notes.append(f"{name} was installed from a file of this machine; {name}=={version} is taken instead.")
        return ""
    return _remote(url, document, name, version, notes)


def _remote(url: str, document: dict[str, Any], name: str, version: str, notes: list[str]) -> str:
    below = document.get("subdirectory")
    fragment = f"#subdirectory={below}" if isinstance(below, str) and re.fullmatch(r"[\w./-]+", below) else ""
    vcs = document.get("vcs_info")
    if isinstance(vcs, dict):
        commit, clean = vcs.get("commit_id"), public_url(url)
        if vcs.get("vcs") == "git" and isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40,64}", commit) and clean:
            clean = clean if "://" in clean else "ssh://" + clean.replace(":", "/", 1)
            return f"git+{clean}@{commit}{fragment}"
        notes.append(f"{name} comes from a repository that cannot be named; {name}=={version} is taken instead.")
        return ""
    clean = _archive_url(url)
    if not clean:
        notes.append(f"{name} comes from an address that cannot be named; {name}=={version} is taken instead.")
        return ""
    archive = document.get("archive_info")
    hashes = archive.get("hashes") if isinstance(archive, dict) else None
    sha256 = hashes.get("sha256") if isinstance(hashes, dict) else None
    if isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256):
        return f"{clean}#sha256={sha256}"
    return clean + fragment


def _archive_url(url: str) -> str:
    """An http(s) address without credentials, query or fragment: signed ones expire, and tell who signed."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\x00-\x1f]", url):
            return ""
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        return ""


def _from_folder(folder: Path, name: str, version: str, notes: list[str]) -> str:
    """The repository and commit that a local (perhaps editable) folder is a checkout of."""
    instead = f"{name}=={version} is taken instead" if version else "it is left out"
    for level, place in enumerate((folder, *folder.parents)):
        if level > 4 or not (place / ".git").exists():
            continue
        try:
            git = observe(place)
        except BrokenRepository:
            break
        if not git.url:
            break
        if git.changed:
            notes.append(f"{name} is installed from a clone of {git.url} that has local changes; they are not packed.")
        below = folder.relative_to(place).as_posix() if level else ""
        url = git.url if "://" in git.url else "ssh://" + git.url.replace(":", "/", 1)
        return f"git+{url}@{git.commit}" + (f"#subdirectory={below}" if below else "")
    notes.append(f"{name} is installed from a folder of this machine; {instead}.")
    return ""


def _egg_links(environment: Environment) -> Iterator[Path]:
    for library in environment.libraries:
        yield from sorted(library.glob("*.egg-link"))


def _first_line(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").partition("\n")[0].strip()
    except OSError:
        return ""
