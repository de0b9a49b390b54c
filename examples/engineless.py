"""Running an image where there is no container engine: its layers unpacked into a folder, its program run in there.

The namespace tools of every Debian (``unshare``, ``chroot``) stand in for the engine: the program sees the image as its
root, has no rights outside, and shares the network. Only for images that one has built oneself: an engine does more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_MOUNTED = 'mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc"'
_USER = "1000:1000"


@dataclass(frozen=True)
class Unpacked:
    """An image's files at *root*, and its *config*."""

    root: Path
    config: dict[str, Any]

    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        return dict(item.split("=", 1) for item in self.config["config"]["Env"])

    def start(
        self, prefix: list[str], command: list[str], *, output: IO[bytes], **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start *command* in the image, its words going to *output*; *environment* comes over the image's own."""
        return subprocess.Popen(
            [*prefix, *command],
            env=self.environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def unpack(layout: Path, root: Path) -> Unpacked:
    """Lay the layers of the one image in the OCI layout at *layout* over each other in the new folder *root*."""
    index = json.loads((layout / "index.json").read_bytes())
    manifest = json.loads(_blob(layout, index["manifests"][0]["digest"]).read_bytes())
    config = json.loads(_blob(layout, manifest["config"]["digest"]).read_bytes())
    root.mkdir(parents=True)
    for layer in manifest["layers"]:
        with tarfile.open(_blob(layout, layer["digest"])) as archive:
            for member in archive:
                _extract(archive, member, root)
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return Unpacked(root, config)


def find_prefix(image: Unpacked) -> list[str]:
    """What to put before a command so that it runs in the image, by the first way that works here.

    An ordinary user becomes root in a namespace of its own, and root becomes an ordinary user in the image. Raises
    ``RuntimeError`` with what was tried.
    """
    root = str(image.root)
    in_root = ["--userspec=" + _USER] if os.geteuid() == 0 else []
    mount = "unshare --mount" if os.geteuid() == 0 else "unshare --user --map-root-user --mount"
    script = f'{_MOUNTED} && root=$1 && shift && exec "$CHROOT" {" ".join(in_root)} "$root" "$@"'
    ways = [[*mount.split(), "sh", "-c", script.replace('"$CHROOT"', _program("chroot")), "sh", root]]
    if os.geteuid() == 0:
        rootless = f'{_MOUNTED} && root=$1 && shift && exec {_program("chroot")} "$root" "$@"'
        ways.append(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", rootless, "sh", root])
        ways.append([_program("chroot"), *in_root, root])
    tried = []
    probe = [
        *image.config["config"]["Entrypoint"][:1],
        "-c",
        "import os; os.urandom(1); open(os.devnull, 'w').write('x')",
    ]
    for way in ways:
        if way[0] == _program("chroot"):
            _make_devices(image.root / "dev")
        done = subprocess.run([*way, *probe], env=image.environment(), capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return way
        tried.append(f"{' '.join(way[:4])} …: {done.stderr.strip().splitlines()[-1:] or done.returncode}")
    raise RuntimeError("This system lets nobody run a program in an unpacked image:\n  " + "\n  ".join(tried))


def remove(root: Path) -> None:
    """Delete the unpacked image, whose folders may be read-only."""
    for folder, _, _ in os.walk(root):
        os.chmod(folder, 0o755)
    shutil.rmtree(root, ignore_errors=True)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    path = root / member.name
    if not path.parent.resolve().is_relative_to(root.resolve()):
        raise RuntimeError(f"{member.name} leaves the image")
    path.parent.mkdir(parents=True, exist_ok=True)
    if member.isdir():
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
            path.mkdir()
        path.chmod(member.mode | 0o700)
        return
    path.unlink(missing_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.islnk():
        os.link(root / member.linkname, path)
    else:
        source = archive.extractfile(member)
        assert source is not None
        with source, path.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        path.chmod(member.mode)


def _make_devices(folder: Path) -> None:
    """The few devices that a program cannot do without (only root may, and only where mounting is forbidden)."""
    for name, major, minor in (("null", 1, 3), ("zero", 1, 5), ("urandom", 1, 9), ("random", 1, 8)):
        if not (folder / name).exists():
            try:
                os.mknod(folder / name, 0o20666, os.makedev(major, minor))
                os.chmod(folder / name, 0o666)
            except OSError:
                return


def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/sbin/{name}"
