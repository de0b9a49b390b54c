"""What a BuildKit build is made of: which bytes the builder fetches by hash, and which lie in the build's context.

The builder fetches what has an address that it can ask: ``http(s)``, without credentials, not mapped to a path of this
machine. Everything else is put into the context: local wheels and models, local nodes, patched trees, and the small
tars that cpack-build makes itself (accounts, links, the loader's cache, the lock)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit, urlunsplit

from cpack_build.backends.protocol import Request
from cpack_build.cpack.settings import AnyPlatform
from cpack_build.errors import Unresolvable, writing
from cpack_build.fetch.store import StoredFile, stored_at
from cpack_build.fetch.tree import Tree
from cpack_build.image.app import app_layer
from cpack_build.image.config import COMFYUI_ENV, SERVICE_ENV
from cpack_build.image.debs import StoredDeb, deb_layer, dependencies_of
from cpack_build.image.interpreter import archive_layer
from cpack_build.image.layer import arrange, directory, text
from cpack_build.image.loader import stored_cache
from cpack_build.image.trees import comfyui_layer, node_layer
from cpack_build.image.wheels import Environment, environment_entries
from cpack_build.lock.building import have_built
from cpack_build.lock.debs import fetch_deb
from cpack_build.lock.models import fetch_model
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    BuiltWheel,
    Deb,
    DebInterpreter,
    GitTree,
    Interpreter,
    Lock,
    Model,
    NodeTree,
    PinnedWheels,
    RegistryNode,
    ScratchBase,
)
from cpack_build.lock.service import service_files
from cpack_build.lock.wheels import Wheel, fetch_wheel, wheels_of, with_credentials
from cpack_build.oci import tar
from cpack_build.oci.storage import shared_copy

__all__ = ["Context", "Foundation", "Item", "LockContext", "TreeItem", "clean_url"]

UNPACKERS = ("coreutils", "dash", "dpkg", "tar")
"""What unpacks packages where there is no base image; Debian calls them essential, so every lock has them."""


@dataclass(frozen=True)
class Item:
    """A file of the build: fetched by the builder from *url*, or at *path* in the context."""

    name: str
    sha256: str
    url: str | None
    path: str


@dataclass(frozen=True)
class TreeItem:
    """A git tree that the builder fetches, or (without *url*) a tar in the context. *place* is absolute."""

    place: str
    tree_sha256: str
    url: str | None
    path: str


class Foundation(Protocol):
    """What lies below the Python packages: a :class:`Lock` says it, and so does what a wheel is built on."""

    @property
    def platform(self) -> AnyPlatform: ...
    @property
    def base(self) -> ScratchBase | BaseImage: ...
    @property
    def system(self) -> tuple[Deb, ...]: ...
    @property
    def interpreter(self) -> Interpreter: ...


@dataclass
class Context:
    """The folder of one build, filled as its parts are asked for."""

    folder: Path
    foundation: Foundation
    request: Request
    fetches: bool
    """Whether the builder can fetch files by hash; else all of them are put here."""
    built: Mapping[str, BuiltWheel] = field(default_factory=dict)
    """sha256 → how a wheel was made that no index has."""
    stays: bool = False
    """Whether the folder outlives the build: nothing in it is then a second name of a file in the store."""
    files: list[str] = field(default_factory=list)
    """Relative paths of what was put here."""

    def debs(self) -> list[Item]:
        """The system packages and the interpreter's, in the order in which they are unpacked."""
        return [
            self._item("debs", f"{number:04}-{deb.name}.deb", deb.sha256, deb.url, partial(self._deb, deb))
            for number, deb in enumerate(_debs(self.foundation))
        ]

    def wheels(self, environment: PinnedWheels, folder: str) -> list[Item]:
        """The wheels of *environment*."""
        return [
            self._item(folder, wheel.filename, wheel.sha256, self._indexed(wheel), partial(self._wheel, wheel))
            for wheel in wheels_of(environment)
        ]

    def stored_debs(self) -> tuple[tuple[StoredDeb, ...], tuple[StoredDeb, ...]]:
        """System packages and the interpreter's, fetched to this machine: the ground is made from them."""
        own = self.foundation.interpreter.packages if isinstance(self.foundation.interpreter, DebInterpreter) else ()

        def stored(deb: Deb) -> StoredDeb:
            file = self._deb(deb)
            return StoredDeb(deb.name, deb.version, deb.sha256, file.path, file.stamp)

        return tuple(map(stored, self.foundation.system)), tuple(map(stored, own))

    def unpackers(self) -> str:
        """A tar with the programs that unpack packages, where no base image has them."""
        system, _ = self.stored_debs()
        by_name = {deb.name: deb for deb in system}
        if missing := [name for name in UNPACKERS if name not in by_name]:
            raise Unresolvable(
                f"The lock has no {' and no '.join(missing)}, which unpack system packages where no base image does.",
                hint=f"Add system: {{packages: [{', '.join(missing)}]}} to cpack.yaml, or name a base image.",
            )
        wanted, found = list(UNPACKERS), {}
        while wanted:
            name = wanted.pop()
            if name in by_name and name not in found:
                found[name] = by_name[name]
                wanted += dependencies_of(by_name[name])
        layer = deb_layer("system", "unpackers", found.values(), store=self.request.store, is_root=True)
        return self.tar("unpackers.tar", layer.entries())

    def ground(self) -> str:
        """A tar with what no package's archive holds: folders, links, accounts, certificates, alternatives, records."""
        system, own = self.stored_debs()
        store = self.request.store
        entries: dict[str, tar.Entry] = {}
        for layer in (
            deb_layer("system", "", system, store=store, is_root=True),
            deb_layer("interpreter", "", own, store=store, is_root=False),
        ):
            for entry in layer.entries():
                if entry.kind in ("directory", "symlink") or isinstance(entry.content, tar.BytesContent):
                    entries[entry.path] = entry
        return self.tar("ground.tar", arrange(entries.values()))

    def interpreter(self) -> str | None:
        """A tar with a standalone Python, if the lock has one."""
        pin = self.foundation.interpreter
        if not isinstance(pin, ArchiveInterpreter):
            return None
        from cpack_build.fetch.http import download

        request = self.request
        file = download(
            pin.url, store=request.store, sources=request.sources, sha256=pin.sha256, size=pin.size,
            what=f"Python {pin.version}", progress=request.progress,
        )  # fmt: skip
        return self.tar("python.tar", archive_layer(pin, file, store=request.store).entries())

    def environment(self, environment: Environment) -> str:
        """A tar with the empty virtual environment."""
        return self.tar(f"{Path(environment.prefix).name}.tar", arrange(environment_entries(environment)))

    def put(self, name: str, data: str) -> str:
        """A small text file."""
        path = self.folder / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data, "utf-8")
        self.files.append(name)
        return name

    def tar(self, name: str, entries: Iterable[tar.Entry]) -> str:
        """A tar of *entries*."""
        path = self.folder / name
        with writing(path), path.open("wb") as file:
            file.writelines(tar.stream(entries))
        self.files.append(name)
        return name

    # -- where bytes come from

    def _item(self, folder: str, name: str, sha256: str, url: str | None, stored: Callable[[], StoredFile]) -> Item:
        path = f"{folder}/{name}"
        remote = self._remote(url) if url is not None and self.fetches else None
        if remote is None:
            self._lay(stored(), self.folder / path)
            self.files.append(path)
        return Item(name, sha256, remote, path)

    def _lay(self, file: StoredFile, place: Path) -> None:
        """*file* at *place*, without a copy where that may be: a second name changes a file's stat, by which the store
        knows those of others."""
        store = self.request.store
        may_link = not self.stays and file.path == store.blob_path(file.sha256)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        shared_copy(file.path, place, may_link=may_link)
        if may_link:
            store.remember_file(stored_at(file.path, file.sha256))
        else:
            file.require_unchanged()

    def _remote(self, url: str) -> str | None:
        place = self.request.sources.mirrors.apply(url)
        return clean_url(place)

    def _indexed(self, wheel: Wheel) -> str | None:
        """The wheel's URL, unless its index wants credentials: those stay here."""
        places = self.request.places[self.foundation.platform]
        if wheel.url is None or with_credentials(wheel.url, places.index_urls) != wheel.url:
            return None
        return wheel.url

    def _deb(self, deb: Deb) -> StoredFile:
        request = self.request
        return fetch_deb(deb, store=request.store, sources=request.sources, progress=request.progress)

    def _wheel(self, wheel: Wheel) -> StoredFile:
        request, places = self.request, self.request.places[self.foundation.platform]
        built = self.built.get(wheel.sha256)
        if built is not None:
            have_built(
                wheel, built, python_version=self.foundation.interpreter.version, find_links=places.find_links,
                store=request.store, sources=request.sources, trust=request.trust, progress=request.progress,
            )  # fmt: skip
        return fetch_wheel(
            wheel, store=request.store, sources=request.sources, find_links=places.find_links,
            index_urls=places.index_urls, progress=request.progress,
        )  # fmt: skip


@dataclass
class LockContext(Context):
    """That of the image of one lock."""

    lock: Lock = field(kw_only=True)

    def environments(self) -> tuple[Environment, Environment]:
        """The service's environment and ComfyUI's."""
        python = self.lock.interpreter
        return Environment(SERVICE_ENV, python.version, python.path), Environment(
            COMFYUI_ENV, python.version, python.path
        )

    def model(self, model: Model, *, hosts: Collection[str] | None) -> Item:
        """One model; of its sources the first that the builder can ask: one of *hosts* by https, if there are any."""
        remote = list(filter(None, map(self._remote, model.sources)))
        if hosts is not None:
            remote = [url for url in remote if urlsplit(url).scheme == "https" and urlsplit(url).hostname in hosts]
        url = remote[0] if remote else None
        return self._item("models", model.sha256, model.sha256, url, partial(self._model, model))

    def tree(self, pin: NodeTree, place: str, *, number: int) -> TreeItem:
        """ComfyUI or a node; what is patched, local or from an archive lies in the context as a tar."""
        if isinstance(pin, GitTree) and pin.patch_sha256 is None and pin.installed is None and self.fetches:
            url = self._remote(pin.url)
            if url is not None:
                repository = url if url.endswith(".git") else f"{url}.git"
                return TreeItem(place, pin.tree_sha256, f"{repository}#{pin.commit}", "")
        request = self.request
        tree: Tree = open_tree(
            pin, request.pack, store=request.store, sources=request.sources, progress=request.progress
        )
        recipe = node_layer(pin, tree) if isinstance(pin, RegistryNode) or number else comfyui_layer(pin, tree)
        return TreeItem(place, pin.tree_sha256, None, self.tar(f"tree-{number}.tar", recipe.entries()))

    def service_code(self, environment: Environment) -> str:
        """A tar with cpack-build's own modules in the service's environment."""
        files = [text(f"{environment.site_packages}/{path}", data) for path, data in service_files()]
        return self.tar("service-code.tar", arrange(files))

    def app(self) -> str:
        """A tar with the links to the models, the lock, the documents and the loader's cache."""
        lock, request = self.lock, self.request
        cache = None
        if lock.base.kind == "scratch":
            cache = stored_cache(*self.stored_debs(), store=request.store)
        documents = {**request.documents, "cpack.lock": lock.carried.to_bytes()}
        layer = app_layer(lock.models, documents, base_accounts=None, loader_cache=cache)
        # BuildKit gives the folders above a file the file's mode
        folders = [directory("models"), directory("models/sha256")] if lock.models else []
        return self.tar("app.tar", arrange([*layer.entries(), *folders]))

    def _model(self, model: Model) -> StoredFile:
        request, places = self.request, self.request.places[self.lock.platform]
        return fetch_model(
            model, folders=places.models, store=request.store, sources=request.sources, progress=request.progress
        )


def _debs(lock: Foundation) -> Sequence[Deb]:
    own = lock.interpreter.packages if isinstance(lock.interpreter, DebInterpreter) else ()
    return sorted((*lock.system, *own), key=lambda deb: (deb.name, deb.sha256))


def clean_url(url: str) -> str | None:
    """*url* as a Dockerfile may hold it, or ``None`` where a builder elsewhere could not ask it or must not know it.

    That is so for what is not http(s), and for credentials, queries and fragments, which may be a token.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            return None
    except ValueError:
        return None
    if parts.query or parts.fragment:
        return None
    path = quote(parts.path, safe="/%:@!*(),;=~+-._")
    netloc = quote(parts.netloc, safe=":[]-.")
    return urlunsplit((parts.scheme, netloc, path, "", ""))
