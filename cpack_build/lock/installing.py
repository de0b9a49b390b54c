"""``install.py`` of trusted nodes: run once, where a pack is locked, and what it changed pinned by its hash.

Some nodes fetch or compile what they need in it. A builder runs it in the image's own root, and the lock takes what
came of it: the node's files as they then are, the Python packages as wheels that the resolver finds again by name and
version, models by their hash. So an image is made of the lock by any backend, and nothing of a node runs in a build.
What was changed anywhere else cannot be pinned, and is refused by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict

from cpack_build.errors import BadSettings, CpackError, NeedsBuilder, NeedsTrust, Unresolvable
from cpack_build.fetch.http import Sources
from cpack_build.fetch.store import Store
from cpack_build.lock.building import Consent, Workshop
from cpack_build.lock.captured import Captured
from cpack_build.lock.installed import LeftFile, keep_tree
from cpack_build.lock.models import pin_local_model, refuse_pickles
from cpack_build.lock.nodes import open_tree
from cpack_build.lock.risks import risks_of_source
from cpack_build.lock.schema import Installed, LocalTree, Lock, Model, NodeTree, PythonEnvironment
from cpack_build.lock.wheels import wheels_of
from cpack_build.progress import SILENT, Progress

__all__ = ["Installer", "Outcome", "Script", "install", "refused", "require_alike", "scripts_of"]

SCRIPT = "install.py"
_MEMO = "node-install-2"
_SHOWN = 8
"""Calls of a script that are shown before it runs."""


@dataclass(frozen=True)
class Script:
    """The ``install.py`` of the node *name*: its *sha256*, and what it is *shown* as before it runs."""

    name: str
    sha256: str
    shown: str


@dataclass(frozen=True)
class Outcome:
    """What a script left: the whole tree of its node, the models below ComfyUI's folder of that name, and the Python
    packages that are new or of another version, as requirements."""

    tree: Sequence[LeftFile]
    models: Sequence[LeftFile]
    packages: Sequence[str]


class Installer(Workshop, Protocol):
    """A workshop where scripts run as well."""

    @property
    def network(self) -> str:
        """Which network a script is given: ``none``, or how people call it."""
        ...

    def installed(self, lock: Lock, pin: NodeTree, pack: Captured | None, out: Path, *, progress: Progress) -> Outcome:
        """Run the script of *pin* in the root that *lock* makes. Files come to lie in the empty folder *out*.

        Raises :class:`Unresolvable` where it fails or does not end, :class:`UnsafeInput` where it changed what is not
        its own.
        """
        ...


class _Remembered(BaseModel):
    """What running a script once has given."""

    model_config = ConfigDict(frozen=True)

    installed: Installed
    tree_sha256: str
    models: tuple[Model, ...]
    network: str
    """Which one the script had."""


def scripts_of(
    names: Sequence[str], pins: Sequence[NodeTree], pack: Captured | None, *, store: Store, sources: Sources
) -> tuple[Script, ...]:
    """The scripts that are to run: those of the nodes called *names*. Raises :class:`BadSettings` for a node that there
    is not, or that has none."""
    by_name = {pin.name: pin for pin in pins}
    scripts = []
    for name in dict.fromkeys(names):
        pin = by_name.get(name)
        if pin is None or (isinstance(pin, LocalTree) and pin.kind == "file"):
            raise BadSettings(
                f"nodes.install names {name!r}, and the pack has no such custom node.",
                hint=f"It has {', '.join(sorted(by_name)) or 'none'}.",
            )
        tree = open_tree(pin, pack, store=store, sources=sources)
        found = next((file for file in tree.files() if file.path == SCRIPT and file.mode != "120000"), None)
        if found is None:
            raise BadSettings(
                f"nodes.install names {name}, which has no install.py.", hint="Leave it out of nodes.install."
            )
        data = tree.read(found.oid)
        sha256 = hashlib.sha256(data).hexdigest()
        lines = data.count(b"\n") + 1
        calls = [f"{risk.what} (line {risk.line})" for risk in risks_of_source(name, SCRIPT, data)]
        told = "; ".join(calls[:_SHOWN]) + (f"; and {len(calls) - _SHOWN} more" if len(calls) > _SHOWN else "")
        shown = f"install.py of {name}, {lines} lines, sha256 {sha256[:12]}…" + (f": {told}" if told else "")
        scripts.append(Script(name, sha256, shown))
    return tuple(scripts)


def refused(scripts: Sequence[Script], *, installer: Installer | None, trust: Consent) -> CpackError | None:
    """Why *scripts* may not run, if so: nobody has agreed, or there is no place for them."""
    if installer is None:
        return NeedsBuilder(
            f"install.py of {', '.join(script.name for script in scripts)} runs on a builder only, never on this "
            "machine.",
            hint="Add --backend buildkit, or leave the node out of nodes.install.",
            runs=[script.shown for script in scripts],
        )
    network = "no network" if installer.network == "none" else f"the network {installer.network!r}"
    runs = [f"{script.shown}; with {network}" for script in scripts]
    if trust is True or (trust and trust.issuperset(runs)):
        return None
    return NeedsTrust(
        runs,
        why="These programs of others would run on the builder, in the image's root:",
        hint="Add --trust if you trust them, or leave the nodes out of nodes.install.",
        question="Run these programs on the builder?",
    )


def install(
    lock: Lock,
    scripts: Sequence[Script],
    *,
    pack: Captured | None,
    installer: Installer | None,
    trust: Consent,
    again: Callable[[Sequence[str]], PythonEnvironment],
    pickles: str,
    anew: bool = False,
    store: Store,
    progress: Progress = SILENT,
) -> Lock:
    """*lock* with what *scripts* leave: those that ran before on the same ground need nobody's leave, unless they
    are to run *anew*. *again* resolves the Python packages with further requirements.

    Raises :class:`NeedsTrust`, :class:`ToolMissing`, else as :meth:`Installer.installed` and *again*.
    """
    pins = {pin.name: pin for pin in lock.custom_nodes}
    keys = {script: _key(lock, pins[script.name]) for script in scripts}
    known = {script: None if anew else _recalled(key, installer, store) for script, key in keys.items()}
    new = [script for script, done in known.items() if done is None]
    if new and (error := refused(new, installer=installer, trust=trust)) is not None:
        raise error
    done: dict[str, _Remembered] = {}
    ran: dict[str, _Remembered] = {}
    for script, before in known.items():
        pin = pins[script.name]
        if before is None:
            assert installer is not None, "else it is refused"
            before = _run(lock, pin, script, installer, pack=pack, store=store, progress=progress)
            ran[keys[script]] = before
        done[script.name] = before
    models = [model for one in done.values() for model in one.models]
    if pickles == "refuse":
        refuse_pickles(model.path for model in models)
    joined = _joined(lock.models, models, done)
    try:
        python = _environment(lock, done, again)
    except NeedsTrust:
        # who is asked for what the scripts want built, and agrees, need not wait for them a second time
        _remember(ran, store)
        raise
    _remember(ran, store)
    return _placed(lock, done).model_copy(update={"models": joined, "python": python})


def _remember(ran: Mapping[str, _Remembered], store: Store) -> None:
    for key, outcome in ran.items():
        store.remember(_MEMO, key, outcome.model_dump_json())


def require_alike(locks: Sequence[Lock]) -> None:
    """See that scripts left the same on all platforms, which share their nodes and models in one lock.

    Raises :class:`Unresolvable` naming the nodes where they did not.
    """
    first, *others = ({pin.name: pin for pin in lock.custom_nodes} for lock in locks)
    for other in others:
        for name, pin in first.items():
            if pin.installed and (twin := other[name]).installed:
                left = (pin.tree_sha256, pin.installed.models)
                if left != (twin.tree_sha256, twin.installed.models):
                    raise Unresolvable(
                        f"install.py of {name} leaves other files on {pin.installed.platform} than on "
                        f"{twin.installed.platform}, and the locks of one file share them.",
                        hint="Lock each platform into a file of its own, with --platform and -o.",
                    )


def _run(
    lock: Lock,
    pin: NodeTree,
    script: Script,
    installer: Installer,
    *,
    pack: Captured | None,
    store: Store,
    progress: Progress,
) -> _Remembered:
    with (
        store.folder("install-") as place,
        progress.task(f"Running install.py of {pin.name}"),
    ):
        left = installer.installed(lock, pin, pack, place, progress=progress)
        archive, tree = keep_tree(pin.name, left.tree, store=store)
        models = []
        for model in left.models:
            assert model.content is not None, "models are files"
            models.append(pin_local_model(model.path, model.content, store=store, progress=progress))
    done = Installed(
        sha256=archive.sha256,
        size=archive.size,
        script_sha256=script.sha256,
        from_tree_sha256=pin.tree_sha256,
        platform=lock.platform,
        packages=tuple(sorted(left.packages)),
        models=tuple(sorted(model.path for model in models)),
    )
    return _Remembered(installed=done, tree_sha256=tree.tree_digest(), models=tuple(models), network=installer.network)


def _recalled(key: str, installer: Installer | None, store: Store) -> _Remembered | None:
    """What the script left on this ground before: with the network that it would have now, if that is one."""
    if (known := store.recall(_MEMO, key)) is None:
        return None
    done = _Remembered.model_validate_json(known)
    if installer is not None and installer.network not in ("none", done.network):
        return None
    needed = [done.installed.sha256, *(model.sha256 for model in done.models)]
    return done if all(store.find(sha256) is not None for sha256 in needed) else None


def _key(lock: Lock, pin: NodeTree) -> str:
    """What the outcome is a function of, as far as anybody can tell: not the hour, nor what hosts answer then."""
    root = lock.model_dump_json(include={"platform", "base", "system", "interpreter"})
    ground = f"{root} {lock.python.pylock_sha256} {lock.comfyui.tree_sha256}"
    return hashlib.sha256(f"{pin.name} {pin.tree_sha256} {ground}".encode()).hexdigest()


def _placed(lock: Lock, done: dict[str, _Remembered]) -> Lock:
    """*lock* with the trees that the scripts left."""

    def after(pins: Sequence[NodeTree]) -> tuple[NodeTree, ...]:
        return tuple(
            pin.model_copy(
                update={"tree_sha256": done[pin.name].tree_sha256, "installed": done[pin.name].installed}
            )
            if pin.name in done
            else pin
            for pin in pins
        )  # fmt: skip

    return lock.model_copy(
        update={
            "nodes": after(lock.nodes),
            "registry_nodes": after(lock.registry_nodes),
            "local_nodes": after(lock.local_nodes),
        }
    )


def _joined(locked: Sequence[Model], fetched: Sequence[Model], done: dict[str, _Remembered]) -> tuple[Model, ...]:
    """The pack's models and the scripts'. Raises :class:`Unresolvable` where two differ for one path."""
    by_path = {model.path.casefold(): model for model in locked}
    for model in fetched:
        twin = by_path.setdefault(model.path.casefold(), model)
        if (twin.path, twin.sha256) != (model.path, model.sha256):
            who = next(name for name, one in done.items() if model in one.models)
            raise Unresolvable(
                f"install.py of {who} fetches {model.path} with sha256 {model.sha256[:12]}…, and the pack, or another "
                f"node's, has {twin.path} with {twin.sha256[:12]}….",
                hint="Leave one of the nodes out of nodes.install, or correct the pack.",
            )
    return tuple(sorted(by_path.values(), key=lambda model: model.path))


def _environment(
    lock: Lock, done: dict[str, _Remembered], again: Callable[[Sequence[str]], PythonEnvironment]
) -> PythonEnvironment:
    """The Python packages with those that the scripts installed, resolved and pinned as all others are."""
    have = {f"{canonicalize_name(wheel.name)}=={wheel.version}" for wheel in wheels_of(lock.python)}
    wanted: dict[str, tuple[str, str]] = {}
    for name, one in done.items():
        for package in one.installed.packages:
            key = canonicalize_name(Requirement(package).name)
            if (twin := wanted.setdefault(key, (package, name)))[0] != package:
                raise Unresolvable(
                    f"install.py of {name} installs {package}, and that of {twin[1]} {twin[0]}.",
                    hint="Leave one of the nodes out of nodes.install.",
                )
    missing = [package for package, _ in wanted.values() if package not in have]
    if not missing:
        return lock.python
    try:
        return again([package for package, _ in wanted.values()])
    except CpackError as error:
        names = ", ".join(sorted({name for package, name in wanted.values() if package in missing}))
        error.message = f"What install.py of {names} installs cannot be pinned: {error.message}"
        raise
