"""BuildKit: the lock becomes a Dockerfile without an unpinned word, which any builder of Docker's executes.

Unlike the embedded backend it runs programs: uv, the scripts of system packages over a base image, and, where that was
asked for, a node's ``install.py``; all of them on the builder, in the image's own platform."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from secrets import token_hex

from cpack_build.backends.bake import OWN_DRIVER, bake_command, bake_file, bake_readme
from cpack_build.backends.builder import Builder, find_builder
from cpack_build.backends.dockerfile import BASE_CONTEXT, Plan, dockerfile
from cpack_build.backends.features import Features, features_named, features_of
from cpack_build.backends.ingredients import Context, Foundation, LockContext
from cpack_build.backends.protocol import Farm, Request, require_empty
from cpack_build.errors import (
    BadField,
    CpackError,
    StaleLock,
    ToolMissing,
    Unresolvable,
    UsageError,
    writing,
)
from cpack_build.image.base import require_quiet_base
from cpack_build.image.gather import require_own_service
from cpack_build.lock.python import lock_environment
from cpack_build.lock.schema import BaseImage, Lock, PinnedWheels
from cpack_build.lock.system import UNKNOWN_GLIBC
from cpack_build.lock.tags import Target
from cpack_build.oci.engines import open_engine
from cpack_build.oci.reference import ArchiveName, EngineName, LayoutName, parse_image_name, parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Image, ImageIndex

__all__ = ["BuildKit", "base_context", "cache_arguments", "complete", "pinned_tool", "pinned_uv", "require_quiet"]

_NEWEST = features_of((99, 0))
_TOOL_MEMO = "buildkit-tool-1"


@dataclass(frozen=True)
class BuildKit:
    """The :class:`~cpack_build.backends.protocol.Backend` that drives ``docker buildx``."""

    farm: Farm

    @cached_property
    def _builder(self) -> Builder:
        return find_builder(self.farm.builder)

    def require(self) -> None:
        builder = self._builder
        if (self.farm.cache_from or self.farm.cache_to) and "buildx" not in builder.command:
            raise ToolMissing("A cache in a registry needs docker buildx.", hint="Install it (Debian: docker-buildx).")

    def refusals(self, request: Request) -> Sequence[CpackError]:
        found: list[CpackError] = []
        for lock in request.locks:
            try:
                require_own_service(lock)
            except StaleLock as error:
                found.append(error)
            if isinstance(lock.base, BaseImage) and lock.base.reference != "layout":
                try:
                    parse_reference(lock.base.reference)
                except UsageError as error:
                    found.append(BadField("The lock", "base.reference", error.message.rstrip(".")))
            for name, value in lock.environment.items():
                if re.search(r"[\r\n]", value) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
                    found.append(
                        Unresolvable(
                            f"A Dockerfile cannot hold the variable {name!r} of cpack.yaml.",
                            hint="Names are letters, digits and _, values one line; or use --backend embedded.",
                        )
                    )
        return found

    @contextmanager
    def built(self, request: Request) -> Iterator[Image | ImageIndex]:
        builder = self._builder
        for lock in request.locks:
            builder.require_platform(lock.platform)
            if base_context(lock, request) is not None and not builder.has_contexts:
                raise Unresolvable(
                    "The base image lies in a folder, which this BuildKit cannot read.",
                    hint="Push it to a registry and name that with --base, or use docker buildx and BuildKit 0.11.",
                )
        for lack in builder.features.lacks:
            request.progress.note(f"This BuildKit is too old for {lack}.")
        with request.store.folder("buildkit-") as work:
            images = [self._one(lock, request, work / str(number)) for number, lock in enumerate(request.locks)]
            yield images[0] if len(images) == 1 else ImageIndex(tuple(images))

    def require_writing(self, folder: Path) -> None:
        require_empty(folder)
        self._elsewhere()

    def written(self, request: Request, folder: Path) -> str:
        self.require_writing(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        several = len(request.locks) > 1
        program, features, driver = self._elsewhere()
        lines = []
        for lock in request.locks:
            place = folder / lock.platform.replace("/", "-") if several else folder
            base = base_context(lock, request)
            if program == "buildah" and base is not None:
                raise Unresolvable(
                    "The base image lies in a folder, which buildah takes no base from.",
                    hint="Push it to a registry and name that with --base.",
                )
            plan = self._filled(lock, request, place, features, stays=True)
            if program == "buildah":
                lines.append(_buildah_line(lock, plan, place, features))
                continue
            contexts = {BASE_CONTEXT: base} if base is not None else {}
            bake = bake_file(lock, secrets=plan.secrets, contexts=contexts)
            command = bake_command(driver)
            with writing(place):
                (place / "docker-bake.json").write_text(bake, "utf-8")
                (place / "README.md").write_text(bake_readme(command), "utf-8")
            lines.append(f"cd {shlex.quote(str(place))} && {command}")
        if program == "buildkit" and driver is None:
            request.progress.note(f"{OWN_DRIVER} `docker buildx inspect` shows which one it is.")
        return "; ".join(lines)

    def _elsewhere(self) -> tuple[str, Features, str | None]:
        """Who builds what is printed, what it can do, and by which driver of buildx where that is known: the newest
        BuildKit, unless a builder is named."""
        if self.farm.builder is None:
            return "buildkit", _NEWEST, None
        if (named := features_named(self.farm.builder)) is not None:
            return *named, None
        return "buildkit", self._builder.features, self._builder.driver

    def _one(self, lock: Lock, request: Request, folder: Path) -> Image:
        builder = self._builder
        context = folder / "context"
        plan = self._filled(lock, request, context, builder.features)
        if missing := [name for name in plan.secrets if not os.environ.get(name)]:
            raise Unresolvable(
                f"Models of this lock want a token, and {' and '.join(missing)} is not set.",
                hint="Set it to a token with read access; the builder sees it as a secret, and no layer has it.",
            )
        arguments = ["--platform", lock.platform, "--build-arg", f"SOURCE_DATE_EPOCH={lock.source_date_epoch}"]
        base = base_context(lock, request)
        if base is not None:
            arguments += ["--build-context", f"{BASE_CONTEXT}={base}"]
        arguments += cache_arguments(self.farm)
        if "buildx" in builder.command:
            arguments.append("--provenance=false")
        if builder.stores:
            layout = folder / "layout"
            arguments.append(
                f"--output=type=oci,dest={layout},tar=false,rewrite-timestamp=true,compression=uncompressed,"
                "force-compression=true"
            )
            builder.build(context, arguments, secrets=plan.secrets, progress=request.progress)
            return open_source(LayoutName(layout)).as_image(lock.platform)
        return self._from_engine(lock, request, folder, context, [*arguments, *self._loading], plan)

    @property
    def _loading(self) -> list[str]:
        return ["--load"] if "buildx" in self._builder.command else []

    def _from_engine(
        self, lock: Lock, request: Request, folder: Path, context: Path, arguments: list[str], plan: Plan
    ) -> Image:
        """The image from the engine in which this builder leaves it."""
        engine = open_engine(EngineName("docker"))
        name = parse_reference(f"cpack-build/{token_hex(8)}:built")
        self._builder.build(
            context, [*arguments, "--tag", name.tagged], secrets=plan.secrets, progress=request.progress
        )
        saved = folder / "image.tar"
        try:
            with writing(saved), saved.open("wb") as file:
                engine.save(name, file)
        finally:
            subprocess.run(engine.command("image", "rm", name.tagged), capture_output=True, check=False)
        return open_source(ArchiveName(saved, "docker")).as_image(lock.platform)

    def _filled(self, lock: Lock, request: Request, folder: Path, features: Features, *, stays: bool = False) -> Plan:
        """The build's folder, with its Dockerfile."""
        require_quiet(lock, request)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        built = {wheel.sha256: wheel for wheel in lock.python.built}
        context = LockContext(folder, lock, request, fetches=features.fetches, built=built, stays=stays, lock=lock)
        plan = dockerfile(context, features, uv=pinned_uv(lock, request))
        complete(context, plan.dockerfile)
        return plan


def _buildah_line(lock: Lock, plan: Plan, place: Path, features: Features) -> str:
    """The command by which buildah builds the folder *place*. It has no bake files; and where a step cannot say that it
    wants no network, none of them does."""
    words = ["buildah", "build", "--layers", "--platform", lock.platform, "--timestamp", str(lock.source_date_epoch)]
    words += ["--build-arg", f"SOURCE_DATE_EPOCH={lock.source_date_epoch}"]
    words += [f"--secret=id={name},env={name}" for name in plan.secrets]
    words += [] if features.isolates else ["--network=none"]
    return f"{shlex.join(words)} --tag NAME {shlex.quote(str(place))}"


def cache_arguments(farm: Farm) -> list[str]:
    """The options for the caches in registries: all stages go there, not only those that end in the image."""
    return [
        *(f"--cache-from=type=registry,ref={ref}" for ref in farm.cache_from),
        *(f"--cache-to=type=registry,ref={ref},mode=max" for ref in farm.cache_to),
    ]


def base_context(below: Foundation, request: Request) -> str | None:
    """The named context of a base image that lies in a folder."""
    if not isinstance(below.base, BaseImage) or below.base.reference != "layout":
        return None
    name = parse_image_name(request.places[below.platform].base)
    if not isinstance(name, LayoutName):
        raise Unresolvable(
            f"The base image {name} is in an archive, and BuildKit reads folders and registries.",
            hint="Unpack it with skopeo into oci:DIR, or push it.",
        )
    return f"oci-layout://{name.path.absolute()}@{below.base.digest}"


def require_quiet(below: Foundation, request: Request) -> None:
    """See that the base image says nothing that the builder would do of its own accord. Raises :class:`UnsafeInput`."""
    if isinstance(below.base, BaseImage):
        base_context(below, request)  # which refuses archives
        require_quiet_base(
            below.base, platform=below.platform, name=request.places[below.platform].base, store=request.store,
            sources=request.sources,
        )  # fmt: skip


def complete(context: Context, text: str) -> None:
    """Put the Dockerfile *text* into *context*, and what every one of ours mounts."""
    context.put("inside.py", files("cpack_build.backends").joinpath("inside.py").read_text("utf-8"))
    context.put("Dockerfile", text)
    # only what the build names is sent, whatever else comes to lie in the folder
    tops = sorted({name.partition("/")[0] for name in context.files})
    context.put(".dockerignore", "*\n" + "".join(f"!{top}\n" for top in tops))


def pinned_uv(lock: Foundation, request: Request) -> PinnedWheels:
    """The wheel of this machine's version of uv for the lock's platform, pinned."""
    return pinned_tool(f"uv=={version('uv')}", lock, request)


def pinned_tool(requirement: str, lock: Foundation, request: Request) -> PinnedWheels:
    """The wheel of a program that works inside a build, for the lock's platform; pinned the first time."""
    store, places = request.store, request.places[lock.platform]
    key = f"{requirement} {lock.platform} {lock.interpreter.version}"
    if (known := store.recall(_TOOL_MEMO, key)) is not None:
        return PinnedWheels.model_validate_json(known)
    found = lock_environment(
        [requirement],
        target=Target(lock.interpreter.version, lock.platform, UNKNOWN_GLIBC),
        store=store, sources=request.sources, find_links=places.find_links, index_url=places.index_url,
        extra_index_urls=[url for url in places.index_urls if url != places.index_url], only_wheels=True,
        progress=request.progress,
    )  # fmt: skip
    pinned = PinnedWheels(pylock=found.pylock, pylock_sha256=found.pylock_sha256)
    store.remember(_TOOL_MEMO, key, pinned.model_dump_json())
    return pinned
