"""``--backend nix``: the folder is written, what is here already goes into Nix's store, Nix builds, and its layout is
opened as an image like any other. Models stay where they are."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cpack_build.backends.nix.folder import planned_layers, write_folder
from cpack_build.backends.nix.nar import lay_out
from cpack_build.backends.nix.program import Nix, hidden
from cpack_build.backends.nix.result import open_image
from cpack_build.backends.protocol import Farm, Request, require_empty
from cpack_build.errors import CpackError, ToolMissing, Unresolvable, UsageError, writing
from cpack_build.image.bundle import blobs_of
from cpack_build.image.gather import require_own_vouched, require_vouched
from cpack_build.image.models import found_layer
from cpack_build.lock.schema import Lock
from cpack_build.oci.pull import bring
from cpack_build.oci.types import Blob, FileBlob, Image, ImageIndex
from cpack_build.oci.uncompressed import Uncompressed

__all__ = ["NixBackend"]

_SYSTEMS = {"linux/amd64": "x86_64-linux", "linux/arm64": "aarch64-linux"}


class NixBackend:
    """A :class:`~cpack_build.backends.protocol.Backend`.

    The farm's builder is one of Nix's (``ssh://HOST SYSTEM``, ``@FILE``), its caches are binary caches.
    """

    def __init__(self, farm: Farm = Farm()) -> None:  # noqa: B008 - frozen
        options = ("--builders", farm.builder) if farm.builder is not None else ()
        if farm.cache_from:
            options = (*options, "--option", "extra-substituters", " ".join(farm.cache_from))
        self._nix = Nix(options)
        self._farm = farm

    def require(self) -> None:
        self._nix.require()

    def refusals(self, request: Request) -> Sequence[CpackError]:
        return [error for lock in request.locks for error in _refused(lock, request)]

    def require_writing(self, folder: Path) -> None:
        if not self._farm.is_default:
            raise UsageError(
                "What is printed for Nix names no builder and no cache: whoever runs Nix does.",
                hint="Leave --builder, --cache-from and --cache-to out, and give `nix build` its --builders, --option "
                "extra-substituters and `nix copy`.",
            )
        require_empty(folder)

    def written(self, request: Request, folder: Path) -> str:
        self.require_writing(folder)
        for lock in request.locks:
            require_own_vouched(lock, store=request.store, trust=request.trust)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_folder(request, folder)
        place = shlex.quote(str(folder.absolute()))
        return f"nix build path:{place}#image    (without flakes: nix-build {place})"

    @contextmanager
    def built(self, request: Request) -> Iterator[Image | ImageIndex]:
        settings = self._nix.settings()
        for lock in request.locks:
            self._require_machine(lock, settings)
            require_vouched(lock, siblings=request.siblings, store=request.store, trust=request.trust)
            require_own_vouched(lock, store=request.store, trust=request.trust)  # the builder runs no sibling's
        with TemporaryDirectory(prefix="cpack-nix-") as place:
            folder = Path(place, "build")
            folder.mkdir()
            write_folder(request, folder)
            images = []
            for lock in request.locks:
                self._bring(lock, request, folder)
                images.append(self._image(lock, request, folder))
            yield images[0] if len(images) == 1 else ImageIndex(tuple(images))

    def _require_machine(self, lock: Lock, settings: Mapping[str, Any]) -> None:
        """See that somebody can build for the lock's platform, and that the build can see its Python."""
        wanted = _SYSTEMS[lock.platform]
        known = {settings["system"], *settings.get("extra-platforms", ())}
        if wanted not in known and self._farm.builder is None and not _has_builders(settings.get("builders", "")):
            raise ToolMissing(
                f"Nix builds for {settings['system']} here, and {wanted} is wanted.",
                hint="Name a remote builder with --builder 'ssh://HOST SYSTEM'; or, for a lock without bytecode, which "
                f"runs nothing, set extra-platforms = {wanted}.",
            )
        if settings.get("sandbox") not in (False, "false") and not _is_seen(settings.get("sandbox-paths", ())):
            raise hidden()

    def _bring(self, lock: Lock, request: Request, folder: Path) -> None:
        """Put into Nix's store what it would have to fetch: cpack-build knows mirrors, logins, stores and clones."""
        steps = self._nix.to_build(folder, "image", platform=lock.platform)
        sources = self._nix.evaluated(folder, "sources", platform=lock.platform)
        files = {item["id"]: item["name"] for item in sources["files"] if item["drv"] in steps}
        trees = {item["id"]: item["name"] for item in sources["trees"] if item["drv"] in steps}
        if not files and not trees:
            return
        materials = request.materials(lock)
        paths = blobs_of(lock, materials, request.store)
        with request.progress.task("Into the Nix store", total=len(files) + len(trees), unit="items") as task:
            for layer in materials.base.layers if materials.base is not None else ():
                stored = layer.stored if isinstance(layer, Uncompressed) else layer
                if (name := files.pop(stored.descriptor.digest.removeprefix("sha256:"), None)) is not None:
                    with _as_file(bring(stored, progress=request.progress)) as path:
                        self._nix.added_file(path, name)
                    task.advance(1)
            for sha256, name in files.items():
                self._nix.added_file(paths[sha256], name)
                task.advance(1)
            pins = (lock.comfyui, *lock.custom_nodes)
            for pin, tree in zip(pins, (materials.comfyui, *materials.nodes), strict=True):
                if pin.tree_sha256 in trees:
                    with TemporaryDirectory(prefix="cpack-tree-") as place:
                        lay_out(tree, Path(place, "tree"))
                        self._nix.added_folder(Path(place, "tree"), trees.pop(pin.tree_sha256))
                    task.advance(1)

    def _image(self, lock: Lock, request: Request, folder: Path) -> Image:
        steps = len(self._nix.to_build(folder, "image", platform=lock.platform))
        link = folder.parent / f"result-{lock.platform.replace('/', '-')}"
        result = self._nix.build(folder, "image", link, platform=lock.platform, steps=steps, progress=request.progress)
        for cache in self._farm.cache_to:
            with request.progress.task(f"Copying to {cache}", unit="paths"):
                self._nix.copy(result, cache)

        return open_image(
            result,
            lambda model: found_layer(
                model,
                folders=request.places[lock.platform].models,
                store=request.store,
                sources=request.sources,
                progress=request.progress,
            ),
        )


@contextmanager
def _as_file(blob: Blob) -> Iterator[Path]:
    """Where *blob* lies; proved bytes of it aside, where that is within a folder or file of somebody else's."""
    if isinstance(blob, FileBlob):
        yield blob.path
        return
    with TemporaryDirectory(prefix="cpack-blob-") as place:
        path = Path(place, "blob")
        with writing(path), path.open("wb") as file:
            file.writelines(blob.chunks())
        yield path


def _has_builders(setting: str) -> bool:
    """Whether Nix knows remote builders: they are listed, or in a file."""
    if setting.startswith("@"):
        return Path(setting[1:]).is_file()
    return bool(setting.strip())


def _is_seen(sandbox_paths: Sequence[str]) -> bool:
    """Whether a sandbox with these paths (``PATH``, ``PATH=SOURCE``) lets this Python be started, and what it needs."""
    inside = [Path(path.partition("=")[0].rstrip("?")) for path in sandbox_paths]
    needed = (Path(sys.executable), Path(sys.base_prefix), Path(sys.prefix))
    return all(any(path.is_relative_to(top) for top in inside) for path in needed)


def _refused(lock: Lock, request: Request) -> Iterator[CpackError]:
    shared = [
        one for one in planned_layers(lock, store=request.store, siblings=request.siblings) if one["kind"] == "models"
    ]
    if shared:
        count = sum(len(one["sha256"]) for one in shared)
        yield Unresolvable(
            f"{count} models share layers, for there are more than an image has layers, and Nix can make those only of "
            "models in its own store.",
            hint="Leave --backend nix out, or print it with --print and build image-with-models.",
        )
