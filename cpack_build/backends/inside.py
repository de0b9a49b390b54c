"""What runs inside a BuildKit build, by the image's own Python: ``inside.py uv|settle|tree|compile|fetch|wheel …``.

It is copied into the build and uses nothing but the standard library. No step of it opens the network, but ``fetch``,
which is only for models that need a token."""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
import shutil
import stat
import struct
import sys
import urllib.error
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

_LONGEST_SOURCE = 16 << 20
"""Bytes; a longer source is left without bytecode, as :mod:`cpack_build.image.bytecode` does."""
_DATE = 315532800
"""1980-01-01, the earliest time that a zip can hold."""


def take_uv(wheel: str, place: str) -> None:
    """Take the program uv out of its *wheel*."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".data/scripts/uv"))
        Path(place).write_bytes(archive.read(name))
    Path(place).chmod(0o755)


def settle(prefix: str) -> None:
    """Remove what uv left below *prefix* that differs from build to build: its lock, and the times of wheel files."""
    Path(prefix, ".lock").unlink(missing_ok=True)
    for stamp in Path(prefix).glob("lib/python*/site-packages/*.dist-info/uv_cache.json"):
        stamp.unlink()
        record = stamp.with_name("RECORD")
        lines = record.read_bytes().splitlines(keepends=True)
        record.write_bytes(b"".join(line for line in lines if b"/uv_cache.json," not in line))


def prove_tree(folder: str, expected: str) -> None:
    """See that *folder* holds the tree with that hash (``cpack_build.fetch.tree.Tree.tree_digest``)."""
    root = os.fsencode(folder)
    found = []
    for place, folders, files in os.walk(root):
        for name in [*files, *(name for name in folders if os.path.islink(os.path.join(place, name)))]:
            path = os.path.join(place, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                kind, content = b"120000", os.readlink(path)
                sha256 = hashlib.sha256(content).hexdigest()
            else:
                kind = b"100755" if mode & 0o100 else b"100644"
                sha256 = _sha256(os.fsdecode(path))
            found.append((os.path.relpath(path, root), kind, sha256))
    digest = hashlib.sha256()
    for path, kind, sha256 in sorted(found):
        digest.update(kind + b" " + sha256.encode() + b" " + path + b"\0")
    _require(folder, expected, digest.hexdigest())


def compile_all(*folders: str) -> None:
    """Write the bytecode of every source below *folders*, byte for byte as :mod:`cpack_build.image.bytecode` does.

    A link has none there; what a package's own scripts have made of one holds a time that is no longer the source's.
    """
    if os.environ.get("PYTHONHASHSEED") != "0":  # before 3.11 it decides the order of sets among a file's constants
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "PYTHONHASHSEED": "0"})  # noqa: S606
    warnings.simplefilter("ignore")
    sys.setrecursionlimit(3000)
    for folder in folders:
        for place, names, files in os.walk(folder):
            names[:] = [name for name in names if name != "__pycache__"]
            for name in files:
                path = Path(place, name)
                if name.endswith(".py") and path.is_symlink():
                    Path(importlib.util.cache_from_source(str(path), optimization="")).unlink(missing_ok=True)
                elif name.endswith(".py") and path.stat().st_size <= _LONGEST_SOURCE:
                    _compile(path)


def _compile(path: Path) -> None:
    source = path.read_bytes()
    try:
        code = compile(source, str(path), "exec", dont_inherit=True, optimize=0)
        data = marshal.dumps(code, 2)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, UnicodeError):
        return
    head = importlib.util.MAGIC_NUMBER + struct.pack("<I", 1) + importlib.util.source_hash(source)
    place = Path(importlib.util.cache_from_source(str(path), optimization=""))
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(head + data)


def fetch(url: str, sha256: str, place: str, secret: str) -> None:
    """Fetch a model with the token in the file *secret*, which goes to the host of *url* and nowhere else."""
    name = Path(secret).name
    token = Path(secret).read_text("ascii").strip()
    if not token:  # buildx gives a variable that is not set as an empty secret
        raise SystemExit(f"cpack-build: {url} wants a token, and the secret {name} is empty: set the variable {name}.")
    request = urllib.request.Request(url, headers={"User-Agent": "cpack-build"})  # noqa: S310 - https, see below
    if urllib.parse.urlsplit(url).scheme != "https":
        raise SystemExit(f"{place}: a token is sent over https only.")
    request.add_unredirected_header("Authorization", f"Bearer {token}")
    path = Path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(request) as answer, path.open("wb") as file:  # noqa: S310 - https
            while chunk := answer.read(1 << 20):
                file.write(chunk)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"cpack-build: {url} answered {error.code} to the token in {name}.") from None
    _require(place, sha256, _sha256(place))
    path.chmod(0o444)


def build_wheel(source: str, out: str, known: str) -> None:
    """Build the wheel of the package in *source* into *out* by its own build backend (PEP 517), with what is installed.

    Where the backend asks for more than the requirements in the file *known*, those come out instead, in
    ``more.txt``. The surroundings are those of :mod:`cpack_build.lock.building`.
    """
    from build import ProjectBuilder  # it is installed with the build requirements

    place, prefix = Path("/cpack-work"), Path(sys.executable).parent
    shutil.copytree(source, place, symlinks=True)
    for path in [place, *place.rglob("*")]:
        os.utime(path, (_DATE, _DATE), follow_symlinks=False)
    Path("/cpack-home").mkdir()
    flags = f"-g0 -ffile-prefix-map={place}=."
    os.environ.clear()
    os.environ.update(
        PATH=f"{prefix}:/usr/local/bin:/usr/bin:/bin", HOME="/cpack-home", TMPDIR="/cpack-home", LC_ALL="C.UTF-8",
        TZ="UTC", SOURCE_DATE_EPOCH=str(_DATE), PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1", PYTHONNOUSERSITE="1",
        CFLAGS=flags, CXXFLAGS=flags, LDFLAGS="-Wl,--build-id=none", VIRTUAL_ENV=str(prefix.parent),
    )  # fmt: skip
    builder = ProjectBuilder(place)
    wanted = builder.build_system_requires | builder.get_requires_for_build("wheel")
    Path(out).mkdir(parents=True)
    Path(out, "python.txt").write_text("{}.{}.{}".format(*sys.version_info[:3]), "ascii")
    if more := wanted - set(Path(known).read_text("utf-8").splitlines()):
        Path(out, "more.txt").write_text("\n".join(sorted(more)), "utf-8")
    else:
        builder.build("wheel", out)


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _require(what: str, expected: str, actual: str) -> None:
    if actual != expected:
        raise SystemExit(f"cpack-build: {what} has sha256 {actual}, but {expected} was promised.")


if __name__ == "__main__":
    tasks: dict[str, Callable[..., None]] = {
        "uv": take_uv, "settle": settle, "tree": prove_tree, "compile": compile_all, "fetch": fetch,
        "wheel": build_wheel,
    }  # fmt: skip
    tasks[sys.argv[1]](*sys.argv[2:])
