"""``cpack-build fetch PACK|LOCK``: all that an image needs, brought here, or into a bundle to carry elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lock import lock_beside, make_lock, write_lock
from cpack_build.cli.options import Chosen, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.settings import Settings
    from cpack_build.lock.schema import Lock
    from cpack_build.progress import Progress, Task

__all__ = ["fetch", "is_lock"]


@click.command(
    epilog="Example: cpack-build fetch upscale.cpack.zip -o /media/usb/upscale    then, without a network: cpack-build "
    "image upscale.cpack.zip --offline --from /media/usb/upscale    (exit codes: docs/exit-codes.md)"
)
@click.argument("pack", metavar="PACK|LOCK", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.tar",
    help="Also put all of it there, for `--offline --from`; a folder is only added to.",
)
@click.option(
    "--lock",
    "lock_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="By default NAME.cpack.lock beside PACK; made when it is not there.",
)
@click.option("--no-pickle", is_flag=True, help="Refuse models in pickled formats (.ckpt, .pt, .pth, .bin).")
@click.option("--dry-run", is_flag=True, help="Say what is missing here, and fetch nothing.")
@settings_options
@download_options
@terminal_options
def fetch(
    pack: Path,
    output: Path | None,
    lock_file: Path | None,
    no_pickle: bool,
    dry_run: bool,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
) -> None:
    """Fetch everything that the image of PACK or LOCK needs: models, Python and system packages, trees, the base.

    What is here already is not fetched again; what broke off goes on where it was. With --output all of it is put into
    a folder or archive, from which an image can be built where there is no network.
    """
    from cpack_build.fetch.store import Store
    from cpack_build.image.bundle import write_bundle
    from cpack_build.image.gather import gather, to_fetch

    lock, settings, documents = _locked(pack, lock_file, chosen, downloads, terminal, dry_run=dry_run)
    store = Store()
    if no_pickle:
        from cpack_build.lock.models import refuse_pickles

        refuse_pickles(lock.models)
    missing = to_fetch(lock, places=downloads.places(settings, None), store=store)
    if dry_run:
        terminal.result({"dry_run": True, "missing": [{"name": name, "size": size} for name, size in missing]})
        for name, size in missing:
            terminal.say(f"{amount(size, None, 'B') if size is not None else '?':>10}  {name}")
        total = amount(sum(size or 0 for _, size in missing), None, "B")
        terminal.say(f"{len(missing)} files, {total}, would be fetched; git trees and a base image besides.")
        return
    bundle = downloads.opened(store, progress=terminal.progress)
    places = downloads.places(settings, bundle)
    sources = downloads.sources(settings)
    with terminal.progress.task("In all", total=sum(size or 0 for _, size in missing)) as task:
        materials = gather(
            lock,
            documents={},
            places=places,
            store=store,
            sources=sources,
            trust=True,  # nothing of it is run
            progress=_InAll(terminal.progress, task, frozenset(name for name, _ in missing)),
        )
    for model in lock.models:
        _warn_of_pickle(materials.models[model.sha256], model.path, terminal)
    result: dict[str, object] = {
        "lock": lock.sha256,
        "fetched": len(missing),
        "fetched_bytes": sum(size or 0 for _, size in missing),
        "models": [{"path": model.path, "file": str(materials.models[model.sha256])} for model in lock.models],
    }
    total = amount(sum(size or 0 for _, size in missing), None, "B")
    told = f"{len(missing)} files, {total}, were fetched" if missing else "Everything was here already"
    if output is not None:
        written = write_bundle(
            lock,
            materials,
            output,
            documents=documents,
            base_name=places.base,
            store=store,
            sources=sources,
            progress=terminal.progress,
        )
        result["bundle"] = {"path": str(output), "files": written.files, "size": written.size}
        told += f"; {output} has {written.files} files, {amount(written.size, None, 'B')}"
    terminal.result(result)
    terminal.say(f"{told}.")
    if output is not None:
        terminal.say(f"  cpack-build image {pack.name} --offline --from {output}")


class _InAll:
    """Progress of single files that also counts as that of all."""

    def __init__(self, inner: Progress, all_: Task, names: frozenset[str]) -> None:
        self._inner = inner
        self._all = all_
        self._names = names
        self._lock = threading.Lock()

    @contextmanager
    def task(self, title: str, *, total: int | None = None, unit: str = "B") -> Iterator[Task]:
        with self._inner.task(title, total=total, unit=unit) as task:
            yield _Both(task, self._all, self._lock) if title in self._names else task

    def note(self, message: str) -> None:
        self._inner.note(message)


@dataclass(frozen=True)
class _Both:
    one: Task
    all: Task
    lock: threading.Lock

    def advance(self, amount: int) -> None:
        self.one.advance(amount)
        with self.lock:
            self.all.advance(amount)

    def expect(self, total: int) -> None:
        self.one.expect(total)


def _locked(
    pack: Path, lock_file: Path | None, chosen: Chosen, downloads: Downloads, terminal: Terminal, *, dry_run: bool
) -> tuple[Lock, Settings, dict[str, bytes]]:
    """The lock, the settings, and the documents that a bundle carries along."""
    from cpack_build.cli.image import find_lock
    from cpack_build.cpack.reader import read_pack
    from cpack_build.lock.schema import load_lock

    if is_lock(pack):
        lock = load_lock(pack)
        return lock, chosen.alone(), {_document(pack, "lock"): lock.to_bytes()}
    read = read_pack(pack)
    settings = chosen.settings(read)
    path = lock_file or lock_beside(pack)
    found = find_lock(read, settings, path, must=lock_file is not None)
    if found is None:
        found = make_lock(read, settings, downloads=downloads, terminal=terminal)
        if not dry_run:
            write_lock(found, path)
    documents = {_document(pack, "lock"): found.to_bytes(), _document(pack, "zip"): pack.read_bytes()}
    written = chosen.config or pack.with_name(_document(pack, "yaml"))
    if written.is_file():
        documents[_document(pack, "yaml")] = written.read_bytes()
    return found, settings, documents


def _document(path: Path, kind: str) -> str:
    """What *path* is called in a bundle."""
    stem = path.name
    for end in (".zip", ".lock", ".cpack"):
        stem = stem.removesuffix(end)
    return f"{stem or 'pack'}.cpack.{kind}"


def _warn_of_pickle(path: Path, name: str, terminal: Terminal) -> None:
    from cpack_build.fetch.pickles import scan_file

    verdict = scan_file(path, name=name)
    if verdict is not None and verdict.is_dangerous:
        terminal.progress.note(f"{name} would run code when it is loaded: {', '.join(verdict.dangerous)}.")


def is_lock(path: Path) -> bool:
    """Whether the file at *path* begins as a lock does."""
    try:
        with path.open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False  # reading it as a pack says what is wrong
