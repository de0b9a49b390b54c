"""What an image consists of, as its lock pins it: one list, of which SBOMs and provenance are two ways of writing.

Nothing is guessed: a part has the hash that the lock has, an address where the lock has one, and a licence only where
the part itself tells it. The list is a function of the lock (and, for licences, of the wheels that it pins)."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from email.parser import BytesParser
from typing import Literal
from urllib.parse import quote, urlsplit

from packageurl import PackageURL

from cpack_build.errors import BadInput, Unresolvable
from cpack_build.fetch.store import Store
from cpack_build.fetch.urls import without_credentials
from cpack_build.lock.schema import (
    ArchiveInterpreter,
    BaseImage,
    Deb,
    DebInterpreter,
    GitTree,
    Lock,
    NodeTree,
    PythonEnvironment,
    RegistryNode,
)
from cpack_build.lock.wheels import wheels_of

__all__ = ["Part", "parts_of", "with_licences"]

Kind = Literal["base", "package", "interpreter", "wheel", "source", "model", "program"]
_METADATA_LIMIT = 4 << 20
_HUGGING_FACE = re.compile(r"https://huggingface\.co/([^/]+/[^/]+)/resolve/([^/?#]+)/")
_GITHUB = re.compile(r"https://github\.com/([^/]+)/([^/]+?)(?:\.git)?/?")


@dataclass(frozen=True)
class Part:
    """One thing that an image is made of. *sha256* is of the file that *url* gives; a git tree has a *commit* instead,
    and a local one only the hash of its content among *facts*."""

    kind: Kind
    name: str
    version: str
    purl: str
    sha256: str | None = None
    commit: str | None = None
    size: int | None = None
    url: str | None = None
    licence: str | None = None
    """As the part itself says it: an SPDX expression where :attr:`is_expression`."""
    is_expression: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further ones by name, for ``properties``."""

    @property
    def ref(self) -> str:
        """A name that no other part of the image has."""
        tail = self.sha256 or self.commit or self.facts.get("tree-sha256", "")
        return f"{self.kind}:{self.facts.get('place', self.name)}@{tail or self.version}"


def parts_of(lock: Lock) -> tuple[Part, ...]:
    """Everything that *lock* pins, sorted. Raises what :func:`~cpack_build.lock.wheels.wheels_of` does."""
    found = [*_below(lock), *_wheels(lock.service, "service"), *_wheels(lock.python, "workflow"), *_above(lock)]
    return tuple(sorted({part.ref: part for part in found}.values(), key=lambda part: part.ref))


def _below(lock: Lock) -> Iterator[Part]:
    if isinstance(lock.base, BaseImage):
        own = lock.base
        name = own.reference.rpartition("/")[2].partition(":")[0]
        place = {"repository_url": own.reference} if own.reference != "layout" else None
        purl = PackageURL("oci", None, name, own.digest, place)
        yield Part("base", own.reference, own.digest, purl.to_string(), sha256=own.digest.removeprefix("sha256:"))
    for deb in lock.system:
        yield _deb(deb)
    interpreter = lock.interpreter
    if isinstance(interpreter, DebInterpreter):
        yield from map(_deb, interpreter.packages)
    elif isinstance(interpreter, ArchiveInterpreter):
        address = without_credentials(interpreter.url)
        purl = PackageURL("generic", None, "python", interpreter.version, {"download_url": address})
        yield Part("interpreter", "python", interpreter.version, purl.to_string(), interpreter.sha256,
                   size=interpreter.size, url=address)  # fmt: skip


def _deb(deb: Deb) -> Part:
    vendor = "ubuntu" if "/ubuntu" in urlsplit(deb.url).path else "debian"
    purl = PackageURL("deb", vendor, deb.name, deb.version, {"arch": deb.architecture})
    facts = {"source": deb.source, "place": f"{deb.name}:{deb.architecture}"}
    address = without_credentials(deb.url)
    return Part("package", deb.name, deb.version, purl.to_string(), deb.sha256, size=deb.size, url=address, facts=facts)


def _wheels(environment: PythonEnvironment, name: str) -> Iterator[Part]:
    built = {wheel.sha256: wheel for wheel in environment.built}
    for wheel in wheels_of(environment):
        purl = PackageURL("pypi", None, wheel.name, wheel.version, {"file_name": wheel.filename})
        facts = {"environment": name, "file": wheel.filename, "place": f"{name}/{wheel.name}"}
        if (made := built.get(wheel.sha256)) is not None:
            facts["built-from"] = made.source.sha256 if made.source.kind == "sdist" else made.source.commit
        yield Part("wheel", wheel.name, wheel.version, purl.to_string(), wheel.sha256, size=wheel.size,
                   url=None if wheel.url is None else without_credentials(wheel.url), facts=facts)  # fmt: skip


def _above(lock: Lock) -> Iterator[Part]:
    for model in lock.models:
        sources = [without_credentials(url) for url in model.sources]
        facts = {"place": model.path, "layer": model.layer_digest}
        name = model.path.rpartition("/")[2]
        hub = next(filter(None, map(_HUGGING_FACE.match, sources)), None)
        if hub is not None:
            purl = f"pkg:huggingface/{hub[1]}@{quote(hub[2], safe='')}"
        else:
            purl = PackageURL("generic", None, name, None, {"checksum": f"sha256:{model.sha256}"}).to_string()
        yield Part("model", name, f"sha256:{model.sha256[:12]}", purl, model.sha256, size=model.size,
                   url=next(iter(sources), None), facts=facts)  # fmt: skip
    yield _tree(lock.comfyui, "comfyui")
    for node in lock.custom_nodes:
        yield _tree(node, f"custom_nodes/{node.name}")
    code = lock.service_code
    purl = PackageURL("pypi", None, "cpack-build", code.version).to_string()
    yield Part("program", "cpack-build", code.version, purl, facts={"tree-sha256": code.tree_sha256})


def _tree(tree: NodeTree, place: str) -> Part:
    facts = {"place": place, "tree-sha256": tree.tree_sha256}
    if tree.installed is not None:
        facts["install-script-sha256"] = tree.installed.script_sha256
    if isinstance(tree, GitTree):
        address = without_credentials(tree.url)
        if tree.patch_sha256 is not None:
            facts["patch-sha256"] = tree.patch_sha256
        if (own := _GITHUB.fullmatch(address)) is not None:
            purl = PackageURL("github", own[1], own[2], tree.commit)
        else:
            purl = PackageURL("generic", None, tree.name, tree.commit, {"vcs_url": f"git+{address}@{tree.commit}"})
        return Part("source", tree.name, tree.commit, purl.to_string(), commit=tree.commit, url=address, facts=facts)
    if isinstance(tree, RegistryNode):
        address = without_credentials(tree.url)
        purl = PackageURL("generic", "comfy", tree.name, tree.version, {"download_url": address})
        return Part("source", tree.name, tree.version, purl.to_string(), tree.sha256, size=tree.size, url=address,
                    facts=facts)  # fmt: skip
    version = f"sha256:{tree.tree_sha256[:12]}"
    return Part("source", tree.name, version, PackageURL("generic", None, tree.name, version).to_string(), facts=facts)


# -- licences ----------------------------------------------------------------------------------------------------------


def with_licences(parts: tuple[Part, ...], store: Store) -> tuple[Part, ...]:
    """The same, each wheel with the licence that its own METADATA tells (PEP 639, else core metadata).

    All of them have to be in *store*: the result depends on nothing else. Raises :class:`Unresolvable`.
    """
    found = {part.ref: store.find(part.sha256 or "") for part in parts if part.kind == "wheel"}
    missing = [part.name for part in parts if part.kind == "wheel" and found[part.ref] is None]
    if missing:
        raise Unresolvable(
            f"{len(missing)} wheels are not here to tell their licences: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}.",
            hint="Bring them with `cpack-build fetch`, or leave --licences out.",
        )
    told = []
    for part in parts:
        file = found.get(part.ref)
        if file is None:
            told.append(part)
            continue
        licence, is_expression = _licence(zipfile.ZipFile(file.path), part)
        told.append(replace(part, licence=licence, is_expression=is_expression))
    return tuple(told)


def _licence(archive: zipfile.ZipFile, part: Part) -> tuple[str | None, bool]:
    with archive:
        names = [info for info in archive.infolist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", info.filename)]
        if len(names) != 1 or names[0].file_size > _METADATA_LIMIT:
            raise BadInput(f"The wheel {part.facts['file']} has no METADATA that can be read.", hint="Lock again.")
        metadata = BytesParser().parsebytes(archive.read(names[0]), headersonly=True)
    if expression := metadata.get("License-Expression"):
        return str(expression).strip(), True
    stated = str(metadata.get("License") or "").strip()
    if stated and stated.upper() != "UNKNOWN" and "\n" not in stated and len(stated) <= 100:
        return stated, False
    classified = [str(line).rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or ()
                  if str(line).startswith("License :: ") and str(line) != "License :: OSI Approved"]  # fmt: skip
    return (" and ".join(sorted(classified)) or None), False
