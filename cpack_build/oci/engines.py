"""The container engines of this machine: giving them an image, and asking what they have.

Docker is asked at its socket (:mod:`cpack_build.oci.daemon`); podman, and a Docker that is elsewhere, are spoken to by
their own commands (:mod:`cpack_build.oci.engine`), which know ssh, TLS, rootless storage and the rest. Which program is
run can be set by ``CPACK_DOCKER`` and ``CPACK_PODMAN``; Docker is then spoken to by that alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain, takewhile
from typing import Any, BinaryIO

from cpack_build.errors import ToolMissing
from cpack_build.oci.daemon import Daemon, Refusal, docker_socket
from cpack_build.oci.engine import IMAGES_ASKED, CommandEngine, Engine, explained
from cpack_build.oci.reference import EngineName, Reference
from cpack_build.oci.types import Image

__all__ = ["DockerEngine", "Engine", "PodmanEngine", "find_engine", "open_engine"]

_CONTAINERD = "io.containerd.snapshotter"
"""What ``info`` says of a Docker that keeps its images in containerd's store (``DriverStatus``, ``driver-type``)."""


class DockerEngine(CommandEngine):
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
        stacks = _stacks(known)
        if self._by_containerd:
            return _among(image, stacks)
        wanted = _diff_ids(image)
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
                return filter(None, (self._inspect("image", id) for id in ids[:IMAGES_ASKED]))
            return ()
        try:
            about = self._ask("info", "--format", "{{.DriverStatus}}")
        except ToolMissing:
            return None
        if about is None:
            return None
        # The command does not tell whether containerd's store has every blob.
        return () if _CONTAINERD in about else super()._known()

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
            raise explained(self.title, str(refusal).encode()) from refusal


class PodmanEngine(CommandEngine):
    """Podman, in the storage of the user who runs it."""

    title = "podman"
    program = "podman"
    override = "CPACK_PODMAN"
    probe = ("info", "--format", "{{.Store.GraphRoot}}")
    missing_hint = "Install it, or write the image elsewhere, for example with --output oci:DIR."
    silent_hint = "Try `podman info`; or write the image elsewhere, for example with --output oci:DIR."

    def _present(self, image: Image) -> frozenset[str] | None:
        """The layers that images in podman have too, wherever in them.

        It looks for a layer in its storage before it opens the blob (containers/image: storage, TryReusingBlob), and
        refuses an archive without a blob that is in neither.
        """
        known = self._known()
        return None if known is None else _among(image, _stacks(known))


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


def _stacks(known: Iterable[dict[str, Any]]) -> list[Sequence[str]]:
    """The diff IDs of each image's layers, from the bottom up."""
    return [(document.get("RootFS") or {}).get("Layers") or () for document in known]


def _diff_ids(image: Image) -> list[str]:
    wanted: list[str] = json.loads(image.config.data)["rootfs"]["diff_ids"]
    return wanted


def _among(image: Image, stacks: Iterable[Sequence[str]]) -> frozenset[str]:
    """The layers of *image* that are in any of the *stacks*."""
    stored = frozenset(chain.from_iterable(stacks))
    pairs = zip(image.layers, _diff_ids(image), strict=True)
    return frozenset(layer.descriptor.digest for layer, diff_id in pairs if diff_id in stored)


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many layers two images share from the bottom up."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
