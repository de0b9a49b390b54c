"""Python packages: requirements → one wheel for each package, resolved by uv, pinned by sha256 as PEP 751.

uv resolves; what it says is reduced to the one wheel per package that fits the image, in a form that holds nothing of
this machine. uv never builds: what has no wheel is built by :mod:`.building`, and uv is asked again with the wheel at
hand. The pack's pins are requirements and overrides at once, because they come from an environment that worked: a
dependency's wish for another version must not undo them.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.pylock import Pylock, PylockSelectError, PylockValidationError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from cpack_build.errors import BadInput, CpackError, HashMismatch, NetworkError, Unresolvable, UnsafeInput, together
from cpack_build.fetch.http import Sources, adopt_verified, download
from cpack_build.fetch.mirrors import local_path
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import without_credentials
from cpack_build.lock.asked import Asked, explained
from cpack_build.lock.building import Consent, Project, Workshop, build_wheels
from cpack_build.lock.labelled import LabelledIndex, index_of
from cpack_build.lock.requirements import git_source, hashed, is_name, is_source, parse_requirements
from cpack_build.lock.schema import BuiltWheel, PythonEnvironment
from cpack_build.lock.sourcetree import pin_archive, pin_tree
from cpack_build.lock.tags import Target
from cpack_build.lock.uv import Refused, compiled, lacks_wheels, options_of
from cpack_build.lock.wheels import Wheel, filename_of, pylock_text, read_toml, with_credentials
from cpack_build.progress import SILENT, Progress

__all__ = ["Target", "lock_environment", "lock_service", "parse_requirements"]

_MOST_NAMED = 20
"""Packages that cannot be had and are named in one run."""


def lock_environment(
    requirements: Sequence[str],
    *,
    target: Target,
    store: Store,
    sources: Sources,
    packages: Sequence[str] = (),
    exclude: Sequence[str] = (),
    find_links: Sequence[str] = (),
    index_url: str | None = None,
    extra_index_urls: Sequence[str] = (),
    preferred: Sequence[str] = (),
    asked: Sequence[Asked] = (),
    trust: Consent = False,
    only_wheels: bool = False,
    workshop: Workshop | None = None,
    progress: Progress = SILENT,
) -> PythonEnvironment:
    """Resolve the pack's *requirements*, with *packages* over them and without those named in *exclude*.

    An excluded package is not brought back by another's dependency. Of what no pin decides, the versions *preferred*
    (``name==1.2``, an earlier lock's) stay where they can. *asked* says who else asks for what, for explanations. With
    *trust* what has no wheel is built in the *workshop*, or here; with *only_wheels* it is missing.

    Raises :class:`NeedsTrust` when something would have to be built, :class:`UnsafeInput`, :class:`Unresolvable`,
    :class:`NetworkError`, :class:`ToolMissing`.
    """
    for name in exclude:
        if not is_name(name):
            raise UnsafeInput(
                f"python.exclude names {name!r}, which is no package name.", hint="Write names without versions."
            )
    added = parse_requirements(packages)
    kept = parse_requirements(requirements, exclude=exclude, replaced=[requirement.name for requirement in added])
    whose = [
        *(Asked("the pack", requirement) for requirement in kept),
        *(Asked("cpack.yaml or a flag", requirement) for requirement in added),
        *asked,
    ]
    index_urls = tuple(url for url in (index_url, *extra_index_urls) if url)

    def resolve_here(wanted: Sequence[str], host: Target) -> PythonEnvironment:
        return lock_environment(
            wanted, target=host, store=store, sources=sources, find_links=find_links, index_url=index_url,
            extra_index_urls=extra_index_urls, only_wheels=True, progress=progress,
        )  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="cpack-wheels-") as folder:
        search = _Search(
            [*kept, *added], exclude=exclude, preferred=preferred, target=target, folder=Path(folder), asked=whose,
            options=options_of((*find_links, folder), index_url, extra_index_urls, sources),
            allow_sources=not only_wheels, sources=sources,
        )  # fmt: skip
        pending = search.direct(store=store, sources=sources, progress=progress)
        with progress.task("Resolving Python packages", total=len(kept) + len(added), unit="packages"):
            document = search.resolve()
            while pending := [*pending, *search.from_source(document, store, sources, index_urls, progress)]:
                wheels = build_wheels(
                    pending, target=target, resolve=resolve_here, store=store, sources=sources, trust=trust,
                    workshop=workshop, progress=progress,
                )  # fmt: skip
                search.have(pending, wheels, store)
                pending = []
                document = search.resolve()
        return _environment(
            document, target=target, store=store, sources=sources, progress=progress, built=search.built
        )


@dataclass
class _Search:
    """What is asked of uv, which grows with what it answers: *built* are wheels that lie in *folder* for it."""

    requirements: Sequence[Requirement]
    exclude: Sequence[str]
    preferred: Sequence[str]
    target: Target
    options: Sequence[str]
    folder: Path
    allow_sources: bool
    sources: Sources
    asked: Sequence[Asked] = ()
    built: dict[str, BuiltWheel] = field(default_factory=dict)
    """File name → how it was made."""
    _versions: dict[str, str] = field(default_factory=dict)
    _sourced: dict[str, Refused] = field(default_factory=dict)
    """Packages that have no wheel → what uv said of them."""
    _labelled: LabelledIndex | None = None
    """PyTorch's own index, once nobody else has what it has."""

    def direct(self, *, store: Store, sources: Sources, progress: Progress) -> list[Project]:
        """The requirements that name a repository or a source archive themselves, fetched."""
        projects = []
        errors: list[CpackError] = []
        for requirement in filter(is_source, self.requirements):
            if requirement.marker is not None and not requirement.marker.evaluate(dict(self.target.markers())):
                continue
            if not self.allow_sources:
                errors.append(Unresolvable(f"{requirement.name} would have to be built to build another package."))
                continue
            url = requirement.url or ""
            try:
                if url.startswith("git+"):
                    pin = git_source(requirement)
                    tree = pin_tree(pin, store=store, sources=sources, progress=progress)
                    projects.append(Project(canonicalize_name(requirement.name), tree))
                else:
                    url, _, fragment = url.partition("#")
                    found = re.search(r"\bsha256=([0-9a-f]{64})\b", fragment)
                    sha256 = found[1] if found else None
                    archive = pin_archive(url, store=store, sources=sources, sha256=sha256, progress=progress)
                    projects.append(Project(canonicalize_name(requirement.name), archive))
            except CpackError as error:
                errors.append(error)
        if errors:
            raise together(errors)
        return projects

    def resolve(self) -> str:
        """uv's ``pylock.toml``, with source distributions of what has no wheel. Raises what is missing, together."""
        wanted = self._wanted()
        never = [f'{canonicalize_name(name)} ; sys_platform == "never"' for name in self.exclude]
        waiting = {canonicalize_name(one.name) for one in filter(is_source, self.requirements)} - self._versions.keys()
        never += [f'{name} ; sys_platform == "never"' for name in sorted(waiting)]
        missing: list[CpackError] = []
        mirrors = self.sources.mirrors
        while True:
            own = self._labelled.options(mirrors) if self._labelled is not None else []
            sourced = sorted(self._sourced.keys() - self._versions.keys())
            try:
                document = compiled(
                    wanted, overrides=[*wanted, *never], target=self.target, options=[*self.options, *own],
                    preferred=self.preferred, from_source=sourced,
                )  # fmt: skip
                break
            except NetworkError as unreachable:
                if self._labelled is None:
                    raise
                if (left := self._labelled.without_page(unreachable, mirrors)) is None:
                    raise self._labelled.unreachable(unreachable, mirrors) from unreachable
                self._labelled = left
                continue
            except Refused as refused:
                error = refused
                if self._labelled is None and (index := index_of(wanted)) is not None and index.may_have(error.said):
                    self._labelled = index
                    continue
                new = [name for name in lacks_wheels(error) if name not in self._sourced]
                if self.allow_sources and new:
                    self._sourced.update(dict.fromkeys(new, error))
                    continue
                lost = _culprit(error.message, wanted, sourced)
                # of what has neither wheel nor source that fits, the first answer says more
                first = self._sourced.get(canonicalize_name(lost), error) if lost else error
                if self._labelled is not None and mirrors.is_offline and self._labelled.may_have(first.said):
                    missing.append(self._labelled.unasked("--offline forbids it, and uv has not seen it before."))
                else:
                    missing.append(explained(first, self.asked))
                gone = [text for text in wanted if lost and canonicalize_name(Requirement(text).name) == lost]
                if not gone or len(missing) == _MOST_NAMED:
                    raise together(missing) from None
                # uv stops at the first package that nobody has: ask again without it, to name the others as well
                wanted.remove(gone[0])
                never.append(f'{lost} ; sys_platform == "never"')
                self._sourced.pop(str(lost), None)
        if missing:
            raise together(missing)
        return document

    def _wanted(self) -> list[str]:
        """The requirements as uv is told them: a source that was built has become a version."""
        texts = set()
        for requirement in self.requirements:
            name = canonicalize_name(requirement.name)
            if not is_source(requirement):
                texts.add(str(requirement))
            elif name in self._versions:
                extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
                marker = f" ; {requirement.marker}" if requirement.marker else ""
                texts.add(f"{name}{extras}=={self._versions[name]}{marker}")
        return sorted(texts)

    def from_source(
        self, document: str, store: Store, sources: Sources, index_urls: tuple[str, ...], progress: Progress
    ) -> list[Project]:
        """What of uv's answer is a source distribution, fetched."""
        projects = []
        for package in _read(document).packages:
            if package.name not in self._sourced or package.name in self._versions or package.sdist is None:
                continue
            sdist = package.sdist
            place = with_credentials(sdist.url, index_urls) if sdist.url else str(sdist.path)
            sha256 = sdist.hashes.get("sha256")
            archive = pin_archive(place, store=store, sources=sources, sha256=sha256, progress=progress)
            projects.append(Project(package.name, archive, str(package.version)))
        return projects

    def have(self, projects: Sequence[Project], wheels: Sequence[BuiltWheel], store: Store) -> None:
        """Lay the *wheels* of *projects* where uv looks."""
        for project, wheel in zip(projects, wheels, strict=True):
            stored = store.find(wheel.sha256)
            assert stored is not None
            with suppress(FileExistsError):
                os.symlink(stored.path, self.folder / wheel.filename)
            self.built[wheel.filename] = wheel
            _, version, _, _ = parse_wheel_filename(wheel.filename)
            self._versions[project.name] = str(version)


_EMPTY = 'lock-version = "1.0"\ncreated-by = "cpack-build"\npackages = []\n'
NOTHING = PythonEnvironment(pylock=_EMPTY, pylock_sha256=hashlib.sha256(_EMPTY.encode()).hexdigest())
"""The environment of what is not there."""


def lock_service(
    requirements_txt: str,
    *,
    target: Target,
    store: Store,
    sources: Sources,
    find_links: Sequence[str] = (),
    index_url: str | None = None,
    extra_index_urls: Sequence[str] = (),
    progress: Progress = SILENT,
) -> PythonEnvironment:
    """The service's environment from its committed, hash-pinned *requirements_txt*.

    Its pins decide the versions, its hashes are demanded of every wheel: all users get the same bytes. Raises
    :class:`HashMismatch` when an index offers others, else as :func:`lock_environment`.
    """
    promised: dict[str, set[str]] = {}
    wanted = []
    for text, hashes in hashed(requirements_txt):
        requirement = Requirement(text)
        promised.setdefault(canonicalize_name(requirement.name), set()).update(hashes)
        wanted.append(str(requirement))
    with progress.task("Resolving the service's packages", total=len(wanted), unit="packages"):
        document = compiled(
            wanted,
            overrides=[],
            target=target,
            is_service=True,
            options=["--no-deps", *options_of(find_links, index_url, extra_index_urls, sources)],
        )
    return _environment(document, target=target, store=store, sources=sources, progress=progress, promised=promised)


def _culprit(message: str, wanted: Sequence[str], sourced: Sequence[str]) -> str | None:
    """Which of the requirements *wanted* is the one that *message* says no index has, or has nothing usable of."""
    found = re.search(
        r"Because (?:there (?:is|are) no versions? of |all versions of )?([A-Za-z0-9][A-Za-z0-9._-]*)"
        r"(?:==\S+ has no (?:usable )?(?:wheels|source)| have no |\S* was not found"
        r"|[=<>!~]=?\S+ and you require|==\S+)",
        message,
    ) or re.search(r"\b([A-Za-z0-9][A-Za-z0-9._-]*) was not found in", message)
    if found is None:
        return None
    name = canonicalize_name(found[1])
    return name if name in sourced or name in {canonicalize_name(Requirement(text).name) for text in wanted} else None


def _environment(
    document: str,
    *,
    target: Target,
    store: Store,
    sources: Sources,
    progress: Progress,
    promised: dict[str, set[str]] | None = None,
    built: Mapping[str, BuiltWheel] | None = None,
) -> PythonEnvironment:
    """The best wheel of each package, in canonical form, and how those were made that were *built* (by file name)."""
    pylock = _read(document, promised=promised)
    try:
        chosen: list[tuple[Any, Any]] = list(pylock.select(environment=target.markers(), tags=target.tags()))  # type: ignore[arg-type]
    except PylockSelectError as error:
        raise Unresolvable(
            f"No wheel fits Python {target.python_version} on {target.uv_platform}: {error}.",
            hint="Give one with --find-links, or leave the package out with python.exclude in cpack.yaml.",
        ) from error
    except ValueError as error:
        raise BadInput(f"uv wrote a pylock.toml that cannot be used: {error}.", hint="Update uv.") from error
    wheels, used = [], []
    for package, file in chosen:
        url = getattr(file, "url", None)
        path = local_path(url) if url is not None else Path(getattr(file, "path", None) or "")
        filename = path.name if path is not None else filename_of(url or "")
        hashes = getattr(file, "hashes", None) or {}
        sha256, size = hashes.get("sha256"), getattr(file, "size", None)
        allowed = (promised or {}).get(package.name)
        if promised is not None and sha256 is not None and sha256 not in (allowed or ()):
            raise HashMismatch(
                f"{filename}, as the index offers it,",
                expected=" or ".join(sorted(allowed or ())),
                actual=sha256,
                hint="The service's packages are pinned; use an index with the same files.",
            )
        if path is not None and (own := (built or {}).get(filename)) is not None:
            used.append(own)
            kept = store.find(own.sha256)
            url, sha256, size = None, own.sha256, kept.size if kept is not None else None
        elif path is not None:
            stored = adopt_verified(path, store=store, sha256=sha256, progress=progress)
            url, sha256, size = None, stored.sha256, stored.size
        elif sha256 is None:
            stored = download(url or "", store=store, sources=sources, what=filename, progress=progress)
            sha256, size = stored.sha256, stored.size
        _, version, _, _ = parse_wheel_filename(filename)
        wheels.append(
            Wheel(
                package.name, str(version), filename,
                without_credentials(sources.mirrors.original(url)) if url else None, sha256, size,
            )
        )  # fmt: skip
    text = pylock_text(wheels, python_version=target.python_version)
    return PythonEnvironment(
        pylock=text,
        pylock_sha256=hashlib.sha256(text.encode()).hexdigest(),
        built=tuple(sorted(used, key=lambda one: one.filename)),
    )


def _read(document: str, *, promised: Mapping[str, Collection[str]] | None = None) -> Pylock:
    """uv's answer; of packages in *promised*, where they have any, the wheels with the hashes that are promised: what
    was added to a release since is not looked at, so everyone chooses from the same."""
    try:
        toml: Any = read_toml(document)
        for package in toml.get("packages", ()) if promised is not None else ():
            wheels = package.get("wheels", [])
            allowed = (promised or {}).get(canonicalize_name(package["name"]), ())
            kept = [wheel for wheel in wheels if wheel.get("hashes", {}).get("sha256") in (None, *allowed)]
            package["wheels"] = kept or wheels
        return Pylock.from_dict(toml)
    except (PylockValidationError, ValueError) as error:
        raise BadInput(f"uv wrote a pylock.toml that cannot be read: {error}.", hint="Update uv.") from error
