"""What a derivation runs: one order, a JSON document that ``nix/default.nix`` wrote, becomes one output.

An order names only what its output depends on, so Nix makes a layer anew only when that changes. Files come as store
paths by their hash, which Nix has proved; layers are made by the functions of :mod:`cpack_build.image`."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cpack_build.backends.nix.base import read_base, write_base
from cpack_build.backends.nix.nar import lay_out, tree_in
from cpack_build.backends.nix.result import LAYER, LAYER_TAR, check_image, write_image
from cpack_build.errors import CpackError, HashMismatch, Unresolvable
from cpack_build.fetch.http import Sources, download
from cpack_build.fetch.store import Store, StoredFile, default_root
from cpack_build.fetch.tree import Tree
from cpack_build.image.build import history_of
from cpack_build.image.bytecode import Compiler
from cpack_build.image.bytecode import Interpreter as Runnable
from cpack_build.image.debs import StoredDeb, deb_layer
from cpack_build.image.interpreter import archive_layer, laid_out, started_in
from cpack_build.image.layer import Recipe, TarLayer
from cpack_build.image.loader import stored_cache
from cpack_build.image.models import model_layer, shared_layer
from cpack_build.image.packages import heavy_layer, packaged_interpreter, packages_layer, service_layer, system_layer
from cpack_build.image.trees import comfyui_layer, node_layer
from cpack_build.image.wheels import StoredWheel
from cpack_build.lock.models import fetch_model
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    BaseInterpreter,
    Deb,
    Interpreter,
    Model,
    NodeTree,
    RegistryNode,
    read_lock,
)
from cpack_build.lock.service import service_files
from cpack_build.oci import tar
from cpack_build.oci.modellayer import ModelLayer
from cpack_build.oci.reference import parse_reference
from cpack_build.oci.sources import open_source
from cpack_build.oci.types import Descriptor

__all__ = ["main"]

Order = Mapping[str, Any]


def main() -> None:
    """Make what the order says. An error is told on stderr and by the exit code, as by the command line."""
    order = json.loads(Path(os.environ["orderPath"]).read_bytes())  # noqa: SIM112 - Nix's passAsFile names it so
    try:
        _MAKE[order["kind"]](order, Path(os.environ["out"]))  # noqa: SIM112
    except CpackError as error:
        print(f"cpack-build: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error


# -- sources -----------------------------------------------------------------------------------------------------------


def _store() -> Store:
    """A store of this derivation alone."""
    return Store(Path(os.environ["NIX_BUILD_TOP"]) / "store", further=())


def _shared_store() -> Store:
    """The user's own store for what is fetched, where the build can see it: with CPACK_HOME, and without a sandbox."""
    if os.environ.get("CPACK_HOME") and os.access(default_root(), os.W_OK):
        return Store()
    return _store()


def _source(order: Order, out: Path) -> None:
    """A file that Nix's own downloader cannot fetch."""
    item, store = order["item"], _shared_store()
    file = store.find(item["sha256"])
    if file is None and item.get("url") is not None:
        file = download(
            item["url"], store=store, sources=Sources(), sha256=item["sha256"], size=item["size"], what=item["name"]
        )
    if file is None:
        raise Unresolvable(
            f"{item['name']} has no address, and cpack-build's store is not here or lacks it.",
            hint="Build with `cpack-build image --backend nix`, or set CPACK_HOME to a store that has it.",
        )
    _copy(file, out)


def _model_file(order: Order, out: Path) -> None:
    model = _of(Model, order["model"])
    _copy(fetch_model(model, store=_shared_store(), sources=Sources()), out)


def _base_layer(order: Order, out: Path) -> None:
    """A layer of the base, as its registry has it."""
    layer, store = Descriptor(**order["layer"]), _shared_store()
    found = store.find(layer.digest)
    if found is not None:
        _copy(found, out)
        return
    pin = _base_pin(order)
    if pin.reference == "layout":
        raise Unresolvable(
            f"The base image lay in a folder, and cpack-build's store is not here or lacks its layer {layer.digest}.",
            hint="Build with `cpack-build image --backend nix`, or lock with a base from a registry.",
        )
    name = replace(parse_reference(pin.reference), tag=None, digest=pin.digest)
    with out.open("wb") as file:
        file.writelines(open_source(name, store=store).read_blob(layer))


def _base_pin(order: Order) -> BaseImage:
    return BaseImage.model_validate_json(json.dumps(order["pin"]))


def _base(order: Order, out: Path) -> None:
    layers = {sha256: Path(path) for sha256, path in order["files"].items()}
    write_base(_base_pin(order), Path(order["documents"]), layers, out, store=_store())


def _copy(file: StoredFile, out: Path) -> None:
    import shutil

    shutil.copyfile(file.path, out)


def _tree(order: Order, out: Path) -> None:
    store = _shared_store()
    pin: NodeTree = TypeAdapter(NodeTree).validate_json(json.dumps(order["pin"]))
    if isinstance(pin, RegistryNode) and pin.installed is None:
        store.adopt(Path(order["archive"]))
    captured = FolderCaptured(Path(order["captured"])) if order["captured"] is not None else None
    lay_out(open_tree(pin, captured, store=store, sources=Sources()), out)


@dataclass(frozen=True)
class FolderCaptured:
    """What a pack alone has, laid out in a folder (:class:`cpack_build.lock.captured.Captured`)."""

    folder: Path

    @property
    def sizes(self) -> Mapping[str, int]:
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in files}

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], Iterator[bytes]]]:
        def stream(name: str) -> Iterator[bytes]:
            yield (self.folder / name).read_bytes()

        yield stream


# -- layers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Python:
    version: str
    path: str


def _python(order: Order) -> _Python:
    return _Python(**order["python"])


def _file(sha256: str, path: str) -> StoredFile:
    return StoredFile(Path(path), sha256, Path(path).stat().st_size)


def _debs(order: Order) -> list[StoredDeb]:
    debs = TypeAdapter(list[Deb]).validate_json(json.dumps(order["debs"]))
    return [StoredDeb(deb.name, deb.version, deb.sha256, Path(order["files"][deb.sha256])) for deb in debs]


def _wheels(order: Order) -> list[StoredWheel]:
    found = []
    for item in order["wheels"]:
        file = _file(item["sha256"], order["files"][item["sha256"]])
        found.append(StoredWheel(item["name"], item["version"], item["filename"], file.sha256, file.path, file.size))
    return found


def _interpreter(order: Order) -> Interpreter:
    interpreter: Interpreter = TypeAdapter(Interpreter).validate_json(json.dumps(order["interpreter"]))
    return interpreter


def _of(kind: type[Model], document: Any) -> Model:
    return kind.model_validate_json(json.dumps(document))


@contextmanager
def _compiler(order: Order, store: Store) -> Iterator[Compiler | None]:
    """The image's Python, as the runtime's derivation has laid it out."""
    runtime = order.get("runtime")
    if runtime is None:
        yield None
        return
    python = _python(order)
    launch = started_in(Path(runtime), python.path)
    with Compiler(Runnable(python.version, runtime, lambda: nullcontext(launch)), store) as compiler:
        yield compiler


def _runtime(order: Order, out: Path) -> None:
    interpreter, store = _interpreter(order), _store()
    out.mkdir()
    entries: Callable[[], Iterable[tar.Entry]]
    if isinstance(interpreter, BaseInterpreter):
        entries = partial(read_base(Path(order["base"])).base.interpreter_files, interpreter.version)
    elif isinstance(interpreter, ArchiveInterpreter):
        file = _file(interpreter.sha256, order["files"][interpreter.sha256])
        entries = archive_layer(interpreter, file, store=store).entries
    else:
        entries = deb_layer("interpreter", "files", _debs(order), store=store, is_root=False).entries
    laid_out(interpreter.version, entries(), out)


def _loader_cache(order: Order, out: Path) -> None:
    own = set(order["own"])
    debs = _debs(order)
    cache = stored_cache(
        [deb for deb in debs if deb.sha256 not in own], [deb for deb in debs if deb.sha256 in own], store=_store()
    )
    out.write_bytes(cache or b"")


def _recipe(order: Order, store: Store, compiler: Compiler | None) -> Recipe:
    kind = order["kind"]
    if kind == "system":
        return system_layer(_debs(order), is_root=order["isRoot"], store=store)
    if kind == "interpreter" and "interpreter" in order:
        interpreter = _interpreter(order)
        assert isinstance(interpreter, ArchiveInterpreter)
        return archive_layer(interpreter, _file(interpreter.sha256, order["files"][interpreter.sha256]), store=store)
    if kind == "interpreter":
        return packaged_interpreter(_python(order), _debs(order), store=store, compiler=compiler)
    if kind == "service":
        return service_layer(_python(order), _wheels(order), code=dict(service_files()), compiler=compiler)
    if kind == "wheel":
        (wheel,) = _wheels(order)
        return heavy_layer(_python(order), wheel, compiler=compiler)
    if kind == "wheels":
        return packages_layer(_python(order), _wheels(order), compiler=compiler)
    if kind == "models":
        models = [_of(Model, document) for document in order["models"]]
        return shared_layer(
            order["number"], models, {sha256: _file(sha256, path) for sha256, path in order["files"].items()}
        )
    pin: NodeTree = TypeAdapter(NodeTree).validate_json(json.dumps(order["pin"]))
    tree = _proved(pin, Path(order["tree"]), store)
    if kind == "comfyui":
        assert not isinstance(pin, RegistryNode)
        return comfyui_layer(pin, tree, compiler=compiler)
    return node_layer(pin, tree, compiler=compiler)


def _proved(pin: NodeTree, folder: Path, store: Store) -> Tree:
    """plan.json says which NAR it is, and only the lock's own hash whether that is the right one."""
    tree = tree_in(folder, name=pin.name, tree_sha256=pin.tree_sha256, store=store)
    if (actual := tree.tree_digest()) != pin.tree_sha256:
        raise HashMismatch(f"The tree of {pin.name}", expected=pin.tree_sha256, actual=actual)
    return tree


def _layer(order: Order, out: Path) -> None:
    store = _store()
    with _compiler(order, store) as compiler:
        recipe = _recipe(order, store, compiler)
        digest, size = _written(tar.stream(recipe.entries()), out)
    for used in recipe.inputs:
        used.require_unchanged()
    _describe(TarLayer(recipe, digest, size), out)


def _model(order: Order, out: Path) -> None:
    model = _of(Model, order["model"])
    layer = model_layer(model, _file(model.sha256, order["files"][model.sha256]), store=_store())
    digest, _ = _written(layer.chunks(), out)
    if digest != layer.digest:
        raise HashMismatch(f"The layer of {model.path}", expected=layer.digest, actual=digest)
    _describe(layer, out)


def _written(chunks: Iterable[bytes], out: Path) -> tuple[str, int]:
    """Digest and size of a layer whose bytes go into the output."""
    out.mkdir()
    hasher, size = hashlib.sha256(), 0
    with (out / LAYER_TAR).open("wb") as file:
        for chunk in chunks:
            hasher.update(chunk)
            size += len(chunk)
            file.write(chunk)
    return f"sha256:{hasher.hexdigest()}", size


def _describe(layer: TarLayer | ModelLayer, out: Path) -> None:
    document = {"descriptor": layer.descriptor.to_json(), "history": history_of(layer)}
    (out / LAYER).write_text(json.dumps(document, sort_keys=True, indent=1) + "\n")


# -- the image ---------------------------------------------------------------------------------------------------------


def _image(order: Order, out: Path) -> None:
    documents = Path(order["documents"])
    names = [path for path in documents.rglob("*") if path.is_file()]
    cache = Path(order["loaderCache"]).read_bytes() or None if order["loaderCache"] is not None else None
    write_image(
        read_lock(Path(order["lock"]).read_bytes(), name="cpack.lock", platform=order["platform"]),
        [Path(item["layer"]) if "layer" in item else _of(Model, item["model"]) for item in order["layers"]],
        out,
        documents={path.relative_to(documents).as_posix(): path.read_bytes() for path in names},
        loader_cache=cache,
        base=Path(order["base"]) if order["base"] is not None else None,
        is_whole=order["isWhole"],
    )


def _check(order: Order, out: Path) -> None:
    out.write_text(f"{check_image(Path(order['image']))}\n")


_MAKE: Mapping[str, Callable[[Order, Path], None]] = {
    "base": _base,
    "base-layer": _base_layer,
    "check": _check,
    "image": _image,
    "loader-cache": _loader_cache,
    "model": _model,
    "model-file": _model_file,
    "runtime": _runtime,
    "tree": _tree,
    "file": _source,
    **dict.fromkeys(("comfyui", "interpreter", "models", "node", "service", "system", "wheel", "wheels"), _layer),
}

if __name__ == "__main__":
    main()
