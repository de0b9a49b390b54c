"""The workspace's virtual environment: exactly the locked packages, and nothing resolved anew.

The wheels are those of the lock, proved by hash in the store, and uv installs them from there alone. An image has no
wheels, but what they were unpacked to; where neither the store nor an index has them, the packages are taken from its
layers, with their bytecode left out and the paths of their scripts made this machine's
(``docs/decisions/041-environments.md``)."""

from __future__ import annotations

import base64
import csv
import ctypes
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from cpack_build.errors import BadImage, HashMismatch, ToolMissing, Unresolvable, writing
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import redact
from cpack_build.image.config import COMFYUI_ENV
from cpack_build.image.wheels import Environment
from cpack_build.lock.building import have_built
from cpack_build.lock.schema import Lock
from cpack_build.lock.wheels import Wheel, fetch_wheel, wheels_of
from cpack_build.progress import SILENT, Progress, working
from cpack_build.restore.extract import Content
from cpack_build.restore.folder import Folder

__all__ = [
    "VENV", "Installed", "are_wheels_stored", "check_files", "fetch_wheels", "install_content", "install_wheels",
    "installed_in", "new_environment", "python_of",
]  # fmt: skip

VENV = ".venv"
_PARALLEL = 8
_PR_SET_PDEATHSIG = 1  # prctl(2)
_DIST_INFO = re.compile(r"(?P<name>[^/]+?)-(?P<version>[^-/]+)\.dist-info")
_PYTHON_LINKS = re.compile(r"bin/python[0-9.]*$")

Installed = Mapping[str, tuple[str, Path]]
"""Normalised name → version and ``.dist-info`` of each installed package."""


def python_of(workspace: Path) -> Path:
    """The Python of the environment in *workspace*."""
    return workspace / VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def new_environment(folder: Folder, version: str, *, offline: bool) -> None:
    """Make an empty environment with Python *version* (``3.11``) in the workspace.

    Raises :class:`ToolMissing` where there is no such Python.
    """
    command = [_uv(), "venv", "--quiet", "--no-config", "--no-project", "--python", version]
    command += ["--no-python-downloads"] if offline else []
    done = _run([*command, str(folder.root / VENV)], offline=offline)
    if done.returncode:
        raise ToolMissing(
            f"No environment with Python {version} can be made: {_said(done)}",
            hint=f"Install Python {version}, or leave the environment out with --no-venv.",
        )


def are_wheels_stored(lock: Lock, *, store: Store) -> bool:
    """Whether every wheel of the workspace's packages is in the store."""
    return all(store.find(wheel.sha256) is not None for wheel in wheels_of(lock.python))


def fetch_wheels(
    lock: Lock,
    *,
    store: Store,
    sources: Sources,
    find_links: Sequence[str] = (),
    index_urls: Sequence[str] = (),
    trust: bool = False,
    progress: Progress = SILENT,
) -> dict[Wheel, Path]:
    """Every wheel, proved by hash; with *trust* one that was built from source for the lock is built again.

    Raises :class:`NeedsTrust` without, :class:`Unresolvable`, :class:`NetworkError`, :class:`HashMismatch`.
    """
    wheels = wheels_of(lock.python)
    built = {wheel.sha256: wheel for wheel in lock.python.built}
    with working(_PARALLEL, progress) as (pool, reports):

        def fetch(wheel: Wheel) -> Path:
            if wheel.sha256 in built:
                have_built(
                    wheel, built[wheel.sha256], python_version=lock.interpreter.version, find_links=find_links,
                    store=store, sources=sources, trust=trust, progress=reports,
                )  # fmt: skip
            return fetch_wheel(
                wheel, store=store, sources=sources, find_links=find_links, index_urls=index_urls, progress=reports
            ).path

        return dict(zip(wheels, pool.map(fetch, wheels), strict=True))


def install_wheels(
    folder: Folder, wheels: Mapping[Wheel, Path], *, lock: Lock, store: Store, progress: Progress = SILENT
) -> None:
    """Have uv install *wheels* into the workspace's environment: no index, no dependency, each proved by its hash.

    Raises :class:`Unresolvable` with uv's words.
    """
    if not wheels:
        return
    # The same folder each time, so that uv's own cache of unpacked wheels is found again.
    house = store.derived.take("wheelhouse", lock.python.pylock_sha256)
    lines = []
    with writing(house):
        for wheel, path in wheels.items():
            place = house / wheel.filename
            if not place.exists() or not os.path.samefile(place, path):
                aside = place.with_name(f".{wheel.filename}.{os.getpid()}")
                aside.unlink(missing_ok=True)
                try:
                    os.symlink(path.absolute(), aside)
                except OSError:
                    os.link(path, aside)
                aside.replace(place)
            lines.append(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    with folder.aside() as requirements, progress.task("Installing the packages", unit="packages"):
        requirements.write_text("".join(lines))
        done = _run(
            [
                _uv(), "pip", "install", "--quiet", "--no-config", "--python", str(python_of(folder.root)),
                "--no-deps", "--no-index", "--find-links", str(house), "--require-hashes", "--only-binary=:all:",
                "--requirements", str(requirements),
            ],
            offline=True,
        )  # fmt: skip
    if done.returncode:
        raise Unresolvable(
            f"The locked packages cannot be installed here: {_said(done)}",
            hint="They may be for another platform; leave the environment out with --no-venv.",
        )


def install_content(folder: Folder, contents: Mapping[str, Content], *, lock: Lock) -> None:
    """Lay out the packages of an image in the workspace's environment: *contents* are its files, by path in the image.

    Raises :class:`BadImage` when they are not the locked packages, :class:`HashMismatch` for a file that is not what
    its package says.
    """
    environment = Environment(COMFYUI_ENV, lock.interpreter.version, lock.interpreter.path)
    prefix = f"{COMFYUI_ENV}/"
    site = environment.site_packages.removeprefix(prefix)
    files = {path.removeprefix(prefix): content for path, content in contents.items()}
    files = {
        path: content for path, content in files.items()
        if not _PYTHON_LINKS.match(path) and path != "pyvenv.cfg" and not path.endswith(".pyc")
    }  # fmt: skip
    _check_packages(files, site, lock)
    executable = str(python_of(folder.root))
    changed: dict[str, bytes] = {}
    for path, content in files.items():
        if content.mode == "120000":
            raise BadImage("The image's Python packages", f"have a link, {path!r}")
        if path.startswith("bin/"):
            data = b"".join(content.chunks())
            line = f"#!{environment.executable}\n".encode()
            if data.startswith(line):
                changed[path] = f"#!{executable}\n".encode() + data[len(line) :]
    for path, content in files.items():
        if _is_metadata(path, site, "RECORD"):
            changed[path] = _record(content, files, changed, site)
    # What was read of the image lies aside already: it is moved to its place, unless another file has the same bytes.
    uses = Counter(content.path for content in contents.values())
    for path, content in sorted(files.items()):
        mode = 0o755 if content.mode == "100755" else 0o644
        if path in changed:
            folder.write(f"{VENV}/{path}", [changed[path]], mode=mode)
        elif uses[content.path] > 1:
            folder.write(f"{VENV}/{path}", content.chunks(), mode=mode)
        else:
            folder.take(content.path, f"{VENV}/{path}", mode=mode)


def _check_packages(files: Mapping[str, Content], site: str, lock: Lock) -> None:
    """See that the packages among *files* are the lock's, by name and version."""
    found = set()
    for path in files:
        if _is_metadata(path, site, "METADATA"):
            match = _DIST_INFO.fullmatch(path.split("/")[-2])
            if match is not None:
                found.add((canonicalize_name(match["name"]), match["version"]))
    wanted = {(canonicalize_name(wheel.name), wheel.version) for wheel in wheels_of(lock.python)}
    if found != wanted:
        differing = ", ".join(sorted(f"{name} {version}" for name, version in found ^ wanted)[:5])
        raise BadImage("The image's Python packages", f"are not those of its lock: {differing}")


def _is_metadata(path: str, site: str, name: str) -> bool:
    """Whether *path* is the file *name* of an installed package; packages that one carries within itself are not."""
    parts = path.split("/")
    return "/".join(parts[:-2]) == site and parts[-1] == name and _DIST_INFO.fullmatch(parts[-2]) is not None


def _record(content: Content, files: Mapping[str, Content], changed: Mapping[str, bytes], site: str) -> bytes:
    """``RECORD`` without the bytecode and with the changed scripts; the other files are what it says."""
    rows = []
    for row in csv.reader(io.StringIO(b"".join(content.chunks()).decode("utf-8"))):
        if len(row) != 3 or row[0].endswith(".pyc"):
            continue
        name, told, _ = row
        path = os.path.normpath(f"{site}/{name}").replace(os.sep, "/")
        if path in changed:
            data = changed[path]
            rows.append([name, _encoded(hashlib.sha256(data).digest()), str(len(data))])
            continue
        file = files.get(path)
        if told.startswith("sha256=") and (file is None or _encoded(bytes.fromhex(file.sha256)) != told):
            raise HashMismatch(
                f"{path} of the image's Python packages",
                expected=told,
                actual=_encoded(bytes.fromhex(file.sha256)) if file is not None else "nothing",
                hint="The image is damaged; get it again.",
            )
        rows.append(row)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def _encoded(digest: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


# -- looking at an environment -----------------------------------------------------------------------------------------


def installed_in(workspace: Path) -> Installed | None:
    """The packages of the workspace's environment; ``None`` where there is none."""
    root = workspace / VENV
    if not (root / "pyvenv.cfg").is_file() or not python_of(workspace).exists():
        return None
    found: dict[str, tuple[str, Path]] = {}
    for site in (*root.glob("lib/python3.*/site-packages"), *root.glob("Lib/site-packages")):
        for entry in sorted(site.glob("*.dist-info")):
            if match := _DIST_INFO.fullmatch(entry.name):
                found[canonicalize_name(match["name"])] = (match["version"], entry)
    return found


def check_files(installed: Installed, wheel: Wheel, *, deep: bool) -> Iterator[str]:
    """What is wrong with the installed *wheel*, one line each; *deep* reads every file, otherwise they are counted."""
    name = canonicalize_name(wheel.name)
    if name not in installed:
        yield f"{name} {wheel.version} is not installed"
        return
    version, info = installed[name]
    if version != wheel.version:
        yield f"{name} is {version}, and {wheel.version} is locked"
        return
    try:
        rows = list(csv.reader(io.StringIO((info / "RECORD").read_text("utf-8"))))
    except (OSError, UnicodeDecodeError):
        yield f"{name} has no RECORD"
        return
    for row in rows:
        if len(row) != 3 or not row[1] or row[0].endswith(".pyc"):
            continue
        path = info.parent / row[0]
        try:
            if not deep:
                if path.stat().st_size != int(row[2] or 0):
                    yield f"{name}: {row[0]} has changed"
                continue
            hasher = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    hasher.update(chunk)
            if row[1].startswith("sha256=") and _encoded(hasher.digest()) != row[1]:
                yield f"{name}: {row[0]} has changed"
        except (OSError, ValueError):
            yield f"{name}: {row[0]} is missing"


# -- uv ----------------------------------------------------------------------------------------------------------------


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError) as error:
        raise ToolMissing(
            "uv, which installs Python packages, is not installed.", hint="Run `python -m pip install uv`."
        ) from error


def _run(command: list[str], *, offline: bool) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    if offline:
        environment["UV_OFFLINE"] = "1"
    # With the workspace's lock, and not longer than we live: nothing is left at work in a workspace.
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, close_fds=False,
        preexec_fn=_end_with_parent(),
    )  # fmt: skip


def _end_with_parent() -> Callable[[], object] | None:
    if not sys.platform.startswith("linux"):
        return None
    # loaded before the fork: between it and exec little may be done
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip(" ×╰─▶│├") for line in redact(done.stderr).splitlines() if line.strip()]
    return " ".join(lines)[:600] or "uv gave no reason."
