"""Writing files so that they are whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cpack_build import filesystem
from cpack_build.errors import writing

__all__ = ["PARTIAL", "reflink", "shared_copy", "sync_directory", "whole_file"]

PARTIAL = ".cpack-partial-"
"""What the name of a file begins with while it is being written."""


@contextmanager
def whole_file(
    path: Path, *, directory: Path | None = None, place: object = None, mode: int = 0o644
) -> Iterator[BinaryIO]:
    """A file that appears as *path*, synced, when the context ends well, and not at all otherwise.

    It is written aside in *directory* (by default beside *path*; it must be on the same file system). An existing
    *path* is replaced at the end. *place* is what errors name, if not *path*; *mode* has the file's permission bits.
    Raises :class:`StorageError`.
    """
    place = place or path
    aside = (directory or path.parent) / f"{PARTIAL}{secrets.token_hex(8)}"
    with writing(place):
        descriptor = filesystem.open_file(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            with writing(place):
                file.flush()
                os.fsync(file.fileno())
        with writing(place):
            aside.replace(path)
            sync_directory(path.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            aside.unlink()
        raise


def sync_directory(path: Path) -> None:
    """Make the names in *path* durable, where the system and the file system know how."""
    if sys.platform == "win32":
        return
    descriptor = filesystem.open_folder(path)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def reflink(source: Path, target: Path) -> bool:
    """Whether *target*, which is made, could be made to share the blocks of *source*; if not, it is not there."""
    with writing(target), source.open("rb") as read, target.open("xb") as write:
        if filesystem.share_blocks(read.fileno(), write.fileno()):
            return True
    target.unlink()
    return False


def shared_copy(source: Path, target: Path, *, may_link: bool) -> bool:
    """Make *target* the file *source*, whole or not at all; ``True`` where no byte was written for it.

    Blocks are shared where the file system can, else the file gets a second name if it *may_link*, else it is copied.
    """
    aside = target.parent / f"{PARTIAL}{secrets.token_hex(8)}"
    try:
        with writing(target):
            shared = reflink(source, aside) or (may_link and _linked(source, aside))
            if not shared:
                shutil.copyfile(source, aside)
                with aside.open("rb+") as file:
                    os.fsync(file.fileno())
            aside.replace(target)
            sync_directory(target.parent)
    finally:
        aside.unlink(missing_ok=True)
    return shared


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return False  # another file system, or one without hard links
    return True
