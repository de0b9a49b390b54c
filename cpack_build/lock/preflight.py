"""The preflight: whether everything that a lock names can be had, and what it costs, before a byte is taken.

Nothing is downloaded but the trees of custom nodes, whose code is looked at. Each thing is in the store, lies in a
folder that the user named, or its address answers; whatever does none of that is named, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cpack_build.cpack.schema import Snapshot
from cpack_build.errors import CpackError, NeedsTrust, NetworkError, Unresolvable
from cpack_build.fetch.asking import Asker
from cpack_build.fetch.folders import LocalFile, Wanted, safe_model_path
from cpack_build.fetch.http import Sources, probe
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.places import places_of
from cpack_build.fetch.remote import Remote, TryLater
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import redact
from cpack_build.lock.captured import Captured
from cpack_build.lock.hub import look_at
from cpack_build.lock.nodes import lock_trees, open_tree
from cpack_build.lock.risks import Risk, risks_of_models, risks_of_tree
from cpack_build.lock.schema import ArchiveInterpreter, BuiltWheel, Deb, DebInterpreter, Lock, Model, NodeTree
from cpack_build.lock.sourcetree import shown
from cpack_build.lock.wheels import Wheel, wheels_of
from cpack_build.progress import SILENT, Progress, working

__all__ = ["Preflight", "preflight", "risks_of_pack"]

_PARALLEL = 16


@dataclass(frozen=True)
class Preflight:
    """What was found: *download* is the bytes of what is neither in the store nor in a named folder, *unsized* how many
    of these have no size in the lock."""

    missing: tuple[CpackError, ...]
    risks: tuple[Risk, ...]
    download: int
    unsized: int


@dataclass(frozen=True)
class _Answer:
    missing: tuple[CpackError, ...] = ()
    risks: tuple[Risk, ...] = ()
    download: int = 0
    unsized: int = 0


def preflight(
    *locks: Lock,
    pack: Captured | None = None,
    store: Store,
    sources: Sources,
    models: Sequence[str] = (),
    find_links: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Preflight:
    """Look for everything that *locks* (of one pack, a platform each) name, once; *models* and *find_links* are the
    folders that the user named, *pack* has what nobody else has.

    Raises :class:`BadInput` or :class:`HashMismatch` for a lock that contradicts itself.
    """
    lock = locks[0]
    work: list[Callable[[], _Answer]] = []
    for deb in {deb.sha256: deb for one in locks for deb in (*one.system, *_own_debs(one))}.values():
        work.append(lambda deb=deb: _deb(deb, store, sources))  # type: ignore[misc]
    environments = [environment for one in locks for environment in (one.service, one.python)]
    wheels = {wheel.sha256: wheel for environment in environments for wheel in wheels_of(environment)}
    built = {wheel.sha256: wheel for one in locks for wheel in one.python.built}
    for wheel in wheels.values():
        work.append(
            lambda wheel=wheel: _wheel(wheel, built.get(wheel.sha256), find_links, store, sources)  # type: ignore[misc]
        )
    for tree in (lock.comfyui, *lock.custom_nodes):
        work.append(lambda tree=tree: _tree(tree, tree is not lock.comfyui, pack, store, sources, progress))  # type: ignore[misc]
    asker = Asker(sources, offline=sources.mirrors.is_offline)
    for model in lock.models:
        work.append(lambda model=model: _model(model, models, store, sources, asker))  # type: ignore[misc]
    archives = {one.interpreter.sha256: one.interpreter for one in locks if one.interpreter.kind == "archive"}
    for archive in archives.values():
        work.append(lambda archive=archive: _archive(archive, store, sources))  # type: ignore[misc]
    with progress.task("Asking for everything", total=len(work), unit="things") as task, working(
        _PARALLEL, progress
    ) as (pool, _):  # fmt: skip
        answers = []
        for future in [pool.submit(_answered, one) for one in work]:
            answers.append(future.result())
            task.advance(1)
    return Preflight(
        tuple(error for answer in answers for error in answer.missing),
        (*(risk for answer in answers for risk in answer.risks), *risks_of_models(model.path for model in lock.models)),
        sum(answer.download for answer in answers),
        sum(answer.unsized for answer in answers),
    )


def risks_of_pack(
    pack: Source, *, exclude: Sequence[str], store: Store, sources: Sources, progress: Progress = SILENT
) -> list[Risk]:
    """The risks of those custom nodes and models of *pack* that can be had, where it cannot be locked as a whole."""
    models = [entry.filename for entry in pack.snapshot.models if not entry.disabled]
    found = risks_of_models(models)
    with suppress(CpackError):  # whoever could not lock the pack has told it
        trees = lock_trees(pack.snapshot, pack=pack, exclude=exclude, store=store, sources=sources, progress=progress)
        pins: tuple[NodeTree, ...] = (*trees.nodes, *trees.registry_nodes, *trees.local_nodes)
        for pin in pins:
            found += risks_of_tree(pin.name, open_tree(pin, pack, store=store, sources=sources))
    return found


class Source(Captured, Protocol):
    """What is looked at of a pack without a lock."""

    @property
    def snapshot(self) -> Snapshot: ...


def _answered(work: Callable[[], _Answer]) -> _Answer:
    try:
        return work()
    except CpackError as error:
        return _Answer(error.parts or (error,))


def _address(url: str, what: str, size: int | None, sources: Sources) -> _Answer:
    try:
        probe(url, sources=sources, what=what)
    except CpackError as error:
        raise type(error)(f"{what} cannot be fetched: {error.message}", hint=error.hint) from error
    return _Answer(download=size or 0, unsized=int(size is None))


def _own_debs(lock: Lock) -> tuple[Deb, ...]:
    return lock.interpreter.packages if isinstance(lock.interpreter, DebInterpreter) else ()


def _archive(archive: ArchiveInterpreter, store: Store, sources: Sources) -> _Answer:
    if store.find(archive.sha256) is not None:
        return _Answer()
    return _address(archive.url, f"Python {archive.version}", archive.size, sources)


def _deb(deb: Deb, store: Store, sources: Sources) -> _Answer:
    if store.find(deb.sha256) is not None:
        return _Answer()
    return _address(deb.url, f"The system package {deb.name} {deb.version}", deb.size, sources)


def _wheel(
    wheel: Wheel, built: BuiltWheel | None, find_links: Sequence[str], store: Store, sources: Sources
) -> _Answer:
    if store.find(wheel.sha256) is not None:
        return _Answer()
    folders = [path for path in map(local_path, find_links) if path is not None]
    if any((folder / wheel.filename).is_file() for folder in folders):
        return _Answer()
    if built is not None:
        raise NeedsTrust([f"{wheel.name} {wheel.version} from {shown(built.source)}"])
    if wheel.url is None:
        raise Unresolvable(
            f"The wheel {wheel.filename} was taken from a local folder, and is in none of those named now.",
            hint="Name the folder that holds it with --find-links.",
        )
    return _address(wheel.url, f"The wheel {wheel.filename}", wheel.size, sources)


def _tree(
    tree: NodeTree,
    is_node: bool,
    pack: Captured | None,
    store: Store,
    sources: Sources,
    progress: Progress,
) -> _Answer:
    found = open_tree(tree, pack, store=store, sources=sources, progress=progress)
    return _Answer(risks=tuple(risks_of_tree(tree.name, found)) if is_node else ())


def _model(model: Model, folders: Sequence[str], store: Store, sources: Sources, asker: Asker) -> _Answer:
    """Asks the same places as a build would, each for one byte."""
    if store.find(model.sha256) is not None:
        return _Answer()
    seen = {url: look_at(model, url, asker=asker, store=store) for url in model.sources}
    others = [url for url, look in seen.items() if look.state == "other"]
    urls = tuple(url for url in model.sources if url not in others)
    wanted = Wanted(safe_model_path(model.path), model.sha256, model.size, urls, model.layer_digest)
    problems: list[CpackError] = []
    for place in places_of(sources, folders=folders):
        for offer in place.offers(wanted):
            if isinstance(offer, CpackError):
                problems.append(offer)
            elif isinstance(offer, LocalFile):
                if offer.path.stat().st_size == model.size:
                    return _Answer()
            elif (problem := _problem(offer, model)) is None:
                return _Answer(download=model.size)
            else:
                problems.append(problem)
    told = [f"{redact(url)} {seen[url].why}." for url in others] + [problem.message for problem in problems]
    told += [f"{redact(url)} {look.why}." for url, look in seen.items() if look.why and url not in others]
    tried = f" Tried: {' '.join(told)}" if told else " The lock names no address for it."
    hint = "Name the folder that holds it with --models DIR, or a copy with --mirror URL=PATH."
    raise Unresolvable(
        f"The model {model.path} (sha256 {model.sha256}) is neither in the store nor in a folder that was named."
        + tried,
        hint=problems[0].hint if len(problems) == 1 and problems[0].hint else hint,
    )


def _problem(remote: Remote, model: Model) -> CpackError | None:
    """Why *remote* does not give the model, as far as its first byte tells."""
    try:
        with remote.read(0, 1) as piece:
            if piece.total in (None, model.size):
                return None
            return NetworkError(f"{remote.shown} has {piece.total} bytes, where {model.size} were promised.")
    except (NetworkError, Unresolvable) as error:
        return error
    except TryLater as error:
        return error.error
    except (ConnectionError, TimeoutError) as error:
        return NetworkError(f"{remote.shown} does not answer: {error}.", hint="Check the network and try again.")
