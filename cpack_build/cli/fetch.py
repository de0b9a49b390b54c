"""``cpack-build fetch PACK|LOCK``: all that an image needs, brought here, or into a bundle to carry elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cpack_build.cli.downloads import Downloads, download_options
from cpack_build.cli.lock import make_locks
from cpack_build.cli.lockfile import is_lock
from cpack_build.cli.lockfile import lock_file as locks_at
from cpack_build.cli.options import Chosen, settings_options, terminal_options
from cpack_build.cli.terminal import Terminal, amount

if TYPE_CHECKING:
    from cpack_build.cpack.reader import Pack
    from cpack_build.cpack.settings import Settings
    from cpack_build.fetch.store import Store, StoredFile
    from cpack_build.lock.schema import Lock
    from cpack_build.progress import Progress, Task

__all__ = ["fetch"]


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
@click.option("--trust", is_flag=True, help="Build packages that have no wheel here, which runs their code.")
@click.option("--dry-run", is_flag=True, help="Say what is missing here, and fetch nothing.")
@settings_options
@download_options
@terminal_options
def fetch(
    pack: Path,
    output: Path | None,
    lock_file: Path | None,
    trust: bool,
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

    locks, settings, documents, read = _locked(
        pack, lock_file, chosen, downloads, terminal, trust=trust, dry_run=dry_run
    )
    store = Store()
    bundle = downloads.opened(store, dry_run=dry_run, progress=terminal.progress)
    places = {lock.platform: downloads.places(settings, bundle, lock) for lock in locks}
    carried = bundle.blobs if bundle is not None and dry_run else {}
    missing = list(
        dict.fromkeys(
            one for lock in locks for one in to_fetch(lock, places=places[lock.platform], store=store, held=carried)
        )
    )
    size = sum(size or 0 for _, size in missing)
    if dry_run:
        terminal.result({"dry_run": True, "missing": [{"name": name, "size": size} for name, size in missing]})
        for name, one in missing:
            terminal.say(f"{amount(one, None, 'B') if one is not None else '?':>10}  {name}")
        total = amount(size, None, "B")
        terminal.say(f"{len(missing)} files, {total}, would be fetched; git trees and a base image besides.")
        return
    sources = downloads.sources(settings, chosen)
    with terminal.progress.task("In all", total=size) as task:
        progress = _InAll(terminal.progress, task, frozenset(name for name, _ in missing))
        gathered = [
            gather(
                lock,
                documents={},
                pack=read,
                places=places[lock.platform],
                store=store,
                sources=sources,
                trust=trust,
                compiles=False,
                progress=progress,
            )
            for lock in locks
        ]
    models = {model.path: gathered[0].models[model.sha256] for model in locks[0].models}
    for name, file in models.items():
        _warn_of_pickle(file, name, store, terminal)
    result: dict[str, object] = {
        "fetched": len(missing),
        "fetched_bytes": size,
        "models": [{"path": name, "file": str(file.path)} for name, file in models.items()],
    }
    told = (
        f"{len(missing)} files, {amount(size, None, 'B')}, were fetched" if missing else "Everything was here already"
    )
    if output is not None:
        written = write_bundle(
            [(lock, materials, places[lock.platform].base) for lock, materials in zip(locks, gathered, strict=True)],
            output,
            documents=documents,
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
    pack: Path,
    lock_file: Path | None,
    chosen: Chosen,
    downloads: Downloads,
    terminal: Terminal,
    *,
    trust: bool,
    dry_run: bool,
) -> tuple[Sequence[Lock], Settings, dict[str, bytes], Pack | None]:
    """The locks, the settings, the documents that a bundle carries along, and the pack if there is one."""
    from cpack_build.cli.image import find_locks
    from cpack_build.cpack.reader import read_pack
    from cpack_build.lock.models import refuse_pickles
    from cpack_build.lock.schema import load_locks, locks_to_bytes

    if is_lock(pack):
        locks, settings = load_locks(pack), chosen.alone()
        if settings.pickles == "refuse":
            refuse_pickles(model.path for model in locks[0].models)
        return locks, settings, {_document(pack, "lock"): pack.read_bytes()}, None
    read = read_pack(pack)
    settings = chosen.settings(read)
    path = locks_at(read, lock_file)
    found = find_locks(read, settings, path, must=lock_file is not None)
    if found is None:
        sources = downloads.sources(settings, chosen)
        found = make_locks(read, settings, sources=sources, trust=trust, terminal=terminal)
        if not dry_run:
            path.write(found)
    documents = {_document(pack, "lock"): locks_to_bytes(found), _document(pack, "zip"): pack.read_bytes()}
    written = chosen.config or pack.with_name(_document(pack, "yaml"))
    if written.is_file():
        documents[_document(pack, "yaml")] = written.read_bytes()
    return found, settings, documents, read


def _document(path: Path, kind: str) -> str:
    """What *path* is called in a bundle."""
    stem = path.name
    for end in (".zip", ".lock", ".cpack"):
        stem = stem.removesuffix(end)
    return f"{stem or 'pack'}.cpack.{kind}"


def _warn_of_pickle(file: StoredFile, name: str, store: Store, terminal: Terminal) -> None:
    from cpack_build.fetch.pickles import verdict_of

    verdict = verdict_of(file, name=name, store=store)
    if verdict is not None and verdict.is_dangerous:
        terminal.progress.note(f"{name} would run code when it is loaded: {', '.join(verdict.dangerous)}.")
