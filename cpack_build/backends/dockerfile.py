"""The Dockerfile of one lock: no word in it is unpinned, and only fetches need a network.

The order of the layers is that of ``docs/layering.md``. Each comes from a stage of its own and is laid on with
``--link``, so a change rebuilds its own stage and nobody else's. There is no ``# syntax=`` line: the builder's own
frontend reads it, and no registry is asked for one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from packaging.utils import parse_wheel_filename

from cpack_build.backends.bake import SCANNER, scan, statement
from cpack_build.backends.features import Features
from cpack_build.backends.ingredients import Context, Item, LockContext, TreeItem
from cpack_build.errors import UnsafeInput
from cpack_build.image.budget import allot
from cpack_build.image.config import COMFYUI, image_config
from cpack_build.lock.interpreter import is_vouched
from cpack_build.lock.schema import BaseImage, DebInterpreter, LocalTree, Model, PinnedWheels
from cpack_build.lock.wheels import wheels_of
from cpack_build.oci.reference import parse_reference

__all__ = ["BASE_CONTEXT", "HEAD", "ImageStages", "Plan", "Stages", "dockerfile", "pinned_base", "text_of"]

BASE_CONTEXT = "cpack-base"
"""The named context that stands for a base image in a local folder."""
TOKENS = {"huggingface.co": "HF_TOKEN", "civitai.com": "CIVITAI_API_TOKEN"}
"""Host → the secret that goes to it and to nobody else; the variables are those that cpack-build itself reads."""
_TOGETHER = 16
"""Files that one stage fetches: each is a layer, and the paths of all must fit into one mount(2), 4096 bytes."""
_INSIDE = "--mount=type=bind,source=inside.py,target=/cpack/inside.py"


@dataclass(frozen=True)
class Plan:
    """A rendered build."""

    dockerfile: str
    secrets: tuple[str, ...]
    """Names of secrets (environment variables) that it mounts."""


def dockerfile(context: LockContext, features: Features, *, uv: PinnedWheels) -> Plan:
    """The Dockerfile of the lock in *context*, whose folder is filled with what the builder does not fetch itself.

    *uv* is the pinned wheel of the program that installs the others.
    """
    return ImageStages(context, features).written(uv)


class Stages:
    """Collects lines: those of the stages, and those of the image, which come after and copy from them."""

    def __init__(self, context: Context, features: Features, *, compiles: bool = False) -> None:
        self._context = context
        self._foundation = context.foundation
        self._compiles = compiles
        self._features = features
        self._link = " --link" if features.link else ""
        self._run = "RUN --network=none" if features.isolates else "RUN"
        self.stages: list[str] = []
        self.final: list[str] = []

    # -- stages

    def lay_ground(self) -> str:
        """The base with system packages and interpreter: the stage that has them, and the first lines of the image."""
        context, below = self._context, self._foundation
        debs = context.debs()
        mounts = self.files("debs", debs, "/cpack/debs")
        interpreter = context.interpreter()
        if isinstance(below.base, BaseImage):
            base = BASE_CONTEXT if below.base.reference == "layout" else pinned_base(below.base)
            lines = [f"FROM {base} AS ground"]
            if debs:
                lines.append(f"{self._run} {mounts} {_INSTALL}")
            lines.append(f"{self._run} {_ACCOUNT}")
            if interpreter is not None:
                lines.append(f"ADD{self._link} {interpreter} /")
            elif self._compiles and isinstance(below.interpreter, DebInterpreter):
                # what its own scripts compile counts on times, which rewrite-timestamp changes
                lines.append(self._compiled_interpreter())
            self.stages += [*lines, ""]
            self.final.append("FROM ground")
            return "ground"
        self.stages += [
            "FROM scratch AS unpacked",
            f"ADD {context.unpackers()} /",
            f"ADD {context.ground()} /cpack/root/",
            f"{self._run} {mounts} {_UNPACK}",
        ]
        self.stages += ["", "FROM scratch AS ground", "COPY --from=unpacked /cpack/root/ /"]
        if interpreter is not None:
            self.stages.append(f"ADD {interpreter} /")
        elif self._compiles:
            self.stages.append(self._compiled_interpreter())
        self.stages.append("")
        self.final += ["FROM scratch", f"COPY{self._link} --from=ground / /"]
        return "ground"

    def _compiled_interpreter(self) -> str:
        python = self._foundation.interpreter
        folders = ("/usr/lib/python3", f"/usr/lib/python{python.version}")
        return self.python(python.path, "compile", *folders)

    def lay_tools(self, ground: str, uv: PinnedWheels) -> None:
        """A stage with the image's Python and uv, in which the others work."""
        (item,) = self._context.wheels(uv, "uv")
        mounts = self.files("uv", [item], "/cpack/uv")
        place = f"/cpack/uv/00/{item.name}" if item.url else f"/cpack/uv/{item.name}"
        python = self._foundation.interpreter.path
        self.stages += [
            f"FROM {ground} AS tools",
            self.python(python, "uv", place, "/cpack-uv", mounts=mounts),
            "",
        ]

    def lay_wheels(self, stage: str, items: Sequence[Item], prefix: str, skeleton: str, *, extra: str = "") -> None:
        """A stage with *items* installed below *prefix*, and the line that lays it on the image."""
        mounts = self.files(stage, items, "/cpack/wheels")
        requirements = self._context.put(f"{stage}.txt", _requirements(items))
        lines = [f"FROM tools AS {stage}", f"ADD {skeleton} /"]
        if items:
            numbers = range(-(-len(items) // _TOGETHER)) if any(item.url for item in items) else ()
            places = [f"--find-links=/cpack/wheels/{number:02}" for number in numbers]
            if any(item.url is None for item in items):
                places.append("--find-links=/cpack/wheels" + ("/local" if numbers else ""))
            lines.append(
                f"{self._run} --mount=type=bind,source={requirements},target=/cpack/requirements.txt {mounts} "
                "--mount=type=cache,target=/cpack/cache "
                "/cpack-uv pip sync --quiet --no-config --offline --no-index --no-build --require-hashes --no-progress "
                "--link-mode=copy --cache-dir=/cpack/cache "
                f"--python=/{prefix}/bin/python {' '.join(places)} /cpack/requirements.txt"
            )
            lines.append(self.python(f"/{prefix}/bin/python", "settle", f"/{prefix}"))
        if extra:
            lines.append(f"ADD {extra} /")
        if self._compiles:
            lines.append(self.python(f"/{prefix}/bin/python", "compile", f"/{prefix}"))
        self.stages += [*lines, ""]
        self.final.append(f"COPY{self._link} --from={stage} /{prefix} /{prefix}")

    def python(
        self, python: str, *arguments: str, mounts: str = "", run: str | None = None, sites: bool = False
    ) -> str:
        """A step of ``inside.py`` by the Python at that path in the image, which leaves no bytecode of its own.

        It sees its installed packages only with *sites*.
        """
        words = json.dumps([python, "-B", *(() if sites else ("-S",)), "-s", "/cpack/inside.py", *arguments])
        return " ".join(filter(None, (run or self._run, _INSIDE, mounts, words)))

    def files(self, stage: str, items: Sequence[Item], place: str) -> str:
        """Stages that fetch *items*, and the mounts that show them below *place*."""
        remote = [item for item in items if item.url is not None]
        mounts = []
        for number, start in enumerate(range(0, len(remote), _TOGETHER)):
            name = f"{stage}-files-{number}"
            self.stages.append(f"FROM scratch AS {name}")
            for item in remote[start : start + _TOGETHER]:
                assert item.url is not None
                self.stages.append(f"ADD --checksum=sha256:{item.sha256} {_plain(item.url)} /{item.name}")
            self.stages.append("")
            mounts.append(f"--mount=type=bind,from={name},target={place}/{number:02}")
        if len(remote) < len(items):
            folder = next(item.path for item in items if item.url is None).partition("/")[0]
            target = f"{place}/local" if remote else place
            mounts.append(f"--mount=type=bind,source={folder},target={target}")
        return " ".join(mounts)


class ImageStages(Stages):
    """The stages of an image, and the image."""

    def __init__(self, context: LockContext, features: Features) -> None:
        super().__init__(context, features, compiles=context.lock.bytecode == "compiled")
        self._contents = context
        self._lock = context.lock
        self._secrets: set[str] = set()

    def written(self, uv: PinnedWheels) -> Plan:
        """The Dockerfile of the image."""
        self.lay_image(uv)
        return Plan(text_of([*HEAD, *self.stages, *self.final]), tuple(sorted(self._secrets)))

    def lay_image(self, uv: PinnedWheels) -> None:
        """All stages, and the lines of the image."""
        lock, context = self._lock, self._contents
        python = lock.interpreter.path
        ground = self.lay_ground()
        service, comfyui = context.environments()
        self.lay_tools(ground, uv)

        items = context.wheels(lock.service, "service-wheels")
        code = context.service_code(service)
        self.lay_wheels("service", items, service.prefix, context.environment(service), extra=code)
        own = allot(
            {wheel.sha256: wheel.size or 0 for wheel in wheels_of(lock.python)},
            {model.sha256: model.size for model in lock.models},
            nodes=len(lock.custom_nodes),
        )
        skeleton = context.environment(comfyui)
        heavy = [wheel for wheel in wheels_of(lock.python) if wheel.sha256 in own.wheels]
        light = [wheel for wheel in wheels_of(lock.python) if wheel.sha256 not in own.wheels]
        by_hash = {item.sha256: item for item in context.wheels(lock.python, "wheels")}
        for number, wheel in enumerate(heavy):
            self.lay_wheels(f"wheel-{number}", [by_hash[wheel.sha256]], comfyui.prefix, skeleton)
        for model in sorted({model.sha256: model for model in lock.models}.values(), key=lambda model: model.sha256):
            self._model(model)
        self.lay_wheels("wheels", [by_hash[wheel.sha256] for wheel in light], comfyui.prefix, skeleton)
        self._tree("comfyui", context.tree(lock.comfyui, f"/{COMFYUI}", number=0), f"/{COMFYUI}", python)
        for number, pin in enumerate(lock.custom_nodes, 1):
            folder = f"/{COMFYUI}/custom_nodes"
            place = folder if isinstance(pin, LocalTree) and pin.kind == "file" else f"{folder}/{pin.name}"
            self._tree(f"node-{number}", context.tree(pin, place, number=number), folder, python)
        self.final.append(f"ADD{self._link} {context.app()} /")
        self.final += self._config()
        if context.stays:
            self._scanner(ground)

    @property
    def _has_our_python(self) -> bool:
        """Whether this machine resolved the Python that steps run, or its user trusts who did; one of a base that may
        be the pack's own is nobody's whom the user named."""
        lock, request = self._lock, self._contents.request
        return is_vouched(lock, store=request.store) or (request.trust and lock.base.kind == "scratch")

    def _model(self, model: Model) -> None:
        hosts = None
        if is_guarded(model):  # a program of others would get the token, and a network
            hosts = TOKENS if self._has_our_python else ()
        item = self._contents.model(model, hosts=hosts)
        place = f"/models/sha256/{model.sha256}"
        if item.url is None:
            self.final.append(f"COPY{self._link} --chmod=0444 {item.path} {place}")
        elif hosts:
            stage, token = f"model-{model.sha256[:12]}", TOKENS[str(urlsplit(item.url).hostname)]
            words = (self._lock.interpreter.path, "fetch", item.url, model.sha256, place, f"/run/secrets/{token}")
            secret = f"--mount=type=secret,id={token},required=true"
            self.stages += [f"FROM tools AS {stage}", self.python(*words, mounts=secret, run="RUN"), ""]
            self.final.append(f"COPY{self._link} --from={stage} {place} {place}")
            self._secrets.add(token)
        else:
            self.final.append(
                f"ADD{self._link} --checksum=sha256:{model.sha256} --chmod=0444 {_plain(item.url)} {place}"
            )

    def _tree(self, stage: str, item: TreeItem, copied: str, python: str) -> None:
        """A stage with one git tree at its place, proved by its content hash, and the line that lays it on."""
        source = f"ADD [{_added(item.url)}, {_added(item.place + '/')}]" if item.url else f"ADD {item.path} /"
        lines = [f"FROM tools AS {stage}", source]
        if item.url:
            lines.append(self.python(python, "tree", item.place, item.tree_sha256))
        if self._compiles:
            lines.append(self.python(python, "compile", item.place))
        self.stages += [*lines, ""]
        self.final.append(f"COPY{self._link} --from={stage} {copied}/ {copied}/")

    def _scanner(self, ground: str) -> None:
        """A stage that BuildKit takes as the scanner of this image: it knows the answer from the lock."""
        self._context.put("sbom.spdx.json", statement(self._lock))
        command = f"CMD {json.dumps(['/bin/sh', '-c', scan(self._lock)])}"
        self.stages += [f"FROM {ground} AS {SCANNER}", "COPY sbom.spdx.json /", command, ""]

    # -- what the image says of itself

    def _config(self) -> Iterable[str]:
        lock = self._lock
        base = {"config": {"Env": ["PATH=${PATH}"]}} if isinstance(lock.base, BaseImage) else None
        config = json.loads(image_config(lock, history=(), diff_ids=(), base=base).data)["config"]
        for variable in config["Env"]:
            key, _, value = variable.partition("=")
            extends = key == "PATH" and base is not None and key not in lock.environment
            yield f"ENV {key}={_quoted(value, expands=extends)}"
        for key, value in sorted(config["Labels"].items()):
            yield f"LABEL {key}={_quoted(value)}"
        for port in config["ExposedPorts"]:
            yield f"EXPOSE {port}"
        for volume in config["Volumes"]:
            yield f"VOLUME {json.dumps([volume])}"
        yield f"WORKDIR {config['WorkingDir']}"
        yield f"USER {config['User']}"
        yield f"STOPSIGNAL {config['StopSignal']}"
        yield f"ENTRYPOINT {json.dumps(config['Entrypoint'])}"


HEAD = [
    "# Made by cpack-build from a lock; change that, and make this again.",
    "ARG SOURCE_DATE_EPOCH",
    "",
]
_UNPACK = (
    'set -e; for deb in /cpack/debs/*.deb /cpack/debs/*/*.deb; do [ -f "$deb" ] || continue; '
    'dpkg-deb --fsys-tarfile "$deb" > /cpack/data.tar; '
    "tar -x --keep-directory-symlink --same-permissions --no-same-owner -f /cpack/data.tar -C /cpack/root; done; "
    "chmod -R ug-s /cpack/root; rm /cpack/data.tar"
)
"""Packages unpacked, none of their scripts run, set-id bits dropped: as :mod:`cpack_build.image.debs` does it."""
_INSTALL = (
    "set -e; export DEBIAN_FRONTEND=noninteractive; "
    'set -- ; for deb in /cpack/debs/*.deb /cpack/debs/*/*.deb; do [ -f "$deb" ] && set -- "$@" "$deb"; done; '
    'dpkg --install --force-confold "$@"; '
    "rm -f /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache"
)
_ACCOUNT = (
    'case "$(cat /etc/passwd)" in *:x:1000:*) ;; '
    "*) echo 'cpack:x:1000:1000:cpack-build service:/data:/usr/sbin/nologin' >> /etc/passwd ;; esac; "
    "case \"$(cat /etc/group)\" in *:x:1000:*) ;; *) echo 'cpack:x:1000:' >> /etc/group ;; esac"
)
"""As :func:`cpack_build.image.debs.account_lines`, with nothing but a shell and ``cat``."""


def text_of(lines: Iterable[str]) -> str:
    """The Dockerfile with these *lines*. Raises :class:`UnsafeInput` where a name in one would begin another."""
    lines = list(lines)
    for line in lines:
        if "\n" in line or "\r" in line:
            raise UnsafeInput(
                f"A name or value in the lock has a line end, which would be an instruction of its own: {line!r}",
                hint="Do not use this lock; make it anew with `cpack-build lock`.",
            )
    return "\n".join(lines) + "\n"


def is_guarded(model: Model) -> bool:
    """Whether its sources want a token, as far as they said."""
    return model.access in ("gated", "private")


def pinned_base(base: BaseImage) -> str:
    """The base as ``FROM`` names it: by its digest."""
    return f"{parse_reference(base.reference).name}@{base.digest}"


def _requirements(items: Sequence[Item]) -> str:
    """A hash-checked ``requirements.txt`` of exactly these wheels (pip, "Hash-checking mode")."""
    lines = []
    for item in sorted(items, key=lambda item: item.name):
        name, version, _, _ = parse_wheel_filename(item.name)
        lines.append(f"{name}=={version} --hash=sha256:{item.sha256}\n")
    return "".join(lines)


def _added(text: str) -> str:
    """*text* as a JSON string of an ``ADD``, in which BuildKit does expand variables and reads quotes."""
    return json.dumps(re.sub(r"""([\\$'"])""", r"\\\1", text))


def _plain(url: str) -> str:
    """A URL that :func:`.ingredients.clean_url` made, as a word of an instruction."""
    return url.replace("$", "%24").replace("'", "%27")


def _quoted(text: str, *, expands: bool = False) -> str:
    """*text* in double quotes, as ``ENV`` and ``LABEL`` read them; with *expands* ``${PATH}`` stays a variable."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    if not expands:
        escaped = escaped.replace("$", "\\$")
    return f'"{escaped}"'
