"""A wheel from source, where no index has one: built once when a pack is locked, and pinned by its hash.

This runs a stranger's code, so only what the user has agreed to is built (:class:`NeedsTrust` says what it would be).
The build backend runs in an environment of its own, made of pinned wheels, with none of this machine's environment
variables. The clock, the zone and the hash seed are fixed, and the wheel is written anew with sorted entries and one
timestamp, so that another machine can make it again from what the lock says and compare.

Specification: PEP 517 and 518 (``build``, pypa's frontend, speaks them), and the binary distribution format.
"""

from __future__ import annotations

import os
import platform as host
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from cpack_build.cpack.settings import AnyPlatform
from cpack_build.errors import BadInput, CpackError, HashMismatch, NeedsTrust, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.apt import Apt
from cpack_build.lock.canonicalwheel import needed_glibc, normalised
from cpack_build.lock.schema import BaseImage, BuiltWheel, PinnedWheels, Platform, SourceArchive, SourceTree
from cpack_build.lock.sourcetree import build_system, lay_out, shown
from cpack_build.lock.tags import Target, host_glibc
from cpack_build.lock.uv import found_python, program
from cpack_build.lock.wheels import Wheel, fetch_wheel, wheels_of
from cpack_build.progress import SILENT, Progress

__all__ = [
    "Consent",
    "Project",
    "Resolve",
    "Workshop",
    "build_wheel",
    "build_wheels",
    "have_built",
    "image_platform",
    "rebuild",
]

DATE = 315532800
"""SOURCE_DATE_EPOCH: 1980-01-01, the earliest time that a zip can hold."""
_MEMO = "built-wheel-1"
_LAST_WORDS = 12
"""Lines that are shown of what a failed build said."""

Consent = bool | frozenset[str]
"""To what others wrote being run: to all of it, or to that which was shown, word by word (:class:`NeedsTrust`)."""
Resolve = Callable[[Sequence[str], Target], PinnedWheels]
"""Requirements and what their wheels must run on → the pinned wheels."""


@dataclass(frozen=True)
class Project:
    """A package called *name* to be built from *source*; *version* where it is known before."""

    name: str
    source: SourceArchive | SourceTree
    version: str | None = None

    @property
    def shown(self) -> str:
        return f"{self.name} from {shown(self.source)}"


class Workshop(Protocol):
    """Somewhere else to build than this machine, for any platform that it serves."""

    def apt(self, base: BaseImage, platform: Platform) -> Apt:
        """The apt of *base*, for a machine that has none."""
        ...

    def built(
        self, project: Project, place: Path, out: Path, *, target: Target, resolve: Resolve, progress: Progress
    ) -> tuple[str, PinnedWheels]:
        """Build the source in *place* for *target*, and lay the wheel into the empty folder *out*.

        Gives the version of the Python that built it and the build requirements, pinned. Raises :class:`Unresolvable`.
        """
        ...


def build_wheels(
    projects: Sequence[Project],
    *,
    target: Target,
    resolve: Resolve,
    store: Store,
    sources: Sources,
    trust: Consent,
    workshop: Workshop | None = None,
    progress: Progress = SILENT,
) -> tuple[BuiltWheel, ...]:
    """The wheels of *projects*: those that this store has were built before and need nobody's leave. Others are built
    in the *workshop*, or without one on this machine.

    Raises :class:`NeedsTrust` that names all others unless there is *trust*, else as :func:`build_wheel`.
    """
    known = {project: _remembered(project, target, store) for project in projects}
    new = [project for project in projects if known[project] is None]
    if new and trust is not True:
        runs = [f"{project.shown}, {_built_by(project, store, sources, progress)}" for project in new]
        if not trust or not trust.issuperset(runs):
            raise NeedsTrust(runs)
    built = []
    for project in projects:
        wheel = known[project] or build_wheel(
            project, target=target, resolve=resolve, store=store, sources=sources, workshop=workshop, progress=progress
        )
        _check_fits(wheel, project, target, store)
        store.remember(_MEMO, _key(project, target, wheel.platform), wheel.model_dump_json())
        built.append(wheel)
    return tuple(built)


def _built_by(project: Project, store: Store, sources: Sources, progress: Progress) -> str:
    """Whose code builds *project*, as its files say; they are read, and nothing of them is run."""
    with tempfile.TemporaryDirectory(prefix="cpack-build-") as folder:
        try:
            place = lay_out(project.source, Path(folder), store=store, sources=sources, progress=progress)
            system = build_system(place)
        except CpackError:
            return "which does not say by what"
    return f"built by {system}"


def build_wheel(
    project: Project,
    *,
    target: Target,
    resolve: Resolve,
    store: Store,
    sources: Sources,
    workshop: Workshop | None = None,
    progress: Progress = SILENT,
) -> BuiltWheel:
    """Build *project* in the *workshop*, or with this machine's Python of the target's minor version, and keep the
    wheel in the store.

    Raises :class:`Unresolvable` where there is no such Python or the build fails, :class:`UnsafeInput` for a hostile
    source.
    """
    if workshop is not None:
        with tempfile.TemporaryDirectory(prefix="cpack-build-") as name, progress.task(f"Building {project.name}"):
            folder, out = Path(name).resolve(), Path(name).resolve() / "out"
            place = _source(project, folder, store=store, sources=sources, progress=progress)
            out.mkdir()
            version, requires = workshop.built(project, place, out, target=target, resolve=resolve, progress=progress)
            wheels = list(out.glob("*.whl"))
            if len(wheels) != 1:
                raise Unresolvable(f"{project.shown} gives {len(wheels)} wheels.", hint="Leave it out of the pack.")
            return _kept(
                wheels[0], project, requires=requires, python=version, platform=image_platform(target), store=store
            )
    python = found_python(target.python_version)
    if python is None:
        raise Unresolvable(
            f"{project.name} must be built from source with Python {target.python_version}, which this machine lacks.",
            hint=f"Install it (`uv python install {target.python_version}`), {_ELSEWHERE}",
        )
    with tempfile.TemporaryDirectory(prefix="cpack-build-") as name, progress.task(f"Building {project.name}"):
        folder = Path(name).resolve()
        place = _source(project, folder, store=store, sources=sources, progress=progress)
        version, requires, made = _built(
            place, folder, python, project, _Resolved(resolve), store=store, sources=sources, progress=progress
        )
        return _kept(made, project, requires=requires, python=version, store=store)


def image_platform(target: Target) -> Platform:
    """The platform of *target*, where images run on it. Raises :class:`Unresolvable` for a workspace's own."""
    if target.platform == "linux/amd64" or target.platform == "linux/arm64":
        return target.platform
    raise Unresolvable(
        f"No builder makes wheels for {target.platform}.", hint="Leave --backend out, or give them with --find-links."
    )


def rebuild(
    built: BuiltWheel,
    *,
    name: str,
    python_version: str,
    store: Store,
    sources: Sources,
    progress: Progress = SILENT,
) -> None:
    """Make *built* again as its lock says, into the store. Raises :class:`HashMismatch` where other bytes come out."""
    project = Project(name, built.source)
    python = found_python(python_version)
    if python is None or _platform() != built.platform:
        raise Unresolvable(
            f"The wheel {built.filename} was built from source with Python {built.python} on {built.platform}, and "
            "this machine has no such Python or is another.",
            hint=f"Take it from whoever made the lock with --find-links, {_ELSEWHERE}",
        )

    def pinned(requirements: Sequence[str], target: Target) -> PinnedWheels:
        return built.requires

    with tempfile.TemporaryDirectory(prefix="cpack-build-") as folder_name, progress.task(f"Building {name} again"):
        folder = Path(folder_name).resolve()
        place = _source(project, folder, store=store, sources=sources, progress=progress)
        version, requires, made = _built(
            place, folder, python, project, _Resolved(pinned), store=store, sources=sources, progress=progress
        )
        again = _kept(made, project, requires=requires, python=version, store=store)
    if again.sha256 != built.sha256:
        raise HashMismatch(
            f"{built.filename}, built again with Python {version} (then {built.python}),",
            expected=built.sha256,
            actual=again.sha256,
            hint="Take it from whoever made the lock with --find-links, or lock again.",
        )


def have_built(
    wheel: Wheel,
    built: BuiltWheel,
    *,
    python_version: str,
    find_links: Sequence[str],
    store: Store,
    sources: Sources,
    trust: bool,
    progress: Progress = SILENT,
) -> None:
    """See that a wheel which no index has is here: in the store, in a folder that was named, or made from its source.

    Raises :class:`NeedsTrust` unless the user agrees that it is made, :class:`HashMismatch` when another comes out.
    """
    with suppress(Unresolvable, HashMismatch):
        fetch_wheel(wheel, store=store, sources=sources, find_links=find_links)
        return
    if not trust:
        raise NeedsTrust([f"{wheel.name} {wheel.version} from {shown(built.source)}"])
    rebuild(
        built, name=wheel.name, python_version=python_version, store=store, sources=sources, progress=progress
    )  # fmt: skip


_ELSEWHERE = (
    "build it with the BuildKit backend (`--backend buildkit`), on a builder of the image's platform, or give its "
    "wheel with --find-links."
)


@dataclass(frozen=True)
class _Resolved:
    """How build requirements become pinned wheels."""

    resolve: Resolve

    def __call__(self, project: Project, requirements: Sequence[str], python: str) -> PinnedWheels:
        try:
            return self.resolve(sorted(requirements), Target(python, _platform(), host_glibc()))
        except CpackError as error:
            error.message = f"What is needed to build {project.shown} cannot be had: {error.message}"
            raise


def _source(project: Project, folder: Path, *, store: Store, sources: Sources, progress: Progress) -> Path:
    unpacked = folder / "unpacked"
    unpacked.mkdir()
    place = lay_out(project.source, unpacked, store=store, sources=sources, progress=progress)
    for path in [place, *place.rglob("*")]:  # some backends copy the times
        os.utime(path, (DATE, DATE), follow_symlinks=False)
    return place


def _built(
    place: Path,
    folder: Path,
    python: Path,
    project: Project,
    resolve: _Resolved,
    *,
    store: Store,
    sources: Sources,
    progress: Progress,
) -> tuple[str, PinnedWheels, Path]:
    """The version of Python, the build requirements, and the wheel as the backend made it."""
    from build import BuildBackendException, BuildException, ProjectBuilder

    environment, out = folder / "environment", folder / "out"
    out.mkdir()
    variables = _variables(folder, environment)
    log: list[str] = []
    _call([program(), "venv", "--quiet", "--no-project", "--no-config", f"--python={python}", str(environment)], log)
    interpreter = environment / "bin" / "python"
    version = _call([str(interpreter), "-I", "-c", "import platform; print(platform.python_version())"], log).strip()
    minor = ".".join(version.split(".")[:2])

    def run(cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None) -> None:
        _call(cmd, log, cwd=cwd, environment={**variables, **(extra_environ or {})})

    try:
        builder = ProjectBuilder(place, python_executable=str(interpreter), runner=run)
        wanted = set(builder.build_system_requires)
        requires = resolve(project, sorted(wanted), minor)
        _install(requires, environment, folder, log, store=store, sources=sources, progress=progress)
        if more := builder.get_requires_for_build("wheel") - wanted:
            requires = resolve(project, sorted(wanted | more), minor)
            _install(requires, environment, folder, log, store=store, sources=sources, progress=progress)
        made = Path(builder.build("wheel", out))
    except (BuildBackendException, BuildException, subprocess.CalledProcessError, OSError) as error:
        said = " | ".join(line for line in "".join(log).splitlines() if line.strip()) if log else str(error)
        last = " | ".join(said.split(" | ")[-_LAST_WORDS:])[-1500:]
        raise Unresolvable(
            f"{project.shown} cannot be built with Python {version}: {last or error}",
            hint="Give its wheel with --find-links, name another version in python.packages, or leave it out with "
            f"python.exclude: [{project.name}] in cpack.yaml.",
        ) from error
    return version, requires, made


def _variables(folder: Path, environment: Path) -> dict[str, str]:
    """What the build may see: nothing of the user's, and nothing that changes from one build to the next."""
    home = folder / "home"
    home.mkdir()
    flags = f"-g0 -ffile-prefix-map={folder}=."
    return {
        "PATH": f"{environment / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "TMPDIR": str(home),
        "VIRTUAL_ENV": str(environment),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "SOURCE_DATE_EPOCH": str(DATE),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "LDFLAGS": "-Wl,--build-id=none",
    }


def _install(
    requires: PinnedWheels,
    environment: Path,
    folder: Path,
    log: list[str],
    *,
    store: Store,
    sources: Sources,
    progress: Progress,
) -> None:
    wheels = folder / "wheels"
    wheels.mkdir(exist_ok=True)
    paths = []
    for wheel in wheels_of(requires):
        path = wheels / wheel.filename
        if not path.is_symlink():
            path.symlink_to(fetch_wheel(wheel, store=store, sources=sources, progress=progress).path)
        paths.append(str(path))
    if paths:
        python = environment / "bin" / "python"
        _call(
            [
                program(), "pip", "install", "--quiet", "--no-config", "--offline", "--no-index", "--no-deps",
                "--no-build", "--link-mode=copy", f"--python={python}", *paths,
            ],
            log,
        )  # fmt: skip


def _call(
    command: Sequence[str], log: list[str], *, cwd: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run *command*, keep what it says in *log*; what it prints. Raises ``CalledProcessError``."""
    done = subprocess.run(
        list(command), cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
    )  # fmt: skip
    log.append(done.stdout)
    done.check_returncode()
    return done.stdout


# -- the wheel ---------------------------------------------------------------------------------------------------------


def _kept(
    made: Path,
    project: Project,
    *,
    requires: PinnedWheels,
    python: str,
    store: Store,
    platform: Platform | None = None,
) -> BuiltWheel:
    """The wheel *made* by the backend, written anew and put into the store."""
    import build

    try:
        name, version, _, _ = parse_wheel_filename(made.name)
    except InvalidWheelFilename as error:
        raise BadInput(f"{project.shown} gives {made.name!r}, which is no wheel.", hint="Name another one.") from error
    if name != canonicalize_name(project.name) or project.version not in (None, str(version)):
        raise BadInput(
            f"{project.shown} gives {made.name}, which is another package or version.", hint="Correct the pack."
        )
    data = normalised(made)
    stored = store.put([data], what=made.name)
    return BuiltWheel(
        filename=made.name,
        sha256=stored.sha256,
        source=project.source,
        requires=PinnedWheels(pylock=requires.pylock, pylock_sha256=requires.pylock_sha256),
        python=python,
        platform=platform or _platform(),
        frontend=f"build {build.__version__}",
    )


def _check_fits(built: BuiltWheel, project: Project, target: Target, store: Store) -> None:
    """See that the wheel runs on *target*: pure, or for its platform and C library."""
    _, _, _, tags = parse_wheel_filename(built.filename)
    if not tags.intersection(target.tags()):
        raise Unresolvable(
            f"{project.shown} was built here as {built.filename}, which does not run on {target.platform} with Python "
            f"{target.python_version}: this machine cannot build for it.",
            hint=_ELSEWHERE[0].upper() + _ELSEWHERE[1:],
        )
    if all(tag.platform == "any" for tag in tags):
        return
    stored = store.find(built.sha256)
    assert stored is not None
    needed = max(needed_glibc(stored.path), default=0)
    if needed > target.glibc:
        raise Unresolvable(
            f"{project.shown} was built here against glibc 2.{needed}, and the image has 2.{target.glibc}.",
            hint=_ELSEWHERE[0].upper() + _ELSEWHERE[1:],
        )


def _remembered(project: Project, target: Target, store: Store) -> BuiltWheel | None:
    for platform in dict.fromkeys((target.platform, _platform())):
        known = store.recall(_MEMO, _key(project, target, platform))
        built = BuiltWheel.model_validate_json(known) if known is not None else None
        if built is not None and store.find(built.sha256) is not None:
            return built.model_copy(update={"source": project.source})
    return None


def _key(project: Project, target: Target, platform: AnyPlatform) -> str:
    """What a wheel is a function of, as far as anybody can tell before it is built; not where its source lies."""
    source = project.source
    content = source.sha256 if isinstance(source, SourceArchive) else f"{source.tree_sha256} {source.subdirectory}"
    return f"{project.name} {target.python_version} {platform} {content}"


def _platform() -> Platform:
    """This machine's. Raises :class:`Unresolvable` where no image runs, so that nothing is built for one."""
    machine = {"x86_64": "linux/amd64", "amd64": "linux/amd64", "aarch64": "linux/arm64", "arm64": "linux/arm64"}.get(
        host.machine().lower()
    )
    if host.system() != "Linux" or machine is None:
        raise Unresolvable(
            f"Packages cannot be built from source on {host.system()} {host.machine()}.",
            hint=_ELSEWHERE[0].upper() + _ELSEWHERE[1:],
        )
    return cast("Platform", machine)
