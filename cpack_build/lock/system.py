"""What lies below the Python packages: base image, system packages, interpreter, and the glibc that they come to.

Wheels may ask for no newer glibc than that one, so the Python packages wait for this part of a lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cpack_build.cpack.settings import InterpreterArchive, Settings
from cpack_build.errors import BadSettings, ToolMissing, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.apt import Apt, has_apt
from cpack_build.lock.base import Base, open_base, recalled_base
from cpack_build.lock.cuda import FAMILIES, base_of
from cpack_build.lock.debs import FLOOR, base_sources, glibc_minor, host_sources, installed, open_archive
from cpack_build.lock.interpreter import archive_interpreter, base_interpreter
from cpack_build.lock.schema import (
    BaseImage,
    Deb,
    DebInterpreter,
    HostInterpreter,
    Interpreter,
    Lock,
    Platform,
    ScratchBase,
)
from cpack_build.lock.tags import host_glibc
from cpack_build.progress import Progress

__all__ = ["UNKNOWN_GLIBC", "System", "host_system", "kept_system", "lock_system"]

UNKNOWN_GLIBC = 28
"""For a base whose glibc cannot be told: what every distribution in support has."""


@dataclass(frozen=True)
class System:
    """What lies below the Python packages."""

    base: ScratchBase | BaseImage
    debs: tuple[Deb, ...]
    interpreter: Interpreter
    glibc: int


def host_system(python: str) -> System:
    """Below a workspace on this machine: what it has anyway, with whatever Python *python* it has."""
    return System(ScratchBase(), (), HostInterpreter(version=python), host_glibc())


def lock_system(
    settings: Settings,
    *,
    python: str,
    platform: Platform,
    target: str,
    store: Store,
    sources: Sources,
    elsewhere: Callable[[BaseImage, Platform], Apt] | None = None,
    progress: Progress,
) -> System:
    """Base image, system packages and interpreter. A base that is named by its family is the one that fits *target*.

    Where this machine has no apt, that of the base image runs *elsewhere*.

    The interpreter's own packages (those built from source package ``python3.X``) are kept apart, so that images that
    differ in system packages share its layer.
    """
    base = None
    named = settings.base
    if named in FAMILIES:
        has_python = settings.interpreter in ("auto", "base", "deb")
        named = base_of(named, target=target, python=python if has_python else "")
        progress.note(f"For {target}, the base is {named}.")
    if named != "scratch":
        base = open_base(named, platform=platform, store=store, sources=sources, progress=progress)
    interpreter: Interpreter | None = None
    wanted = [*(FLOOR if base is None else ()), *settings.system.wanted()]
    if not isinstance(settings.interpreter, str):
        standalone = _standalone(settings, platform)
        interpreter = archive_interpreter(
            standalone, python=python, platform=platform, store=store, sources=sources, progress=progress
        )
    elif settings.interpreter in ("auto", "base"):
        if base is not None:
            interpreter = base_interpreter(python, base.paths)
        elif settings.interpreter == "base":
            raise BadSettings("interpreter is 'base', but base is 'scratch', which has no Python.")
        if interpreter is None and settings.interpreter == "base":
            raise Unresolvable(
                f"The base image {named} has no Python {python}, which the pack needs.",
                hint="Set interpreter: auto, or choose another base.",
            )
    if base is not None and interpreter is not None and not wanted:
        return System(base.record, (), interpreter, glibc_minor(installed(base.files)) or UNKNOWN_GLIBC)
    apt = host_sources() if base is None else base_sources(base.files)
    program: Apt | None = None
    if base is not None and not has_apt():
        if elsewhere is None:
            raise ToolMissing(
                "There is no apt on this machine to resolve system packages with.",
                hint="Let the base's own apt do it with --backend buildkit, or set system: {defaults: none} in "
                "cpack.yaml.",
            )
        program = elsewhere(base.record, platform)
    if settings.system.sources:
        apt = apt.replaced(settings.system.sources)
    archive = open_archive(
        apt, architecture=platform.partition("/")[2], store=store, mirrors=sources.mirrors,
        program=program, progress=progress,
    )  # fmt: skip
    package = f"python{python}"
    if interpreter is None:
        if not archive.has(package):
            raise Unresolvable(
                f"The pack needs Python {python}, and there is no {package} among the system packages"
                + (" of this machine's sources." if base is None else f" of the base image {named}."),
                hint="Name a standalone Python in cpack.yaml (interpreter: {url: …, sha256: …}) or a base with it.",
            )
        wanted.append(package)
    with progress.task("Resolving system packages", unit="packages"):
        debs = archive.resolve(wanted)
    if interpreter is None:
        own = tuple(deb for deb in debs if deb.source == package)
        debs = tuple(deb for deb in debs if deb.source != package)
        interpreter = DebInterpreter(version=python, path=f"/usr/bin/{package}", packages=own)
    versions = {**(installed(base.files) if base is not None else {}), **{deb.name: deb.version for deb in debs}}
    record = base.record if base is not None else ScratchBase()
    return System(record, debs, interpreter, glibc_minor(versions) or UNKNOWN_GLIBC)


def _standalone(settings: Settings, platform: Platform) -> InterpreterArchive:
    """The archive that the settings name for *platform*."""
    named = settings.interpreter
    if isinstance(named, InterpreterArchive):
        return named
    if isinstance(named, str) or platform not in named:
        raise BadSettings(
            f"interpreter names no archive for {platform}.",
            hint=f"Write interpreter: {{{platform}: {{url: …, sha256: …}}}} in cpack.yaml.",
        )
    return named[platform]


def kept_system(previous: Lock, *, store: Store) -> System | None:
    """That of *previous* as it stands, with nobody asked; ``None`` where its base is not known on this machine."""
    base: Base | None = None
    if isinstance(previous.base, BaseImage) and (base := recalled_base(previous.base, store=store)) is None:
        return None
    versions = {**(installed(base.files) if base is not None else {})}
    versions |= {deb.name: deb.version for deb in previous.system}
    return System(previous.base, previous.system, previous.interpreter, glibc_minor(versions) or UNKNOWN_GLIBC)
