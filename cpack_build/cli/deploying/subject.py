"""What ``deploy`` is given: an image by name, read from its small end, or its digest and lock."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from cpack_build.cli.terminal import Terminal

if TYPE_CHECKING:
    from cpack_build.cpack.settings import Platform
    from cpack_build.deploy.subject import Subject
    from cpack_build.lock.schema import Lock
    from cpack_build.oci.reference import EngineName, Reference
    from cpack_build.oci.transport import Access

__all__ = ["engine_subject", "pairs", "registry_subject", "subject_options"]

_PLATFORMS = ("linux/amd64", "linux/arm64")


def subject_options(function: click.decorators.FC) -> click.decorators.FC:
    """*lock_file* and *platform*."""
    for option in (
        click.option(
            "--platform",
            type=click.Choice(_PLATFORMS),
            help="Of the machines that run it; by default all that IMAGE is for.",
        ),
        click.option(
            "--lock",
            "lock_file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The lock of IMAGE; with it and a digest no registry is asked.",
        ),
    ):
        function = option(function)
    return function


def registry_subject(
    reference: Reference, *, lock_file: Path | None, platform: str | None, access: Access, terminal: Terminal
) -> Subject:
    """The image that *reference* names in its registry; with a digest and a lock nobody is asked.

    Raises :class:`Unresolvable` when it is not for *platform*, :class:`BadImage` when it is not ours,
    :class:`StaleLock` when the lock is another image's, :class:`NetworkError`.
    """
    from cpack_build.errors import NetworkError, UsageError

    locks = _locks(lock_file, platform)
    if reference.digest is not None and locks:
        terminal.progress.note(f"That {reference} was made of {lock_file} is taken on trust: no registry was asked.")
        return _of_locks(f"{reference.name}@{reference.digest}", _short(reference), locks)
    try:
        with terminal.progress.task(f"Looking at {reference}"):
            return _asked(reference, locks, lock_file, platform, access)
    except NetworkError as error:
        if reference.digest is not None:
            hint = "Name the image's lock with --lock, and no registry is asked."
        else:
            hint = "A tag can move: name the image by its digest (NAME@sha256:…) and its lock with --lock."
        raise UsageError(f"What {reference} stands for cannot be asked. {error}", hint=hint) from error


def engine_subject(name: EngineName, *, lock_file: Path | None, platform: str | None, terminal: Terminal) -> Subject:
    """The image *name* of a local engine, by its ID. Without a lock only its configuration is looked at, which knows
    neither models nor what they need.

    Raises :class:`Unresolvable` when the engine has no such image, and as :func:`registry_subject`.
    """
    from cpack_build.cli.push import own_platform
    from cpack_build.deploy.subject import Subject
    from cpack_build.errors import Unresolvable, UsageError
    from cpack_build.oci.engines import open_engine

    if name.reference is None:
        raise UsageError(f"{name} names no image.", hint=f"Write {name.engine}:NAME.")
    engine = open_engine(name)
    engine.require()
    image, config = engine.image_id(name.reference), engine.config_of(name.reference)
    if image is None or config is None:
        raise Unresolvable(f"{engine.title} has no image {name.reference.familiar}.", hint="Build or pull it first.")
    is_made_of(str(name), {"config": config}, (), lock_file)
    short = _short(name.reference)
    if locks := _locks(lock_file, platform or own_platform()):
        is_made_of(str(name), {"config": config}, locks, lock_file)
        return _of_locks(image, short, locks)
    variables = config.get("Env")
    wants_gpu = any(str(item).startswith("NVIDIA_REQUIRE_CUDA=") for item in variables or ())
    terminal.progress.note("What its models need is not known without --lock: the limit of memory is left out.")
    return Subject(image, short, (platform or own_platform(),), "cuda" if wants_gpu else "cpu")


def is_made_of(name: str, document: Mapping[str, Any], locks: Sequence[Lock], lock_file: Path | None) -> None:
    """See that the config *document* is that of an image of ours, and of one of *locks* if there are any.

    Raises :class:`BadImage`, :class:`StaleLock`.
    """
    from cpack_build.errors import BadImage, StaleLock

    told = _labels(document).get("io.cpack.lock.sha256")
    if told is None:
        raise BadImage(name, "was not made by cpack-build", hint="Only its images say when they are ready.")
    if locks and told not in {lock.carried.sha256 for lock in locks}:
        raise StaleLock(lock_file, f"{name} was made of another one", hint="Name the lock that it was built from.")


def _labels(document: Mapping[str, Any]) -> Mapping[str, Any]:
    section = document.get("config")
    labels = section.get("Labels") if isinstance(section, dict) else None
    return labels if isinstance(labels, dict) else {}


def _asked(
    reference: Reference, locks: tuple[Lock, ...], lock_file: Path | None, platform: str | None, access: Access
) -> Subject:
    from cpack_build.errors import BadImage, Unresolvable
    from cpack_build.fetch.store import Store
    from cpack_build.oci.modelimage import WITHOUT
    from cpack_build.oci.sources import open_source
    from cpack_build.restore.artifact import read_artifact

    source = open_source(reference, store=Store(), access=access)
    pinned = f"{reference.name}@{source.digest}"
    configs: dict[str, Mapping[str, Any]] = {}
    for one in _PLATFORMS if platform is None else (platform,):
        try:
            configs[one] = json.loads(source.config(one))
        except Unresolvable:
            if platform is not None:
                raise
    if not configs:
        raise BadImage(reference, f"is for none of {', '.join(_PLATFORMS)}")
    for config in configs.values():
        is_made_of(str(reference), config, locks, lock_file)
    has_models = not any(WITHOUT in _labels(config) for config in configs.values())
    if locks:
        locks = tuple(lock for lock in locks if lock.platform in configs)
        return replace(_of_locks(pinned, _short(reference), locks), has_models=has_models)
    artifacts = [read_artifact(source.as_image(one), name=str(reference)) for one in configs]
    subject = _of_locks(pinned, _short(reference), tuple(artifact.lock for artifact in artifacts))
    subject = replace(subject, has_models=has_models)
    return replace(subject, required=_required(artifacts[0].documents, f"{reference}: workflow_api.json"))


def pairs(texts: Sequence[str], what: str) -> tuple[tuple[str, str], ...]:
    """``NAME=VALUE`` of the option *what*, the last of a name counting. Raises :class:`UsageError`."""
    from cpack_build.errors import UsageError

    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"{what} {key!r} has no value.", hint="Write NAME=VALUE.")
        found[key] = value
    return tuple(found.items())


def _locks(lock_file: Path | None, platform: str | None) -> tuple[Lock, ...]:
    """Those for *platform*, or all. Raises :class:`Unresolvable` when there is none."""
    if lock_file is None:
        return ()
    from cpack_build.lock.schema import load_lock, load_locks

    if platform is None:
        return load_locks(lock_file)
    return (load_lock(lock_file, platform=cast("Platform", platform)),)


def _of_locks(reference: str, name: str, locks: Sequence[Lock]) -> Subject:
    from cpack_build.deploy.subject import ModelFile, Subject
    from cpack_build.errors import UsageError
    from cpack_build.lock.cuda import driver_of

    targets = {lock.platform: lock.target for lock in locks}
    if len(set(targets.values())) > 1:
        shown = " and ".join(f"{target} on {platform}" for platform, target in targets.items())
        raise UsageError(f"{reference} computes on {shown}.", hint="Name one of them with --platform.")
    first = locks[0]
    return Subject(
        reference,
        name,
        tuple(targets),
        first.target,
        models=tuple(ModelFile(model.path, model.sha256, model.size) for model in first.models),
        driver=driver_of(first.target),
    )


def _required(documents: Mapping[str, bytes], name: str) -> tuple[str, ...] | None:
    """The parameters that every request must give, as the service finds them."""
    from cpack_build.workflow import FILE_TYPES, read_workflow

    if "workflow_api.json" not in documents:
        return None
    found = []
    for item in read_workflow(documents["workflow_api.json"], name=name).interface.inputs:
        is_shipped = item.type not in FILE_TYPES or f"input/{item.default}" in documents
        if item.required or not (is_shipped or item.linked):
            found.append(item.name)
    return tuple(found)


def _short(reference: Reference) -> str:
    return reference.repository.rpartition("/")[2]
