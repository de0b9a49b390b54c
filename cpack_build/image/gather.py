"""Everything that a lock names, brought to this machine and proved by hash: the :class:`Materials` of a build.

What is in the store or lies in a named folder already is not fetched; the rest comes in parallel. Whatever cannot be
had is named, and nothing is built."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from cpack_build.errors import StaleLock, UnsafeInput
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.places import places_of
from cpack_build.fetch.store import Store, StoredFile
from cpack_build.fetch.tree import Tree
from cpack_build.image.base import open_locked_base
from cpack_build.image.build import Materials
from cpack_build.image.debs import StoredDeb
from cpack_build.image.wheels import StoredWheel
from cpack_build.lock.captured import Captured
from cpack_build.lock.debs import fetch_deb
from cpack_build.lock.interpreter import compiling, is_vouched
from cpack_build.lock.machine import this_platform
from cpack_build.lock.models import fetch_model, local_model
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    Deb,
    DebInterpreter,
    Lock,
    Model,
    NodeTree,
    RegistryNode,
)
from cpack_build.lock.service import service_code, service_files
from cpack_build.lock.wheels import Wheel, fetch_wheel, wheels_of
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Places", "gather", "require_own_service", "require_own_vouched", "require_vouched", "to_fetch"]

_PARALLEL = 8
"""Downloads at once: they wait for the network more than for the processor."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Places:
    """Where on this machine things may lie. It is no part of the lock."""

    base: str = "scratch"
    """The base image's name as the settings have it."""
    models: Sequence[str] = ()
    find_links: Sequence[str] = ()
    index_urls: Sequence[str] = ()
    index_url: str | None = None
    """The one of them that takes the place of PyPI."""


def gather(
    lock: Lock,
    *,
    documents: Mapping[str, bytes],
    pack: Captured | None = None,
    places: Places,
    store: Store,
    sources: Sources,
    siblings: Sequence[Lock] = (),
    trust: bool = False,
    compiles: bool = True,
    base_stays: bool = False,
    meanwhile: Callable[[Materials], object] | None = None,
    progress: Progress = SILENT,
) -> Materials:
    """The materials of *lock*; *documents* go below ``/app/cpack``. *pack* holds what nobody else has.

    A lock with bytecode has its own Python started here, or that of one of its *siblings* for other platforms. Where
    this machine did not resolve that Python itself, *trust* says that the user wants it; otherwise
    :class:`UnsafeInput` is raised before anything is fetched. It is not asked for where nothing *compiles*: the
    materials are only brought here. Packages that were built from source are built again only with *trust*. If the
    *base_stays* where it is, because only registries are given the image, its layers come only if something reads them.
    *meanwhile* is told of all materials but the models, if those are still hashed or fetched when all else is here.

    Raises :class:`HashMismatch`, :class:`NetworkError`, :class:`Unresolvable`; and :class:`StaleLock` when the lock has
    another cpack-build's service.
    """
    if compiles:
        compiler = require_vouched(lock, siblings=siblings, store=store, trust=trust)
    else:
        compiler = _compiler_of(lock, siblings)
    service, wheels = wheels_of(lock.service), wheels_of(lock.python)
    built = {wheel.sha256: wheel for wheel in lock.python.built}
    archive = lock.interpreter if isinstance(lock.interpreter, ArchiveInterpreter) else None
    if compiler is lock:
        compiler = None
    compiler_debs = (*compiler.system, *_own(compiler)) if compiler is not None else ()
    own_debs = _own(lock)
    # The largest first: a model's hash takes longest, and needs one core while the others bring the rest.
    by_size = sorted(lock.models, key=lambda item: -item.size)
    base = accounts = None

    model_places = places_of(sources, folders=places.models)
    # Models have threads of their own: many of them would keep all else waiting until they are hashed.
    with working(_PARALLEL, progress) as (hashing, _), working(_PARALLEL, progress) as (pool, reports):

        def wheel(item: Wheel) -> StoredWheel:
            if item.sha256 in built:
                from cpack_build.lock.building import have_built

                have_built(
                    item, built[item.sha256], python_version=lock.interpreter.version, find_links=places.find_links,
                    store=store, sources=sources, trust=trust, progress=reports,
                )  # fmt: skip
            file = fetch_wheel(
                item,
                store=store,
                sources=sources,
                find_links=places.find_links,
                index_urls=places.index_urls,
                progress=reports,
            )
            return StoredWheel(item.name, item.version, item.filename, item.sha256, file.path, file.size, file.stamp)

        def deb(item: Deb) -> StoredDeb:
            file = fetch_deb(item, store=store, sources=sources, progress=reports)
            return StoredDeb(item.name, item.version, item.sha256, file.path, file.stamp)

        def tree(item: NodeTree) -> Tree:
            return open_tree(item, pack, store=store, sources=sources, progress=reports)

        def model(item: Model) -> StoredFile:
            return fetch_model(
                item, folders=places.models, places=model_places, store=store, sources=sources, progress=reports
            )

        def each(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Callable[[], tuple[_Result, ...]]:
            waiting = [pool.submit(work, item) for item in items]
            return lambda: tuple(future.result() for future in waiting)

        hashed = [hashing.submit(model, item) for item in by_size]
        if isinstance(lock.base, BaseImage):
            base = open_locked_base(
                lock.base, platform=lock.platform, name=places.base, store=store, sources=sources,
                stays=base_stays, progress=reports,
            )  # fmt: skip
            # A build asks for them: the base is read while models are hashed.
            accounts = pool.submit(base.accounts)
        service_wheels, comfyui_wheels = each(wheel, service), each(wheel, wheels)
        system, interpreter_debs = each(deb, lock.system), each(deb, own_debs)
        trees = each(tree, (lock.comfyui, *lock.custom_nodes))
        interpreter_archive = None
        if archive is not None:
            interpreter_archive = download(
                archive.url,
                store=store,
                sources=sources,
                sha256=archive.sha256,
                size=archive.size,
                what=f"Python {archive.version}",
                progress=reports,
            )
        comfyui, *nodes = trees()
        if accounts is not None:
            accounts.result()  # are what the lock says
        materials = Materials(
            base=base,
            system=system(),
            interpreter_debs=interpreter_debs(),
            interpreter_archive=interpreter_archive,
            service_wheels=service_wheels(),
            service_code=dict(service_files()),
            wheels=comfyui_wheels(),
            comfyui=comfyui,
            nodes=tuple(nodes),
            models={},
            documents=documents,
            compiler=compiler,
            compiler_debs=each(deb, compiler_debs)(),
        )
        if meanwhile is not None and not all(future.done() for future in hashed):
            meanwhile(materials)
        found = {item.sha256: future.result() for item, future in zip(by_size, hashed, strict=True)}
        return replace(materials, models=found)


def require_vouched(lock: Lock, *, siblings: Sequence[Lock], store: Store, trust: bool) -> Lock | None:
    """The lock whose Python compiles for *lock*, if any does, which this machine resolved itself or the user trusts.

    Raises :class:`UnsafeInput`, :class:`StaleLock` as :func:`gather`.
    """
    compiler = _compiler_of(lock, siblings)
    if compiler is not None:
        require_own_vouched(compiler, store=store, trust=trust)
    return compiler


def require_own_vouched(lock: Lock, *, store: Store, trust: bool) -> None:
    """See that the Python of *lock* itself may be run, if it compiles: this machine resolved it, or the user trusts it.

    Raises :class:`UnsafeInput`.
    """
    if lock.bytecode == "compiled" and not (trust or is_vouched(lock, store=store)):
        raise UnsafeInput(
            f"The lock's Python {lock.interpreter.version} was not resolved on this machine, and building would run it "
            "to compile bytecode.",
            hint="Add --trust if you trust who made the lock, or make it anew with `cpack-build lock --update all`.",
        )


def require_own_service(lock: Lock) -> None:
    """See that *lock* pins the service that this cpack-build has. Raises :class:`StaleLock`."""
    if lock.service_code != service_code():
        raise StaleLock(
            "The lock",
            f"it pins the service of cpack-build {lock.service_code.version}, which differs from this one's",
            hint="Use the cpack-build that made it, or make it anew with `cpack-build lock`.",
        )


def _compiler_of(lock: Lock, siblings: Sequence[Lock]) -> Lock | None:
    require_own_service(lock)
    return compiling(lock, siblings, platform=this_platform()) if lock.bytecode == "compiled" else None


def _own(lock: Lock) -> tuple[Deb, ...]:
    return lock.interpreter.packages if isinstance(lock.interpreter, DebInterpreter) else ()


def to_fetch(lock: Lock, *, places: Places, store: Store, held: Collection[str] = ()) -> list[tuple[str, int | None]]:
    """The files that :func:`gather` would have to fetch, as its progress calls them, with their sizes in bytes.

    Looks only for what lies in the store or, by name and size, in a named folder; leaves out git trees, the base and
    what has a hash in *held*.
    """
    folders = [path for path in map(local_path, places.find_links) if path is not None]
    wanted: dict[str, tuple[str, int | None]] = {}
    for wheel in (*wheels_of(lock.service), *wheels_of(lock.python)):
        if not any((folder / wheel.filename).is_file() for folder in folders):
            wanted[wheel.sha256] = (wheel.filename, wheel.size)
    own = lock.interpreter.packages if isinstance(lock.interpreter, DebInterpreter) else ()
    wanted |= {deb.sha256: (f"{deb.name} {deb.version}", deb.size) for deb in (*lock.system, *own)}
    if isinstance(lock.interpreter, ArchiveInterpreter):
        wanted[lock.interpreter.sha256] = (f"Python {lock.interpreter.version}", lock.interpreter.size)
    for node in lock.custom_nodes:
        if isinstance(node, RegistryNode) and node.installed is None:
            wanted[node.sha256] = (f"{node.name} {node.version}", node.size)
    for model in lock.models:
        if local_model(model, places.models) is None:
            wanted[model.sha256] = (model.path.rpartition("/")[2], model.size)
    return [known for sha256, known in wanted.items() if sha256 not in held and store.find(sha256) is None]
