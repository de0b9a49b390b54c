"""Wheels of packages that have none, built by BuildKit: on a builder of the image's own platform, with no network and
nothing of this machine, and pinned back into the lock that asked for them.

What a wheel is built on is the base of the images (or ``scratch``) with a compiler and Python's headers beside the
pack's own system packages; none of that enters an image."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from cpack_build.backends.baseapt import BaseApt
from cpack_build.backends.builder import Builder, find_builder
from cpack_build.backends.buildkit import base_context, complete, pinned_uv, require_quiet
from cpack_build.backends.dockerfile import BASE_CONTEXT, HEAD, Stages, text_of
from cpack_build.backends.ingredients import Context
from cpack_build.backends.installation import run_install
from cpack_build.backends.protocol import INSTALL_SECONDS, Farm, Network, Request
from cpack_build.cpack.settings import Settings
from cpack_build.errors import CpackError, EngineFailed, ToolMissing, Unresolvable, UnsafeInput
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.image.gather import Places
from cpack_build.image.wheels import Environment
from cpack_build.lock.apt import Apt
from cpack_build.lock.building import DATE, Project, Resolve, image_platform
from cpack_build.lock.captured import Captured
from cpack_build.lock.installing import Outcome
from cpack_build.lock.schema import (
    BaseImage,
    Deb,
    HostInterpreter,
    Interpreter,
    Lock,
    NodeTree,
    PinnedWheels,
    Platform,
    ScratchBase,
)
from cpack_build.lock.sourcetree import build_requires
from cpack_build.lock.system import lock_system
from cpack_build.lock.tags import Target
from cpack_build.progress import Progress

__all__ = ["BuildKitWorkshop"]

_PREFIX = "opt/build"
_COMPILERS = ("gcc", "g++", "make", "dpkg", "tar")
_ROUNDS = 3
"""A build backend may ask for more once what it asked for is there; setuptools and its kin do so once."""


@dataclass(frozen=True)
class _Bench:
    """What the wheel is built on."""

    platform: Platform
    base: ScratchBase | BaseImage
    system: tuple[Deb, ...]
    interpreter: Interpreter


@dataclass(frozen=True)
class BuildKitWorkshop:
    """A :class:`~cpack_build.lock.building.Workshop` on a builder of *farm*."""

    farm: Farm
    settings: Settings
    places: Places
    store: Store
    sources: Sources
    network: Network = "none"
    seconds: int = INSTALL_SECONDS

    def built(
        self, project: Project, place: Path, out: Path, *, target: Target, resolve: Resolve, progress: Progress
    ) -> tuple[str, PinnedWheels]:
        builder = self._builder()
        builder.require_platform(image_platform(target))
        bench = self._bench(target, progress)
        wanted = {f"build=={version('build')}", *build_requires(place)}
        for _ in range(_ROUNDS):
            requires = self._resolved(project, sorted(wanted), target, resolve)
            with self.store.folder("buildkit-") as work:
                made = work / "out"
                self._round(builder, bench, project, place, made, requires, wanted, work / "context", progress)
                _require_files(made, project)
                python = (made / "python.txt").read_text("ascii")
                more = made / "more.txt"
                if not more.exists():
                    for wheel in made.glob("*.whl"):
                        shutil.copyfile(wheel, out / wheel.name)
                    return python, requires
                wanted |= set(more.read_text("utf-8").splitlines())
        raise Unresolvable(
            f"{project.shown} asks for more each time it is about to be built.",
            hint="Give its wheel with --find-links.",
        )

    def installed(self, lock: Lock, pin: NodeTree, pack: Captured | None, out: Path, *, progress: Progress) -> Outcome:
        builder = self._builder()
        builder.require_platform(lock.platform)
        bench = self._bench(Target(lock.interpreter.version, lock.platform), progress)
        python = self.settings.python
        ground = {"base": bench.base, "system": bench.system, "interpreter": bench.interpreter}
        request = Request(
            (), documents={}, pack=pack, places={lock.platform: self.places}, store=self.store, sources=self.sources,
            trust=True, progress=progress,
        )  # fmt: skip
        return run_install(
            lock.model_copy(update=ground), pin, out, builder=builder, network=self.network, seconds=self.seconds,
            index_url=python.index_url, extra_index_urls=python.extra_index_urls, request=request,
        )  # fmt: skip

    def apt(self, base: BaseImage, platform: Platform) -> Apt:
        below = _Bench(platform, base, (), HostInterpreter(version="3.0"))
        request = Request(
            (), documents={}, pack=None, places={platform: self.places}, store=self.store, sources=self.sources
        )
        builder = find_builder(self.farm.builder)
        builder.require_platform(platform)
        return BaseApt(below, base, builder, request, self.network)

    def _builder(self) -> Builder:
        builder = find_builder(self.farm.builder)
        if not builder.features.isolates:
            raise ToolMissing(
                f"The builder has BuildKit {'.'.join(map(str, builder.features.version))}, which cannot keep what it "
                "runs from the network, and what others wrote runs without one.",
                hint="Use BuildKit 0.10 (Docker 23) or newer, give wheels with --find-links, and leave nodes.install "
                "out.",
            )
        return builder

    def _bench(self, target: Target, progress: Progress) -> _Bench:
        system = self.settings.system
        packages = dict.fromkeys([*system.wanted(), *_COMPILERS, f"python{target.python_version}-dev"])
        settings = self.settings.model_copy(
            update={"system": system.model_copy(update={"defaults": "none", "packages": tuple(packages)})}
        )
        platform = image_platform(target)
        found = lock_system(
            settings, python=target.python_version, platform=platform, target="cpu", store=self.store,
            sources=self.sources, elsewhere=self.apt, progress=progress,
        )  # fmt: skip
        return _Bench(platform, found.base, found.debs, found.interpreter)

    def _resolved(self, project: Project, wanted: Sequence[str], target: Target, resolve: Resolve) -> PinnedWheels:
        try:
            return resolve(wanted, target)
        except CpackError as error:
            error.message = f"What is needed to build {project.shown} cannot be had: {error.message}"
            raise

    def _round(
        self,
        builder: Builder,
        bench: _Bench,
        project: Project,
        source: Path,
        out: Path,
        requires: PinnedWheels,
        known: set[str],
        folder: Path,
        progress: Progress,
    ) -> None:
        request = Request(
            (), documents={}, pack=None, places={bench.platform: self.places}, store=self.store, sources=self.sources,
            progress=progress,
        )  # fmt: skip
        require_quiet(bench, request)
        folder.mkdir(parents=True)
        context = Context(folder, bench, request, fetches=builder.features.fetches)
        stages = Stages(context, builder.features)
        ground = stages.lay_ground()
        stages.lay_tools(ground, pinned_uv(bench, request))
        environment = Environment(_PREFIX, bench.interpreter.version, bench.interpreter.path)
        stages.lay_wheels("requirements", context.wheels(requires, "wheels"), _PREFIX, context.environment(environment))
        shutil.copytree(source, folder / "source", symlinks=True)
        context.files.append("source")
        context.put("known.txt", "\n".join(sorted(known)))
        mounts = (
            "--mount=type=bind,source=source,target=/cpack/source "
            "--mount=type=bind,source=known.txt,target=/cpack/known.txt"
        )
        words = (f"/{_PREFIX}/bin/python", "wheel", "/cpack/source", "/cpack-out", "/cpack/known.txt")
        lines = [
            *HEAD, *stages.stages,
            "FROM requirements AS built", stages.python(*words, mounts=mounts, sites=True), "",
            "FROM scratch", "COPY --from=built /cpack-out/ /",
        ]  # fmt: skip
        complete(context, text_of(lines))
        base = base_context(bench, request)
        arguments = ["--platform", bench.platform, "--build-arg", f"SOURCE_DATE_EPOCH={DATE}"]
        arguments += ["--build-context", f"{BASE_CONTEXT}={base}"] if base is not None else []
        try:
            builder.build(folder, [*arguments, "--output", f"type=local,dest={out}"], progress=progress)
        except EngineFailed as error:
            told = Unresolvable(
                f"{project.shown} cannot be built: {error.message}",
                hint="Give its wheel with --find-links, name another version in python.packages, or leave it out with "
                f"python.exclude: [{project.name}] in cpack.yaml.",
            )
            told.detail = error.detail
            raise told from error


def _require_files(made: Path, project: Project) -> None:
    """See that a build left files alone: a link would lead to a file of this machine."""
    for path in made.iterdir():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UnsafeInput(
                f"{project.shown} left {path.name!r} where its wheel goes, which is no file.",
                hint="Do not trust this package; give its wheel with --find-links.",
            )
