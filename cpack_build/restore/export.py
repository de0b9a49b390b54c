"""An image → the pack and the lock that made it: ``image(lock(export(image)))`` is the image.

What the image carries as documents goes back into a zip, written as comfy-pack writes one, so a pack that was written
so comes back byte for byte. Nodes that only the pack had come from their layers. The lock knows the hash of the
pack's contents, and nothing is kept that does not fit it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cpack_build.cpack.reader import read_pack
from cpack_build.cpack.writer import write_entries
from cpack_build.errors import HashMismatch, writing
from cpack_build.lock.inputs import pack_digest
from cpack_build.lock.schema import Lock
from cpack_build.oci.storage import whole_file
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.artifact import Artifact
from cpack_build.restore.localnodes import local_nodes

__all__ = ["Exported", "export"]


@dataclass(frozen=True)
class Exported:
    """The pack at *pack* (its *sha256*, hex) and the lock at *lock_path*."""

    pack: Path
    sha256: str
    lock_path: Path
    lock: Lock


def export(artifact: Artifact, pack: Path, lock_path: Path, *, progress: Progress = SILENT) -> Exported:
    """Write the pack and the lock of *artifact*.

    Raises :class:`HashMismatch` when the documents are not those of the lock: then nothing is left behind.
    """
    with TemporaryDirectory(prefix="cpack-export-") as folder:
        entries: dict[str, bytes | Path] = dict(artifact.documents)
        entries |= local_nodes(artifact, into=Path(folder) / "files", progress=progress)
        aside = Path(folder) / pack.name
        write_entries(aside, entries)
        read = read_pack(aside)
        if (actual := pack_digest(read)) != artifact.lock.inputs.pack:
            raise HashMismatch(
                f"The pack in {artifact.name}",
                expected=artifact.lock.inputs.pack,
                actual=actual,
                hint="Its documents are not those that its lock was made from; nothing was written.",
            )
        with writing(pack), whole_file(pack) as file, aside.open("rb") as source:
            while chunk := source.read(1 << 20):
                file.write(chunk)
        with writing(lock_path), whole_file(lock_path) as file:
            file.write(artifact.lock.to_bytes())
        return Exported(pack, read.sha256, lock_path, artifact.lock)
