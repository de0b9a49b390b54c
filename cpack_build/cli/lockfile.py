"""Where a pack's locks lie: a file beside it, one that the user names, or the pack itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Platform
    from cpack_build.fetch.store import Store
    from cpack_build.lock.schema import Lock

__all__ = ["LockFile", "archives_of", "is_lock", "lock_beside", "lock_file"]

_INSIDE = "cpack.lock"
_LIMIT = 64 << 20
"""Bytes of a lock in a pack."""


@dataclass(frozen=True)
class LockFile:
    """The file at *path*, or the one inside the pack at *path*; *data* are its bytes, ``None`` where there is none."""

    path: Path
    is_inside: bool
    data: bytes | None

    def __str__(self) -> str:
        return f"{self.path}: {_INSIDE}" if self.is_inside else str(self.path)

    def locks(self) -> tuple[Lock, ...]:
        """The locks in it. Raises :class:`BadInput` where there are none."""
        from cpack_build.errors import BadInput
        from cpack_build.lock.schema import read_locks

        if self.data is None:
            raise BadInput(f"There is no lock {self}.", hint="Make it with `cpack-build lock`.")
        return read_locks(self.data, name=str(self))

    def lock(self, platform: Platform | None = None) -> Lock:
        """The lock in it for *platform*; without that there must be only one. Raises :class:`Unresolvable` as well."""
        from cpack_build.lock.schema import read_lock

        self.locks()  # says if there is none
        assert self.data is not None
        return read_lock(self.data, name=str(self), platform=platform)

    def write(self, locks: Sequence[Lock], *, installed: Mapping[str, Path] | None = None) -> None:
        """Put *locks* there, whole or not at all; into a pack with the ``pylock.toml`` of each platform, and with the
        tars that *installed* names, of what ``install.py`` left."""
        from cpack_build.cpack.archive import open_archive
        from cpack_build.cpack.reader import LOCK_FILES
        from cpack_build.cpack.writer import replace_entries
        from cpack_build.errors import writing
        from cpack_build.lock.installed import ARCHIVES, archive_of
        from cpack_build.lock.schema import locks_to_bytes
        from cpack_build.oci.storage import whole_file

        if not self.is_inside:
            with writing(self.path), whole_file(self.path) as file:
                file.write(locks_to_bytes(locks))
            return
        entries: dict[str, bytes | Path] = {_INSIDE: locks_to_bytes(locks), **(installed or {})}
        for lock in locks:
            # PEP 751: one of several is named pylock.<identifier>.toml
            name = "pylock.toml" if len(locks) == 1 else f"pylock.{lock.platform.replace('/', '-')}.toml"
            entries[name] = lock.python.pylock.encode()
        pinned = {archive_of(pin.name) for lock in locks for pin in lock.custom_nodes if pin.installed is not None}
        there = {name for name in open_archive(self.path).sizes if name.startswith(ARCHIVES)}
        replace_entries(self.path, entries, without=LOCK_FILES | (there - pinned))


def archives_of(locks: Sequence[Lock], *, store: Store) -> dict[str, Path]:
    """The tars in *store* of what ``install.py`` left in nodes of *locks*, by what a pack calls them."""
    from cpack_build.lock.installed import archive_of

    pins = {pin.name: pin.installed for lock in locks for pin in lock.custom_nodes if pin.installed is not None}
    found = {name: store.find(installed.sha256) for name, installed in pins.items()}
    return {archive_of(name): file.path for name, file in found.items() if file is not None}


def lock_file(pack: Pack, named: Path | None = None, *, inside: bool = False) -> LockFile:
    """The locks of *pack*: those that the user *named*, those *inside* if that is meant; else those beside the pack if
    there are any, else those inside, else those that will be beside it."""
    beside = named or lock_beside(pack.path)
    if inside or (named is None and not beside.exists() and _INSIDE in pack.sizes):
        data = pack.open_member(_INSIDE, limit=_LIMIT) if _INSIDE in pack.sizes else None
        return LockFile(pack.path, True, data)
    return LockFile(beside, False, beside.read_bytes() if beside.is_file() else None)


def lock_beside(pack: Path) -> Path:
    """``NAME.cpack.lock`` beside ``NAME.cpack.zip``. Raises :class:`UsageError` for what has no name."""
    from cpack_build.errors import UsageError

    if not pack.name:
        raise UsageError(f"{pack} is a folder, and no pack.", hint="Name a .cpack.zip.")
    return pack.with_name(pack.name.removesuffix(".zip").removesuffix(".cpack") + ".cpack.lock")


def is_lock(path: Path) -> bool:
    """Whether the file at *path* is a lock rather than a pack."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False  # reading it as a pack says what is wrong
