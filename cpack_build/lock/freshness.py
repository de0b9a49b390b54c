"""Whether a lock still belongs to its pack, settings and cpack-build: told without resolving, fetching or asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cpack_build.cpack.settings import Settings
from cpack_build.errors import StaleLock
from cpack_build.lock.models import refuse_pickles
from cpack_build.lock.schema import Lock
from cpack_build.lock.service import service_code

__all__ = ["check_all_fresh", "check_fresh"]


class HasContent(Protocol):
    """What of a pack says whether it is another (:class:`cpack_build.cpack.reader.Pack` is one)."""

    @property
    def content_sha256(self) -> str: ...


def check_all_fresh(
    locks: Sequence[Lock], pack: HasContent, settings: Settings, *, frozen: bool = False, name: object = "The lock"
) -> tuple[Lock, ...]:
    """Those of *locks* that *settings* ask for, each fresh. Raises :class:`StaleLock`, also for one that lacks."""
    wanted: set[str] = set(settings.platform) or {lock.platform for lock in locks}
    if lacking := sorted(wanted - {lock.platform for lock in locks}):
        have = " and ".join(lock.platform for lock in locks)
        raise StaleLock(name, f"it is for {have}, not {' and '.join(lacking)}")
    chosen = tuple(lock for lock in locks if lock.platform in wanted)
    for lock in chosen:
        check_fresh(lock, pack, settings, frozen=frozen, name=name)
    return chosen


def check_fresh(
    lock: Lock, pack: HasContent, settings: Settings, *, frozen: bool = False, name: object = "The lock"
) -> None:
    """See that *lock* belongs to *pack*, *settings* and us; when *frozen*, whatever the settings are.

    Raises :class:`StaleLock`, saying which not, and :class:`UnsafeInput` for models that the settings refuse.
    """
    if lock.inputs.pack != pack.content_sha256:
        raise StaleLock(name, "the pack has changed since it was made")
    if frozen:
        settings = settings.model_copy(update={"platform": (), "compression": None})
    elif lock.inputs.settings != settings.digest():
        raise StaleLock(
            name,
            "the settings (cpack.yaml or flags) have changed since it was made",
            hint="Run `cpack-build lock` again, or build what it says all the same with --frozen.",
        )
    if settings.platform and lock.platform not in settings.platform:
        raise StaleLock(name, f"it is for {lock.platform}, not {' and '.join(settings.platform)}")
    if settings.pickles == "refuse":
        refuse_pickles(model.path for model in lock.models)
    own = lock.compression
    if settings.compression is not None and own is not None:
        from cpack_build.oci.compressed import parse_compression

        wanted = parse_compression(settings.compression)
        if (wanted.algorithm, wanted.level) != (own.algorithm, own.level):
            raise StaleLock(name, f"cpack.yaml wants layers compressed by {wanted}, and it says {own.algorithm}")
    if lock.service_code != service_code():
        raise StaleLock(
            name, f"it was made by another cpack-build ({lock.service_code.version}), whose service code differs"
        )
