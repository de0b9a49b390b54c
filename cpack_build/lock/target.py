"""Which accelerator an image is for, as its torch says: ``cpu``, ``cuda12.8``, ``rocm6.4``.

A torch wheel brings its CUDA along as ``nvidia-*`` wheels, so the target decides nothing but which build of torch and
its family is locked, and which driver the host needs (:mod:`.cuda` has the tables). Where no target is
asked for, the pack's own torch decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from cpack_build.cpack.settings import AnyPlatform
from cpack_build.errors import Unresolvable
from cpack_build.lock.cuda import CUDA_BUILDS, PLAIN_CUDA
from cpack_build.lock.wheels import Wheel

__all__ = [
    "FAMILY",
    "accelerator_of",
    "check_target",
    "elsewhere",
    "label_in",
    "name_of",
    "retarget",
    "target_of",
]

FAMILY = ("torch", "torchvision", "torchaudio")
"""Packages that PyTorch releases together, once for each accelerator, told apart by local version labels."""

_LABEL = re.compile(r"cpu|cu[0-9]{3}|rocm[0-9.]+")
_BELONGS = re.compile(r"nvidia-.*|cuda-(toolkit|bindings|pathfinder)|triton|(pytorch-)?triton-.*")
"""What a torch of another accelerator brings along: to be resolved anew with it."""


@dataclass(frozen=True)
class Retargeted:
    """The pack's *requirements* for another accelerator, and what was *changed*, for people."""

    requirements: tuple[str, ...]
    changed: tuple[str, ...]


def label_of(target: str) -> str:
    """The local version label that PyTorch gives wheels for *target*: ``cu128`` for ``cuda12.8``."""
    return "cu" + target.removeprefix("cuda").replace(".", "") if target.startswith("cuda") else target


def label_in(requirement: str) -> str | None:
    """The label that *requirement* pins one of torch's family to (``cu128``), if it is and does."""
    name, version = _parsed(requirement)
    local = Version(version).local if name in FAMILY and version is not None else None
    match = _LABEL.match(local) if local is not None else None
    return match[0] if match else None


def _target_of_label(label: str) -> str:
    return f"cuda{label[2:-1]}.{label[-1]}" if label.startswith("cu") else label


def _target_of_version(version: str, platform: AnyPlatform) -> str:
    """What the torch of that *version* is for. Raises :class:`Unresolvable` where that is not known."""
    parsed = Version(version)
    if parsed.local is not None and (match := _LABEL.match(parsed.local)):
        return _target_of_label(match[0])
    cuda = PLAIN_CUDA.get(platform, {}).get(f"{parsed.major}.{parsed.minor}")
    if cuda is not None:
        return f"cuda{cuda}"
    newest = max((Version(minor) for minor in PLAIN_CUDA.get(platform, {})), default=Version("0"))
    if platform == "linux/amd64" and parsed > newest:
        raise Unresolvable(
            f"Which CUDA torch {version} brings along is not known to this cpack-build.",
            hint="Say so: --python-package torch==VERSION+cuNNN, or update cpack-build.",
        )
    return "cpu"


def target_of(wheels: Iterable[Wheel], *, platform: AnyPlatform) -> str:
    """What the locked *wheels* are for: the label of their torch, else the CUDA that they bring along, else ``cpu``."""
    found = {wheel.name: wheel.version for wheel in wheels}
    if "torch" not in found:
        return "cpu"
    for name in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu11"):
        if name in found and Version(found["torch"]).local is None:
            runtime = Version(found[name])
            return f"cuda{runtime.major}.{runtime.minor}"
    return _target_of_version(found["torch"], platform)


def accelerator_of(requirements: Sequence[str], *, platform: AnyPlatform) -> str:
    """What the torch that *requirements* pin is for, as far as that is known; ``cpu`` without any."""
    pins = dict(map(_parsed, requirements))
    try:
        return _target_of_version(pins["torch"] or "", platform) if pins.get("torch") else "cpu"
    except Unresolvable:
        return "cuda"


def elsewhere(requirements: Sequence[str], *, platform: AnyPlatform) -> str | None:
    """What a pack's torch is to be for in a workspace on another system than Linux, where all packs are of; ``None`` on
    Linux, where it stays what it is. No CUDA runs on a Mac."""
    if platform.startswith("linux/"):
        return None
    return accelerator_of(requirements, platform="linux/amd64") if platform == "windows/amd64" else "cpu"


def name_of(requirement: str) -> str:
    """The normalised name of a requirement; empty for what is none."""
    return _parsed(requirement)[0]


def retarget(requirements: Sequence[str], target: str, *, platform: AnyPlatform) -> Retargeted:
    """*requirements* with torch's family for *target*, and without what the packer's own accelerator brought along.

    Raises :class:`Unresolvable` when that torch was never released for *target*.
    """
    parsed = [(text, _parsed(text)) for text in requirements]
    pins = {name: version for _, (name, version) in parsed if version is not None}
    torch = pins.get("torch")
    if torch is None or _target_of_version(torch, platform) == target:
        if platform.startswith("linux/"):
            return Retargeted(tuple(requirements), ())
        # what torch brings along is for Linux alone
        return Retargeted(tuple(text for text, (name, _) in parsed if not _BELONGS.fullmatch(name)), ())
    minor = ".".join(map(str, Version(torch).release[:2]))
    _check_released(torch, minor, target, platform)
    plain = PLAIN_CUDA.get(platform, {}).get(minor)
    is_plain = target == (f"cuda{plain}" if plain is not None else "cpu")
    kept, changed = [], []
    for text, (name, version) in parsed:
        if name in FAMILY and version is not None:
            public = Version(version).public
            # a plain `==` would also take a labelled wheel, and prefer it (PEP 440, "Local version identifiers")
            pin = f"=={public},!={public}+cpu" if is_plain else f"=={public}+{label_of(target)}"
            kept.append(f"{name}{pin}")
            changed.append(f"{name} {version} becomes {public if is_plain else f'{public}+{label_of(target)}'}")
        elif name and _BELONGS.fullmatch(name):
            changed.append(f"{name} {version or ''}".rstrip() + " is resolved anew")
        else:
            kept.append(text)
    return Retargeted(tuple(kept), tuple(changed))


def _parsed(text: str) -> tuple[str, str | None]:
    """Name and pinned version; what is no requirement is for others to refuse."""
    try:
        requirement = Requirement(text)
    except ValueError:
        return "", None
    name = canonicalize_name(requirement.name)
    version = next((one.version for one in requirement.specifier if one.operator in ("==", "===")), None)
    if version is None and requirement.url is not None:
        match = re.search(r"/[^/]+?-([0-9][^-/]*)-[^/]+\.whl", requirement.url.replace("%2B", "+").replace("%2b", "+"))
        version = match[1] if match else None
    try:
        return name, str(Version(version)) if version is not None else None
    except InvalidVersion:
        return name, None


def _check_released(torch: str, minor: str, target: str, platform: AnyPlatform) -> None:
    builds = CUDA_BUILDS.get(minor)
    if not target.startswith("cuda") or builds is None or target.removeprefix("cuda") in builds:
        return
    raise Unresolvable(
        f"torch {Version(torch).public} was not released for {target}, only for "
        f"{', '.join(f'cuda{build}' for build in builds)} and cpu.",
        hint="Choose one of them with --target, or another torch with --python-package torch==VERSION.",
    )


def check_target(wheels: Sequence[Wheel], asked: str, *, platform: AnyPlatform) -> None:
    """See that the locked *wheels* are for the target *asked* for. Raises :class:`Unresolvable`."""
    torch = next((wheel for wheel in wheels if wheel.name == "torch"), None)
    if torch is None and asked != "cpu":
        raise Unresolvable(
            f"The target is {asked}, but nothing in the pack needs torch.",
            hint="Leave --target out, or add torch with --python-package.",
        )
    if (found := target_of(wheels, platform=platform)) != asked:
        assert torch is not None
        raise Unresolvable(
            f"The target is {asked}, but torch {torch.version} is for {found}.",
            hint=f"Name where its wheels for {label_of(asked)} lie with --extra-index-url or --find-links.",
        )
