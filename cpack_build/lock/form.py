"""The form of an image, apart from what is in it: the revision of its format, and how its layers are compressed when it
is pushed. Nothing has to be resolved for it, so a lock gets another form without becoming another lock.
"""

from __future__ import annotations

from cpack_build.errors import UsageError
from cpack_build.lock.schema import IMAGE_REVISIONS, Compression, Lock
from cpack_build.oci import compressed
from cpack_build.oci.compressed import DEFAULT, parse_compression

__all__ = ["compression_of", "in_form", "recorded_compression", "require_revision"]


def in_form(lock: Lock, *, compression: str | None = None, revision: int | None = None) -> Lock:
    """*lock* with that *compression* (``zstd:19``) by this machine's compressor, and that *revision* of the format.

    ``None`` leaves what the lock has; the compression that it has, it keeps with its compressor.
    """
    changes: dict[str, object] = {}
    if revision is not None:
        require_revision(revision)
        changes["image_revision"] = revision
    if compression is not None or lock.compression is None:
        wanted = parse_compression(compression or DEFAULT)
        had = _known(lock)
        if had is None or str(had) != str(wanted):
            changes["compression"] = Compression(
                algorithm=wanted.algorithm, level=wanted.level, compressor=wanted.compressor
            )
    return lock.model_copy(update=changes) if changes else lock


def compression_of(lock: Lock, *, instead: str | None = None) -> compressed.Compression:
    """How the image of *lock* is compressed: as the lock records it, or as the user says *instead*.

    A lock that records nothing is one that an image carried: the default. Raises :class:`ToolMissing` when this machine
    would make other bytes than the lock promises.
    """
    recorded = _known(lock)
    if instead is not None or recorded is None:
        return parse_compression(instead or DEFAULT)
    recorded.require()
    return recorded


def recorded_compression(lock: Lock) -> compressed.Compression:
    """How the image of *lock* is compressed when it is pushed, by whatever compressor, or by default."""
    return _known(lock) or parse_compression(DEFAULT)


def require_revision(revision: int) -> None:
    """See that images of that format revision can be made. Raises :class:`UsageError`."""
    if revision not in IMAGE_REVISIONS:
        known = ", ".join(map(str, IMAGE_REVISIONS))
        raise UsageError(
            f"Image format revision {revision} is not known; this cpack-build makes {known}.",
            hint="Update cpack-build if the revision is newer (docs/image-format.md).",
        )


def _known(lock: Lock) -> compressed.Compression | None:
    own = lock.compression
    return None if own is None else compressed.Compression(own.algorithm, own.level, own.compressor)
