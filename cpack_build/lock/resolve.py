"""The stage: a pack and its settings become a lock.

The parts know nothing of each other but this: the system packages decide which glibc wheels may ask for. Everything
that is missing is told at once. The result depends on the pack, the settings and what the sources offer, never on the
machine, its folders or the order in which things were found.
"""

from __future__ import annotations

import platform as host
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, cast

from packaging.utils import canonicalize_name

import cpack_build
from cpack_build.cpack.schema import ModelEntry, Snapshot
from cpack_build.cpack.settings import AnyPlatform, Platform, Settings
from cpack_build.errors import BadInput, CpackError, UsageError, together
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.asked import Asked, asked_by_tree, left_out
from cpack_build.lock.building import Consent
from cpack_build.lock.captured import Captured
from cpack_build.lock.form import in_form
from cpack_build.lock.hub import confirmed
from cpack_build.lock.installing import Installer, Script, install, refused, require_alike, scripts_of
from cpack_build.lock.interpreter import compiles_alike, vouch
from cpack_build.lock.machine import host_platform, image_platform, this_platform
from cpack_build.lock.models import lock_models, refuse_pickles
from cpack_build.lock.nodes import Trees, kept_trees, lock_trees, open_tree
from cpack_build.lock.python import NOTHING, Target, lock_environment, lock_service, parse_requirements
from cpack_build.lock.schema import (
    GitTree,
    Inputs,
    Lock,
    Model,
    NodeTree,
    PythonEnvironment,
)
from cpack_build.lock.service import service_code, service_requirements
from cpack_build.lock.system import UNKNOWN_GLIBC, host_system, kept_system, lock_system
from cpack_build.lock.target import FAMILY, accelerator_of, check_target, elsewhere, name_of, retarget, target_of
from cpack_build.lock.wheels import wheels_of
from cpack_build.progress import SILENT, Progress, working

__all__ = ["PackInput", "host_platform", "resolve", "resolve_all", "this_platform"]

_T = TypeVar("_T")
_NO_COMMIT = 315532800
"""1980-01-01, as all else in a pack is dated: for a pack with no git repository."""


class PackInput(Captured, Protocol):
    """What of a pack a lock depends on (:class:`cpack_build.cpack.reader.Pack` is one)."""

    @property
    def content_sha256(self) -> str: ...

    @property
    def snapshot(self) -> Snapshot: ...


def resolve_all(
    pack: PackInput,
    platforms: Sequence[AnyPlatform],
    *,
    settings: Settings,
    store: Store,
    sources: Sources,
    previous: Sequence[Lock] = (),
    update: Collection[str] = (),
    trust: Consent = False,
    workshop: Installer | None = None,
    workspace: bool = False,
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
                    previous=earlier.get(platform), update=update, trust=trust, workshop=workshop,
                    workspace=workspace, progress=progress,
                )
            )  # fmt: skip
        except CpackError as error:
            errors.append(error)
    if errors:
        raise _distinct(errors)
    require_alike(locks)
    # a model's host may have answered for one platform and not for the next, but they share one lock
    models = max(locks, key=lambda lock: sum(model.access is not None for model in lock.models)).models
    return tuple(_compiled(lock.model_copy(update={"models": models}), locks, settings) for lock in locks)


def _compiled(lock: Lock, siblings: Sequence[Lock], settings: Settings) -> Lock:
    """*lock* with bytecode also where only a sibling's interpreter, which compiles alike, runs on this machine."""
    if lock.bytecode == "compiled" or settings.bytecode == "none":
        return lock
    able = (one for one in siblings if one.bytecode == "compiled" and compiles_alike(one.interpreter, lock.interpreter))
    return lock.model_copy(update={"bytecode": "compiled"}) if next(able, None) is not None else lock


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
    platform: AnyPlatform | None = None,
    previous: Lock | None = None,
    update: Collection[str] = (),
    trust: Consent = False,
    workshop: Installer | None = None,
    workspace: bool = False,
    progress: Progress = SILENT,
) -> Lock:
    """Resolve *pack* to its lock for *platform*, by default the one that *settings* name, else this machine's.

    *sources* holds the mirrors (flags and settings) and transports. As far as *trust* goes, packages
    that have no wheel are built, in the *workshop* where there is one, and ``install.py`` of the nodes that *settings*
    name runs there.

    The Python packages of an earlier lock, *previous*, keep their versions where they can, but for those named in
    *update*; ``python`` there means every one of them. Other parts (``system``, ``nodes``, ``models``, ``service``)
    stay as they are, if nothing else has changed, but for those in *update*; ``all`` means everything.

    The lock of a *workspace* has neither system packages nor the service, and Python is the machine's own: no image can
    be made of it, and it can be for any system.

    Raises :class:`Unresolvable` naming everything that is missing, :class:`NetworkError`, :class:`HashMismatch`,
    :class:`UnsafeInput`, :class:`BadInput`, :class:`ToolMissing`. *progress* is used from several threads.
    """
    snapshot = pack.snapshot
    if settings.pickles == "refuse":
        refuse_pickles(model.filename for model in snapshot.models if not model.disabled)
    python_version = snapshot.python
    if python_version is None:
        raise BadInput(
            "The pack does not say which Python it needs; packs of November 2024 did not.",
            hint="Write it again with `cpack-build import PACK --python 3.11 -o NEW`.",
        )
    target_platform = platform or (settings.platform[0] if len(settings.platform) == 1 else this_platform())
    keeps = _keeps(previous, update, pack, settings)
    errors: list[CpackError] = []
    with working(4, progress) as (pool, reports):

        def work(part: str, kept: Callable[[Lock], _T], resolved: Callable[[], _T]) -> Future[_T]:
            """*part* as the previous lock has it, if it stays."""
            if previous is not None and part in keeps:
                return pool.submit(kept, previous)
            return pool.submit(resolved)

        trees_work = work(
            "nodes",
            kept_trees,
            lambda: lock_trees(
                snapshot, pack=pack, exclude=settings.nodes.exclude, store=store, sources=sources, progress=reports
            ),
        )
        models_work = work(
            "models",
            lambda lock: (list(lock.models), []),
            lambda: _models(snapshot.models, folders=settings.models, store=store, sources=sources, progress=reports),
        )
        system = kept_system(previous, store=store) if previous is not None and "system" in keeps else None
        is_kept = system is not None
        if system is None:
            system = (
                host_system(python_version)
                if workspace
                else _caught(
                    lambda: lock_system(
                        settings,
                        python=python_version,
                        platform=cast("Platform", target_platform),
                        target=settings.target
                        or accelerator_of(
                            [*snapshot.requirements, *settings.python.packages], platform=target_platform
                        ),
                        store=store,
                        sources=sources,
                        elsewhere=workshop.apt if workshop is not None else None,
                        progress=reports,
                    ),
                    errors,
                )
            )
        glibc = system.glibc if system is not None else UNKNOWN_GLIBC
        target = Target(python_version, target_platform, glibc)
        find_links = settings.python.find_links
        index_url, extra_index_urls = settings.python.index_url, settings.python.extra_index_urls
        service_work = work(
            "service",
            lambda lock: lock.service,
            lambda: (
                NOTHING
                if workspace
                else lock_service(
                    service_requirements(),
                    target=target,
                    store=store,
                    sources=sources,
                    find_links=find_links,
                    index_url=index_url,
                    extra_index_urls=extra_index_urls,
                    progress=reports,
                )
            ),
        )

        def environment(more: Sequence[str] = ()) -> PythonEnvironment:
            own = {canonicalize_name(requirement.name) for requirement in parse_requirements(settings.python.packages)}
            return _environment(
                snapshot.requirements,
                accelerator=settings.target or elsewhere(snapshot.requirements, platform=target_platform),
                target=target,
                store=store,
                sources=sources,
                packages=(*settings.python.packages, *(one for one in more if name_of(one) not in own)),
                exclude=settings.python.exclude,
                find_links=find_links,
                index_url=index_url,
                extra_index_urls=extra_index_urls,
                preferred=_pins(previous, update),
                asked=lambda: _asked(trees_work, pack, store=store, sources=sources, progress=reports),
                trust=trust,
                workshop=workshop,
                progress=reports,
            )

        python_work = work("python", lambda lock: lock.python, environment)
        trees, models, service, python = (
            _done(trees_work, errors),
            _done(models_work, errors),
            _done(service_work, errors),
            _done(python_work, errors),
        )
    errors += [*(trees.missing if trees else ()), *(models[1] if models else ())]
    scripts: tuple[Script, ...] = ()
    if trees is not None and not workspace:
        pins: list[NodeTree] = [*trees.nodes, *trees.registry_nodes, *trees.local_nodes]
        names = settings.nodes.install
        scripts = _caught(lambda: scripts_of(names, pins, pack, store=store, sources=sources), errors) or ()
    if errors and scripts and (error := refused(scripts, installer=workshop, trust=trust)) is not None:
        errors.append(error)  # whoever agrees to one thing agrees to all, so all of it is shown
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
        base=system.base,
        system=system.debs,
        interpreter=system.interpreter,
        # the image's own interpreter compiles, so it must be one that can run here
        bytecode="none" if workspace or settings.bytecode == "none" or not _runs_here(target_platform) else "compiled",
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
    # an earlier lock's Python may be somebody else's; and without bytecode nobody has said that it may run here
    if lock.bytecode == "compiled" and not is_kept:
        vouch(lock, store=store)
    if scripts:
        lock = install(
            lock, scripts, pack=pack, installer=workshop, trust=trust, again=environment, pickles=settings.pickles,
            anew=not {"all", "nodes"}.isdisjoint(update), store=store, progress=progress,
        )  # fmt: skip
    return in_form(lock, compression=settings.compression)


_PARTS = frozenset({"system", "nodes", "models", "service", "python"})


def _keeps(previous: Lock | None, update: Collection[str], pack: PackInput, settings: Settings) -> frozenset[str]:
    """The parts of *previous* that stay as they are: where something else is to be updated, and nothing has changed.

    Raises :class:`UsageError` for a name in *update* that it lacks.
    """
    names = {canonicalize_name(name) for name in update}
    if previous is None or not names:
        return frozenset()
    packages = {wheel.name for wheel in wheels_of(previous.python)}
    if unknown := sorted(names - packages - _PARTS - {"all"}):
        raise UsageError(
            f"--update names {', '.join(unknown)}, which the lock does not have.",
            hint=f"Name Python packages of the lock, {', '.join(sorted(_PARTS))} or all.",
        )
    inputs = Inputs(pack=pack.content_sha256, settings=settings.digest())
    if "all" in names or (previous.inputs, previous.builder) != (inputs, cpack_build.__version__):
        return frozenset()
    # wheels may ask for no newer glibc than the system has
    moved = names & _PARTS | ({"python"} if names & packages or "system" in names else set())
    moved |= {"nodes", "models", "python"} if settings.nodes.install else set()  # a script may have changed them
    moved |= {"service"} if "system" in names or previous.service_code != service_code() else set()
    return _PARTS - moved


def _pins(previous: Lock | None, update: Collection[str]) -> tuple[str, ...]:
    """The versions of *previous* that Python packages are to have where they can."""
    names = {canonicalize_name(name) for name in update}
    if previous is None or names & {"all", "python"}:
        return ()
    return tuple(f"{wheel.name}=={wheel.version}" for wheel in wheels_of(previous.python) if wheel.name not in names)


def _models(
    entries: Sequence[ModelEntry], *, folders: Sequence[str], store: Store, sources: Sources, progress: Progress
) -> tuple[list[Model], list[CpackError]]:
    """The models, with what their sources say of them."""
    found, missing = lock_models(entries, folders=folders, store=store, sources=sources, progress=progress)
    return list(confirmed(found, store=store, sources=sources, progress=progress)), missing


def _asked(
    trees_work: Future[Trees], pack: PackInput, *, store: Store, sources: Sources, progress: Progress
) -> list[Asked]:
    """What ComfyUI and the custom nodes ask for; nothing where their trees cannot be had, which is told elsewhere."""
    try:
        trees = trees_work.result()
        found = []
        for pin in (trees.comfyui, *trees.nodes, *trees.registry_nodes, *trees.local_nodes):
            if pin is not None:
                found += asked_by_tree(pin.name, open_tree(pin, pack, store=store, sources=sources, progress=progress))
        return found
    except CpackError:
        return []


def _environment(
    requirements: Sequence[str],
    *,
    accelerator: str | None,
    target: Target,
    asked: Callable[[], Sequence[Asked]],
    progress: Progress,
    **options: Any,
) -> PythonEnvironment:
    """The pack's packages, for another accelerator than the packer's where the user asks for one, and with those that
    its writer left out."""
    own = {canonicalize_name(requirement.name) for requirement in parse_requirements(options["packages"])}
    if accelerator is not None:
        changed = retarget(requirements, accelerator, platform=target.platform)
        requirements = changed.requirements
        if not own.intersection(FAMILY):
            for change in changed.changed:
                progress.note(f"For {accelerator}, {change}.")
    whose = asked()
    have = {*own, *options["exclude"], *map(name_of, requirements)}
    computes_on = accelerator or accelerator_of([*requirements, *options["packages"]], platform=target.platform)
    added = left_out(whose, have, accelerator=computes_on, machine=target.machine)
    for one in added:
        progress.note(f"{one.requirement} is added: {one.who} asks for it, and the pack's list leaves it out.")
    environment = lock_environment(
        [*requirements, *(str(one.requirement) for one in added)],
        target=target,
        asked=whose,
        progress=progress,
        **options,
    )
    if accelerator is not None:
        check_target(wheels_of(environment), accelerator, platform=target.platform)
    return environment


def _runs_here(platform: AnyPlatform) -> bool:
    return host.system() == "Linux" and image_platform() == platform


def _caught(work: Callable[[], _T], errors: list[CpackError]) -> _T | None:
    try:
        return work()
    except CpackError as error:
        errors.append(error)
        return None


def _done(work: Future[_T], errors: list[CpackError]) -> _T | None:
    return _caught(work.result, errors)
