"""Who asks for which package: the pack, its user, ComfyUI and each custom node by its ``requirements.txt``.

What an image gets is the pack's list, for that is what worked. The others' lists say who is concerned when something
cannot be resolved, and they name what the pack's writer left out: comfy-pack drops ``onnxruntime``, ``bentoml`` and
``nvidia-*`` from its list, since these differ from machine to machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from cpack_build.errors import Unresolvable
from cpack_build.fetch.tree import Tree
from cpack_build.lock.uv import Refused

__all__ = ["Asked", "asked_by_tree", "explained", "left_out"]

_LIST = "requirements.txt"
_LIST_LIMIT = 1 << 20
_LEFT_OUT = re.compile(r"onnxruntime(-gpu)?|bentoml|nvidia-.+")
"""What comfy-pack's writer leaves out of its list, besides ``conda``, which is no package of an index."""
_ONNX = ("onnxruntime", "onnxruntime-gpu")
"""Two builds of one module: a machine has one of them."""
_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?(?:\{[^}]*\})?"
_SPECIFIER = r"((?:[<>=!~]=?=?[^\s,]+,?)*)"
_DEPENDS = re.compile(rf"(?:all versions of )?{_NAME}(?:==(\S+))? depends? on {_NAME}{_SPECIFIER}")


@dataclass(frozen=True)
class Asked:
    """*who* (``the pack``, ``the custom node x``) asks for *requirement*."""

    who: str
    requirement: Requirement

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)


def asked_by_tree(name: str, tree: Tree) -> list[Asked]:
    """What the tree of ComfyUI or the custom node *name* asks for; lines that are no plain requirement say nothing."""
    file = next((file for file in tree.files() if file.path == _LIST and file.size <= _LIST_LIMIT), None)
    if file is None or file.mode == "120000":
        return []
    who = name if name == "ComfyUI" else f"the custom node {name}"
    asked = []
    for line in tree.read(file.oid).decode("utf-8", "replace").splitlines():
        try:
            requirement = Requirement(line.split(" #")[0].strip())
        except InvalidRequirement:
            continue
        if requirement.url is None:
            asked.append(Asked(who, requirement))
    return asked


def left_out(asked: Iterable[Asked], have: Iterable[str], *, accelerator: str, machine: str) -> list[Asked]:
    """What of *asked* the pack's writer dropped, as nothing among the names *have* takes its place.

    Of the two builds of onnxruntime the one for CUDA is for an *accelerator* ``cudaN`` on x86_64, the only *machine*
    that it is released for.
    """
    names = {canonicalize_name(name) for name in have}
    found: dict[str, Asked] = {}
    for one in asked:
        if not _LEFT_OUT.fullmatch(one.name) or one.name in names or (one.name in _ONNX and names & set(_ONNX)):
            continue
        found.setdefault(one.name, one)
    onnx = [name for name in _ONNX if name in found]
    if onnx:
        is_cuda = accelerator.startswith("cuda") and machine == "x86_64"
        chosen = "onnxruntime-gpu" if is_cuda and "onnxruntime-gpu" in onnx else "onnxruntime"
        first = found.get(chosen) or found[onnx[0]]
        for name in onnx:
            del found[name]
        requirement = Requirement(str(first.requirement).replace(first.requirement.name, chosen, 1))
        found[chosen] = Asked(first.who, requirement)
    return [found[name] for name in sorted(found)]


def explained(error: Refused, asked: Sequence[Asked]) -> Unresolvable:
    """*error* in terms of who asks for what; uv's own words stay as its detail."""
    said = re.sub(r"\s+", " ", error.said)
    needs = [
        (canonicalize_name(needer), version, canonicalize_name(needed), specifier.rstrip(",."))
        for needer, version, needed, specifier in _DEPENDS.findall(said)
    ]
    required = [canonicalize_name(name) for name in re.findall(rf"you require {_NAME}", said)]
    for name in dict.fromkeys([*reversed(required), *(needed for _, _, needed, _ in needs)]):
        wishes = [
            _wish(needer, version, name, specifier, asked)
            for needer, version, needed, specifier in needs
            if needed == name
        ]
        if not wishes:
            continue
        wishes += [f"{one.who} asks for {one.requirement}" for one in asked if one.name == name]
        if len(set(wishes)) > 1:
            told = "; ".join(dict.fromkeys(wishes))
            return _detailed(f"No version of {name} is what everybody asks for: {told}.", error.hint, error)
    named = [name for name in dict.fromkeys(required) if any(one.name == name for one in asked)]
    whose = "".join(f" {name} is asked for by {_whos(name, asked)}." for name in named)
    return _detailed(error.message + whose, error.hint, error)


def _wish(needer: str, version: str, name: str, specifier: str, asked: Sequence[Asked]) -> str:
    whos = _whos(needer, asked)
    which = f"{needer} {version}".rstrip()
    return f"{which} ({whos}) needs {name}{specifier}" if whos else f"{which} needs {name}{specifier}"


def _whos(name: str, asked: Sequence[Asked]) -> str:
    whos = list(dict.fromkeys(one.who for one in asked if one.name == name))
    return whos[0] if len(whos) == 1 else ", ".join(whos[:-1]) + f" and {whos[-1]}" if whos else ""


def _detailed(message: str, hint: str, error: Refused) -> Unresolvable:
    made = Unresolvable(message, hint=hint)
    made.detail = f"uv said: {error.said.strip()}"
    return made
