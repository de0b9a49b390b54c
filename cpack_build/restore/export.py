"""An image → the pack and the lock that made it: ``image(lock(export(image)))`` is the image.

What the image carries as documents goes back into a zip, written as comfy-pack writes one, so a pack that was written
so comes back byte for byte. Nodes that only the pack had come from their layers, and so does what ``install.py`` left,
which the pack then holds beside what it had, for nobody else has it. The lock knows the hash of the
pack's contents, and nothing is kept that does not fit it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.writer import write_entries
from cpack_build.errors import HashMismatch, writing
from cpack_build.lock.schema import Inputs, Lock
from cpack_build.oci.storage import whole_file
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.parts import captured_files, installed_archives

__all__ = ["Exported", "copy_pack", "export"]


@dataclass(frozen=True)
class Exported:
    """The pack at *pack* (its *sha256*, hex) and the lock at *lock_path*; *exact* says that they are what made the
    image, and not what is left of it."""

    pack: Path
    sha256: str
    lock_path: Path
    lock: Lock
    exact: bool


def export(
    artifact: Artifact, pack: Path, lock_path: Path, *, inexact: bool = False, progress: Progress = SILENT
) -> Exported:
    """Write the pack and the lock of *artifact*.

    A pack may have held more than its image carries: nodes that the settings left out, or secrets in URLs. Then
    :class:`HashMismatch` is raised and nothing is left behind, unless *inexact* allows a lock for what there is.
    """
    lock = artifact.lock
    with TemporaryDirectory(prefix="cpack-export-") as folder:
        entries: dict[str, bytes | Path] = dict(artifact.documents)
        entries |= captured_files(artifact, into=Path(folder) / "files", progress=progress)
        layers = [layer.blob for layer in artifact.workspace_layers]
        entries |= installed_archives(lock, layers, into=Path(folder) / "installed", progress=progress)
        aside = Path(folder) / pack.name
        write_entries(aside, entries)
        read = read_pack(aside)
        exact = read.content_sha256 == lock.inputs.pack
        if not exact and not inexact:
            raise HashMismatch(
                f"The pack in {artifact.name}",
                expected=lock.inputs.pack,
                actual=read.content_sha256,
                hint="The pack held more than the image carries (nodes that were left out, secrets), or the image was "
                "changed. --inexact writes what there is, with a lock for that.",
            )
        if not exact:
            lock = lock.model_copy(update={"inputs": Inputs(pack=read.content_sha256, settings=lock.inputs.settings)})
        _copy(aside, pack)
        with writing(lock_path), whole_file(lock_path) as file:
            file.write(artifact.lock_bytes if exact else lock.to_bytes())
        return Exported(pack, read.sha256, lock_path, lock, exact)


def copy_pack(source: Path, source_lock: Path, pack: Path, lock_path: Path) -> bool:
    """Write the pack at *source*, which is one, to *pack*, and its lock to *lock_path*; whether there was a lock."""
    read_pack(source)
    _copy(source, pack)
    if locked := source_lock.is_file():
        _copy(source_lock, lock_path)
    return locked


def _copy(source: Path, target: Path) -> None:
    with writing(target), whole_file(target) as file, source.open("rb") as data:
        while chunk := data.read(1 << 20):
            file.write(chunk)
