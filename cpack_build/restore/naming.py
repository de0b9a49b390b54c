"""What a user names as the source of a restore: a pack's file, or an image wherever it lies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cpack_build.errors import UsageError
from cpack_build.fetch.mirrors import Mirrors
from cpack_build.fetch.store import Store
from cpack_build.oci.reference import ArchiveName, EngineName, ImageName, parse_image_name
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Image

if TYPE_CHECKING:
    from cpack_build.oci.transport import Access

__all__ = ["opened_image", "pack_path"]


def pack_path(source: str) -> Path | None:
    """The pack's file that *source* names, or ``None`` when it names an image."""
    path = Path(source).expanduser()
    if source.endswith((".zip", ".cpack")) or (path.is_file() and ":" not in source):
        return path
    return None


@contextmanager
def opened_image(
    source: str, *, platform: str, store: Store, mirrors: Mirrors, access: Access | None = None
) -> Iterator[Image]:
    """The image that *source* names, readable for as long as the context lasts; an engine's is saved first.

    Raises what the source raises: :class:`UsageError`, :class:`BadImage`, ``NetworkError``, ``ToolMissing``.
    """
    name = parse_image_name(source)
    if not isinstance(name, EngineName):
        # Layers are not kept: what is in them has a place of its own, in the store or in the workspace.
        yield open_source(name, mirrors=mirrors, access=access).as_image(platform)
        return
    from cpack_build.oci.engines import open_engine

    if name.reference is None:
        raise UsageError(f"{source} names no image.", hint=f"Write {name.engine}:NAME[:TAG].")
    with store.temporary() as file:
        open_engine(name).save(name.reference, file)
        archive: ImageName = ArchiveName(Path(file.name), "docker")
        yield open_source(archive).as_image(platform)
