"""What the engines of this machine have in common: what is asked of one, and how that is done by its command.

``load``, ``image inspect`` and ``run`` are the same words in each. The image goes through a pipe to ``load``, so that
nothing of it is stored by us on the way, and without the layers that the engine has (docs/decisions/002-engines.md).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import suppress
from tempfile import TemporaryFile
from typing import Any, BinaryIO, ClassVar, Protocol

from cpack_build.errors import CpackError, EngineFailed, HashMismatch, StorageError, ToolMissing, Unresolvable
from cpack_build.oci.archive import archive_size, stream_archive
from cpack_build.oci.daemon import Refusal
from cpack_build.oci.reference import Reference
from cpack_build.oci.types import Image
from cpack_build.progress import SILENT, Progress, Task

__all__ = ["IMAGES_ASKED", "CommandEngine", "Engine", "explained"]

IMAGES_ASKED = 500
"""How many images an engine is asked the layers of."""
_ANSWER_SECONDS = 15
_KEPT_OUTPUT = 64 << 10


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


class CommandEngine(ABC):
    """An engine that is spoken to by its command; another way of speaking replaces the methods of the second part."""

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

    @abstractmethod
    def _present(self, image: Image) -> frozenset[str] | None:
        """Digests of layers that need not be sent because the engine has them; ``None`` if it does not answer."""

    def _has_all(self, image: Image, name: Reference) -> bool:
        """Whether it has all of what it has just taken without some layers."""
        return True

    def _known(self) -> Iterable[dict[str, Any]] | None:
        """The images that may share layers; ``None`` if the engine does not answer."""
        try:
            listed = self._ask("image", "ls", "--quiet", "--no-trunc")
        except ToolMissing:
            return None
        if listed is None:
            return None
        ids = sorted(set(listed.split()))[:IMAGES_ASKED]
        return self._inspect_all("image", *ids) if ids else ()

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
            raise explained(self.title, said)


def _counted(chunks: Iterable[bytes], task: Task) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        task.advance(len(chunk))


def explained(title: str, said: bytes) -> CpackError:
    """The error for what the engine *title* said when it did not load an image."""
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
