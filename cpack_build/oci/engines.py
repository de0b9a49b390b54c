"""The container engines of this machine: giving them an image, and asking what they have.

Docker is asked at its socket (:mod:`cpack_build.oci.daemon`); podman, and a Docker that is elsewhere, are spoken to by
their own commands, which know ssh, TLS, rootless storage and the rest. The image goes through the socket or a pipe to
``load``, so nothing is stored on the way (docs/decisions/002-engines.md). Which program is run can be set by
``CPACK_DOCKER`` and ``CPACK_PODMAN``; Docker is then spoken to by that alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, takewhile
from tempfile import TemporaryFile
from typing import Any, BinaryIO, ClassVar, Protocol

from cpack_build.errors import CpackError, EngineFailed, HashMismatch, StorageError, ToolMissing, Unresolvable
from cpack_build.oci.archive import archive_size, stream_archive
from cpack_build.oci.daemon import Daemon, Refusal, docker_socket
from cpack_build.oci.reference import EngineName, Reference
from cpack_build.oci.types import Image
from cpack_build.progress import SILENT, Progress, Task

__all__ = ["DockerEngine", "Engine", "PodmanEngine", "find_engine", "open_engine"]

_ANSWER_SECONDS = 15
_KEPT_OUTPUT = 64 << 10
_IMAGES_ASKED = 500
_CONTAINERD = "io.containerd.snapshotter"
"""What ``info`` says of a Docker that keeps its images in containerd's store (``DriverStatus``, ``driver-type``)."""


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
        """The command line that has the engine do *arguments* (``run``, ``--rm``, …).

        Raises :class:`ToolMissing` where there is no such program.
        """


class _CommandEngine:
    """What both engines share: ``load``, ``image inspect`` and ``run`` are the same words in each."""

    title: ClassVar[str]
    program: ClassVar[str]
    override: ClassVar[str]
    probe: ClassVar[tuple[str, ...]]
    missing_hint: ClassVar[str]
    silent_hint: ClassVar[str]

    def command(self, *arguments: str) -> list[str]:
        program = os.environ.get(self.override) or self.program
        if shutil.which(program) is None:
            raise ToolMissing(f"{self.title} is needed, but there is no program {program!r}.", hint=self.missing_hint)
        return [program, *arguments]

    def require(self) -> None:
        command = self.command(*self.probe)
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=_ANSWER_SECONDS, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as error:
            raise ToolMissing(
                f"{self.title} did not answer within {_ANSWER_SECONDS} seconds.", hint=self.silent_hint
            ) from error
        if done.returncode:
            raise ToolMissing(f"{self.title} does not answer: {_last_line(done.stderr)}", hint=self.silent_hint)

    def image_id(self, name: Reference | str) -> str | None:
        known = self._inspect("image", name.tagged if isinstance(name, Reference) else name)
        # Podman leaves the algorithm out.
        found = re.fullmatch(r"(?:sha256:)?([0-9a-f]{64})", str(known.get("Id"))) if known else None
        return f"sha256:{found.group(1)}" if found else None

    def config_of(self, name: Reference) -> dict[str, Any] | None:
        known = self._inspect("image", name.tagged)
        if known is None:
            return None
        config = known.get("Config")
        return config if isinstance(config, dict) else {}

    def is_running(self, container: str) -> bool:
        state = (self._inspect("container", container) or {}).get("State")
        return isinstance(state, dict) and state.get("Running") is True

    def load(self, image: Image, name: Reference, *, progress: Progress = SILENT) -> None:
        present = self._present(image)
        if present is None:
            self.require()  # Which says what is wrong.
            present = frozenset()
        try:
            self._feed(image, name, progress, present)
            whole = not present or self._has_all(image, name)
        except EngineFailed:
            if not present:
                raise
            whole = False
        if not whole:
            # What was there may have been removed since, or have been there in another form.
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
        try:
            self._fetch(name, file)
        except Refusal as refusal:
            raise EngineFailed(
                f"{self.title} did not save {name.familiar}: {refusal}",
                hint=f"See `{self.program} info`, and that there is room for it.",
            ) from refusal
        file.flush()

    # -- by the command ------------------------------------------------------------------------------------------------

    def _present(self, image: Image) -> frozenset[str] | None:
        """Digests of layers that need not be sent because the engine has them; ``None`` if it does not answer."""
        return None

    def _has_all(self, image: Image, name: Reference) -> bool:
        """Whether it has all of what it has just taken without some layers."""
        return True

    def _inspect(self, kind: str, name: str) -> dict[str, Any] | None:
        """What the engine knows of the ``image`` or ``container`` *name*, in Docker's words."""
        return next(iter(self._inspect_all(kind, name)), None)

    def _inspect_all(self, kind: str, *names: str) -> list[dict[str, Any]]:
        """The same for several at once; what it does not have is left out."""
        done = subprocess.run(
            self.command(kind, "inspect", *names), capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        try:
            said = json.loads(done.stdout)
        except ValueError:
            return []
        return [item for item in said if isinstance(item, dict)] if isinstance(said, list) else []

    def _ask(self, *arguments: str) -> str | None:
        """What the engine answers, or ``None`` if it refuses."""
        done = subprocess.run(self.command(*arguments), capture_output=True, check=False, stdin=subprocess.DEVNULL)
        return None if done.returncode else done.stdout.decode("utf-8", "replace").strip()

    def _fetch(self, name: Reference, file: BinaryIO) -> None:
        words = self.command("save", name.tagged)
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise Refusal(_last_line(done.stderr))

    def _feed(self, image: Image, name: Reference, progress: Progress, omit: frozenset[str]) -> None:
        """The archive without the blobs in *omit*. Raises what :meth:`load` does."""
        total = archive_size(image, name=name, omit=omit)
        with progress.task(f"Loading into {self.title}", total=total) as task:
            self._send(_counted(stream_archive(image, name=name, omit=omit), task), total)

    def _send(self, archive: Iterable[bytes], size: int) -> None:
        # The engine's words go to a file: a full pipe that nobody reads would stop it and us for ever.
        with TemporaryFile() as output:
            process = subprocess.Popen(self.command("load"), stdin=subprocess.PIPE, stdout=output, stderr=output)
            pipe = process.stdin
            assert pipe is not None
            try:
                for chunk in archive:
                    pipe.write(chunk)
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
    """Docker: at its socket, where there is one, else at the daemon that its command would use."""

    title = "Docker"
    program = "docker"
    override = "CPACK_DOCKER"
    probe = ("version", "--format", "{{.Server.Version}}")
    missing_hint = "Install it, or write the image elsewhere, for example with --output oci:DIR."
    silent_hint = (
        "Start its daemon, or see that you may use its socket and that DOCKER_HOST is right; "
        "or write the image elsewhere, for example with --output oci:DIR."
    )

    @cached_property
    def _daemon(self) -> Daemon | None:
        path = None if os.environ.get(self.override) else docker_socket()
        daemon = Daemon(path) if path else None
        return daemon if daemon and daemon.answers() else None

    @property
    def socket(self) -> str | None:
        """Where it is asked, if that is a socket, and an image that it shows there has all of its layers."""
        return self._daemon.path if self._daemon is not None and not self._by_containerd else None

    def require(self) -> None:
        if self._daemon is None:
            super().require()

    def _present(self, image: Image) -> frozenset[str] | None:
        """The layers that images in Docker have too.

        On its graph drivers Docker knows a layer together with all those below it, and does not look for its file then
        (moby: image/tarexport/load.go). With containerd's store a blob is a blob, wherever in an image; but an image
        may be there with the same layers in compressed blobs, and what lacks a blob is taken without a word. So
        :meth:`_has_all` asks afterwards.
        """
        known = self._known()
        if known is None:
            return None
        wanted = json.loads(image.config.data)["rootfs"]["diff_ids"]
        stacks = [(document.get("RootFS") or {}).get("Layers") or () for document in known]
        if self._by_containerd:
            stored = frozenset(chain.from_iterable(stacks))
            pairs = zip(image.layers, wanted, strict=True)
            return frozenset(layer.descriptor.digest for layer, diff_id in pairs if diff_id in stored)
        common = max((_common(stack, wanted) for stack in stacks), default=0)
        above = {layer.descriptor.digest for layer in image.layers[common:]}
        return frozenset(layer.descriptor.digest for layer in image.layers[:common]) - above

    def _has_all(self, image: Image, name: Reference) -> bool:
        if not self._by_containerd:
            return True  # It would have refused the archive.
        # Docker before 28.0 (API 1.48) shows no manifests, and so is sent everything.
        known = self._inspect("image", name.tagged, query="?manifests=1") or {}
        return any(
            item.get("Available") is True and (item.get("Descriptor") or {}).get("digest") == image.digest
            for item in known.get("Manifests") or ()
        )

    @cached_property
    def _by_containerd(self) -> bool:
        """Whether Docker keeps images in containerd's store; ``False`` also where it is spoken to by its command."""
        if self._daemon is None:
            return False
        with suppress(Refusal):
            return _CONTAINERD in str(self._daemon.get("/info"))
        return False

    def _known(self) -> Iterable[dict[str, Any]] | None:
        """The images that may share layers; ``None`` if Docker does not answer."""
        if self._daemon is not None:
            with suppress(Refusal):
                ids = [str(item.get("Id")) for item in self._daemon.get("/images/json") or ()]
                return filter(None, (self._inspect("image", id) for id in ids[:_IMAGES_ASKED]))
            return ()
        try:
            about = self._ask("info", "--format", "{{.DriverStatus}}")
        except ToolMissing:
            return None
        listed = self._ask("image", "ls", "--quiet", "--no-trunc") if about is not None else None
        if about is None or listed is None:
            return None
        ids = sorted(set(listed.split()))[:_IMAGES_ASKED]
        # The command does not tell whether containerd's store has every blob.
        return self._inspect_all("image", *ids) if ids and _CONTAINERD not in about else ()

    def _inspect(self, kind: str, name: str, *, query: str = "") -> dict[str, Any] | None:
        if self._daemon is None:
            return super()._inspect(kind, name)
        with suppress(Refusal):
            return self._daemon.inspect(kind, name, query=query)
        return None

    def _fetch(self, name: Reference, file: BinaryIO) -> None:
        if self._daemon is None:
            super()._fetch(name, file)
        else:
            self._daemon.save(name.tagged, file)

    def _send(self, archive: Iterable[bytes], size: int) -> None:
        if self._daemon is None:
            super()._send(archive, size)
            return
        try:
            self._daemon.load(archive, size)
        except Refusal as refusal:
            raise _explained(self.title, str(refusal).encode()) from refusal


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


def _counted(chunks: Iterable[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        task.advance(len(chunk))


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many layers two images share from the bottom up."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


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
