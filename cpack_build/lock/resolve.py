"""The stage: a pack and its settings become a lock.

The parts know nothing of each other but this: the system packages decide which glibc wheels may ask for. Everything
that is missing is told at once. The result depends on the pack, the settings and what the sources offer, never on the
machine, its folders or the order in which things were found.
"""

from __future__ import annotations

import platform as host
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from packaging.utils import canonicalize_name

import cpack_build
from cpack_build.cpack.schema import Snapshot
from cpack_build.cpack.settings import InterpreterArchive, Platform, Settings
from cpack_build.errors import BadInput, BadSettings, CpackError, StaleLock, Unresolvable, UsageError, together
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.base import Base, open_base
from cpack_build.lock.captured import Captured
from cpack_build.lock.debs import FLOOR, base_sources, glibc_minor, host_sources, installed, open_archive
from cpack_build.lock.form import in_form
from cpack_build.lock.interpreter import archive_interpreter, base_interpreter, vouch
from cpack_build.lock.models import lock_models
from cpack_build.lock.nodes import lock_trees
from cpack_build.lock.python import Target, lock_environment, lock_service, parse_requirements
from cpack_build.lock.schema import (
    Deb,
    DebInterpreter,
    GitTree,
    Inputs,
    Interpreter,
    Lock,
    PythonEnvironment,
    ScratchBase,
)
from cpack_build.lock.service import service_code, service_requirements
from cpack_build.lock.target import FAMILY, check_target, retarget, target_of
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci.compressed import parse_compression
from cpack_build.progress import SILENT, Progress, working

__all__ = ["PackInput", "check_all_fresh", "check_fresh", "resolve", "resolve_all", "this_platform"]

_T = TypeVar("_T")
_MACHINES: dict[str, Platform] = {
    "x86_64": "linux/amd64", "amd64": "linux/amd64", "aarch64": "linux/arm64", "arm64": "linux/arm64",
}  # fmt: skip
_NO_COMMIT = 315532800
"""1980-01-01, as all else in a pack is dated: for a pack with no git repository."""
_UNKNOWN_GLIBC = 28
"""For a base whose glibc cannot be told: what every distribution in support has."""


class PackInput(Captured, Protocol):
    """What of a pack a lock depends on (:class:`cpack_build.cpack.reader.Pack` is one)."""

    @property
    def content_sha256(self) -> str: ...

    @property
    def snapshot(self) -> Snapshot: ...


def resolve_all(
    pack: PackInput,
    platforms: Sequence[Platform],
    *,
    settings: Settings,
    store: Store,
    sources: Sources,
    previous: Sequence[Lock] = (),
    update: Collection[str] = (),
    progress: Progress = SILENT,
) -> tuple[Lock, ...]:
    """A lock of *pack* for each of *platforms*, as :func:`resolve` makes it; what is missing on any is told at once."""
    earlier = {lock.platform: lock for lock in previous}
    locks, errors = [], []
    for platform in sorted(platforms):
        try:
            locks.append(
                resolve(
                    pack, settings=settings, platform=platform, store=store, sources=sources,
                    previous=earlier.get(platform), update=update, progress=progress,
                )
            )  # fmt: skip
        except CpackError as error:
            errors.append(error)
    if errors:
        raise _distinct(errors)
    return tuple(locks)


def _distinct(errors: Sequence[CpackError]) -> CpackError:
    """Every one of *errors* once, though two platforms may have met it."""
    single = [part for error in errors for part in error.parts or (error,)]
    return together(list({(type(error), str(error)): error for error in single}.values()))


def resolve(
    pack: PackInput,
    *,
    settings: Settings,
    store: Store,
    sources: Sources,
    platform: Platform | None = None,
    previous: Lock | None = None,
    update: Collection[str] = (),
    progress: Progress = SILENT,
) -> Lock:
    """Resolve *pack* to its lock for *platform*, by default the one that *settings* name, else this machine's.

    *sources* holds the mirrors (flags and settings) and transports.

    The Python packages of an earlier lock, *previous*, keep their versions where they can, but for those named in
    *update*; ``all`` or ``python`` there means every one of them.

    Raises :class:`Unresolvable` naming everything that is missing, :class:`NetworkError`, :class:`HashMismatch`,
    :class:`UnsafeInput`, :class:`BadInput`, :class:`ToolMissing`. *progress* is used from several threads.
    """
    snapshot = pack.snapshot
    python_version = snapshot.python
    if python_version is None:
        raise BadInput(
            "The pack does not say which Python it needs; packs of November 2024 did not.",
            hint="Write it again with `cpack-build import PACK --python 3.11 -o NEW`.",
        )
    target_platform = platform or (settings.platform[0] if len(settings.platform) == 1 else this_platform())
    with working(4, progress) as (pool, reports):
        trees_work = pool.submit(
            lock_trees, snapshot, pack=pack, exclude=settings.nodes.exclude, store=store, sources=sources,
            progress=reports,
        )  # fmt: skip
        models_work = pool.submit(
            lock_models, snapshot.models, folders=settings.models, store=store, sources=sources, progress=reports
        )
        errors: list[CpackError] = []
        system = _caught(
            lambda: _system(
                settings, python=python_version, platform=target_platform, store=store, sources=sources,
                progress=reports,
            ),
            errors,
        )  # fmt: skip
        glibc = system.glibc if system is not None else _UNKNOWN_GLIBC
        target = Target(python_version, target_platform, glibc)
        find_links = settings.python.find_links
        index_url, extra_index_urls = settings.python.index_url, settings.python.extra_index_urls
        service_work = pool.submit(
            lock_service, service_requirements(), target=target, store=store, sources=sources, find_links=find_links,
            index_url=index_url, extra_index_urls=extra_index_urls, progress=reports,
        )  # fmt: skip
        python_work = pool.submit(
            _environment, snapshot.requirements, accelerator=settings.target, target=target, store=store,
            sources=sources, packages=settings.python.packages, exclude=settings.python.exclude, find_links=find_links,
            index_url=index_url, extra_index_urls=extra_index_urls, preferred=_kept(previous, update),
            progress=reports,
        )  # fmt: skip
        trees, models, service, python = (
            _done(trees_work, errors), _done(models_work, errors), _done(service_work, errors),
            _done(python_work, errors),
        )  # fmt: skip
    errors += [*(trees.missing if trees else ()), *(models[1] if models else ())]
    if errors:
        raise together(errors)
    assert system is not None
    assert trees is not None
    assert trees.comfyui is not None
    assert models is not None
    assert service is not None
    assert python is not None
    lock = Lock(
        builder=cpack_build.__version__,
        inputs=Inputs(pack=pack.content_sha256, settings=settings.digest()),
        source_date_epoch=max(
            (tree.committed_at for tree in (trees.comfyui, *trees.nodes) if isinstance(tree, GitTree)),
            default=_NO_COMMIT,
        ),
        platform=target_platform,
        target=target_of(wheels_of(python), platform=target_platform),
        base=system.base.record if system.base is not None else ScratchBase(),
        system=system.debs,
        interpreter=system.interpreter,
        # the image's own interpreter compiles, so it must be one that can run here
        bytecode="compiled" if settings.bytecode == "auto" and _runs_here(target_platform) else "none",
        service=service,
        service_code=service_code(),
        python=python,
        comfyui=trees.comfyui,
        nodes=trees.nodes,
        registry_nodes=trees.registry_nodes,
        local_nodes=trees.local_nodes,
        models=tuple(models[0]),
        environment=dict(sorted(settings.environment.items())),
        comfyui_args=settings.comfyui_args,
    )
    if lock.bytecode == "compiled":  # else nobody has said that this Python may run here: a pack may have named it
        vouch(lock, store=store)
    return in_form(lock, compression=settings.compression)


def _kept(previous: Lock | None, update: Collection[str]) -> tuple[str, ...]:
    """The pins of *previous* that are to stay. Raises :class:`UsageError` for a name in *update* that it lacks."""
    if previous is None:
        return ()
    names = {canonicalize_name(name) for name in update}
    wheels = wheels_of(previous.python)
    if unknown := sorted(names - {wheel.name for wheel in wheels} - {"all", "python"}):
        raise UsageError(
            f"--update names {', '.join(unknown)}, which the lock does not have.",
            hint="Name Python packages of the lock, `python` or `all`.",
        )
    if names & {"all", "python"}:
        return ()
    return tuple(f"{wheel.name}=={wheel.version}" for wheel in wheels if wheel.name not in names)


def _environment(
    requirements: Sequence[str], *, accelerator: str | None, target: Target, progress: Progress, **options: Any
) -> PythonEnvironment:
    """The pack's packages, for another accelerator than the packer's where the user asks for one."""
    if accelerator is not None:
        own = {canonicalize_name(requirement.name) for requirement in parse_requirements(options["packages"])}
        changed = retarget(requirements, accelerator, platform=target.platform)
        requirements = changed.requirements
        if not own.intersection(FAMILY):
            for change in changed.changed:
                progress.note(f"For {accelerator}, {change}.")
    environment = lock_environment(requirements, target=target, progress=progress, **options)
    if accelerator is not None:
        check_target(wheels_of(environment), accelerator, platform=target.platform)
    return environment


def check_all_fresh(
    locks: Sequence[Lock], pack: PackInput, settings: Settings, *, frozen: bool = False, name: object = "The lock"
) -> tuple[Lock, ...]:
    """Those of *locks* that *settings* ask for, each fresh. Raises :class:`StaleLock`, also for one that lacks."""
    wanted = set(settings.platform) or {lock.platform for lock in locks}
    if lacking := sorted(wanted - {lock.platform for lock in locks}):
        have = " and ".join(lock.platform for lock in locks)
        raise StaleLock(name, f"it is for {have}, not {' and '.join(lacking)}")
    chosen = tuple(lock for lock in locks if lock.platform in wanted)
    for lock in chosen:
        check_fresh(lock, pack, settings, frozen=frozen, name=name)
    return chosen


def check_fresh(
    lock: Lock, pack: PackInput, settings: Settings, *, frozen: bool = False, name: object = "The lock"
) -> None:
    """See that *lock* belongs to *pack*, *settings* and us; when *frozen*, whatever the settings are.

    Raises :class:`StaleLock`, saying which not.
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
    own = lock.compression
    if settings.compression is not None and own is not None:
        wanted = parse_compression(settings.compression)
        if (wanted.algorithm, wanted.level) != (own.algorithm, own.level):
            raise StaleLock(name, f"cpack.yaml wants layers compressed by {wanted}, and it says {own.algorithm}")
    if lock.service_code != service_code():
        raise StaleLock(
            name, f"it was made by another cpack-build ({lock.service_code.version}), whose service code differs"
        )


@dataclass(frozen=True)
class _System:
    """What lies below the Python packages."""

    base: Base | None
    debs: tuple[Deb, ...]
    interpreter: Interpreter
    glibc: int


def _system(
    settings: Settings, *, python: str, platform: Platform, store: Store, sources: Sources, progress: Progress
) -> _System:
    """Base image, system packages and interpreter.

    The interpreter's own packages (those built from source package ``python3.X``) are kept apart, so that images that
    differ in system packages share its layer.
    """
    base = None
    if settings.base != "scratch":
        base = open_base(settings.base, platform=platform, store=store, sources=sources, progress=progress)
    interpreter: Interpreter | None = None
    wanted = [*(FLOOR if base is None else ()), *settings.system.packages]
    if isinstance(settings.interpreter, InterpreterArchive):
        interpreter = archive_interpreter(
            settings.interpreter, python=python, store=store, sources=sources, progress=progress
        )
    elif settings.interpreter in ("auto", "base"):
        if base is not None:
            interpreter = base_interpreter(python, base.paths)
        elif settings.interpreter == "base":
            raise BadSettings("interpreter is 'base', but base is 'scratch', which has no Python.")
        if interpreter is None and settings.interpreter == "base":
            raise Unresolvable(
                f"The base image {settings.base} has no Python {python}, which the pack needs.",
                hint="Set interpreter: auto, or choose another base.",
            )
    if base is not None and interpreter is not None and not wanted:
        return _System(base, (), interpreter, glibc_minor(installed(base.files)) or _UNKNOWN_GLIBC)
    apt = host_sources() if base is None else base_sources(base.files)
    archive = open_archive(
        apt, architecture=platform.partition("/")[2], store=store, mirrors=sources.mirrors, progress=progress
    )
    package = f"python{python}"
    if interpreter is None:
        if not archive.has(package):
            raise Unresolvable(
                f"The pack needs Python {python}, and there is no {package} among the system packages"
                + (" of this machine's sources." if base is None else f" of the base image {settings.base}."),
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
    return _System(base, debs, interpreter, glibc_minor(versions) or _UNKNOWN_GLIBC)


def _runs_here(platform: Platform) -> bool:
    return host.system() == "Linux" and _MACHINES.get(host.machine().lower()) == platform


def this_platform() -> Platform:
    """The platform whose images run on this machine. Raises :class:`UsageError` where there is none."""
    machine = host.machine().lower()
    if machine not in _MACHINES:
        raise UsageError(f"Images for {machine} cannot be made.", hint="Name --platform linux/amd64 or linux/arm64.")
    return _MACHINES[machine]


def _caught(work: Callable[[], _T], errors: list[CpackError]) -> _T | None:
    try:
        return work()
    except CpackError as error:
        errors.append(error)
        return None


def _done(work: Future[_T], errors: list[CpackError]) -> _T | None:
    return _caught(work.result, errors)
