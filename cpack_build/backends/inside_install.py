"""A node's ``install.py`` inside a BuildKit build, and what it changed: ``inside_install.py start|compare …``.

It is copied into the build and uses nothing but the standard library. ``start`` begins ``run`` in the image's root with
nothing of the step's environment, which the script could read of the first process; ``run`` starts the script;
``compare`` runs in another step, where that root and the one before it are only looked at, so the script has no hand in
what is told of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_HOME, _SCRATCH = "/cpack-home", "/cpack-home/tmp"
_NOT_OURS = ("proc", "sys", "dev", "run", "cpack", "cpack-home", "cpack-uv", "tmp", "var/tmp",
             "etc/hosts", "etc/resolv.conf", "etc/hostname")  # fmt: skip
"""What a builder mounts, and what is lost with the step anyway."""
_NOTES = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
"""What pip writes beside a package's own files, without another version (PEP 376, 610)."""
_FILES = 100_000
_BYTES = 32 << 30
_NAMED = 30


_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")


def start(*arguments: str) -> None:
    """Become ``run`` with these *arguments* in an environment of proxies alone, of which none has a password."""
    proxies = {name: value for name, value in os.environ.items() if name.lower() in _PROXIES and "@" not in value}
    command = [sys.executable, "-B", "-S", "-s", os.path.abspath(__file__), "run", *arguments]
    os.execve(sys.executable, command, proxies)  # noqa: S606 - no shell is wanted


def run(place: str, prefix: str, comfyui: str, seconds: str, pip: str, variables: str) -> None:
    """Run ``install.py`` in the folder *place* as ComfyUI-Manager does, with the environment's Python and pip.

    Nothing of the step's own environment is passed on but its proxies. A script that has not ended after *seconds* ends
    the build.
    """
    node = os.path.basename(place)
    for folder in (_HOME, _SCRATCH):
        Path(folder).mkdir(exist_ok=True)
    environment = {
        "PATH": f"/cpack/bin:{prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": _HOME, "TMPDIR": _SCRATCH, "LC_ALL": "C.UTF-8", "TZ": "UTC", "VIRTUAL_ENV": prefix,
        "PYTHONPATH": pip, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONNOUSERSITE": "1", "PYTHONHASHSEED": "0",
        "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1",
        "PIP_ROOT_USER_ACTION": "ignore", "PIP_NO_COMPILE": "1", "GIT_TERMINAL_PROMPT": "0",
        "COMFYUI_PATH": comfyui, "COMFYUI_FOLDERS_BASE_PATH": comfyui, **json.loads(variables),
        **{name: value for name, value in os.environ.items() if name.lower() in _PROXIES},
    }  # fmt: skip
    script = subprocess.Popen(
        [f"{prefix}/bin/python", "install.py"], cwd=place, env=environment, stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        code = script.wait(float(seconds))
    except subprocess.TimeoutExpired:
        script.kill()  # what it started ends with the step, whose first process this is
        raise SystemExit(f"cpack-build: install.py of {node} did not end within {seconds} seconds.") from None
    if code:
        raise SystemExit(f"cpack-build: install.py of {node} ended with exit code {code}.")


def compare(before: str, after: str, place: str, models: str, prefix: str, out: str) -> None:
    """Tell in *out* what differs between two roots: ``changes.json``, and below ``files/`` the bytes of what is kept.

    *place*, *models* and *prefix* are the folders of the node, of the models and of the environment in them.
    """
    ours, theirs = _listed(before), _listed(after)
    changed = {path for path in ours.keys() | theirs.keys() if _differs(before, after, path, ours, theirs)}
    keeper = _Keeper(after, out)
    tree = [keeper.kept(path, place) for path in sorted(theirs) if path.startswith(f"{place}/") and not _is_git(path)]
    elsewhere: list[str] = []
    found: list[dict[str, object]] = []
    packages = _Packages(before, after, prefix)
    for path in sorted(changed):
        kind = stat.S_IFMT(theirs[path].st_mode) if path in theirs else 0
        if path.startswith(f"{place}/"):
            continue
        if path.startswith(f"{models}/") and kind == stat.S_IFREG:
            found.append(keeper.kept(path, os.path.dirname(models)))
        elif not (path.startswith(f"{prefix}/") and packages.explain(path)):
            elsewhere.append(f"{'removed ' if path not in theirs else ''}/{path}")
    home = after + _HOME
    lost = (
        [f"{place}/{name}" for place, _, names in os.walk(home) for name in names] if not os.path.islink(home) else []
    )
    document = {
        "tree": tree, "models": found, "elsewhere": elsewhere[:_NAMED], "further": max(0, len(elsewhere) - _NAMED),
        "packages": packages.added, "removed": packages.removed,
        "lost": sorted(path.removeprefix(home).lstrip("/") for path in lost)[:_NAMED],
    }  # fmt: skip
    Path(out, "changes.json").write_text(json.dumps(document), "ascii")


def _listed(root: str) -> dict[str, os.stat_result]:
    """Every file, link and other thing but folders below *root*, by its path without a first ``/``."""
    found: dict[str, os.stat_result] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}".lstrip("/")
                if path in _NOT_OURS or entry.name == "__pycache__":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                else:
                    found[path] = entry.stat(follow_symlinks=False)
    return found


def _differs(
    before: str, after: str, path: str, ours: dict[str, os.stat_result], theirs: dict[str, os.stat_result]
) -> bool:
    if path not in ours or path not in theirs:
        return True
    one, other = ours[path], theirs[path]
    if (one.st_mode, one.st_size) != (other.st_mode, other.st_size):
        return True
    # the time of a file's last change is the kernel's, which no program sets
    if (one.st_ctime_ns, one.st_mtime_ns) == (other.st_ctime_ns, other.st_mtime_ns):
        return False
    if stat.S_ISLNK(one.st_mode):
        return os.readlink(f"{before}/{path}") != os.readlink(f"{after}/{path}")
    if not stat.S_ISREG(one.st_mode):
        return True
    with open(f"{before}/{path}", "rb") as left, open(f"{after}/{path}", "rb") as right:
        while chunk := left.read(1 << 20):
            if chunk != right.read(1 << 20):
                return True
    return False


def _is_git(path: str) -> bool:
    return ".git" in path.lower().split("/")


class _Keeper:
    """Copies files out, each under a number."""

    def __init__(self, after: str, out: str) -> None:
        self._after, self._out = after, out
        self._count = self._size = 0
        Path(out, "files").mkdir(parents=True)

    def kept(self, path: str, below: str) -> dict[str, object]:
        place = f"{self._after}/{path}"
        status = os.lstat(place)
        told: dict[str, object] = {"path": path.removeprefix(f"{below}/"), "executable": bool(status.st_mode & 0o100)}
        if stat.S_ISLNK(status.st_mode):
            return {**told, "kind": "link", "target": os.readlink(place)}
        if not stat.S_ISREG(status.st_mode):
            return {**told, "kind": "other"}
        self._count += 1
        self._size += status.st_size
        if self._count > _FILES or self._size > _BYTES:
            raise SystemExit(
                f"cpack-build: install.py leaves more than {_FILES} files or {_BYTES >> 30} GiB in its node."
            )
        shutil.copyfile(place, f"{self._out}/files/{self._count}")
        return {**told, "kind": "file", "file": self._count}


class _Packages:
    """What of the environment at *prefix* a script changed that has a name and a version."""

    def __init__(self, before: str, after: str, prefix: str) -> None:
        ours, theirs = (_distributions(root, prefix) for root in (before, after))
        changed = {name for name in ours.keys() | theirs.keys() if _told(ours.get(name)) != _told(theirs.get(name))}
        self.added = [theirs[name].told for name in sorted(changed & theirs.keys())]
        self.removed = sorted(ours.keys() - theirs.keys())
        self._files = {path for name in changed for one in (ours, theirs) if name in one for path in one[name].files}
        self._notes = {
            f"{one.folder}/{note}" for found in (ours, theirs) for one in found.values() for note in _NOTES
        }  # fmt: skip

    def explain(self, path: str) -> bool:
        """Whether the file at *path* belongs to what was named: a changed package's, or pip's own notes."""
        return path in self._notes or path in self._files


@dataclass(frozen=True)
class _Distribution:
    folder: str
    told: dict[str, str]
    files: set[str]


def _told(found: _Distribution | None) -> dict[str, str] | None:
    return found.told if found else None


def _distributions(root: str, prefix: str) -> dict[str, _Distribution]:
    """What is installed, by its normal name (PEP 503)."""
    found: dict[str, _Distribution] = {}
    for folder in sorted(Path(root, prefix).glob("lib/python3*/site-packages/*.dist-info")):
        fields: dict[str, str] = {}
        for line in _text(folder / "METADATA").splitlines():
            if not line:
                break
            key, _, value = line.partition(": ")
            fields.setdefault(key, value)
        if "Name" not in fields or "Version" not in fields:
            continue
        site = folder.parent.relative_to(root).as_posix()
        names = (line.rsplit(",", 2)[0].strip('"') for line in _text(folder / "RECORD").splitlines())
        direct = _text(folder / "direct_url.json")
        found[re.sub(r"[-_.]+", "-", fields["Name"]).lower()] = _Distribution(
            folder.relative_to(root).as_posix(),
            {"name": fields["Name"], "version": fields["Version"], "direct": direct},
            {os.path.normpath(f"{site}/{name}") for name in names},
        )
    return found


def _text(path: Path) -> str:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 16 << 20:
        return ""
    return path.read_text("utf-8", "replace")


if __name__ == "__main__":
    steps: dict[str, Callable[..., None]] = {"start": start, "run": run, "compare": compare}
    steps[sys.argv[1]](*sys.argv[2:])
