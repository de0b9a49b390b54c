"""``install.py`` of a node, run by BuildKit in the root of the image that a lock makes, and what it changed.

The image's own Dockerfile makes that root, with compilers beside the system packages; one more step runs the script,
with no secret and the network that the user allows, and another, which only looks at the two roots, tells what differs.
That comes back as files under numbers and a list, and is believed no more than any other download."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cpack_build.backends.builder import Builder
from cpack_build.backends.buildkit import base_context, complete, pinned_tool, pinned_uv, require_quiet
from cpack_build.backends.dockerfile import BASE_CONTEXT, HEAD, ImageStages, text_of
from cpack_build.backends.ingredients import LockContext, clean_url
from cpack_build.backends.protocol import Network, Request
from cpack_build.errors import EngineFailed, HashMismatch, StorageError, Unresolvable, UnsafeInput
from cpack_build.image.config import COMFYUI, COMFYUI_ENV
from cpack_build.lock.installed import LeftFile
from cpack_build.lock.installing import Outcome
from cpack_build.lock.requirements import is_name
from cpack_build.lock.schema import Lock, NodeTree

__all__ = ["run_install"]

_TOLD_LIMIT = 64 << 20
_SCRIPT = "inside_install.py"
_MOUNT = f"--mount=type=bind,source={_SCRIPT},target=/cpack/{_SCRIPT}"
_PIP = "#!/{prefix}/bin/python\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n"


class _Left(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str
    executable: bool
    kind: Literal["file", "link", "other"]
    file: Annotated[int, Field(ge=1)] | None = None
    target: str = ""


class _Package(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    version: str
    direct: str


class _Changes(BaseModel):
    """``changes.json``, as :mod:`.inside_install` writes it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    tree: list[_Left]
    models: list[_Left]
    elsewhere: list[str]
    further: int
    packages: list[_Package]
    removed: list[str]
    lost: list[str]


def run_install(
    lock: Lock,
    pin: NodeTree,
    out: Path,
    *,
    builder: Builder,
    network: Network,
    seconds: int,
    index_url: str | None,
    extra_index_urls: Sequence[str],
    request: Request,
) -> Outcome:
    """Run the script of *pin* over the root of *lock*, in the folder *out*, with *network*, for at most *seconds*, and
    with these package indexes for pip.

    Raises :class:`Unresolvable` where it fails, does not end or installs what has no name, :class:`UnsafeInput` where
    it changed what is not its own.
    """
    context = out / "context"
    context.mkdir()
    left = out / "left"
    settings = _index(index_url, extra_index_urls, request)
    text = _dockerfile(lock, pin, context, builder, network, seconds, settings, request)
    complete(text[0], text[1])
    arguments = ["--platform", lock.platform, "--build-arg", f"SOURCE_DATE_EPOCH={lock.source_date_epoch}"]
    if (base := base_context(lock, request)) is not None:
        arguments += ["--build-context", f"{BASE_CONTEXT}={base}"]
    if network == "host":
        arguments += ["--allow", "network.host"]
    try:
        builder.build(context, [*arguments, "--output", f"type=local,dest={left}"], progress=request.progress)
    except (HashMismatch, StorageError):
        raise
    except EngineFailed as error:
        told = Unresolvable(
            f"install.py of {pin.name} did not run through: {error.message}",
            hint="Leave it out of nodes.install"
            + (", or allow a network with --build-network default." if network == "none" else "."),
        )
        told.detail = error.detail
        raise told from error
    changes = _read(left, pin)
    for path in changes.lost[:5]:
        request.progress.note(f"install.py of {pin.name} left {path!r} in its home folder, which no image has.")
    _require_own(changes, pin)
    return Outcome(
        [_file(one, left, pin) for one in changes.tree],
        [_file(one, left, pin) for one in changes.models],
        [_requirement(package, pin) for package in changes.packages],
    )


def _dockerfile(
    lock: Lock,
    pin: NodeTree,
    folder: Path,
    builder: Builder,
    network: Network,
    seconds: int,
    settings: Mapping[str, str],
    request: Request,
) -> tuple[LockContext, str]:
    bare = lock.model_copy(update={"models": (), "bytecode": "none"})
    require_quiet(bare, request)
    built = {wheel.sha256: wheel for wheel in lock.python.built}
    context = LockContext(folder, bare, request, fetches=builder.features.fetches, built=built, lock=bare)
    stages = ImageStages(context, builder.features)
    stages.lay_image(pinned_uv(bare, request))
    (pip,) = context.wheels(pinned_tool("pip>=23.1", bare, request), "pip")
    pip_mount = stages.files("pip", [pip], "/cpack/pip")
    pip_place = f"/cpack/pip/00/{pip.name}" if pip.url else f"/cpack/pip/{pip.name}"
    context.put(_SCRIPT, files("cpack_build.backends").joinpath(_SCRIPT).read_text("utf-8"))
    context.put("bin/pip", _PIP.replace("{prefix}", COMFYUI_ENV))
    (folder / "bin" / "pip").chmod(0o755)
    place, prefix = f"{COMFYUI}/custom_nodes/{pin.name}", COMFYUI_ENV
    run = [f"/{prefix}/bin/python", "-B", "-S", "-s", f"/cpack/{_SCRIPT}", "start", f"/{place}", f"/{prefix}",
           f"/{COMFYUI}", str(seconds), pip_place, json.dumps(settings)]  # fmt: skip
    compare = [lock.interpreter.path, "-B", "-S", "-s", f"/cpack/{_SCRIPT}", "compare", "/cpack/before", "/cpack/after",
               place, f"{COMFYUI}/models", prefix, "/cpack-out"]  # fmt: skip
    first, *rest = stages.final
    roots = "--mount=type=bind,from=ready,target=/cpack/before --mount=type=bind,from=installed,target=/cpack/after"
    bin_mount = "--mount=type=bind,source=bin,target=/cpack/bin"
    lines = [
        *HEAD, *stages.stages, f"{first} AS ready", *rest, "",
        "FROM ready AS installed", "USER 0",
        f"RUN --network={network} {_MOUNT} {bin_mount} {pip_mount} {json.dumps(run)}", "",
        "FROM tools AS compared", f"RUN --network=none {_MOUNT} {roots} {json.dumps(compare)}", "",
        "FROM scratch", "COPY --from=compared /cpack-out/ /",
    ]  # fmt: skip
    return context, text_of(lines)


def _index(index_url: str | None, extra_index_urls: Sequence[str], request: Request) -> dict[str, str]:
    """pip's settings for the user's indexes, as far as they hold no credentials and are asked by http(s)."""
    mirrors = request.sources.mirrors
    further = [place for url in extra_index_urls if (place := clean_url(mirrors.apply(url))) is not None]
    index = clean_url(mirrors.apply(index_url)) if index_url is not None else None
    settings = {"PIP_INDEX_URL": index} if index is not None else {}
    if further:
        settings["PIP_EXTRA_INDEX_URL"] = " ".join(further)
    if plain := [str(urlsplit(url).hostname) for url in (index, *further) if url and url.startswith("http:")]:
        settings["PIP_TRUSTED_HOST"] = " ".join(plain)
    return settings


def _read(left: Path, pin: NodeTree) -> _Changes:
    """The list that came back. Raises :class:`UnsafeInput` where that is no list, or no file."""
    wrong = UnsafeInput(
        f"What the builder says of install.py of {pin.name} is no list of changes.", hint="Do not use this builder."
    )
    path = left / "changes.json"
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _TOLD_LIMIT:
            raise wrong
        return _Changes.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise wrong from error


def _require_own(changes: _Changes, pin: NodeTree) -> None:
    """See that the script changed nothing but its node, the models and packages. Raises :class:`UnsafeInput`."""
    others = [f"{one.path} (no file)" for one in (*changes.tree, *changes.models) if one.kind == "other"]
    found = [*changes.elsewhere, *others, *(f"removed the package {name}" for name in changes.removed)]
    if found:
        more = [f"and {changes.further} more"] if changes.further else []
        raise UnsafeInput(
            f"install.py of {pin.name} changed what no lock can pin:"
            + "".join(f"\n- {one}" for one in [*found, *more]),
            hint="Leave it out of nodes.install. System packages belong into system.packages of cpack.yaml, packages "
            "to leave out into python.exclude.",
        )


def _file(one: _Left, left: Path, pin: NodeTree) -> LeftFile:
    if one.kind == "link":
        return LeftFile(one.path, None, target=one.target)
    content = left / "files" / str(one.file)
    try:
        is_file = stat.S_ISREG(content.lstat().st_mode)
    except OSError:
        is_file = False
    if not is_file or stat.S_ISLNK((left / "files").lstat().st_mode):
        raise UnsafeInput(f"The builder gives no file for {one.path!r} of {pin.name}.", hint="Do not use this builder.")
    return LeftFile(one.path, content, is_executable=one.executable)


def _requirement(package: _Package, pin: NodeTree) -> str:
    """*package* as the resolver finds it again: by version, or where it was from."""
    name = package.name
    try:
        Version(package.version)
        direct = json.loads(package.direct) if package.direct else None
    except (InvalidVersion, ValueError, RecursionError) as error:
        raise _unpinned(package, pin, "its own notes cannot be read") from error
    if not is_name(name):
        raise _unpinned(package, pin, "its name is none")
    if not isinstance(direct, dict):
        return f"{canonicalize_name(name)}=={package.version}"
    url, vcs = str(direct.get("url", "")), direct.get("vcs_info")
    if clean_url(url) is None:
        raise _unpinned(package, pin, "it was installed from a folder or a private address")
    below = direct.get("subdirectory")
    if isinstance(below, str) and re.search(r"[\s#&]", below):
        raise _unpinned(package, pin, f"its folder {below!r:.80} is no part of an address")
    fragment = f"#subdirectory={below}" if isinstance(below, str) else ""
    if isinstance(vcs, dict) and vcs.get("vcs") == "git":
        commit = str(vcs.get("commit_id"))
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit) is None:
            raise _unpinned(package, pin, f"{commit!r:.80} is no commit")
        return f"{canonicalize_name(name)} @ git+{clean_url(url)}@{commit}{fragment}"
    return f"{canonicalize_name(name)} @ {clean_url(url)}{fragment}"


def _unpinned(package: _Package, pin: NodeTree, why: str) -> Unresolvable:
    return Unresolvable(
        f"install.py of {pin.name} installs {package.name!r} {package.version!r}, which cannot be pinned: {why}.",
        hint="Leave it out of nodes.install, and name the package in python.packages of cpack.yaml.",
    )
