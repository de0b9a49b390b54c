"""The stage: a lock, and a pack or an image, become a workspace.

First everything is looked at: which files of each part are there, which are missing, and where something else lies.
Something else is never touched without a word, so nothing is written until it is known that all can be. Then each part
is completed, every file under its name only when it is whole and proved. A second run finds most of it there; a run
that was killed leaves what it has done to the next.
"""

from __future__ import annotations

import hashlib
import posixpath
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cpack_build.errors import HashMismatch, Occupied, StorageError
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.schema import GitTree, NodeTree, RegistryNode
from cpack_build.progress import SILENT, Progress
from cpack_build.restore.checkout import head_of, make_checkout
from cpack_build.restore.folder import OWN, Folder
from cpack_build.restore.goal import (
    Goal,
    Options,
    Part,
    Restored,
    disabled_models,
    documents_of,
    is_there,
    outlook,
    tree_key,
)
from cpack_build.restore.models import How, bring_layers, bring_model, is_model_there, place_model
from cpack_build.restore.names import check_names, folding_of
from cpack_build.restore.origins import Origins
from cpack_build.restore.packages import Packages
from cpack_build.restore.parts import Pin, place_of
from cpack_build.restore.scripts import run_scripts
from cpack_build.restore.state import (
    check_owner,
    held,
    load_manifest,
    load_state,
    save_manifest,
    save_state,
    take_over,
)
from cpack_build.restore.submodules import check_out_submodules
from cpack_build.restore.trees import File, Manifest, Source

__all__ = ["restore"]


def restore(
    goal: Goal, root: Path, *, options: Options, store: Store, sources: Sources, progress: Progress = SILENT
) -> Restored:
    """Make *root* the workspace of *goal*, or complete it.

    Raises :class:`Occupied` before anything is written where something else is in the way, and what the sources raise;
    whatever is raised, what was written is whole and the next run goes on from there.
    """
    if options.dry_run and not root.exists():
        return outlook(goal, root, options)
    folder = Folder(root)
    try:
        with ExitStack() as opened:
            if options.dry_run:
                aside = Path(opened.enter_context(TemporaryDirectory(prefix="cpack-restore-")))
            else:
                opened.enter_context(held(folder))
                folder.sweep()
                aside = opened.enter_context(folder.aside())
            return _Work(goal, folder, options, store, sources, progress, aside, opened).run()
    finally:
        folder.close()


@dataclass
class _Tree:
    """A tree, what of it is missing, and its source once that is open."""

    name: str
    prefix: str
    pin: Pin
    manifest: Manifest
    missing: list[File]
    source: Source | None


class _Work:
    """One run."""

    def __init__(
        self,
        goal: Goal,
        folder: Folder,
        options: Options,
        store: Store,
        sources: Sources,
        progress: Progress,
        aside: Path,
        opened: ExitStack,
    ) -> None:
        self.goal, self.folder, self.options = goal, folder, options
        self.store, self.sources, self.progress = store, sources, progress
        self.state = load_state(folder)
        self.notes: list[str] = []
        self.parts: list[Part] = []
        self.occupied: list[str] = []
        self.origins = Origins(
            goal.lock, pack=goal.pack, artifact=goal.artifact, aside=aside,
            store=store, sources=sources, offline=options.offline, progress=progress, opened=opened,
        )  # fmt: skip
        self.packages = Packages(goal.lock, folder, origins=self.origins, store=store, progress=progress)
        self.inputs = {name: data for name, data in goal.documents.items() if name.startswith("input/")}
        self.models = {model.path: model for model in goal.lock.models} if options.models != "none" else {}
        if options.disabled_models and goal.pack is not None:
            self.models |= {model.path: model for model in disabled_models(goal.pack)}

    def run(self) -> Restored:
        goal, folder = self.goal, self.folder
        check_owner(folder, goal.lock)
        trees = self._look_at_trees()
        check_names(
            [f"{tree.prefix}{file.path}" for tree in trees for file in tree.manifest.files]
            + [*self.inputs, *self.models],
            windows=sys.platform == "win32", folding=folding_of(folder.root), what=goal.name,
        )  # fmt: skip
        documents = self._look_at_documents()
        models = self._look_at_models()
        venv = self._look_at_environment()
        self._refuse_occupied()
        if not self.options.dry_run:
            take_over(folder, goal.lock)
            for tree in trees:
                if tree.source is not None:
                    save_manifest(folder, tree_key(tree.pin, goal.lock), tree.manifest)
                self._write_tree(tree)
            self._write_documents(documents)
            self._write_models(models)
        self._count(trees, documents, models)
        if self.options.environment:
            self._environment(venv)
        scripts: tuple[str, ...] = ()
        if not self.options.dry_run:
            places = [
                (tree.name, tree.prefix)
                for tree in trees
                if tree.prefix not in ("", "custom_nodes/")
                and not (isinstance(tree.pin, NodeTree) and tree.pin.installed)
            ]
            consent = self.options.consent if self.options.environment else _never
            scripts = run_scripts(folder, places, self.state, consent=consent)
            self.state.complete = True
            self._save()
        return Restored(folder.root, tuple(self.parts), tuple(self.notes), scripts)

    # -- looking -------------------------------------------------------------------------------------------------------

    def _look_at_trees(self) -> list[_Tree]:
        lock = self.goal.lock
        found = []
        for pin in (lock.comfyui, *lock.custom_nodes):
            prefix, key = place_of(pin, lock), tree_key(pin, lock)
            source = None
            manifest = load_manifest(self.folder, key, pin.tree_sha256)
            missing = self._missing(prefix, manifest) if manifest is not None else []
            if manifest is None or missing:
                source = self.origins.tree(pin)
                manifest = source.manifest
                missing = self._missing(prefix, manifest)
            found.append(_Tree(pin.name, prefix, pin, manifest, missing, source))
        return found

    def _missing(self, prefix: str, manifest: Manifest) -> list[File]:
        """The files that are not there; what is something else is occupied, unless an input or a model has its path."""
        missing = []
        for file in manifest.files:
            path = prefix + file.path
            if path in self.inputs or path in self.models:
                continue
            state = is_there(self.folder, path, file, stand_in=self.state.stand_ins.get(path))
            if state is None or (state is False and self._may_replace(path)):
                missing.append(file)
        return missing

    def _look_at_documents(self) -> dict[str, bytes]:
        """Inputs, both workflows and the pack's own documents that are not there."""
        missing = {}
        for path, data in documents_of(self.goal).items():
            expected = File(path, "100644", hashlib.sha256(data).hexdigest())
            state = is_there(self.folder, path, expected)
            if state is False and path.startswith(("user/", f"{OWN}/")):
                continue  # a workflow that its owner went on drawing is theirs
            if state is None or (state is False and self._may_replace(path)):
                missing[path] = data
        return missing

    def _look_at_models(self) -> list[str]:
        missing = []
        for path, model in self.models.items():
            state = is_model_there(self.folder, model, store=self.store)
            if state is None or (state is False and self._may_replace(path)):
                missing.append(path)
        return missing

    def _look_at_environment(self) -> bool:
        """Whether the environment is to be made anew."""
        if not self.options.environment:
            return False
        if self.packages.is_foreign(self.state) and not self._may_replace(".venv"):
            return False
        return self.packages.is_missing(self.state)

    def _may_replace(self, path: str) -> bool:
        if any(path == named or path.startswith(f"{named.rstrip('/')}/") for named in self.options.force):
            return True
        if path not in self.occupied:
            self.occupied.append(path)
        return False

    def _refuse_occupied(self) -> None:
        if self.occupied and not self.options.dry_run:
            raise Occupied(self.folder.root, self.occupied)
        self.notes += [f"Something else lies at {path}; it needs --force." for path in self.occupied]

    # -- writing -------------------------------------------------------------------------------------------------------

    def _write_tree(self, tree: _Tree) -> None:
        with self.progress.task(tree.name, total=len(tree.missing), unit="files") as task:
            # What stands in for a link, where the system makes none, is a copy of a file.
            for file in sorted(tree.missing, key=lambda file: file.mode == "120000"):
                assert tree.source is not None
                path = tree.prefix + file.path
                self._clear(path)
                chunks = _proved(tree.source.read(file.path), file, tree.name)
                if file.mode == "120000":
                    self._link(tree, file, b"".join(chunks).decode("utf-8", "surrogateescape"))
                else:
                    self.folder.write(path, chunks, mode=file.permissions)
                task.advance(1)
        said = self.state.trees.setdefault(tree.name, {})
        if tree.source is not None:
            said["origin"] = tree.source.origin
        if isinstance(tree.pin, GitTree):
            said |= {"url": tree.pin.url, "commit": tree.pin.commit}
            self._check_out(tree, said)
        if isinstance(tree.pin, RegistryNode) and self.folder.status(f"{tree.prefix}.tracking") is None:
            # ComfyUI-Manager's record of what it installed: the node is known as the registry's, also to `pack`.
            listed = "\n".join(file.path for file in tree.manifest.files)
            self.folder.write(f"{tree.prefix}.tracking", [listed.encode()])
        self._save()

    def _link(self, tree: _Tree, file: File, target: str) -> None:
        """The link *file*; where the system makes none, a copy of the file of the tree that it leads to."""
        path = tree.prefix + file.path
        self.state.stand_ins.pop(path, None)
        if self.folder.link(path, target):
            return
        assert tree.source is not None
        files = {one.path: one for one in tree.manifest.files}
        meant: File | None = file
        for _ in range(len(files)):
            if meant is None or meant.mode != "120000":
                break
            text = b"".join(tree.source.read(meant.path)).decode("utf-8", "surrogateescape")
            meant = files.get(posixpath.normpath(posixpath.join(posixpath.dirname(meant.path), text)))
        if meant is None or meant.mode == "120000":
            raise StorageError(
                f"{path} is a link to {target!r}, no file of {tree.name}, and {self.folder.root} takes no links.",
                hint="Restore to a file system that has them; on Windows turn Developer Mode on.",
            )
        self.state.stand_ins[path] = meant.sha256
        self._save()  # before it is there: a run that is killed must not take it for something else
        self.folder.write(path, _proved(tree.source.read(meant.path), meant, tree.name), mode=meant.permissions)

    def _check_out(self, tree: _Tree, said: dict[str, Any]) -> None:
        """A ``.git`` at the commit, where git has it; one that is there stays. Submodules get theirs likewise."""
        assert isinstance(tree.pin, GitTree)
        work_tree = self.folder.root / tree.prefix
        there = self.folder.status(f"{tree.prefix}.git")
        is_here = there is not None
        if is_here and (head := head_of(work_tree / ".git")) != tree.pin.commit:
            self.notes.append(f"{tree.name} has a .git of its own, at {head}; it was left alone.")
            return
        if there is not None and (not stat.S_ISDIR(there.st_mode) or self._has_submodules(tree, said)):
            return
        commit = self.origins.commit(tree.pin)
        if commit is None:
            said["checkout"] = is_here
            if not is_here:
                self._note_no_checkout(tree.name, f"{tree.pin.url} cannot be had here", tree.pin.commit)
            return
        if not is_here:
            exclude = (f"/{OWN}/", "/.venv/", "*.pyc", "/models/", "/user/") if not tree.prefix else ("*.pyc",)
            with self.folder.aside() as aside:
                make_checkout(commit, work_tree, aside, url=tree.pin.url, exclude=exclude)
                self.folder.move(aside.relative_to(self.folder.root).as_posix(), f"{tree.prefix}.git")
        said["checkout"] = True
        found = {}
        for one in check_out_submodules(self.folder, tree.prefix, commit, fetch=self.origins.submodule):
            found[one.path] = {"url": one.url, "commit": one.commit, "checkout": not one.problem}
            if one.problem:
                self._note_no_checkout(f"{tree.name}/{one.path}", one.problem, one.commit)
        said["submodules"] = found

    def _has_submodules(self, tree: _Tree, said: Mapping[str, Any]) -> bool:
        """Whether every submodule is a checkout, as far as is on record."""
        known: dict[str, dict[str, Any]] | None = said.get("submodules")
        return known is not None and all(
            one.get("checkout") and self.folder.status(f"{tree.prefix}{path}/.git") is not None
            for path, one in known.items()
        )

    def _note_no_checkout(self, name: str, problem: str, commit: str) -> None:
        self.notes.append(f"{name} is no git checkout: {problem}. Its commit is {commit}.")

    def _write_documents(self, missing: Mapping[str, bytes]) -> None:
        for path, data in missing.items():
            self._clear(path)
            self.folder.write(path, [data])

    def _write_models(self, missing: Sequence[str]) -> None:
        models = [self.models[path] for path in missing]
        bring_layers(models, artifact=self.goal.artifact, store=self.store, progress=self.progress)
        for path in missing:
            model = self.models[path]
            file = bring_model(
                model, artifact=self.goal.artifact, folders=self.options.model_folders, store=self.store,
                sources=self.origins.outside, progress=self.progress,
            )  # fmt: skip
            self._clear(path)
            how: How = "copy" if self.options.models == "copy" else "link"
            self.state.models[path] = place_model(self.folder, path, file, how=how, store=self.store)
            self._save()

    def _environment(self, needed: bool) -> None:
        wheels = self.packages.count
        if not needed or self.options.dry_run:
            made = wheels if needed else 0
            self.parts.append(Part("environment", ".venv", wheels - made, made, self.state.environment))
            return
        self._clear(".venv")
        self.state.environment = "making"
        self._save()
        origin = self.packages.make(self.options)
        self.state.environment = origin
        self._save()
        self.parts.append(Part("environment", ".venv", 0, wheels, origin))

    def _clear(self, path: str) -> None:
        """Keep aside what lies at *path*, which may be replaced."""
        if self.folder.status(path) is not None:
            if path == ".venv" and self.state.environment == "making":
                self.packages.discard()
                return
            kept = self.folder.set_aside(path)
            self.notes.append(f"What was at {path} is in {kept} now.")

    def _save(self) -> None:
        self.state.name, self.state.lock_sha256 = self.goal.name, self.goal.lock.sha256
        self.state.inputs = sorted(name.removeprefix("input/") for name in self.inputs)
        self.state.left_out = [
            *(["models"] if self.options.models == "none" else []),
            *(["environment"] if not self.options.environment else []),
        ]
        save_state(self.folder, self.state)

    def _count(self, trees: Sequence[_Tree], documents: Mapping[str, bytes], models: Sequence[str]) -> None:
        for tree in trees:
            kind = "comfyui" if not tree.prefix else "node"
            origin = str(self.state.trees.get(tree.name, {}).get("origin", tree.source.origin if tree.source else ""))
            there = len(tree.manifest.files) - len(tree.missing)
            self.parts.append(Part(kind, tree.name, there, len(tree.missing), origin))
        every = documents_of(self.goal)
        self.parts.append(Part("files", "workflows and inputs", len(every) - len(documents), len(documents)))
        for path in self.models:
            made = path in models
            self.parts.append(Part("model", path, int(not made), int(made), self.state.models.get(path, "")))


def _never(scripts: object) -> bool:
    return False


def _proved(chunks: Iterator[bytes], file: File, name: str) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != file.sha256:
        raise HashMismatch(f"{name}: {file.path}", expected=file.sha256, actual=hasher.hexdigest())
