"""The container engines of this machine: giving them an image, and asking what they have.

Docker and podman are spoken to by their own commands, which know contexts, ``DOCKER_HOST``, rootless storage and the
rest; the image goes through a pipe to ``load``, so nothing is stored on the way (docs/decisions/002-engines.md).
Which program is run can be set by ``CPACK_DOCKER`` and ``CPACK_PODMAN``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from tempfile import TemporaryFile
from typing import Any, BinaryIO, ClassVar, Protocol

from cpack_build.errors import CpackError, EngineFailed, HashMismatch, StorageError, ToolMissing, Unresolvable
from cpack_build.oci.archive import archive_size, stream_archive
from cpack_build.oci.reference import EngineName, Reference
from cpack_build.oci.types import Image
from cpack_build.progress import SILENT, Progress

__all__ = ["DockerEngine", "Engine", "PodmanEngine", "find_engine", "open_engine"]

_ANSWER_SECONDS = 15
_KEPT_OUTPUT = 64 << 10
_IMAGES_ASKED = 500


class Engine(Protocol):
    """A place that keeps images and runs containers."""

    title: ClassVar[str]
    program: ClassVar[str]

    def require(self) -> None:
        """Raise :class:`ToolMissing`, with what to do, unless the engine is here and answers."""

    def load(self, image: Image, name: Reference, *, progress: Progress = SILENT) -> None:
        """Give *image* to the engine under *name*, and make sure that it is this image that it has then.

        Raises :class:`ToolMissing`, :class:`EngineFailed`, :class:`StorageError`, :class:`HashMismatch`.
        """

    def image_id(self, name: Reference | str) -> str | None:
        """``sha256:<hex>`` of the image that the engine has under *name*, or ``None``."""

    def config_of(self, name: Reference) -> dict[str, Any] | None:
        """The part of an image's config that ``run`` reads (config.md, "config"), or ``None`` without such an image."""

    def is_running(self, container: str) -> bool:
        """Whether the container of that name runs."""

    def save(self, name: Reference, file: BinaryIO) -> None:
        """Write the engine's image *name* to *file*, as an archive that :mod:`cpack_build.oci.sources` reads.

        Raises :class:`ToolMissing`, :class:`Unresolvable` where there is no such image, :class:`EngineFailed`.
        """

    def command(self, *arguments: str) -> list[str]:
        """The command line that has the engine do *arguments* (``run``, ``--rm``, …)."""


class _CommandEngine:
    """What both engines share: ``load``, ``image inspect`` and ``run`` are the same words in each."""

    title: ClassVar[str]
    program: ClassVar[str]
    override: ClassVar[str]
    probe: ClassVar[tuple[str, ...]]
    missing_hint: ClassVar[str]
    silent_hint: ClassVar[str]

    def command(self, *arguments: str) -> list[str]:
        return [os.environ.get(self.override) or self.program, *arguments]

    def require(self) -> None:
        program = self.command()[0]
        if shutil.which(program) is None:
            raise ToolMissing(f"{self.title} is needed, but there is no program {program!r}.", hint=self.missing_hint)
        try:
            done = subprocess.run(
                self.command(*self.probe),
                capture_output=True,
                timeout=_ANSWER_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired as error:
            raise ToolMissing(
                f"{self.title} did not answer within {_ANSWER_SECONDS} seconds.", hint=self.silent_hint
            ) from error
        if done.returncode:
            raise ToolMissing(f"{self.title} does not answer: {_last_line(done.stderr)}", hint=self.silent_hint)

    def image_id(self, name: Reference | str) -> str | None:
        stored = name.tagged if isinstance(name, Reference) else name
        found = re.fullmatch(
            r"(?:sha256:)?([0-9a-f]{64})", self._ask("image", "inspect", "--format", "{{.Id}}", stored) or ""
        )
        return f"sha256:{found.group(1)}" if found else None

    def config_of(self, name: Reference) -> dict[str, Any] | None:
        said = self._ask("image", "inspect", "--format", "{{json .Config}}", name.tagged)
        try:
            config = json.loads(said) if said else None
        except ValueError:
            return {}
        return config if isinstance(config, dict) else None if said is None else {}

    def is_running(self, container: str) -> bool:
        return self._ask("container", "inspect", "--format", "{{.State.Running}}", container) == "true"

    def load(self, image: Image, name: Reference, *, progress: Progress = SILENT) -> None:
        present = self._present(image)
        if present is None:
            self.require()  # Which says what is wrong.
            present = frozenset()
        try:
            self._feed(image, name, progress, present)
        except EngineFailed:
            if not present:
                raise
            # A layer that was there may have been removed since.
            self._feed(image, name, progress, frozenset())
        loaded = self.image_id(name)
        # Docker with containerd's store shows the manifest's digest where every other engine shows the config's.
        if loaded not in (image.id, image.digest):
            if loaded is None:
                raise EngineFailed(
                    f"{self.title} loaded the image but has none called {name.tagged}.",
                    hint=f"See what `{self.program} images` shows.",
                )
            raise HashMismatch(
                f"The image {name.familiar} in {self.title}", expected=image.id, actual=loaded, hint="Load it again."
            )

    def save(self, name: Reference, file: BinaryIO) -> None:
        self.require()
        if self.image_id(name) is None:
            raise Unresolvable(
                f"{self.title} has no image {name.familiar}.", hint=f"See what `{self.program} images` shows."
            )
        done = subprocess.run(
            self.command("save", name.tagged),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise EngineFailed(
                f"{self.title} did not save {name.familiar}: {_last_line(done.stderr)}",
                hint=f"See `{self.program} info`, and that there is room for it.",
            )
        file.flush()

    def _present(self, image: Image) -> frozenset[str] | None:
        """Digests of layers that need not be sent because the engine has them; ``None`` if it does not answer."""
        return None

    def _ask(self, *arguments: str) -> str | None:
        """What the engine answers, or ``None`` if it refuses."""
        done = subprocess.run(self.command(*arguments), capture_output=True, check=False, stdin=subprocess.DEVNULL)
        return None if done.returncode else done.stdout.decode("utf-8", "replace").strip()

    def _feed(self, image: Image, name: Reference, progress: Progress, omit: frozenset[str]) -> None:
        total = archive_size(image, name=name, omit=omit)
        # The engine's words go to a file: a full pipe that nobody reads would stop it and us for ever.
        with TemporaryFile() as output, progress.task(f"Loading into {self.title}", total=total) as task:
            process = subprocess.Popen(self.command("load"), stdin=subprocess.PIPE, stdout=output, stderr=output)
            pipe = process.stdin
            assert pipe is not None
            try:
                for chunk in stream_archive(image, name=name, omit=omit):
                    pipe.write(chunk)
                    task.advance(len(chunk))
                pipe.close()
            except BrokenPipeError:
                pass  # The engine has given up; it says why, below.
            except BaseException:
                # It must not take the end of a broken stream for the end of the archive.
                process.kill()
                raise
            finally:
                with suppress(BrokenPipeError):
                    pipe.close()
                status = process.wait()
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - _KEPT_OUTPUT))
            said = output.read()
        if status:
            raise _explained(self.title, said)


class DockerEngine(_CommandEngine):
    """Docker, at the daemon that its command would use."""

    title = "Docker"
    program = "docker"
    override = "CPACK_DOCKER"
    probe = ("version", "--format", "{{.Server.Version}}")
    missing_hint = "Install it, or write the image elsewhere, for example with --output oci:DIR."
    silent_hint = (
        "Start its daemon, or see that you may use its socket and that DOCKER_HOST is right; "
        "or write the image elsewhere, for example with --output oci:DIR."
    )

    def _present(self, image: Image) -> frozenset[str] | None:
        """The layers from the bottom up that some image in Docker has too.

        On its graph drivers Docker knows a layer by all those below it, and does not look for its file then (moby:
        image/tarexport/load.go). With containerd's store every blob is needed.
        """
        if shutil.which(self.command()[0]) is None:
            return None
        # Each question is a process, so the two that do not wait for each other are asked at once.
        questions = (("info", "--format", "{{.DriverStatus}}"), ("image", "ls", "--quiet", "--no-trunc"))
        with ThreadPoolExecutor(len(questions)) as pool:
            driver, listed_ids = pool.map(lambda words: self._ask(*words), questions)
        if driver is None or listed_ids is None:
            return None
        if "containerd" in driver:
            return frozenset()
        ids = sorted(set(listed_ids.split()))[:_IMAGES_ASKED]
        listed = self._ask("image", "inspect", "--format", "{{json .RootFS.Layers}}", *ids) if ids else None
        wanted = json.loads(image.config.data)["rootfs"]["diff_ids"]
        common = 0
        for line in (listed or "").splitlines():
            with suppress(ValueError):
                pairs = zip(json.loads(line) or (), wanted, strict=False)
                common = max(common, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        above = {layer.descriptor.digest for layer in image.layers[common:]}
        return frozenset(layer.descriptor.digest for layer in image.layers[:common]) - above


class PodmanEngine(_CommandEngine):
    """Podman, in the storage of the user who runs it."""

    title = "podman"
    program = "podman"
    override = "CPACK_PODMAN"
    probe = ("info", "--format", "{{.Store.GraphRoot}}")
    missing_hint = "Install it, or write the image elsewhere, for example with --output oci:DIR."
    silent_hint = "Try `podman info`; or write the image elsewhere, for example with --output oci:DIR."


_ENGINES: dict[str, type[DockerEngine] | type[PodmanEngine]] = {"docker": DockerEngine, "podman": PodmanEngine}


def open_engine(name: EngineName) -> Engine:
    """The engine that *name* names; whether it answers is asked by its first use."""
    return _ENGINES[name.engine]()


def find_engine() -> Engine | None:
    """Docker if it answers, else podman, else ``None``."""
    candidates: Iterable[Engine] = (DockerEngine(), PodmanEngine())
    for engine in candidates:
        try:
            engine.require()
        except ToolMissing:
            continue
        return engine
    return None


def _explained(title: str, said: bytes) -> CpackError:
    text = said.decode("utf-8", "replace")
    if re.search(r"no space left on device|disk quota exceeded", text, re.IGNORECASE):
        return StorageError(
            f"{title} has no space left for the image: {_last_line(said)}",
            hint=f"Free some space where {title} keeps its images (`{title.lower()} system df`), and run it again.",
        )
    if re.search(r"cannot connect to|is the docker daemon running|permission denied.*socket", text, re.IGNORECASE):
        return ToolMissing(f"{title} stopped answering: {_last_line(said)}", hint="Start its daemon, and run it again.")
    return EngineFailed(f"{title} did not load the image: {_last_line(said)}", hint=f"See `{title.lower()} info`.")


def _last_line(said: bytes) -> str:
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    return (lines[-1] if lines else "it said nothing")[:500]
